"""Importing the package stays instant: what it must not load."""

import json
import subprocess
import sys

import pytest
from cells import ROOT

HEAVY = {"torch", "torchvision", "transformers", "matplotlib", "lpips", "face_alignment"}
HEAVY |= {"cv2", "av", "scipy", "numpy", "IPython"}

# The command line may load what parsing arguments needs, never torch.
ALLOWED = {"talk3d": set(), "talk3d.core": set(), "talk3d.cli": HEAVY - {"torch", "transformers"}}
EXISTING = [m for m in ALLOWED if (ROOT / f"{m.replace('.', '/')}.py").is_file() or m == "talk3d"]


def loaded_by(statement: str) -> set[str]:
    """The top-level modules a fresh interpreter holds after running `statement`."""
    program = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    return {name.partition(".")[0] for name in json.loads(result.stdout)}


@pytest.mark.parametrize("module", EXISTING)
def test_import_is_light(module):
    loaded = loaded_by(f"import {module}")
    assert "talk3d" in loaded
    assert loaded & (HEAVY - ALLOWED[module]) == set()


def test_a_heavy_import_is_seen():
    assert "numpy" in loaded_by("import numpy")
