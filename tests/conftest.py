"""Set-up of every test: live shape annotations, fixed seeds, the shared reference data."""

import os
import random
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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where the shared data is present, a test that asked for it may not skip."""
    report = yield
    if report.skipped and "shared" in item.fixturenames and shared_folder() is not None:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} skips although the shared data is present: {call.excinfo}"
    return report
