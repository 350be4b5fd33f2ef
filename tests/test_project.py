"""The repository itself: versions and pins that agree, and files that must not be there."""

import configparser
import importlib.metadata
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from cells import ROOT, code_cells, read_notebook, source

import talk3d
from talk3d.bundle import bundle_folder

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MEBIBYTE = 2**20


def pins(text: str) -> dict[str, str]:
    """Exact versions by normalised name: `face-alignment==1.5.0`."""
    found = re.findall(r"(?m)^([\w.-]+)(?:\[[\w,]+\])?==([^\s;]+)", text)
    return {normalise(name): version for name, version in found}


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


PINS = pins((ROOT / "constraints.txt").read_text())


def requirements() -> list[str]:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    return project["dependencies"] + [line for extra in extras.values() for line in extra]


def test_one_version_everywhere():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini")
    citation = re.search(r"(?m)^version: (\S+)$", (ROOT / "CITATION.cff").read_text())
    versions = [settings["DEFAULT"]["version"], PYPROJECT["project"]["version"]]
    versions += [talk3d.__version__, citation[1]]
    assert set(versions) == {versions[0]}, versions


def test_every_requirement_is_pinned():
    names = [normalise(re.match(r"[\w.-]+", line)[0]) for line in requirements()]
    assert [name for name in names if name not in PINS] == []
    exact = pins("\n".join(requirements()))
    assert {"torch", "torchvision", "nbdev"} <= set(exact)  # these travel without the constraints
    assert [name for name in exact if exact[name] != PINS[name]] == []


def test_installed_versions_are_the_pinned_ones():
    installed = {}
    for name in PINS:
        try:
            installed[name] = importlib.metadata.version(name).partition("+")[0]  # 2.13.0+cpu
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional one
    assert {"torch", "nbdev", "pytest"} <= set(installed)
    wrong = {name: v for name, v in installed.items() if v != PINS[name]}
    assert wrong == {}, "install with `-c constraints.txt`"


def test_every_install_uses_the_constraints():
    for name in ("Makefile", "environment.yml"):
        assert "-c constraints.txt" in (ROOT / name).read_text(), name


# Files of the repository, those not yet added included.


def repository_files() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    paths = [ROOT / name for name in listed.decode().split("\0") if name]
    assert len(paths) > 20
    return [path for path in paths if path.is_file()]


MACHINE_PATH = re.compile(r"(?<![\w.~])/(?:work|tmp|root|home|Users|mnt|workspace)/\w")
TRACKER = re.compile(r"(?i)\b(?:issue|ticket)s? #?\d")


def text_problems(text: str) -> list[str]:
    """Traces of the machine or the process that made the text."""
    return [
        line.strip()[:120]
        for line in text.splitlines()
        if MACHINE_PATH.search(line) or TRACKER.search(line)
    ]


UNSAFE = re.compile(
    r"weights_only\s*=\s*False|\b(?:c?pickle|dill|joblib|marshal)\.loads?\("
    r"|allow_pickle\s*=\s*True|torch\.load\((?!.*weights_only\s*=\s*True)|yaml\.(?:unsafe_)?load\("
    r"|\beval\(|\bexec\(|shell\s*=\s*True"
)
# `model.eval()` and `nbdev`'s own words are not evaluations of text.
HARMLESS = re.compile(r"\.eval\(\)")


def unsafe_problems(text: str) -> list[str]:
    joined = re.sub(r"([,(])\s*\n\s*", r"\1 ", text)  # a call over several lines is one line
    lines = [HARMLESS.sub("", line) for line in joined.splitlines()]
    return [line.strip()[:120] for line in lines if UNSAFE.search(line)]


def python_source(path: Path) -> str:
    if path.suffix == ".ipynb":
        return "\n".join(source(cell) for cell in code_cells(read_notebook(path)))
    return path.read_text(encoding="utf-8") if path.suffix in {".py", ".smk"} else ""


def test_no_traces_of_a_machine():
    found = {}
    for path in repository_files():
        content = path.read_bytes()
        if b"\0" not in content[:8192] and path != Path(__file__).resolve():
            found[path.name] = text_problems(content.decode("utf-8", errors="replace"))
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_no_large_files():
    others = [p for p in repository_files() if bundle_folder() not in p.parents]
    assert [p.name for p in others if p.stat().st_size > 2 * MEBIBYTE] == []


def test_the_mini_bundle_is_small():
    sizes = {p.name: p.stat().st_size for p in bundle_folder().rglob("*") if p.is_file()}
    assert sum(sizes.values()) <= 25e6, sizes


def test_no_unsafe_loads():
    paths = [path for path in repository_files() if path != Path(__file__).resolve()]
    found = {path.name: unsafe_problems(python_source(path)) for path in paths}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    ["open('/" + "home/ann/clip.mp4')", "see /" + "tmp/x.png", "as issue " + "#12 says"],
)
def test_traces_are_found(line):
    assert text_problems(f"fine\n{line}\nfine") == [line]


@pytest.mark.parametrize(
    "line",
    [
        "https://example.org/home/page",
        "/usr/bin/chromium",
        "an issue of taste",
        "see nbs/" + "work/x",
    ],
)
def test_harmless_text_passes(line):
    assert text_problems(line) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path, weights_only" + "=False)",
        "torch.load(path)",
        "torch.load(\n    path,\n    map_location='cpu',\n)",
        "pickle." + "load(file)",
        "np.load(path, allow_pickle" + "=True)",
        "eval(text)",
        "subprocess.run(line, shell" + "=True)",
    ],
)
def test_unsafe_loads_are_found(line):
    assert len(unsafe_problems(line)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(\n    path,\n    weights_only=True,\n)",
        "np.load(path, allow_pickle=False)",
        "model.eval()",
        "load_file(path)",
        "retrieval(text)",
    ],
)
def test_safe_loads_pass(line):
    assert unsafe_problems(line) == []


def test_shape_annotations_are_live():
    import torch
    from jaxtyping import TypeCheckError

    from talk3d.camera import look_at

    with pytest.raises(TypeCheckError):
        look_at(torch.ones(2, 3), torch.zeros(3))  # would broadcast
