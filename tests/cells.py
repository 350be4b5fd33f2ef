"""Reading notebooks: which cell is what. Shared by the tests of floors, hygiene and export."""

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
EXPORTS = {"export", "exporti", "exports"}

Notebook = dict
Cell = dict


def read_notebook(path: Path) -> Notebook:
    return json.loads(path.read_text(encoding="utf-8"))


def definition_notebooks() -> list[Path]:
    return sorted(NBS.glob("[0-9][0-9]_*.ipynb"))


def figure_notebooks() -> list[Path]:
    return sorted((NBS / "figures").glob("*.ipynb"))


def tour_notebooks() -> list[Path]:
    return sorted((NBS / "tour").glob("*.ipynb"))


def number_and_module(name: str) -> tuple[int, str]:
    """`60_metrics.image.ipynb` -> (60, "metrics.image")."""
    number, module = name.removesuffix(".ipynb").split("_", 1)
    return int(number), module


def source(cell: Cell) -> str:
    return "".join(cell["source"])


def code_cells(notebook: Notebook) -> list[Cell]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def directives(cell: Cell) -> list[str]:
    """`#| eval: false` -> "eval: false"; the first word tells which one it is."""
    return [line.strip() for line in re.findall(r"(?m)^#\|(.*)$", source(cell))]


def is_exported(cell: Cell) -> bool:
    return any(line.split()[0] in EXPORTS for line in directives(cell) if line)


def exported_cells(notebook: Notebook) -> list[Cell]:
    return [cell for cell in code_cells(notebook) if is_exported(cell)]


def python(cell: Cell) -> str:
    """The source without directives and IPython magics."""
    return re.sub(r"(?m)^(#\||%|!).*\n?", "", source(cell))


def parse(cell: Cell) -> ast.Module:
    return ast.parse(python(cell))


def exported_names(cell: Cell) -> list[str]:
    """Public functions, classes and constants an exported cell defines at its top level."""
    if not {"export", "exports"} & {line.split()[0] for line in directives(cell) if line}:
        return []  # `exporti` is machinery
    names: list[str] = []
    for node in parse(cell).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets += [node.target] if isinstance(node, ast.AnnAssign) else []
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in names if not name.startswith("_")]


def called(node: ast.Call) -> str:
    """The last name of what is called: `np.load(...)` -> "load"."""
    function = node.func
    return getattr(function, "attr", None) or getattr(function, "id", "")


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


# Small notebooks for tests of the checks themselves.


def markdown(text: str) -> Cell:
    return {"cell_type": "markdown", "metadata": {}, "source": [text]}


def code(text: str, tags: tuple[str, ...] = ()) -> Cell:
    metadata = {"tags": list(tags)} if tags else {}
    cell = {"cell_type": "code", "metadata": metadata, "source": [text]}
    return cell | {"outputs": [], "execution_count": None}


def notebook_of(*cells: Cell) -> Notebook:
    return {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
