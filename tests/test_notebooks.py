"""Notebook hygiene: the form and the sizes of definition, figure and tour notebooks."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cells import (
    Notebook,
    called,
    calls,
    code,
    code_cells,
    definition_notebooks,
    directives,
    exported_cells,
    exported_names,
    figure_notebooks,
    is_exported,
    markdown,
    notebook_of,
    number_and_module,
    parse,
    python,
    read_notebook,
    source,
    tour_notebooks,
)

CELL_LINES, CELL_LINES_STOP = 25, 40
CELLS = range(25, 71)
EXPORTS_STOP = 20
KILOBYTES = 300
FIGURE_CELLS = 15
DIRECTIVES = {"default_exp", "export", "exporti", "hide", "gpu", "weights", "slow"}

# Exported cells of 26 to 40 lines: (module, first name in the cell) -> why it is not split.
LONG_CELLS: dict[tuple[str, str], str] = {
    ("core", "atomic_path"): "one try statement: write, rename, explain the failure, clean up",
    ("triplane", "PlaneTable"): "the layout of a table and its lookup share every number",
    ("triplane", "march_rays"): "the two passes share what the first one found",
    ("triplane", "render_plain"): "the oracle is the whole renderer on one page",
    ("speech", "_SHAPES"): "a table with one line per mouth shape, no code",
    (
        "stylegan2",
        "SynthesisLayer",
    ): "a published layer: its weights and the forward pass that uses them",
    ("person", "Colour"): "one line for each number of a person, with its meaning",
    ("person", "PuppetMotion"): "one line for each thing that moves, with its meaning",
    ("puppet", "imports"): "the last of three floors joins the names of the two below; no code",
    ("puppet", "Puppet"): "one short method for each thing that can be asked of a puppet",
    ("inversion", "invert"): "one search, readable from first guess to result",
    ("stylegan2", "SynthesisBlock"): "a published block: its layers and the order they run in",
    ("stylegan2", "SynthesisNetwork"): "a published network: its blocks and the loop over them",
    ("stylegan2", "MappingNetwork"): "a published network: its layers and the loop over them",
    ("report", "_entry"): "the foot of a section in four small pieces",
    ("pipeline", "Split"): "a field and a folder for each way to hold something back",
    ("eg3d", "GeneratorConfig"): "one line for each number of the network",
    ("eg3d", "FoldedSuperResolution"): "the folded layers and the loop over them",
    ("eg3d", "TriplaneRenderer"): "all that can be done with planes: field, features, picture",
    ("eg3d", "Generator"): "the whole system on one page: latents, paint, forward",
    ("attention", "Attention"): "projection, forward and scores share the same four weights",
    (
        "attention",
        "PlaneTransformerBlock",
    ): "the three steps of a block share its norms and are one idea",
    (
        "deltaplane",
        "DeltaplanePredictor",
    ): "the U-Net on one page: its parts, and the two halves of its pass over them",
    ("model", "Portrait"): "three calls of one to two lines; annotated signatures are the rest",
    ("tokens", "TokenEncoder"): "one encoder for each condition, and the sequence they make",
    ("attention", "PlaneTransformer"): "the two halves of one pass, which a reader compares",
    ("attention", "PlaneModulation"): "the two halves of one pass, as in the transformer",
    ("restorer", "PictureDecoder"): "a published network: its layers and the loop over them",
    ("train", "learn"): "the training loop, which a reader takes in whole, in one cell",
    ("pipeline", "imports"): "the stages join nearly all modules below; no code but imports",
    ("cli", "reproduce"): "one command: its options, a line each, are its documentation",
    ("viewers", "OrbitViewer"): "one widget: its rows, and the redraw they all call",
}
# Notebooks with fewer than 25 or more than 70 cells: module -> why.
CELL_COUNTS: dict[str, str] = {
    "mini.sync": "two networks learn and are examined side by side, to be compared; "
    "their data have a notebook of their own already",
    "profiles": "a table of numbers and one function that looks them up: nothing to derive",
    "ablations": "a table of rows and what they cost; what is switched is explained below it",
}


def lines(cell) -> int:
    return len(python(cell).strip("\n").splitlines())


def cell_name(cell) -> str:
    """The first name a cell defines, private ones included; an import cell is called imports."""
    return next((n for node in parse(cell).body for n in bound_names(node)), "imports")


def is_test(cell) -> bool:
    if is_exported(cell):
        return False
    tree = parse(cell)
    asserts = any(isinstance(node, ast.Assert) for node in ast.walk(tree))
    return asserts or any(called(call).startswith("test_") for call in calls(tree))


def form_problems(name: str, notebook: Notebook) -> list[str]:
    """Title, module name, directives, last cell, live annotations."""
    module, cells = number_and_module(name)[1], code_cells(notebook)
    problems, title = [], notebook["cells"][0]
    pattern = rf"# {re.escape(module)}\n+> \S[^\n]*\n*"
    if title["cell_type"] != "markdown" or not re.fullmatch(pattern, source(title)):
        problems.append(f"the first cell must be '# {module}' and '> One line', nothing else")
    if not cells or directives(cells[0]) != [f"default_exp {module}"]:
        problems.append(f"the first code cell must be '#| default_exp {module}', as the file name")
    words = [line for cell in cells for line in directives(cell)]
    for line in words:
        if line != "eval: false" and (line.split() or [""])[0] not in DIRECTIVES:
            problems.append(f"directive '#| {line}' is not one of ours")
    if sum(line.startswith("default_exp") for line in words) > 1:
        problems.append("a notebook exports one module")
    if (
        not cells
        or "hide" not in directives(cells[-1])
        or "nbdev_export()" not in source(cells[-1])
    ):
        problems.append("the last code cell must be hidden and call nbdev.nbdev_export()")
    annotated = any(
        "import" in source(c) and "jaxtyping" in source(c) for c in exported_cells(notebook)
    )
    if annotated and not any("%jaxtyping.typechecker" in source(c) for c in cells):
        problems.append("no %jaxtyping.typechecker: its shape annotations are not checked")
    if any(output["output_type"] == "error" for c in cells for output in c["outputs"]):
        problems.append("an output is an error")
    return problems


def size_problems(name: str, notebook: Notebook) -> list[str]:
    """Lines in a cell, cells in a notebook, exports, bytes."""
    module, problems = number_and_module(name)[1], []
    for cell in exported_cells(notebook):
        first = cell_name(cell)
        if lines(cell) > CELL_LINES_STOP:
            problems.append(
                f"cell {first}: {lines(cell)} lines, more than {CELL_LINES_STOP}: split"
            )
        elif lines(cell) > CELL_LINES and (module, first) not in LONG_CELLS:
            problems.append(f"cell {first}: {lines(cell)} lines, more than {CELL_LINES}: split it")
    count = len(notebook["cells"])
    if count not in CELLS and module not in CELL_COUNTS:
        problems.append(f"{count} cells; a definition notebook has {CELLS[0]} to {CELLS[-1]}")
    names = [n for cell in exported_cells(notebook) for n in exported_names(cell)]
    if len(set(names)) > EXPORTS_STOP:
        problems.append(f"{len(set(names))} exported names, more than {EXPORTS_STOP}: split it")
    problems += [f"{n} is exported twice" for n in sorted(set(names)) if names.count(n) > 1]
    kilobytes = len(json.dumps(notebook, indent=1, ensure_ascii=False).encode()) / 1000
    if kilobytes > KILOBYTES:
        problems.append(f"{kilobytes:.0f} KB, more than {KILOBYTES}: smaller pictures (dpi=80)")
    return problems


def coverage_problems(name: str, notebook: Notebook) -> list[str]:
    """Each public function and class is used by a test cell, or made what a test cell looks at.

    A class also counts as tested through tested code that makes or takes it; constants need none.
    """
    tested = text_under_test(notebook)
    waiting = {node.name: node for node in public_definitions(notebook)}
    reached = {n: node for n, node in waiting.items() if mentions(tested, n)}
    while reached:
        waiting = {n: node for n, node in waiting.items() if n not in reached}
        text = "\n".join(ast.unparse(node) for node in reached.values())
        classes = {n: node for n, node in waiting.items() if isinstance(node, ast.ClassDef)}
        reached = {n: node for n, node in classes.items() if mentions(text, n)}
    return [f"no test cell uses {n}" for n in sorted(waiting)]


def text_under_test(notebook: Notebook) -> str:
    """The test cells, and the statements elsewhere that make the variables they use."""
    text = "\n".join(python(cell) for cell in code_cells(notebook) if is_test(cell))
    demos = [c for c in code_cells(notebook) if not is_test(c) and not is_exported(c)]
    makers = {ast.unparse(node): bound_names(node) for cell in demos for node in parse(cell).body}
    while added := [m for m, names in makers.items() if any(mentions(text, n) for n in names)]:
        text = "\n".join([text, *added])
        makers = {m: names for m, names in makers.items() if m not in added}
    return text


def bound_names(node: ast.stmt) -> list[str]:
    """Variables and functions a statement of a cell makes; imports make none."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    names = [n for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    return [name.id for name in names]


