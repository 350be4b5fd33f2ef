"""What is generated and committed is what the notebooks say: `talk3d/` and `README.md`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from cells import NBS, ROOT

BIN = Path(sys.executable).parent
PACKAGE = ROOT / "talk3d"


def python_files(folder: Path) -> dict[str, str]:
    paths = sorted(folder.rglob("*.py"))
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in paths}


def run(command: list[str], folder: Path) -> None:
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"PYTHONWARNINGS": "ignore"}  # those of Jupyter's tools are not ours
    result = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr


def exported_copy(folder: Path) -> Path:
    """Export the notebooks into a package that starts with no module at all."""
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(NBS, folder / "nbs", ignore=shutil.ignore_patterns(".*"))
    (folder / "talk3d").mkdir()
    shutil.copy(PACKAGE / "__init__.py", folder / "talk3d" / "__init__.py")
    run([str(BIN / "nbdev_export")], folder)
    return folder / "talk3d"


def test_the_package_is_what_the_notebooks_export(tmp_path):
    fresh, committed = python_files(exported_copy(tmp_path)), python_files(PACKAGE)
    assert sorted(fresh) == sorted(committed)
    differing = [name for name in fresh if fresh[name] != committed[name]]
    assert differing == [], "run nbdev_export; never edit talk3d/*.py"
    unchanged = (tmp_path / "pyproject.toml").read_text() == (ROOT / "pyproject.toml").read_text()
    assert unchanged, "nbdev_export must leave pyproject.toml alone"


def test_the_readme_is_the_index(tmp_path):
    index, readme = NBS / "index.ipynb", ROOT / "README.md"
    assert index.is_file() == readme.is_file(), "README.md is made from nbs/index.ipynb"
    if not index.is_file():
        return
    run([str(ROOT / "tools" / "readme.sh"), str(tmp_path)], ROOT)
    fresh = {path.relative_to(tmp_path): path for path in tmp_path.rglob("*") if path.is_file()}
    assert Path("README.md") in fresh
    stale = [
        str(name)
        for name, path in fresh.items()
        if not (ROOT / name).is_file() or (ROOT / name).read_bytes() != path.read_bytes()
    ]
    assert stale == [], "run `make readme`"
