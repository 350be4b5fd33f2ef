"""The command line: every bad input gets one sentence, exit code 2, and leaves nothing behind."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import yaml
from cells import NBS, ROOT
from toys import (
    FRAMES,
    environment,
    face_points,
    is_one_sentence,
    noisy_clip,
    saved_targets,
    talk3d,
    truncated,
)
from toys import without as copy_without

from talk3d.assets import OFFICIAL, asset_place
from talk3d.cli import main
from talk3d.core import read_json
from talk3d.media import write_clip
from talk3d.reproduce import PRINTED, Run, run_folders, write_plan

BAR = re.compile(r"^\w[\w -]*: +\d+(it|%).*\[.*\]$")  # what `progress` draws
FIGURE = NBS / "figures" / "figA1_pose_distribution.ipynb"


def call(capfd, monkeypatch, *words: object) -> tuple[int, str, str]:
    """Exit code, output and complaints of the entry point, called in this process."""
    monkeypatch.setattr(sys, "argv", ["talk3d", *map(str, words)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), *capfd.readouterr()


def sentence(complaints: str) -> str:
    """The one sentence of a refusal; beside it only progress bars are drawn."""
    lines = [line for line in re.split(r"[\r\n]+", complaints) if line.strip()]
    assert lines and lines[-1].startswith("talk3d: "), complaints
    assert [line for line in lines[:-1] if not BAR.match(line.strip())] == [], complaints
    return lines[-1].removeprefix("talk3d: ")


@pytest.fixture
def refused(capfd, monkeypatch, tmp_path):
    """A function that runs a command, wants it refused, and returns the sentence."""

    def run(*words: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        code, _, complaints = call(capfd, monkeypatch, *words)
        told = sentence(complaints)
        assert code == 2 and is_one_sentence(told), complaints
        assert sorted(tmp_path.rglob("*")) == before, "something was left behind"
        return told

    return run


def damaged_videos(folder: Path, good: Path) -> dict[str, tuple[Path, str]]:
    """Videos that cannot be used, each with what its refusal says."""
    (folder / "text.mp4").write_text("not a video\n" * 99)
    (folder / "cut.mp4").write_bytes(truncated((good / "clip.mp4").read_bytes()))
    copy_without(good / "clip.mp4", "audio", folder / "mute.mp4")
    write_clip(folder / "fast.mp4", noisy_clip(fps=30.0), crf=28)
    write_clip(folder / "brief.mp4", noisy_clip(frames=40), crf=28)
    return {
        "absent": (folder / "absent.mp4", "check the path"),
        "text": (folder / "text.mp4", "is not a video"),
        "a folder": (folder, "check the path"),
        "cut": (folder / "cut.mp4", "its end is missing; give a whole"),
        "mute": (folder / "mute.mp4", "no audio track; give a file with sound"),
        "30 fps": (folder / "fast.mp4", "is 30 fps; talk3d works at 25: run again with --resample"),
        "1.6 s": (folder / "brief.mp4", "lasts 1.60 s; give a clip of at least 2 s"),
    }


def damaged_landmarks(folder: Path, good: Path) -> dict[str, tuple[Path, str]]:
    """Landmarks that cannot be used, each with what its refusal says."""
    hole = face_points()
    hole[9, 5, 0] = np.nan
    np.savez(folder / "short.npz", landmarks68=face_points(FRAMES - 1))
    np.savez(folder / "hole.npz", landmarks68=hole)
    np.savez(folder / "unnamed.npz", points=face_points())
    (folder / "cut.npz").write_bytes(truncated((good / "clip.npz").read_bytes()))
    return {
        "absent": (folder / "absent.npz", "check the path"),
        "another length": (folder / "short.npz", "of 59 frames, the video has 60; detect"),
        "NaN": (folder / "hole.npz", "has NaN in 1 frames, the first is 9; fill the gaps"),
        "no key": (folder / "unnamed.npz", "no array landmarks68; save the points by that name"),
        "cut": (folder / "cut.npz", "is not a readable npz file"),
    }


def test_good_input_is_preprocessed_once(good, tmp_path, capfd, monkeypatch):
    words = ["preprocess", good / "clip.mp4", tmp_path / "p", "--landmarks", good / "clip.npz"]
    assert call(capfd, monkeypatch, *words)[:2] == (0, f"{tmp_path}/p/preprocess: done\n")
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["preprocess"]
    assert read_json(tmp_path / "p" / "preprocess" / "track.json")["frames"] == FRAMES
    assert call(capfd, monkeypatch, *words)[:2] == (0, f"{tmp_path}/p/preprocess: up to date\n")


def test_bad_videos_are_refused(good, tmp_path, refused):
    (tmp_path / "in").mkdir()
    marks = ["--landmarks", good / "clip.npz"]
    for what, (video, says) in damaged_videos(tmp_path / "in", good).items():
        told = refused("preprocess", video, tmp_path / "new" / "p", *marks)
        assert says in told and video.name in told, f"{what}: {told}"
    assert not (tmp_path / "new").exists()


def test_resample_is_the_remedy_it_is_said_to_be(good, tmp_path, capfd, monkeypatch):
    write_clip(tmp_path / "fast.mp4", noisy_clip(frames=75, fps=30.0), crf=28)
    np.savez(tmp_path / "marks.npz", landmarks68=face_points(63))
    words = ["preprocess", tmp_path / "fast.mp4", tmp_path / "p"]
    words += ["--landmarks", tmp_path / "marks.npz", "--resample"]
    assert call(capfd, monkeypatch, *words)[0] == 0
    assert read_json(tmp_path / "p" / "preprocess" / "track.json")["frames"] == 63


def test_bad_landmarks_are_refused(good, tmp_path, refused):
    (tmp_path / "in").mkdir()
    for what, (marks, says) in damaged_landmarks(tmp_path / "in", good).items():
        told = refused("preprocess", good / "clip.mp4", tmp_path / "p", "--landmarks", marks)
        assert says in told and marks.name in told, f"{what}: {told}"
    assert not (tmp_path / "p").exists()


def test_unwritable_folders_are_refused(good, tmp_path, refused):
    """Permission bits do not bind root, so: below a file, and where no folder can be made."""
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "p", Path("/proc/talk3d")):
        words = ["preprocess", good / "clip.mp4", folder, "--landmarks", good / "clip.npz"]
        assert "choose another folder" in refused(*words)
        assert "choose another folder" in refused("assets", "world", folder)
    assert "choose another folder" in refused("assets", "frame", "/proc/talk3d.png", "--size", 16)
    refused("reproduce", "figA1", "--work", tmp_path / "file" / "work")


FULL_DISK = """
import resource, signal, sys
from talk3d.assets import OFFICIAL, asset_place
from talk3d.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
main()
"""


@pytest.mark.parametrize("room", [0, 4096, 80_000, 400_000])
def test_a_full_disk_is_heard_of(good, tmp_path, room):
    """A limit on the size of files stands in for a full disk: both fail in `write`."""
    words = ["preprocess", good / "clip.mp4", tmp_path / "p", "--landmarks", good / "clip.npz"]
    command = [sys.executable, "-c", FULL_DISK, str(room), *map(str, words)]
    result = subprocess.run(command, env=environment(1), text=True, capture_output=True)
    told = sentence(result.stderr)
    assert result.returncode == 2 and is_one_sentence(told), result.stderr
    assert "cannot write" in told and "choose another folder" in told
    assert list(tmp_path.rglob("*")) == []


def test_wishes_that_cannot_be_met_are_refused(good, tmp_path, refused):
    work = ["--work", tmp_path / "work"]
    cases = {
        ("figZ9",): "no target 'figZ9'; there are: figA1, figC2, tabC1",
        ("figA1", "--profile", "huge"): "no profile 'huge'; use smoke, demo or paper",
        ("figA1", "--profile", "paper"): "the 3D prior of faces",
        ("figA1", "-p", "colour=red"): "has no parameter 'colour'; it has: profile",
        ("figA1", "-p", "seed=many"): "parameter seed is a number (int), not 'many'; give one",
        ("figA1", "--clip", good / "clip.mp4"): "--clip and --landmarks belong together; give both",
        ("figA1", "--landmarks", good / "clip.npz"): "--clip and --landmarks belong together",
        ("figA1", "--poses", tmp_path / "no.json"): "no.json",
        ("figA1", "--clip", tmp_path / "no.mp4", "--landmarks", good / "clip.npz"): "no.mp4",
    }
    for words, says in cases.items():
        told = refused("reproduce", *words, *work)
        assert says in told, f"{words}: {told}"
    assert "NAME=VALUE" in refused("reproduce", "figA1", "-p", "colour", *work)
    assert not (tmp_path / "work").exists()


def test_a_dry_run_plans_what_cannot_run_yet(good, tmp_path):
    """The paper's profile for a clip, without one official file: a plan, and nothing written."""
    words = ["--profile", "paper", "--clip", good / "clip.mp4", "--landmarks", good / "clip.npz"]
    nowhere = {"TALK3D_ASSETS": str(tmp_path / "files"), "TORCH_HOME": str(tmp_path / "torch")}
    command = [
        sys.executable,
        "-m",
        "talk3d.cli",
        "reproduce",
        "--dry-run",
        "secB",
        "secH",
        "audit",
    ]
    result = subprocess.run(
        [*command, *map(str, words), "--work", str(tmp_path / "work")],
        cwd=ROOT, env=environment(1) | nowhere, text=True, capture_output=True,
    )  # fmt: skip
    assert result.returncode == 0 and result.stderr == "", result.stderr
    planned = dict(re.findall(r"^ +\d+  (\w+) +(.+)$", result.stdout, re.M))
    assert list(planned)[-1] in ("secB", "secH") and set(planned.values()) == {"not made yet"}
    assert set(planned) == {
        *("clip", "preprocess", "personalize", "train", "control", "restorer"),
        *("secB", "secH", "audit"),
    }
    assert result.stdout.startswith("9 steps would run, profile paper, in ")
    for file in ("ffhq-fixed-triplane512-128.pkl", "lipsync_expert.pth", "GFPGANv1.3.pth"):
        assert f"{file}: " in result.stdout
    assert result.stdout.splitlines()[-1].startswith("talk3d doctor --profile paper")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_why(tmp_path, capfd, monkeypatch):
    """A run finished by hand: first nothing to do, then one record is older than its key."""
    run = Run(targets=("audit", "tabD2"), work=str(tmp_path))
    folder, figures = run_folders(run, ROOT)
    write_plan(run, ROOT)
    figures.mkdir(parents=True)
    for name in run.targets:
        (figures / f"{name}.json").write_text("{}")
    words = ["reproduce", *run.targets, "--work", tmp_path, "--dry-run"]
    code, told, _ = call(capfd, monkeypatch, *words)
    assert (code, told.splitlines()[0]) == (0, f"nothing to do, profile smoke, in {folder}")
    os.utime(figures / "audit.json", (1e9, 1e9))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    told = call(capfd, monkeypatch, *words)[1].splitlines()
    assert told[1].split(maxsplit=2)[1:] == ["audit", "its code, config or input changed"]
    assert told[2:] == ["up to date: tabD2"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_the_slurm_profile_names_rules_of_the_workflow(tmp_path):
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.v8+.yaml").read_text())
    rules = set(re.findall(r"^ *rule (\w+):", (ROOT / "Snakefile").read_text(), re.M))
    learning = {"personalize", "train", "control", "restorer", "evaluate"}
    assert profile["executor"] == "slurm" and learning <= rules
    assert set(profile["set-resources"]) == set(profile["set-threads"]) == learning


def test_doctor_lists_what_a_profile_lacks(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("TALK3D_ASSETS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    code, told, _ = call(capfd, monkeypatch, "doctor", "--profile", "paper")
    for asset in OFFICIAL:
        assert f"missing: {Path(asset.file).name}\n" in told
        assert asset.purpose in told and asset.licence in told and str(asset_place(asset)) in told
    assert code == 0 and call(capfd, monkeypatch, "doctor", "--profile", "huge")[0] == 2


def test_an_earlier_stage_that_is_missing_is_named(tmp_path, refused):
    folder = tmp_path / "p"
    assert "run first: talk3d preprocess" in refused("personalize", folder)
    assert "run first: talk3d preprocess" in refused("train", folder)
    assert "run first: talk3d preprocess" in refused("train", folder, "--no-prior")
    assert "leave --no-prior out" in refused("train", folder, "--no-prior", "--restorer", "mini")
    assert "run first: talk3d preprocess" in refused("evaluate", folder)
    assert "talk3d train" in refused("render", folder, "--out", tmp_path / "out.mp4")
    assert "name the video" in refused("render", folder, "--out", tmp_path / "out.avi")


def test_a_clip_that_cannot_be_used_fails_the_reproduction(good, tmp_path):
    """The sentence of the job is heard through Snakemake, and no figure appears."""
    copy_without(good / "clip.mp4", "audio", tmp_path / "mute.mp4")
    words = ["figA1", "--clip", tmp_path / "mute.mp4", "--landmarks", good / "clip.npz"]
    result = talk3d("reproduce", *words, "--work", tmp_path / "work", threads=1)
    assert result.returncode == 2
    assert "mute.mp4 has no audio track; give a file with sound" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("talk3d: a job failed")
    assert "Traceback" not in result.stderr
    made = [p.name for p in (tmp_path / "work" / "clips" / "mute").iterdir()]
    assert not {"preprocess", ".preprocess.partial"} & set(made), made
    assert not list((tmp_path / "work" / "figures").rglob("figA1.*"))


def test_misused_options_are_refused(capfd, monkeypatch, tmp_path):
    for words in (["dance"], ["preprocess"], ["reproduce", "--cores", "0"], ["render", tmp_path]):
        code, _, complaints = call(capfd, monkeypatch, *words)
        assert code == 2 and "Usage: " in complaints and "Traceback" not in complaints


def test_an_error_of_ours_is_no_success(capfd, monkeypatch):
    monkeypatch.setattr("talk3d.assets.doctor", lambda: 1 / 0)
    code, _, complaints = call(capfd, monkeypatch, "doctor")
    assert code == 2 and "ZeroDivisionError" in complaints


def test_ctrl_c_is_answered(capfd, monkeypatch):
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("talk3d.assets.doctor", stop)
    code, _, complaints = call(capfd, monkeypatch, "doctor")
    assert (code, complaints) == (130, "talk3d: stopped; the same command resumes\n")


def test_doctor_says_what_is_here_and_what_is_not(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "talk3d.cli", "doctor"],
        cwd=ROOT,
        env=environment() | {"TALK3D_ASSETS": str(tmp_path), "TORCH_HOME": str(tmp_path)},
        text=True,
        capture_output=True,
    )
    assert result.returncode == 0 and result.stderr == ""
    rows = {re.split(r"\s{2,}", line)[0]: line for line in result.stdout.splitlines()}
    for name in ("Python", "talk3d", "torch", "torchvision", "devices", "PyAV", "packages"):
        assert " ok " in rows[name], rows[name]
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in rows["Python"]
    assert re.search("healthy|repaired", rows["torchvision"])
    assert "cpu" in rows["devices"]
    assert " ok " in rows["profile smoke"] and "the appendix" in rows["profile smoke"]
    assert " ok " in rows["profile demo"] and "mini bundle" in rows["profile demo"]
    weights = [line for line in rows.values() if str(tmp_path) in line]
    assert len(weights) >= 8 and all("missing" in line and "put it at" in line for line in weights)


def test_help_lists_the_commands():
    result = talk3d("--help")
    assert result.returncode == 0
    commands = ["doctor", "assets", "preprocess", "personalize", "train", "render", "evaluate"]
    for command in [*commands, "reproduce", "report"]:
        assert re.search(rf"\b{command}\b", result.stdout), command


def test_a_report_counts_and_only_strict_minds(tmp_path, capfd, monkeypatch):
    folder = saved_targets(tmp_path / "demo", "holds", "fails", "not-testable", "holds")
    told = "2 of 13 targets: 1 fails · 2 hold · 1 not testable\nfails: figC2/1\n"
    page = folder / "report.html"
    assert call(capfd, monkeypatch, "report", folder)[:2] == (0, f"{told}{page}\n")
    first = page.read_bytes()
    assert call(capfd, monkeypatch, "report", folder, "--strict")[:2] == (1, f"{told}{page}\n")
    assert page.read_bytes() == first and b"<script" not in first and b"Table C.1" in first
    fine = saved_targets(tmp_path / "fine", "holds", "not-testable")
    assert call(capfd, monkeypatch, "report", fine, "--strict")[0] == 0


def test_records_that_cannot_be_shown_are_refused(tmp_path, refused):
    assert "holds no record of a target; make one" in refused("report", tmp_path)
    assert "holds no record" in refused("report", tmp_path / "nowhere")
    folder = saved_targets(tmp_path / "demo", "holds")
    good = (folder / "figC2.json").read_text()
    for says, text in {
        "it says that it is '../x'": good.replace('"target": "figC2"', '"target": "../x"'),
        "'perhaps' is no verdict": good.replace('"holds"', '"perhaps"'),
        "is not readable JSON": truncated(good.encode()).decode(),
    }.items():
        (folder / "figC2.json").write_text(text)
        told = refused("report", folder)
        assert says in told and "figC2.json" in told, told
    (folder / "figC2.json").write_text(good)
    (folder / "figC2.png").write_bytes(truncated((folder / "figC2.png").read_bytes()))
    assert "figC2.png cannot be shown: no whole PNG" in refused("report", folder)


def test_the_published_records_make_a_report(tmp_path, capfd, monkeypatch):
    shutil.copytree(ROOT / "figures" / "demo", tmp_path / "demo")
    (tmp_path / "demo" / "report.html").unlink(missing_ok=True)
    code, told, _ = call(capfd, monkeypatch, "report", tmp_path / "demo")
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert code == 0 and " of 13 targets: " in told and len(page.encode()) <= 6e6
    made = [name for name in PRINTED if (tmp_path / "demo" / f"{name}.json").is_file()]
    assert made and all(f'<section class="target" id="{name}">' in page for name in made)


def test_a_frame_is_drawn_by_command(tmp_path, capfd, monkeypatch):
    path = tmp_path / "frame.png"
    words = ["assets", "frame", path, "--yaw", 15, "--size", 64]
    assert call(capfd, monkeypatch, *words)[:2] == (0, f"{path}\n")
    with av.open(str(path)) as picture:
        (frame,) = picture.decode(video=0)
    assert (frame.width, frame.height) == (128, 64)
    assert frame.to_ndarray(format="rgb24").std() > 10
    assert os.listdir(tmp_path) == ["frame.png"]