def public_definitions(notebook: Notebook) -> list[ast.FunctionDef | ast.ClassDef]:
    nodes = [node for cell in exported_cells(notebook) for node in parse(cell).body]
    names = {n for cell in exported_cells(notebook) for n in exported_names(cell)}
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return [node for node in nodes if isinstance(node, kinds) and node.name in names]


def mentions(text: str, name: str) -> bool:
    return re.search(rf"\b{name}\b", text) is not None


def undefined_problems(name: str, notebook: Notebook) -> list[str]:
    """Names the exported code uses but does not define: globals of the kernel."""
    module = "\n\n".join(python(cell) for cell in exported_cells(notebook))
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821"]
    command += ["--output-format", "concise", "--quiet", "-"]
    result = subprocess.run(command, input=module, text=True, capture_output=True)
    assert result.returncode in (0, 1), result.stderr
    return re.findall(r"F821 (.*)", result.stdout)


def figure_problems(name: str, notebook: Notebook) -> list[str]:
    """A figure notebook is a short script: literals in, one saved figure out, no outputs kept."""
    cells, problems = code_cells(notebook), definition_problems(notebook)
    if not re.fullmatch(
        r"(fig|tab)[A-Z]\d+_[a-z0-9_]+|(sec[A-Z]|audit)(_[a-z0-9_]+)?", Path(name).stem
    ):
        problems.append(
            "the file name must be the printed label and a slug: figA1_pose_distribution"
        )
    if len(notebook["cells"]) > FIGURE_CELLS:
        problems.append(f"{len(notebook['cells'])} cells, more than {FIGURE_CELLS}")
    first = notebook["cells"][0]
    if first["cell_type"] != "markdown" or not re.match(r"# \S.*\n+> \S", source(first)):
        problems.append("the first cell must be a title and the claim in one '> ' line")
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        problems.append(f"{len(tagged)} cells tagged parameters; there must be one")
    problems += [problem for cell in tagged for problem in parameter_problems(cell)]
    if not cells or "save_figure" not in [called(call) for call in calls(parse(cells[-1]))]:
        problems.append("the last code cell must call save_figure(...)")
    if any(directives(cell) for cell in cells):
        problems.append("directives belong in definition notebooks")
    if any(cell["outputs"] or cell["execution_count"] for cell in cells):
        problems.append("figure notebooks are committed without outputs")
    return problems


