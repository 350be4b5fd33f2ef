"""Numbers are floors: what a definition notebook may import, and who may touch files."""

import ast

import pytest
from cells import (
    Notebook,
    called,
    calls,
    code,
    definition_notebooks,
    exported_cells,
    notebook_of,
    number_and_module,
    parse,
    read_notebook,
)

FILE_CALLS = {
    *("open", "read_text", "write_text", "read_bytes", "write_bytes", "mkdir", "unlink", "glob"),
    *("iterdir", "exists", "is_file", "is_dir", "as_file", "joinpath", "safe_open"),
    *("load_file", "save_file", "save_model", "load_model", "imread", "imwrite", "savez"),
    *("savez_compressed", "savetxt", "loadtxt", "genfromtxt", "memmap"),
    *("atomic_path", "read_json", "write_json", "file_sha256"),
}
FILE_CALLS_OF = {("np", "load"), ("np", "save"), ("torch", "load"), ("torch", "save")}
FILE_CALLS_OF |= {("json", "load"), ("json", "dump"), ("os", "replace"), ("os", "remove")}

# Below 50 loaded things are passed in; 0x is where files are read. The others, with the reason:
MAY_TOUCH_FILES = {
    "speech": "reads the committed utterances and phoneme tracks: package assets, no user's file",
    "synthetic": "keeps its rendered talks beside their truth: rendering them takes minutes",
    "checkpoint": "reading checkpoints safely is what it is for",
}

OUTSIDE_PACKAGE = {"nbs", "figures", "tests", "tools"}


def floors() -> dict[str, int]:
    numbered = [number_and_module(path.name) for path in definition_notebooks()]
    return {module: number for number, module in numbered}


