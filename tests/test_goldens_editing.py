"""Every number that the published steps of an edit gave, within its tolerance."""

import pytest
import torch
from golden import Find, Golden, Results, Tensors, check_manifest, compare

from talk3d.appendix.directions import project_out, walk


def interfacegan(golden: Tensors, find: Find) -> Results:
    normal = golden["in/primal"][0]
    conditions = torch.cat([golden[f"in/c{k}"] for k in (1, 2, 3)])
    for k in (1, 2, 3):
        yield {f"out/proj{k}": project_out(normal, conditions[:k])[None]}
    yield {"out/lerp": walk(golden["in/z"][0], normal, torch.linspace(-3, 3, 7))}
    yield {"out/lerp_wplus": walk(golden["in/zp"][0], normal, torch.linspace(-2, 2, 5))}


GOLDENS = {"interfacegan": Golden(interfacegan, 1e-5, 1e-4)}


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name, find, worst):
    compare(name, GOLDENS[name], find, worst)


def test_the_manifest_agrees(shared):
    check_manifest(GOLDENS, set(GOLDENS), shared)