def parameter_problems(cell) -> list[str]:
    """One assignment of a literal a line: what papermill can read and replace."""
    problems = []
    for node in parse(cell).body:
        text = ast.unparse(node)
        simple = isinstance(node, ast.Assign | ast.AnnAssign) and node.lineno == node.end_lineno
        targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
        if not simple or len(targets) != 1 or not isinstance(targets[0], ast.Name):
            problems.append(f"parameters: not one assignment on one line: {text}")
            continue
        try:
            ast.literal_eval(node.value)
        except (ValueError, TypeError):
            problems.append(f"parameters: not a literal: {text}")
    starts = [node.lineno for node in parse(cell).body]
    if len(set(starts)) != len(starts):
        problems.append("parameters: two assignments on one line")
    return problems


def definition_problems(notebook: Notebook) -> list[str]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    nodes = [node for cell in code_cells(notebook) for node in ast.walk(parse(cell))]
    found = [node.name for node in nodes if isinstance(node, kinds)]
    return [f"{name} is defined here; it belongs in a definition notebook" for name in found]


DEFINITION_CHECKS = [form_problems, size_problems, coverage_problems, undefined_problems]


@pytest.mark.parametrize("path", definition_notebooks(), ids=lambda path: path.stem)
def test_definition_notebook(path):
    notebook = read_notebook(path)
    problems = [p for check in DEFINITION_CHECKS for p in check(path.name, notebook)]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("path", figure_notebooks(), ids=lambda path: path.stem)
