"""The whole path on the embedded world: figures, lips, a video, and the same numbers again."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from cells import NBS, ROOT
from conftest import smoke_command
from safetensors.torch import load_file
from scipy.stats import spearmanr
from toys import TINY, environment, talk3d

from talk3d.core import digest, file_sha256, read_json
from talk3d.media import read_audio, read_clip, read_metadata, write_audio
from talk3d.pipeline import personalize_stage, train_stage
from talk3d.profiles import SMOKE
from talk3d.provenance import upstream
from talk3d.reproduce import available_targets
from talk3d.speech import load_speech

TARGETS = {
    "figA1": "figA1_pose_distribution.ipynb",
    "figC2": "figC2_novel_views.ipynb",
    "figF4": "figF4_triplanes.ipynb",
}
RECORD = {"target", "title", "profile", "seed", "values", "claims", "provenance"}
VALUE = {"name", "unit", "better", "ours", "paper", "where"}
SOURCES = {"figA1": ["preprocess"]}  # the others read both stages
WEIGHTS = {"figC2": "portrait", "figF4": "portrait"}

figures = pytest.mark.parametrize("target", TARGETS)


def figure(smoke: Path, target: str, kind: str) -> Path:
    return smoke / "figures" / "smoke" / f"{target}.{kind}"


@figures
def test_every_target_has_its_files(smoke, target):
    for kind in ("png", "pdf", "data.json", "json"):
        assert figure(smoke, target, kind).stat().st_size > 200, kind
    assert figure(smoke, target, "pdf").read_bytes().startswith(b"%PDF")
    assert read_json(figure(smoke, target, "data.json"))


@figures
def test_the_record_keeps_the_contract(smoke, target):
    record = read_json(figure(smoke, target, "json"))
    assert set(record) - {"label"} == RECORD  # the label is of those that the ledger knows
    assert (record["target"], record["profile"], record["seed"]) == (target, "smoke", 0)
    assert record["title"] and record["values"] and record["claims"] == []  # too small to judge
    for value in record["values"]:
        assert set(value) == VALUE
        assert value["ours"] is None or np.isfinite(value["ours"])  # None: the paper's alone
        assert value["better"] in ("up", "down", None) and value["where"]
    assert any(value["ours"] is not None for value in record["values"])


@pytest.mark.parametrize("target", available_targets(ROOT))
def test_every_target_is_made_and_judges_nothing(smoke, target):
    """All that have a notebook, tables and sections included; smoke is too small for verdicts."""
    record = read_json(figure(smoke, target, "json"))
    assert (record["target"], record["profile"], record["claims"]) == (target, "smoke", [])
    assert record["values"] and all(set(value) == VALUE for value in record["values"])


@figures
def test_the_record_says_where_it_comes_from(smoke, target):
    told = read_json(figure(smoke, target, "json"))["provenance"]
    known = ["git", "cat-file", "-e", f"{told['commit']}^{{commit}}"]
    assert subprocess.run(known, cwd=ROOT).returncode == 0, told["commit"]
    assert isinstance(told["dirty"], bool)
    assert told["config_digest"] == digest(SMOKE)
    stages = SOURCES.get(target, ["preprocess", "train"])
    assert told["inputs"] == {s: upstream(smoke / "embedded" / s, s) for s in stages}
    weights = smoke / "embedded" / "train" / "portrait.safetensors"
    expected = {WEIGHTS[target]: file_sha256(weights)} if target in WEIGHTS else {}
    assert told["weights"] == expected
    assert told["torch"] == torch.__version__ and told["device"] == "cpu"
    assert 0 < told["seconds"] < 600 and 50 < told["peak_memory_mb"] < 4096


@figures
def test_the_picture_is_a_picture_and_stamped(smoke, target):
    picture = matplotlib.image.imread(figure(smoke, target, "png"))[..., :3]
    assert min(picture.shape[:2]) >= 200 and picture.std() > 0.05
    rows = len(picture) - picture.shape[0] // 40
    stamp = picture[rows:, picture.shape[1] // 2 :]
    assert stamp.min() < 0.6 and 0.6 < stamp.mean() < 1.0, "no small print in the lower right"


@figures
def test_the_executed_notebook_is_kept(smoke, target):
    path = smoke / "figures" / "smoke" / "notebooks" / TARGETS[target]
    executed = json.loads(path.read_text(encoding="utf-8"))
    assert executed["metadata"]["papermill"]["exception"] is None
    assert executed["metadata"]["papermill"]["parameters"]["source"] == "embedded world"
    cells = [cell for cell in executed["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells)
    source = "\n".join("".join(cell["source"]) for cell in cells)
    drawn = re.search(r"^stamp\(\s*figure,\s*f\"(.*)\"", source, re.MULTILINE)
    assert drawn and "{source}" in drawn[1] and "{profile}" in drawn[1]
    assert drawn.start() < source.index("save_figure(figure")


def test_depth_agrees_with_truth_in_all_five_views(smoke):
    record = read_json(figure(smoke, "figC2", "json"))
    ours = {value["name"]: value["ours"] for value in record["values"]}
    ranks = {name: value for name, value in ours.items() if name.startswith("rank correlation")}
    assert len(ranks) == 5 and min(ranks.values()) >= 0.5, ranks
    assert ours["share of finite depths"] == 1.0
    assert ours["background behind the face, frontal view"] > 0.1
    data = read_json(figure(smoke, "figC2", "data.json"))
    depth, truth = np.array(data["depth"]), np.array(data["true_depth"])
    assert depth.shape[0] == 5 and np.isfinite(depth).all()
    side = depth.shape[-1]
    blocks = truth.reshape(5, side, truth.shape[-1] // side, side, -1).mean(axis=(2, 4))
    again = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(depth, blocks, strict=True)]
    np.testing.assert_allclose(again, list(ranks.values()), atol=1e-4)


def test_the_lips_follow_the_sound_and_the_control_does_not(smoke):
    scores = read_json(smoke / "embedded" / "evaluate" / "scores.json")
    rows = {(row["what"], row["against"]): row for row in scores["lips"]["rows"]}
    portrait, control = (rows[who, "true opening"] for who in ("portrait", "control"))
    assert portrait["frames"] == control["frames"] >= 150  # 6 s
    assert scores["lips"]["measure_on_true_frames"]["true opening"] >= 0.8
    assert control["correlation"] <= 0.2, control
    assert portrait["correlation"] >= 0.5, portrait
    assert portrait["low"] < portrait["correlation"] < portrait["high"]
    assert portrait["low"] > 0, "its interval excludes chance"


def times(smoke: Path) -> dict[str, int]:
    """When each file was last written, without the notes Snakemake keeps for itself."""
    files = [p for p in smoke.rglob("*") if p.is_file() and ".snakemake" not in p.parts]
    return {str(path.relative_to(smoke)): path.stat().st_mtime_ns for path in files}


def test_the_same_command_again_does_nothing(smoke):
    before = times(smoke)
    result = subprocess.run(smoke_command(smoke), cwd=ROOT, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    shown, summary, page = result.stdout.splitlines()[:-2], *result.stdout.splitlines()[-2:]
    assert [Path(line).stem for line in shown] == [*available_targets(ROOT)]
    assert all(Path(line).is_file() for line in (*shown, page))
    assert f"{len(shown)} of " in summary and page == str(figure(smoke, "report", "html"))
    assert times(smoke) == before
    assert len([name for name in before if name.startswith("embedded/")]) > 20


def test_a_video_is_rendered_with_sound_and_marked(smoke, tmp_path):
    sound = load_speech().audio[32_000:72_000]  # 2.5 s
    write_audio(tmp_path / "words.wav", sound)
    views = {"out": ["--yaw", 15, "--pitch", 10], "other": ["--yaw", -15, "--pitch", 10]}
    clips = {}
    for name, view in views.items():
        words = ["--audio", tmp_path / "words.wav", *view, "--out", tmp_path / f"{name}.mp4"]
        result = talk3d("render", smoke / "embedded", *words)
        assert result.returncode == 0, result.stderr
        clips[name] = read_clip(tmp_path / f"{name}.mp4")
    clip = clips["out"]
    assert len(clip.frames) in (62, 63) and clip.fps == 25.0
    assert clip.frames.shape[1:] == (80, 80, 3) and clip.frames.std() > 20
    heard, said = clip.audio[: len(sound)], read_audio(tmp_path / "words.wav")[0]
    assert np.corrcoef(heard, said[: len(heard)])[0, 1] > 0.9, "the sound is the one given"
    assert np.abs(clip.frames[:1].astype(float) - clips["other"].frames[:1]).mean() > 3
    assert "synthetic" in read_metadata(tmp_path / "out.mp4")["comment"]
    manifest = read_json(tmp_path / "out.mp4.json")
    assert manifest["synthetic"] is True and manifest["frames"] == len(clip.frames)
    assert (manifest["yaw"], manifest["pitch"]) == (15.0, 10.0)
    assert manifest["sha256"] == file_sha256(tmp_path / "out.mp4")


def test_the_same_seed_draws_the_same_figure(smoke, tmp_path):
    facts = smoke / "embedded" / "keys" / "figC2.parameters.json"
    command = [sys.executable, "-m", "papermill", str(NBS / "figures" / TARGETS["figC2"])]
    command += [str(tmp_path / "executed.ipynb"), "-f", str(facts), "-p", "out_dir", str(tmp_path)]
    command += ["-k", "python3", "--no-progress-bar"]
    result = subprocess.run(
        command, cwd=ROOT, env=environment(1), text=True, capture_output=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    one, two = read_json(figure(smoke, "figC2", "json")), read_json(tmp_path / "figC2.json")
    assert one["values"] == two["values"] and one["claims"] == two["claims"]
    for kind in ("data.json", "png", "pdf"):
        drawn = (tmp_path / f"figC2.{kind}").read_bytes()
        assert drawn == figure(smoke, "figC2", kind).read_bytes(), kind


def test_the_same_seed_trains_the_same_portrait(tiny_talk, tmp_path):
    profile = replace(TINY, train=replace(TINY.train, steps=6, save_seconds=60.0))
    weights = {}
    for name, seed in {"one": 0, "two": 0, "other": 1}.items():
        folder = tmp_path / name
        shutil.copytree(tiny_talk / "preprocess", folder / "preprocess")
        personalize_stage(folder, profile, seed, "cpu")
        train_stage(folder, profile, seed, "cpu")
        saved = load_file(folder / "train" / "portrait.safetensors")
        weights[name] = {key: value.numpy().tobytes() for key, value in saved.items()}
    assert weights["one"] == weights["two"]
    same = [key for key, value in weights["one"].items() if value == weights["other"][key]]
    assert weights["one"].keys() == weights["other"].keys() and len(same) < len(weights["one"]) / 2
