"""The Snakefile: which commands it calls, in which order, with a stand-in for the interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest
from cells import ROOT

from talk3d.core import read_json, write_json
from talk3d.reproduce import Run, _snakemake, run_folders, write_plan

STUB = """#!{python}
import sys
from pathlib import Path
with open("{log}", "a") as log:
    print(*sys.argv[3:], file=log)
if sys.argv[2] == "papermill":
    executed, name = Path(sys.argv[4]), Path(sys.argv[3]).stem.split("_")[0]
    (executed.parents[1] / f"{{name}}.json").write_text("{{}}")
"""


@pytest.fixture
def commands(tmp_path):
    """A function that works off the DAG of a run and returns what its jobs would have called."""
    stub, log = tmp_path / "python", tmp_path / "log"
    stub.write_text(STUB.format(python=sys.executable, log=log))
    stub.chmod(0o755)

    def work_off(run: Run) -> list[str]:
        log.write_text("")
        plan, folder = write_plan(run, ROOT), run_folders(run, ROOT)[0]
        write_json(plan, read_json(plan) | {"python": str(stub)})
        command = _snakemake(run, ROOT, plan, folder)
        result = subprocess.run(command, text=True, capture_output=True)
        assert result.returncode == 0, result.stderr
        return log.read_text().replace(str(folder), "DIR").splitlines()

    return work_off


def test_a_profile_with_networks_trains_a_control_and_a_restorer(tmp_path, commands):
    run = Run(targets=("figC2", "secB"), profile="demo", seed=3, device="cpu", work=str(tmp_path))
    called, how = commands(run), "--profile demo --seed 3 --device cpu"
    stages = [line for line in called if line.endswith(how)]
    assert set(stages) == {
        f"personalize DIR {how}",
        f"train DIR {how}",
        f"personalize DIR --no-prior {how}",
        f"train DIR --no-prior {how}",
        f"train DIR --restorer mini {how}",
    }
    at = {line.removesuffix(how).strip(): called.index(line) for line in stages}
    assert at["personalize DIR"] < at["personalize DIR --no-prior"] < at["train DIR --no-prior"]
    assert at["personalize DIR"] < at["train DIR"] < at["train DIR --restorer mini"]
    drawn = {Path(line.split()[0]).stem.split("_")[0]: k for k, line in enumerate(called)}
    assert drawn["figC2"] > at["train DIR --no-prior"]
    assert drawn["secB"] > at["train DIR --restorer mini"]
    assert called[0] == "assets world DIR --profile demo" and len(called) == 9
    assert commands(run) == [], "nothing has changed"


def test_a_profile_without_networks_keeps_no_control_of_another(tmp_path, commands):
    for name in ("no-prior", "restorer", "world"):
        (tmp_path / "embedded" / name).mkdir(parents=True)
    called = commands(Run(targets=("figC2", "secB"), work=str(tmp_path)))
    assert not any("--no-prior" in line or "--restorer" in line for line in called)
    left = {path.name for path in (tmp_path / "embedded").iterdir()}
    assert "world" in left and not {"no-prior", "restorer"} & left


def test_targets_without_a_portrait_start_no_stage(tmp_path, commands):
    called = commands(Run(targets=("tabD2", "audit"), profile="paper", work=str(tmp_path)))
    assert len(called) == 2 and all("nbs/figures" in line for line in called)


def test_retraining_trains_every_row_with_every_seed(tmp_path, commands):
    run = Run(targets=("tabF4",), profile="demo", device="cpu", work=str(tmp_path), retrain=True)
    called = commands(run)
    trained = [line for line in called if line.startswith("ablate") and "--row" in line]
    assert len(set(trained)) == 50, "ten rows, five seeds"
    assert "ablate DIR --row w/o eye --seed 4 --profile demo --device cpu" in trained
    gathered, drawn = called[-2:]
    assert gathered.startswith("ablate DIR --out") and "tabF4" in drawn
    assert commands(run) == [], "nothing has changed"
