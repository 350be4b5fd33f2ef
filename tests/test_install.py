"""The wheel alone, in an empty environment, is enough: run with `make test-install`."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from cells import ROOT

ONE_FRAME = ["talk3d", "assets", "frame"]  # + the PNG to write, and the view

pytestmark = pytest.mark.install


def run(command: list[str | Path], folder: Path) -> str:
    """Run where nothing of the checkout can be imported by accident."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    result = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of what git would commit, so that no stale build folder enters it."""
    checkout = tmp_path_factory.mktemp("checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    run([sys.executable, "-m", "build", "--wheel", "--outdir", "dist"], checkout)
    (built,) = (checkout / "dist").glob("*.whl")
    return built


def wheel_problems(names: list[str]) -> list[str]:
    """Everything but the package and its metadata, and what a package must not hold."""
    outside = [n for n in names if not n.startswith(("talk3d/", "talk3d-"))]
    tests = [n for n in names if n.endswith(".py") and "test" in Path(n).name]
    foreign = [n for n in names if n.endswith(".ipynb")] + tests
    caches = [n for n in names if "__pycache__" in n or n.endswith(".pyc")]
    return sorted({*outside, *foreign, *caches})


def test_wheel_problems_are_found():
    bad = ["tests/cells.py", "talk3d/00_core.ipynb", "talk3d/test_a.py", "nbs/x.txt"]
    good = [
        "talk3d/core.py",
        "talk3d/assets/speech/test_first_1.flac",
        "talk3d-0.1.0.dist-info/METADATA",
    ]
    assert wheel_problems(bad + good) == sorted(bad)


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    print(f"\nwheel: {wheel.name}, {wheel.stat().st_size / 1e6:.2f} MB, {len(names)} files")
    assert wheel_problems(names) == []
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "talk3d").rglob("*.py")}
    assets = {
        str(p.relative_to(ROOT)) for p in (ROOT / "talk3d").glob("assets/**/*") if p.is_file()
    }
    assert (modules | assets) - set(names) == set()
    licences = [n for n in names if n.endswith(("/LICENSE", "/THIRD_PARTY.md"))]
    assert len(licences) == 2


def test_a_plain_install_runs_and_renders_one_frame(wheel, tmp_path):
    environment = tmp_path / "environment"
    run([sys.executable, "-m", "venv", environment], tmp_path)
    commands = environment / "bin"
    run([commands / "python", "-m", "pip", "install", "--quiet", wheel], tmp_path)
    where = run([commands / "python", "-c", "import talk3d; print(talk3d.__file__)"], tmp_path)
    assert str(environment) in where
    assert "torch" in run([commands / "talk3d", "doctor"], tmp_path)
    frame = tmp_path / "frame.png"
    run([commands / ONE_FRAME[0], *ONE_FRAME[1:], frame, "--yaw", "15"], tmp_path)
    picture = matplotlib.image.imread(frame)[..., :3]
    assert picture.shape == (256, 512, 3)
    colour, depth = picture[:, :256], picture[:, 256:]
    assert colour.std() > 0.05 and depth.std() > 0.05  # pictures, not one flat colour
    assert np.ptp(colour, axis=2).max() > 0.1 and np.ptp(depth, axis=2).max() == 0  # depth is grey