def test_figure_notebook(path):
    problems = figure_problems(path.name, read_notebook(path))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("path", tour_notebooks(), ids=lambda path: path.stem)
def test_tour_notebook(path):
    assert definition_problems(read_notebook(path)) == []


def test_nbdev_leaves_figures_and_tour_alone():
    assert all((folder / ".notest").is_file() for folder in folders_with_other_runners())


def folders_with_other_runners() -> set[Path]:
    return {path.parent for path in figure_notebooks() + tour_notebooks()}


def test_exceptions_have_reasons_and_are_needed():
    paths = {number_and_module(path.name)[1]: path for path in definition_notebooks()}
    for (module, first), reason in LONG_CELLS.items():
        assert len(reason.split()) >= 4, (module, first)
        if module in paths:
            found = exported_cells(read_notebook(paths[module]))
            long = [cell_name(cell) for cell in found if lines(cell) > CELL_LINES]
            assert first in long, f"{module}.{first} is short now: drop its exception"
    for module, reason in CELL_COUNTS.items():
        assert len(reason.split()) >= 4, module
        if module in paths:
            assert len(read_notebook(paths[module])["cells"]) not in CELLS, f"drop {module}"


# Each check is tried on a notebook that is good but for one thing.

EXPORT = "#| export\ndef double(x: int) -> int:\n    return 2 * x"
HALF = "#| export\ndef half(x: int) -> float:\n    return double(x) / 4"
LAST = "#| hide\nimport nbdev\n\nnbdev.nbdev_export()"


def good_notebook() -> Notebook:
    cells = [markdown("# sums\n\n> Adding things up"), code("#| default_exp sums")]
    cells += [code(EXPORT), code("assert double(2) == 4")]
    return notebook_of(*cells, *[markdown("Why.")] * 25, code(LAST))


def problems_of(notebook: Notebook) -> list[str]:
    return [p for check in DEFINITION_CHECKS for p in check("13_sums.ipynb", notebook)]


def test_a_good_notebook_passes():
    assert problems_of(good_notebook()) == []


def test_a_class_is_tested_through_what_makes_it():
    notebook = good_notebook()
    notebook["cells"][2] = code("#| export\ndef double(x: int) -> Sum:\n    return Sum(2 * x)")
    notebook["cells"].insert(2, code("#| export\nclass Sum(int):\n    pass"))
    assert problems_of(notebook) == []


def test_a_function_is_tested_through_a_variable_of_the_demo():
    notebook = good_notebook()
    notebook["cells"][3:4] = [code("four = double(2)\nunused = 1"), code("assert four == 4")]
    assert problems_of(notebook) == []


def with_cell(index: int, cell) -> Notebook:
    notebook = good_notebook()
    notebook["cells"][index] = cell
    return notebook


def with_more(*cells) -> Notebook:
    notebook = good_notebook()
    notebook["cells"][4:4] = cells
    return notebook


def long_function(count: int) -> str:
    body = "\n".join("    x += 1" for _ in range(count - 2))
    return f"#| export\ndef double(x: int) -> int:\n{body}\n    return 2 * x"


def exports(count: int):
    text = "\n".join(f"NAME_{i} = {i}" for i in range(count))
    tests = [code(f"assert NAME_{i} == {i}") for i in range(count)]
    return [code(f"#| export\n{text}"), *tests]


ERROR = {"output_type": "error", "ename": "E", "evalue": "", "traceback": []}
JAXTYPED = "#| export\nfrom jaxtyping import Float  # noqa"


