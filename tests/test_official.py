"""An official Talk3D checkpoint at full size, in the container and with the objects it has."""

import copy
from collections import OrderedDict, defaultdict
from dataclasses import replace

import pytest
import torch

from talk3d.camera import orbit_camera
from talk3d.checkpoint import read_layout
from talk3d.convert import convert_file, read_official
from talk3d.core import InputError
from talk3d.eg3d import FFHQ, Generator
from talk3d.official import official_config, portrait_from_official
from talk3d.resample import blur_kernel
from talk3d.tokens import Conditions

PARTS = ("deltaplane_predictor", "blink_encoder", "camera_encoder", "audio_net", "audio_att_net")


@pytest.fixture(scope="module")
def generator() -> Generator:
    """The full generator, but few samples along a ray: pictures are not the point here."""
    torch.manual_seed(0)
    render = replace(FFHQ.render, samples=4, importance=4)
    return (
        Generator(replace(FFHQ, neural_resolution=16, render=render)).requires_grad_(False).eval()
    )


@pytest.fixture(scope="module")
def official(tmp_path_factory, generator):
    """The file, written as the release writes it: optimiser and scheduler as whole objects."""
    draw = torch.Generator().manual_seed(1)
    state: dict = defaultdict(OrderedDict)
    for name, shape in read_layout("talk3d").items():
        part, _, rest = name.partition(".")
        if name.endswith("num_batches_tracked"):
            value = torch.tensor(80_000)
        elif name.endswith("resample_filter"):
            value = blur_kernel()
        else:
            value = 0.05 * torch.randn(shape, generator=draw)
            value = value.abs() + 0.5 if name.endswith("running_var") else value
        if rest:
            state[part][rest] = value
        else:
            state[name] = value
    assert set(PARTS) | {"null_vector"} == set(state)
    dummy = torch.nn.Parameter(torch.zeros(3))
    adam = torch.optim.Adam([dummy], lr=5e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(adam, 2, 0.98)
    path = tmp_path_factory.mktemp("official") / "30_81660.pt"
    state["superresolution"] = {
        name: value + 0.01 for name, value in generator.superresolution.state_dict().items()
    }
    objects = {"optimizer": adam, "scheduler": scheduler, "epoch": 30, "iter": 81_660}
    torch.save(dict(state) | objects, path)
    return path


def frame() -> Conditions:
    draw = torch.Generator().manual_seed(2)
    return Conditions(
        *(torch.randn(s, generator=draw) for s in ((1, 8, 44, 16), (1, 1), (1, 3), (1, 6)))
    )


def test_a_full_checkpoint_talks(official, generator, tmp_path):
    checkpoint = read_official(official)
    assert checkpoint.meta["kind"] == "talk3d" and checkpoint.meta["source"]["iter"] == 81_660
    w = torch.randn(1, 512, generator=torch.Generator().manual_seed(3))
    portrait = portrait_from_official(checkpoint.tensors, generator, w)
    assert portrait.config.deltaplane.rollout == "legacy"
    assert portrait.config.conventions == {"plane_axes": "fixed", "angle": "legacy"}
    learned = [p.numel() for p in portrait.parameters() if p.requires_grad]
    assert sum(learned) == 17_586_277
    tuned = portrait.generator.superresolution.block0.conv0.weight
    assert torch.allclose(tuned, generator.superresolution.block0.conv0.weight + 0.01)
    with torch.no_grad():
        delta = portrait.deltaplane(portrait.tokens(frame()))
        seen = portrait.look(delta, orbit_camera(torch.zeros(1), torch.zeros(1)))
    assert delta.abs().max() > 1e-3 and torch.isfinite(seen.rgb).all()
    assert seen.rgb.shape == (1, 3, 512, 512)


def test_conversion_writes_the_same_tensors(official, tmp_path):
    from talk3d.checkpoint import load_checkpoint

    told = convert_file(official, tmp_path / "portrait.safetensors")
    assert "talk3d" in told
    stored, direct = load_checkpoint(tmp_path / "portrait.safetensors"), read_official(official)
    assert stored.tensors.keys() == direct.tensors.keys()
    assert all(torch.equal(stored.tensors[k], v) for k, v in direct.tensors.items())


def test_another_generator_is_refused(official, generator):
    tensors = copy.copy(read_official(official).tensors)
    small = Generator(replace(generator.config, plane_size=128))
    with pytest.raises(InputError, match="do not match"):
        official_config(tensors, small)
