"""Tests of the shared reference data skip only where there is none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TEST = """
import pytest

def test_reads(shared):
    assert (shared / "clip.txt").read_text() == "clip"

def test_gives_up(shared):
    pytest.skip("too lazy")
"""


def outcome(folder: Path, named: Path | None) -> str:
    """The last line of pytest on two tests, one of which always skips."""
    tests = folder / "checkout" / "tests"
    tests.mkdir(parents=True)
    (tests / "test_it.py").write_text(TEST)
    shutil.copy(Path(__file__).with_name("conftest.py"), tests)
    environment = {k: v for k, v in os.environ.items() if k != "TALK3D_SHARED"}
    environment |= {"TALK3D_SHARED": str(named)} if named else {}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    result = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True)
    return result.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "present, named, expected",
    [
        (False, False, "2 skipped"),
        (True, False, "1 failed, 1 passed"),
        (True, True, "1 failed, 1 passed"),
        (False, True, "2 errors"),
    ],
)
def test_a_skip_fails_where_the_data_is(tmp_path, present, named, expected):
    shared = tmp_path / ("elsewhere" if named else "shared")
    if present:
        shared.mkdir()
        (shared / "clip.txt").write_text("clip")
    assert outcome(tmp_path, shared if named else None).startswith(expected)