@pytest.mark.parametrize(
    "expected, notebook",
    [
        ("the first cell", with_cell(0, markdown("# sums"))),
        ("the first cell", with_cell(0, markdown("# other\n\n> Adding things up"))),
        ("the first cell", with_cell(0, markdown("# sums\n\n> Adding\n> things up"))),
        ("the first code cell", with_cell(1, code("#| default_exp other"))),
        ("is not one of ours", with_more(code("#| echo: false\nprint(1)"))),
        ("the last code cell", with_cell(-1, code("import nbdev\n\nnbdev.nbdev_export()"))),
        ("%jaxtyping.typechecker", with_more(code(JAXTYPED))),
        ("an output is an error", with_more(code("1 / 0") | {"outputs": [ERROR]})),
        ("27 lines", with_cell(2, code(long_function(27)))),
        ("41 lines", with_cell(2, code(long_function(41)))),
        ("71 cells", with_more(*[markdown("More.")] * 41)),
        ("24 cells", notebook_of(*good_notebook()["cells"][:23], code(LAST))),
        ("21 exported names", with_more(*exports(20))),
        ("exported twice", with_more(code(EXPORT), code("assert double(0) == 0"))),
        ("KB, more than 300", with_more(markdown("x" * 310_000))),
        ("no test cell uses double", with_cell(3, code("assert 2 * 2 == 4"))),
        ("no test cell uses double", with_cell(3, code("print(double(2))"))),
        ("no test cell uses half", with_more(code(HALF))),
        ("no test cell uses half", with_more(code(HALF), code("one = half(2)"))),
        ("no test cell uses Half", with_more(code("#| export\nclass Half:\n    pass"))),
        ("Undefined name `scale`", with_cell(2, code(EXPORT.replace("2 *", "scale *")))),
    ],
)
def test_a_bad_notebook_is_found(expected, notebook):
    assert expected in "\n".join(problems_of(notebook))


@pytest.mark.parametrize("lines_of_cell, expected", [(25, 0), (26, 1)])
def test_the_limit_is_25_lines(lines_of_cell, expected):
    assert len(problems_of(with_cell(2, code(long_function(lines_of_cell))))) == expected


PARAMETERS = 'profile = "demo"\nseed = 0\nout_dir: str = "figures"'


def figure_with(parameters: str = PARAMETERS, *more, last: str = 'save_figure("x")') -> Notebook:
    title = markdown("# Fig. A.1\n\n> Poses cover little of the sphere")
    return notebook_of(title, code(parameters, tags=("parameters",)), *more, code(last))


def test_a_good_figure_notebook_passes():
    assert figure_problems("figA1_pose_distribution.ipynb", figure_with()) == []


@pytest.mark.parametrize(
    "expected, name, notebook",
    [
        ("file name", "pose.ipynb", figure_with()),
        ("16 cells", "figA1_x.ipynb", figure_with(PARAMETERS, *[markdown("x")] * 13)),
        ("a title and the claim", "figA1_x.ipynb", notebook_of(*[*figure_with()["cells"]][1:])),
        (
            "0 cells tagged",
            "figA1_x.ipynb",
            notebook_of(markdown("# A\n\n> b"), code("save_figure()")),
        ),
        ("not a literal", "figA1_x.ipynb", figure_with("seed = int(0)")),
        ("not one assignment", "figA1_x.ipynb", figure_with("seeds = [\n    0,\n]")),
        ("not one assignment", "figA1_x.ipynb", figure_with("import os")),
        ("two assignments", "figA1_x.ipynb", figure_with("seed = 0; n = 1")),
        ("is defined here", "figA1_x.ipynb", figure_with(PARAMETERS, code("def f():\n    pass"))),
        ("is defined here", "figA1_x.ipynb", figure_with(PARAMETERS, code("class F:\n    pass"))),
        ("must call save_figure", "figA1_x.ipynb", figure_with(last="plt.show()")),
        ("directives", "figA1_x.ipynb", figure_with(PARAMETERS, code("#| hide\nx = 1"))),
        (
            "without outputs",
            "figA1_x.ipynb",
            figure_with(PARAMETERS, code("1") | {"outputs": [ERROR]}),
        ),
    ],
)
def test_a_bad_figure_notebook_is_found(expected, name, notebook):
    assert expected in "\n".join(figure_problems(name, notebook))
