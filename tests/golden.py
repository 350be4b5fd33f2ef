"""Comparison with the numbers that official implementations gave for seeded weights.

One function for each golden, called with its tensors, yields ours under the official names; a name
may come more than once, by the plain way and by the fast one. `compare` checks them all and insists
that no result of the golden is left out.

TALK3D_GOLDEN_TABLE=errors.md python -m pytest tests -k golden
writes the largest error of each golden to a Markdown table.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from cells import ROOT
from safetensors.torch import load_file
from torch import Tensor

from talk3d.core import file_sha256

Tensors = dict[str, Tensor]
Results = Iterator[Tensors]
Find = Callable[[str], Path]  # file name -> its path


@dataclass(frozen=True)
class Golden:
    """How a golden is made here, and the tolerance of its manifest entry."""

    results: Callable[[Tensors, Find], Results]
    atol: float
    rtol: float
    vanishing: str = ""  # pattern of results that are zero but for rounding: biases before a norm
    own_atol: dict[str, float] = field(default_factory=dict)  # of tensors, by the start of the name
    limits: dict[str, float] = field(default_factory=dict)  # by pattern: no rule but this deviation

    def atol_of(self, tensor: str) -> float:
        """The absolute tolerance of a tensor: its own, or that of the golden."""
        name = tensor.removeprefix("out/")
        own = [atol for start, atol in self.own_atol.items() if name.startswith(start)]
        return own[0] if own else self.atol


NETWORK, GEOMETRY = 1e-3, 1e-5  # largest deviation, as a share of a tensor's largest magnitude
IS_GEOMETRY = re.compile(
    r"eg3d_(camera|rays|planes)/.*|t3d_alignment/.*|.*/(axis|\w+_box)_(near|far)|.*_hit"
)
IS_LOSS_WEIGHT = re.compile(r"grad/(w|w_.*|out_\w+_weight)")  # an input, among the gradients


@dataclass(frozen=True)
class Deviation:
    """How far a tensor of ours is from the official one."""

    tensor: str
    share: float  # largest deviation by largest magnitude
    passes: bool


def deviation(golden: str, rule: Golden, name: str, ours: Tensor, official: Tensor) -> Deviation:
    """The rule: near in each element, and small beside the tensor's largest magnitude.

    The first half decides nothing for gradients and small numbers, which lie below its tolerance.
    """
    assert ours.shape == official.shape, f"{name}: {ours.shape}, official {official.shape}"
    ours, official = ours.detach().double(), official.double()
    if re.fullmatch(rule.vanishing, name):
        largest = torch.stack([ours.abs().max(), official.abs().max()]).max().item()
        return Deviation(name, 0.0, largest <= 1e-6)
    error, largest = (ours - official).abs(), official.abs().max().item()
    limit = GEOMETRY if IS_GEOMETRY.fullmatch(f"{golden}/{name}") else NETWORK
    worst = error.max().item()
    for pattern, most in rule.limits.items():  # for what is whole numbers, or iterated
        if re.fullmatch(pattern, name):
            return Deviation(name, worst / largest if largest else worst, worst <= most)
    passes = worst <= limit * largest  # false for nan
    atol = rule.atol_of(name)
    if not name.startswith("grad/") and largest >= 10 * atol:
        passes &= bool((error <= atol + rule.rtol * official.abs()).all())
    return Deviation(name, worst / largest if largest else worst, passes)


def compare(name: str, rule: Golden, find: Find, worst: dict[str, tuple[Deviation, int]]) -> None:
    """Check every result of a golden; note the largest error in `worst`."""
    golden = load_file(find(f"{name}.safetensors"))
    results = {k for k in golden if k.startswith(("out/", "mid/", "grad/"))}
    results -= {k for k in results if IS_LOSS_WEIGHT.fullmatch(k)}
    found = [
        deviation(name, rule, tensor, ours, golden[tensor])
        for part in rule.results(golden, find)
        for tensor, ours in part.items()
    ]
    worst[name] = max(found, key=lambda each: each.share), len(results)
    assert {each.tensor for each in found} == results, "compare every result of the golden"
    failed = [each for each in found if not each.passes]
    assert not failed, f"{name}: {failed}"


def check_manifest(goldens: dict[str, Golden], names: set[str], shared: Path) -> None:
    """No golden of these names is left out; tolerances and committed copies are the official."""
    entries = json.loads((shared / "goldens" / "manifest.json").read_text())["goldens"]
    entries = {e["name"]: e for e in entries}
    assert set(goldens) == names & set(entries)
    for name, golden in goldens.items():
        tolerance = entries[name]["tol"]
        assert (golden.atol, golden.rtol) == (tolerance["atol"], tolerance["rtol"]), name
        assert tolerance.get("grad_rel", NETWORK) == NETWORK
        own = {k.removesuffix("_atol"): v for k, v in tolerance.items() if k.endswith("_atol")}
        assert golden.own_atol == own, name
        committed = ROOT / "tests" / "goldens" / f"{name}.safetensors"
        assert not committed.exists() or file_sha256(committed) == entries[name]["sha256"], name
