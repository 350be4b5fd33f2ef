"""Each row of the ablation tables changes what it names, and nothing else."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from talk3d.ablations import ABLATION_TABLES, WHOLE, ablations
from talk3d.camera import Camera, orbit_camera
from talk3d.losses import LossWeights
from talk3d.model import SMALL_PORTRAIT, LatentEditor, Portrait
from talk3d.tokens import Conditions

ROWS = ablations(SMALL_PORTRAIT, LossWeights())
TOKEN = dict(zip(ABLATION_TABLES["tabF4"], ("null", "eye", "landmark", "angle"), strict=True))


def built(row: str) -> Portrait:
    """A portrait whose predictor does something, in eval mode; the same seed for every row."""
    torch.manual_seed(0)
    portrait = Portrait(ROWS[row].portrait).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    portrait.w_plus.copy_(torch.randn(portrait.w_plus.shape, generator=generator))
    portrait.planes.copy_(portrait.generator.paint(portrait.w_plus))
    last = portrait.predictor.net[-1] if row == "w/o deltaplane" else portrait.predictor.head
    last.weight.copy_(0.1 * torch.randn(last.weight.shape, generator=generator))
    for name, parameter in portrait.predictor.named_parameters():
        if name.endswith("affine.weight"):  # starts at zero too
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return portrait


def conditions() -> Conditions:
    draw = torch.Generator().manual_seed(2)
    shapes = {"audio": (2, 8, 44, 16), "eye": (2, 1), "angle": (2, 3), "landmark": (2, 6)}
    return Conditions(**{k: torch.randn(shape, generator=draw) for k, shape in shapes.items()})


def front() -> Camera:
    return orbit_camera(torch.zeros(2), torch.zeros(2))


def moves(portrait: Portrait, name: str) -> bool:
    """Whether a condition moves the planes."""
    plain = conditions()
    louder = replace(plain, **{name: getattr(plain, name) + 1})
    before, after = (portrait.deltaplane(portrait.tokens(c)) for c in (plain, louder))
    return not torch.equal(before, after)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_hears_what_it_is_told(row):
    portrait = built(row)
    for name in ("audio", "eye", "angle", "landmark"):
        assert moves(portrait, name) == (TOKEN.get(row) != name)
    learned = "null" in dict(portrait.tokens.named_parameters())
    assert learned == (TOKEN.get(row) != "null")


@pytest.mark.parametrize("row", ROWS)
def test_a_row_leaves_the_frozen_parts_alone(row):
    ours, whole = built(row), built(WHOLE)
    assert torch.equal(ours.planes, whole.planes) and torch.equal(ours.w_plus, whole.w_plus)
    for name, value in whole.generator.state_dict().items():
        assert torch.equal(ours.generator.state_dict()[name], value), name
    kept = {
        k: v for k, v in whole.tokens.state_dict().items() if not k.startswith(f"{TOKEN.get(row)}")
    }
    assert ours.tokens.state_dict().keys() == kept.keys()
    assert ours(conditions(), front()).rgb.shape == whole(conditions(), front()).rgb.shape


@pytest.mark.parametrize("row", ABLATION_TABLES["tabF4"])
def test_a_token_is_dropped_and_not_zeroed(row):
    portrait, whole = built(row), built(WHOLE)
    weights = {
        k: v for k, v in whole.state_dict().items() if not k.startswith(f"tokens.{TOKEN[row]}")
    }
    portrait.load_state_dict(weights)
    places = [i for i, name in enumerate(whole.tokens.names) if name != TOKEN[row]]
    tokens = whole.tokens(conditions())
    torch.testing.assert_close(portrait.tokens(conditions()), tokens[:, places])
    zeroed = tokens.clone()
    zeroed[:, whole.tokens.names.index(TOKEN[row])] = 0
    dropped = portrait.deltaplane(tokens[:, places])
    assert (dropped - whole.deltaplane(zeroed)).abs().max() > 1e-4


def test_without_sync_only_the_weight_of_the_loss_differs():
    row = ROWS["w/o sync"]
    assert row.portrait == ROWS[WHOLE].portrait
    assert row.weights == replace(ROWS[WHOLE].weights, sync=0.0)


def test_without_deltaplane_the_generator_paints_every_frame():
    portrait = built("w/o deltaplane")
    assert isinstance(portrait.predictor, LatentEditor)
    tokens = portrait.tokens(conditions())
    offset = portrait.predictor(tokens)
    painted = portrait.generator.paint(portrait.w_plus + offset)
    torch.testing.assert_close(portrait.planes + portrait.deltaplane(tokens), painted)
    still = built("w/o deltaplane")
    still.predictor.net[-1].weight.zero_()
    assert still.deltaplane(tokens).abs().max() < 1e-4  # starts at the still head


def reach(row: str) -> list[list[bool]]:
    """Which planes each plane of the identity reaches in the first step down."""
    first, reached = built(row).predictor.down[0], []
    planes = built(row).planes
    for p in range(3):
        changed = planes.clone()
        changed[:, p] += torch.randn(planes[:, p].shape, generator=torch.Generator().manual_seed(p))
        change = (first(changed) - first(planes)).abs().amax(dim=(0, 2, 3, 4))
        reached.append((change > 1e-6).tolist())
    return reached


def test_planes_hear_each_other_except_without_roll_out():
    alone = [[p == q for q in range(3)] for p in range(3)]
    everyone = [[True] * 3] * 3
    for row in ROWS:
        if row != "w/o deltaplane":
            assert reach(row) == (alone if row == "w/o roll-out" else everyone), row


def local(row: str) -> bool:
    """Whether a pixel's change reaches other planes only through profiles, along whole lines."""
    portrait = built(row)
    block, planes = portrait.predictor.down[0].conv0, portrait.planes.clone()
    change = torch.zeros_like(planes)
    change[0, 0, :, 20, 30] = 5.0  # plane xy: y = 20, x = 30
    moved = (block(planes + change) - block(planes)).abs().amax(dim=2)[0, 1] > 1e-5
    rows = moved.any(dim=1)  # plane xz: rows z, columns x; a whole column or nothing
    return bool(rows.all()) and not bool(moved[:, :28].any())


def test_without_split_the_planes_are_read_by_one_convolution():
    assert local(WHOLE) and not local("w/o split")
    assert built("w/o split").predictor.down[0].conv0.conv.groups == 1
    for row in ROWS:
        if row not in ("w/o split", "w/o deltaplane"):
            assert built(row).predictor.down[0].conv0.conv.groups == 3


def spread_of_a_token(row: str) -> Tensor:
    """How one token's change at the bottom differs from cell to cell, planes without structure."""
    portrait = built(row)
    bottom = portrait.predictor.bottleneck
    flat = torch.ones(1, 3, 48, 8, 8)
    tokens = portrait.tokens(conditions())[:1]
    louder = tokens.clone()
    louder[:, 0] += 1
    change = bottom.decode(bottom.encode(flat), flat, louder)
    change = change - bottom.decode(bottom.encode(flat), flat, tokens)
    return change[..., 2:-2, 2:-2].std(dim=(3, 4)).mean() / change.abs().mean()


def test_without_attention_no_cell_chooses_its_token():
    assert spread_of_a_token(WHOLE) > 0.05  # positions alone make cells answer differently
    assert spread_of_a_token("w/o attention") < 1e-4
