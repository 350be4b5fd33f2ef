"""Set-up of every test: live shape annotations, fixed seeds, the shared reference data."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import install_import_hook

# Every annotation of an exported signature is checked at run time; before the first import of it.
install_import_hook("talk3d", "beartype.beartype")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same numbers in every run, whatever ran before."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    if torch := sys.modules.get("torch"):  # a first import inside a test starts from a fixed seed
        torch.manual_seed(0)


def shared_folder() -> Path | None:
    """Where the goldens and real clips are: what TALK3D_SHARED names, else ../shared if present."""
    if named := os.environ.get("TALK3D_SHARED"):
        return Path(named)
    beside = ROOT.parent / "shared"
    return beside if beside.is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of goldens and real clips; a file that is missing in it fails the test."""
    folder = shared_folder()
    if folder is None:
        pytest.skip("no shared reference data: put it in ../shared or set TALK3D_SHARED")
    assert folder.is_dir(), f"TALK3D_SHARED names {folder}, which is no folder: correct or unset it"
    return folder


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> Path:
    """The work folder of one run of the whole smoke DAG, lip scores included; all tests share it.

    The run takes minutes. To repeat the tests without it, set TALK3D_SMOKE to the work folder of a
    finished run: the same command then finds it up to date, or makes anew what has become stale.
    """
    named = os.environ.get("TALK3D_SMOKE")
    folder = Path(named).resolve() if named else tmp_path_factory.mktemp("smoke")
    result = subprocess.run(smoke_command(folder), cwd=ROOT, text=True, capture_output=True)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return folder


def smoke_command(folder: Path) -> list[str]:
    """The command line of the whole smoke DAG."""
    command = [sys.executable, "-m", "talk3d.cli", "reproduce", "--profile", "smoke"]
    return [*command, "--cores", "2", "--lips", "--work", str(folder)]


@pytest.fixture(scope="session")
def good(tmp_path_factory) -> Path:
    """A folder with one good video and one good landmark file."""
    from toys import face_points, noisy_clip

    from talk3d.media import write_clip

    folder = tmp_path_factory.mktemp("good")
    write_clip(folder / "clip.mp4", noisy_clip(), crf=28)
    np.savez(folder / "clip.npz", landmarks68=face_points())
    return folder


@pytest.fixture(scope="session")
def tiny_talk(tmp_path_factory) -> Path:
    """The folder of a tiny embedded talk, preprocessed and personalised; copy it to train."""
    from toys import TINY

    from talk3d.pipeline import personalize_stage, preprocess_stage, world_stage

    folder = tmp_path_factory.mktemp("tiny") / "talk"
    world_stage(folder, TINY)
    world = folder / "world"
    preprocess_stage(world / "video.mp4", world / "landmarks.npz", folder, TINY)
    personalize_stage(folder, TINY)
    return folder


@pytest.fixture
def find(request):
    """Paths of goldens: the committed ones, and the others if the shared data is present."""

    def path(file: str) -> Path:
        committed = ROOT / "tests" / "goldens" / file
        if committed.exists():
            return committed
        return request.getfixturevalue("shared") / "goldens" / file

    return path


@pytest.fixture(scope="session")
def worst():
    """The largest deviation of each golden; a table if TALK3D_GOLDEN_TABLE names a file."""
    found: dict = {}
    yield found
    if file := os.environ.get("TALK3D_GOLDEN_TABLE"):
        rows = [
            "| golden | tensors | largest error / largest magnitude | tensor |",
            "|---|--:|--:|---|",
        ]
        for name, (most, count) in found.items():
            rows.append(f"| `{name}` | {count} | {most.share:.1e} | `{most.tensor}` |")
        Path(file).write_text("\n".join(rows) + "\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where the shared data is present, a test that asked for it may not skip."""
    report = yield
    if report.skipped and "shared" in item.fixturenames and shared_folder() is not None:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} skips although the shared data is present: {call.excinfo}"
    return report
