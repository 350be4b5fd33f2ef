"""Killed in mid-run, then run again: nothing half-made is taken for finished, nothing is lost."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from cells import ROOT
from safetensors.torch import load_file
from toys import TINY, TINY_CLI, environment, started

from talk3d.checkpoint import load_checkpoint
from talk3d.core import read_json
from talk3d.preprocess import load_track
from talk3d.profiles import SMOKE


def wait_for(condition, what: str, process: subprocess.Popen, seconds: float = 120.0) -> None:
    """Poll until `condition()` is true, while the process lives."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"it ended with {process.returncode} before {what}"
        assert time.monotonic() < end, f"no {what} within {seconds:.0f} s"
        time.sleep(0.01)


def steps(folder: Path) -> int:
    """Lines of the log of a training that is under way."""
    log = folder / ".train.partial" / "log.jsonl"
    return len(log.read_text().splitlines()) if log.is_file() else 0


def trained(folder: Path, largest: int | None = None) -> subprocess.CompletedProcess[str]:
    """`talk3d train` of the tiny profile; no file may grow larger than so many bytes."""

    def limit() -> None:
        if largest is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    command = [sys.executable, "-c", TINY_CLI, "train", str(folder)]
    return subprocess.run(
        command, cwd=ROOT, env=environment(1), text=True, capture_output=True, timeout=300,
        preexec_fn=limit,
    )  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tiny_talk, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "talk"
    shutil.copytree(tiny_talk, folder)
    result = trained(folder)
    assert result.returncode == 0, result.stderr
    return folder / "train"


