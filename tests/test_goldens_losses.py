"""Every number that the official losses gave, within its tolerance."""

import pytest
from golden import Find, Golden, Results, Tensors, check_manifest, compare

from talk3d.losses import shrink
from talk3d.resample import bicubic_down, cubic_taps


def t3d_bicubic_down(golden: Tensors, find: Find) -> Results:
    x = golden["in/x"]
    for factor in (2, 4):
        yield {f"out/kernel{factor}": cubic_taps(factor)}
        yield {f"out/down{factor}": bicubic_down(x, factor)}
        yield {f"out/down{factor}": shrink(x, 64 // factor)}


GOLDENS = {"t3d_bicubic_down": Golden(t3d_bicubic_down, 1e-5, 1e-4)}


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name, find, worst):
    compare(name, GOLDENS[name], find, worst)


def test_the_manifest_agrees(shared):
    check_manifest(GOLDENS, set(GOLDENS), shared)
