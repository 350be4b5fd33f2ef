"""Tours without a viewer, and benchmarks, run from start to end in an empty folder."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from cells import NBS, Notebook, code_cells, read_notebook
from toys import TINY, environment

TURN, LINES, COST = "tour/2_cameras", "tour/3_eg3d_in_twenty_lines", "benchmarks/eg3d"
LIPS, TRUTH = "tour/4_what_moves_the_lips", "tour/5_what_truth_scores"
PLOTLY = "application/vnd.plotly.v1+json"


def run_tour(name: str, folder: Path, **parameters: object) -> Notebook:
    """Execute a notebook in a folder with the Python of the tests; returns what it became."""
    out = folder / "executed.ipynb"
    command = [sys.executable, "-m", "papermill", NBS / f"{name}.ipynb", out]
    command += ["--cwd", folder, "--kernel", "python3", "--no-progress-bar"]
    command += [word for item in parameters.items() for word in ("-p", *map(str, item))]
    told = subprocess.run(command, cwd=folder, env=environment(1), text=True, capture_output=True)
    assert told.returncode == 0, told.stderr[-3000:]
    assert "unknown" not in told.stderr.lower(), told.stderr  # a parameter the notebook lacks
    return read_notebook(out)


def outputs(notebook: Notebook, kind: str) -> list:
    """What cells show, of one MIME type."""
    shown = [output.get("data", {}) for cell in code_cells(notebook) for output in cell["outputs"]]
    return [data[kind] for data in shown if kind in data]


def said(notebook: Notebook) -> str:
    every = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    return "".join("".join(o["text"]) for o in every if o.get("name") == "stdout")


def test_cameras_and_planes_are_drawn(tmp_path):
    notebook = run_tour(TURN, tmp_path)
    cameras, planes = outputs(notebook, PLOTLY)
    words = [word for trace in cameras["data"] for word in trace.get("text", [])]
    assert "official 20 is -12.8°" in words and "yaw 0°, pitch 20°" in words
    assert {"scene", "scene2"} <= {trace.get("scene") for trace in planes["data"]}
    assert len(outputs(notebook, "image/png")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["executed.ipynb"]


def mesh_of(notebook: Notebook, folder: Path):
    """The mesh the tour of the generator leaves behind, after a look at its pictures."""
    import trimesh

    assert len(outputs(notebook, "image/png")) == 4
    assert {p.name for p in folder.iterdir()} <= {"executed.ipynb", "head.glb", "work", "g"}
    mesh = trimesh.load(folder / "head.glb", force="mesh")
    assert len(mesh.faces) > 100 and abs(mesh.vertices).max() < 0.41
    return mesh


def test_twenty_lines_without_anything(tmp_path):
    notebook = run_tour(LINES, tmp_path, cells=32)
    assert "a cloud" in said(notebook)
    mesh_of(notebook, tmp_path)


def test_twenty_lines_with_a_converted_file(tmp_path):
    from talk3d.checkpoint import save_checkpoint
    from talk3d.core import to_jsonable
    from talk3d.eg3d import Generator

    config = TINY.portrait.generator
    config = replace(config, render=replace(config.render, axes="original"))
    torch.manual_seed(0)
    meta = {"kind": "generator", "config": to_jsonable(config)}
    meta["conventions"] = {"plane_axes": "original"}
    (tmp_path / "g").mkdir()
    save_checkpoint(tmp_path / "g" / "g.safetensors", Generator(config).state_dict(), meta)
    notebook = run_tour(LINES, tmp_path, cells=32, file="g/g.safetensors")
    assert "a trained generator with planes of 2 3 4 16 16" in said(notebook)
    mesh_of(notebook, tmp_path)


def test_twenty_lines_with_what_reproduce_left(tiny_talk, tmp_path):
    embedded = tmp_path / "work" / "embedded"
    shutil.copytree(tiny_talk / "personalize", embedded / "personalize")
    (embedded / "train").mkdir()
    (embedded / "train" / "portrait.safetensors").touch()  # what tells that the run has ended
    notebook = run_tour(LINES, tmp_path, cells=32)
    assert "a trained generator" in said(notebook)
    mesh_of(notebook, tmp_path)


def test_the_benchmark_measures_the_small_generator(tmp_path):
    notebook = run_tour(COST, tmp_path, repeats=1)
    table, machine = outputs(notebook, "text/markdown")
    assert "| render |" in "".join(table) and "1 threads, device cpu" in "".join(machine)
    assert len(outputs(notebook, "image/png")) == 2
    record = json.loads((tmp_path / "work" / "benchmarks" / "eg3d_small_cpu.json").read_text())
    assert len(record["stages"]) == 5 and all(stage["seconds"] > 0 for stage in record["stages"])


def test_what_moves_the_lips_of_a_trained_portrait(smoke, tmp_path):
    portrait = next(smoke.glob("**/train/portrait.safetensors")).parent
    notebook = run_tour(LIPS, tmp_path, portrait=portrait)
    assert len(outputs(notebook, "image/png")) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["executed.ipynb"]


def test_what_moves_the_lips_needs_a_portrait(tmp_path):
    out = tmp_path / "executed.ipynb"
    command = [sys.executable, "-m", "papermill", NBS / f"{LIPS}.ipynb", out, "--cwd", tmp_path]
    told = subprocess.run(command, cwd=tmp_path, env=environment(1), text=True, capture_output=True)
    assert told.returncode != 0 and "make one with: make reproduce" in told.stderr


def test_what_truth_scores(tmp_path):
    notebook = run_tour(TRUTH, tmp_path, frames=20)
    (table,) = outputs(notebook, "text/markdown")
    rows = [line.split(" | ") for line in "".join(table).splitlines()[2:]]
    names = [row[0].lstrip("| ") for row in rows]
    assert names[:2] == ["truth", "another sound"] and names[-1] == "still picture"
    assert [row[1] for row in rows[:2]] == ["inf", "inf"] and float(rows[-1][1]) < 30
    assert len(outputs(notebook, "image/png")) == 2