def assert_same_training(one: Path, two: Path) -> None:
    """The same files, weights bit for bit, and the same losses and scores at every step."""
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
    assert {"portrait.safetensors", "preview.png"} <= {p.name for p in one.iterdir()}
    for path in one.glob("*.safetensors"):
        a, b = load_file(path), load_file(two / path.name)
        assert list(a) == list(b)
        different = [key for key in a if a[key].numpy().tobytes() != b[key].numpy().tobytes()]
        assert different == [], different
    assert (one / "log.jsonl").read_text() == (two / "log.jsonl").read_text()
    assert (one / "preview.png").read_bytes() == (two / "preview.png").read_bytes()
    lines = [json.loads(line) for line in (one / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(TINY.train.steps)]
    assert sum("validation" in line for line in lines) == 7, "six on the way, one at the end"


def test_a_killed_training_resumes_to_the_same_weights(tiny_talk, uninterrupted, tmp_path):
    folder = tmp_path / "talk"
    shutil.copytree(tiny_talk, folder)
    with started(["-c", TINY_CLI], "train", folder, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: steps(folder) >= 20, "step 20", process)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    done = steps(folder)
    assert 20 <= done < TINY.train.steps, "killed in mid-run, after two validations"
    assert not (folder / "train").exists(), "an unfinished stage has no folder"
    result = trained(folder)
    assert result.returncode == 0, result.stderr
    assert f" {done - 1}/" in result.stderr or f" {done}/" in result.stderr, "it did not resume"
    assert_same_training(folder / "train", uninterrupted)
    assert trained(folder).stdout.rstrip().endswith("train: up to date")


def test_ctrl_c_says_that_the_same_command_resumes(tiny_talk, uninterrupted, tmp_path):
    folder = tmp_path / "talk"
    shutil.copytree(tiny_talk, folder)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(["-c", TINY_CLI], "train", folder, **pipes) as process:
        wait_for(lambda: steps(folder) >= 5, "step 5", process)
        process.send_signal(signal.SIGINT)
        told, complained = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command resumes" in complained.splitlines()[-1]
    assert "Traceback" not in complained + told
    assert not (folder / "train").exists()
    assert trained(folder).returncode == 0
    assert_same_training(folder / "train", uninterrupted)


def test_a_full_disk_leaves_the_last_state(tiny_talk, uninterrupted, tmp_path):
    """The limit of a file's size stands for a disk without room: the state does not fit."""
    folder = tmp_path / "talk"
    shutil.copytree(tiny_talk, folder)
    state = folder / ".train.partial" / "state.safetensors"
    with started(["-c", TINY_CLI], "train", folder, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: steps(folder) >= 10, "step 10", process)
        process.kill()
        process.wait()
    before, at = state.read_bytes(), load_checkpoint(state).meta["step"]
    result = trained(folder, largest=100_000)
    told = result.stderr.splitlines()[-1]
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert told.startswith(f"talk3d: cannot write to {state.parent} in step {at + 1}: File too")
    assert told.endswith(f"make room and run again, which goes on from step {at}")
    assert state.read_bytes() == before
    assert sorted(p.name for p in state.parent.iterdir()) == [
        *("key.json", "log.jsonl", "preview.png", "state.safetensors")
    ]
    assert trained(folder).returncode == 0
    assert_same_training(folder / "train", uninterrupted)


def test_a_control_says_which_command_it_begins_with(tiny_talk, tmp_path):
    """`--no-prior` reads the person beside it, writes into a folder of its own, and resumes."""
    folder = tmp_path / "talk"
    shutil.copytree(tiny_talk, folder)

    def told(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-c", TINY_CLI, *words, str(folder), "--no-prior"]
        result = subprocess.run(
            command, cwd=ROOT, env=environment(1), text=True, capture_output=True, timeout=300
        )
        return result.returncode, (result.stderr + result.stdout).splitlines()[-1]

    code, line = told("train")
    assert code == 2 and line.endswith(f"run first: talk3d personalize {folder} --no-prior")
    assert told("personalize") == (0, f"{folder}/no-prior/personalize: done")
    assert told("personalize") == (0, f"{folder}/no-prior/personalize: up to date")
    made = folder / "no-prior" / "personalize" / "identity.safetensors"
    assert made.is_file() and not (folder / "no-prior" / "train").exists()


def test_a_killed_reproduction_is_completed_by_the_same_command(tmp_path):
    """Twice killed while the embedded talk is drawn: with its job, then with the job left alive."""
    arguments = ["-m", "talk3d.cli", "reproduce", "figA1", "--profile", "smoke"]
    arguments += ["--cores", "2", "--work", str(tmp_path)]
    world, figure = tmp_path / "embedded" / "world", tmp_path / "figures" / "smoke" / "figA1.json"
    drawing = tmp_path / "embedded" / ".world.partial" / "landmarks.npz"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

    with started(arguments, **quiet) as process:
        wait_for(drawing.is_file, "drawing", process)
        os.killpg(process.pid, signal.SIGKILL)
    assert not world.exists() and not figure.exists()
    assert list((tmp_path / "embedded").glob("done/*")) == []

    drawing.unlink()
    with started(arguments, **quiet) as process:
        wait_for(drawing.is_file, "drawing again", process)
        tree = psutil.Process(process.pid).children(recursive=True)
        job = next(child for child in tree if "world" in child.cmdline())
        for runner in [child for child in tree if "snakemake" in child.cmdline()] + [process]:
            runner.kill()
        process.wait()
        assert job.status() != psutil.STATUS_ZOMBIE, "the job died with its parents"
        assert not world.exists() and not figure.exists()
        command = [sys.executable, *arguments]
        result = subprocess.run(
            command, cwd=ROOT, env=environment(), text=True, capture_output=True, timeout=300
        )
    assert result.returncode == 0, result.stderr
    assert read_json(figure)["target"] == "figA1"
    assert sorted(p.name for p in world.iterdir()) == [
        "key.json",
        "landmarks.npz",
        "truth.json",
        "truth.npz",
        "video.mp4",
    ]
    assert len(load_track(tmp_path / "embedded" / "preprocess")) == SMOKE.talk.frames
    left = [p.name for p in tmp_path.rglob("*") if "partial" in p.name]
    assert left == [], left