def imported_modules(notebook: Notebook, modules: dict[str, int]) -> list[str]:
    """Dotted names below `talk3d`, and the first name of everything else, lazy imports included."""
    found: list[str] = []
    for node in (n for cell in exported_cells(notebook) for n in ast.walk(parse(cell))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "talk3d." * bool(node.level) + (node.module or "")
            base = base.rstrip(".")
            if base.removeprefix("talk3d").removeprefix(".") in modules:
                found.append(base)
            else:  # `from talk3d import camera`, `from talk3d.metrics import image`
                found += [f"{base}.{alias.name}" for alias in node.names]
    return [name for name in found if name != "talk3d.__version__"]


def import_problems(name: str, notebook: Notebook, modules: dict[str, int]) -> list[str]:
    number, module = number_and_module(name)
    problems = []
    for imported in imported_modules(notebook, modules):
        top, _, below = imported.partition(".")
        if top in OUTSIDE_PACKAGE:
            problems.append(f"{name} imports {imported}, which is not part of the package")
        elif top == "talk3d" and below not in modules:
            problems.append(f"{name} imports {imported}: no notebook exports that module")
        elif top == "talk3d" and modules[below] >= number:
            problems.append(f"{name} imports {imported}, of floor {modules[below]}: not below it")
        elif below.startswith("baselines.") and module.startswith("baselines."):
            if top == "talk3d" and below != "baselines.core":
                problems.append(f"{name} imports another baseline, {imported}")
    return problems


def file_problems(name: str, notebook: Notebook) -> list[str]:
    number, module = number_and_module(name)
    if number < 10 or number >= 50 or module in MAY_TOUCH_FILES:
        return []
    return file_calls(name, notebook)


def file_calls(name: str, notebook: Notebook) -> list[str]:
    problems = []
    for call in (c for cell in exported_cells(notebook) for c in calls(parse(cell))):
        owner = getattr(getattr(call.func, "value", None), "id", "")
        if called(call) in FILE_CALLS or (owner, called(call)) in FILE_CALLS_OF:
            problems.append(f"{name} touches files below floor 50: {ast.unparse(call)[:80]}")
    return problems


@pytest.mark.parametrize("path", definition_notebooks(), ids=lambda path: path.stem)
def test_floors(path):
    notebook = read_notebook(path)
    problems = import_problems(path.name, notebook, floors()) + file_problems(path.name, notebook)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("module", MAY_TOUCH_FILES)
def test_exceptions_have_reasons_and_are_needed(module):
    assert len(MAY_TOUCH_FILES[module].split()) >= 4
    for path in definition_notebooks():
        if number_and_module(path.name)[1] == module:
            assert file_calls(path.name, read_notebook(path)), f"drop the exception of {module}"


SHARED = {83: "appendix."}  # a number of several notebooks: what a target measures (ADR 0014)


def test_one_notebook_per_module_and_number():
    numbered = [number_and_module(path.name) for path in definition_notebooks()]
    alone = [n for n, module in numbered if not (n in SHARED and module.startswith(SHARED[n]))]
    assert sorted(set(alone)) == alone and not set(alone) & set(SHARED)
    modules = [module for _, module in numbered]
    assert len(set(modules)) == len(modules)


MODULES = {"core": 0, "camera": 10, "triplane": 12, "metrics.image": 60, "cli": 82}
MODULES |= {"baselines.core": 70, "baselines.adnerf": 71, "baselines.radnerf": 72}


@pytest.mark.parametrize(
    "name, line",
    [
        ("10_camera.ipynb", "from talk3d.triplane import Decoder"),
        ("10_camera.ipynb", "from talk3d import cli"),
        ("10_camera.ipynb", "import talk3d.triplane as tri"),
        ("10_camera.ipynb", "from .triplane import Decoder"),
        ("10_camera.ipynb", "from . import triplane"),
        ("10_camera.ipynb", "from talk3d.camera import Camera"),
        ("10_camera.ipynb", "def lazy():\n    from talk3d.metrics.image import psnr"),
        ("10_camera.ipynb", "from talk3d.metrics import image"),
        ("10_camera.ipynb", "from talk3d.utils import anything"),
        ("82_cli.ipynb", "from nbs.figures import figA1"),
        ("82_cli.ipynb", "import figures"),
        ("72_baselines.radnerf.ipynb", "from talk3d.baselines.adnerf import AudioNet"),
    ],
)
def test_bad_imports_are_found(name, line):
    assert len(import_problems(name, notebook_of(code(f"#| export\n{line}")), MODULES)) == 1


@pytest.mark.parametrize(
    "name, line",
    [
        ("12_triplane.ipynb", "from talk3d.camera import Camera"),
        ("12_triplane.ipynb", "from talk3d import __version__, camera, core"),
        ("82_cli.ipynb", "from talk3d.metrics.image import psnr\nimport torch, json"),
        ("72_baselines.radnerf.ipynb", "from talk3d.baselines.core import TalkingHead"),
    ],
)
def test_good_imports_pass(name, line):
    assert import_problems(name, notebook_of(code(f"#| export\n{line}")), MODULES) == []


def test_cells_that_are_not_exported_import_what_they_like():
    notebook = notebook_of(code("#| hide\nfrom talk3d.cli import main\nopen('x')"))
    assert import_problems("10_camera.ipynb", notebook, MODULES) == []
    assert file_problems("10_camera.ipynb", notebook) == []


@pytest.mark.parametrize(
    "line",
    [
        "f = open('x')",
        "data = np.load(path)",
        "state = torch.load(path, weights_only=True)",
        "text = Path('x').read_text()",
        "state = load_file('x.safetensors')",
        "def save(x):\n    write_json('x', x)",
    ],
)
def test_file_access_is_found_below_50(line):
    notebook = notebook_of(code(f"#| export\n{line}"))
    assert len(file_problems("43_model.ipynb", notebook)) == 1
    assert file_problems("50_preprocess.ipynb", notebook) == []
    assert file_problems("02_provenance.ipynb", notebook) == []
    assert file_problems("22_checkpoint.ipynb", notebook) == []


def test_loading_a_state_is_not_file_access():
    notebook = notebook_of(code("#| export\nmodel.load_state_dict(state, strict=True)"))
    assert file_problems("43_model.ipynb", notebook) == []
