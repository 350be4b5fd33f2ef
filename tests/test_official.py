"""An official Talk3D checkpoint at full size, in the container and with the objects it has."""

import copy
from collections import OrderedDict, defaultdict
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from official import eg3d_pickle, save
from toys import SIDE, face_points, talk3d

from talk3d.camera import orbit_camera
from talk3d.checkpoint import read_layout
from talk3d.convert import convert_file, read_official
from talk3d.core import InputError
from talk3d.eg3d import FFHQ, Generator
from talk3d.landmarks import SIX
from talk3d.media import read_clip, write_audio
from talk3d.official import official_config, portrait_from_official
from talk3d.render import load_portrait
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


def prepared_folder(folder: Path, generator: Generator, frames: int = 11) -> None:
    """What the release's preprocessing and inversion leave, at full size; 512 x 512 pictures."""
    draw = torch.Generator().manual_seed(4)
    picture = (torch.rand(16, 16, 3, generator=draw) * 255).byte().numpy()
    large = cv2.resize(picture, (512, 512), interpolation=cv2.INTER_CUBIC)
    mask = np.zeros((512, 512, 3), np.uint8)
    mask[150:350, 150:350] = 255
    for name, content in (("image", large), ("faceseg", mask), ("mouthseg", mask)):
        (folder / name).mkdir(parents=True)
        for number in range(frames):
            cv2.imwrite(str(folder / name / f"{number:05d}.png"), content)
    face = face_points(frames) * 512 / SIDE
    np.savez(folder / "points.npz", landmarks68=face)
    torch.save(torch.tensor(2 * face[:, list(SIX)] / 512 - 1).float(), folder / "landmarks.pt")
    torch.save(torch.randn(frames, 3, generator=draw), folder / "angles.pt")
    torch.save(0.1 * torch.randn(frames, 2, generator=draw), folder / "inversion_0-0_angles.pt")
    torch.save(torch.randn(1, 512, generator=draw), folder / "inversion_w_person.pt")
    np.save(folder / "aud_eo.npy", torch.randn(frames + 1, 16, 44, generator=draw).numpy())
    rows = "".join(f"{number}, 0.5\n" for number in range(frames))
    (folder / "au.csv").write_text(f"frame, AU45_r\n{rows}")
    write_audio(folder / "aud.wav", np.ones(frames * 640, np.float32) / 2)
    save(folder / "G_tune.pkl", eg3d_pickle(generator, bare=True))


def test_a_prepared_folder_renders(official, generator, tmp_path):
    """One command turns a folder and a checkpoint into stages; the next makes a video of them."""
    prepared_folder(tmp_path / "May", generator)
    points, work = tmp_path / "May" / "points.npz", tmp_path / "work"
    told = talk3d("convert", tmp_path / "May", work, "--landmarks", points, "--portrait", official)
    assert told.returncode == 0, told.stderr
    talking = load_portrait(work / "train")
    assert (talking.train, len(talking.drive)) == (10, 11)
    kept = torch.load(tmp_path / "May" / "angles.pt", weights_only=True)
    assert torch.equal(talking.drive.angle, kept)
    video = tmp_path / "out.mp4"
    told = talk3d("render", work, "--out", video)
    assert told.returncode == 0, told.stderr
    assert read_clip(video, shortest=0.01).frames.shape == (1, 512, 512, 3)


def test_a_folder_that_is_not_whole_leaves_nothing(generator, tmp_path):
    prepared_folder(tmp_path / "May", generator)
    (tmp_path / "May" / "G_tune.pkl").unlink()
    points, work = tmp_path / "May" / "points.npz", tmp_path / "work"
    told = talk3d("convert", tmp_path / "May", work, "--landmarks", points)
    assert told.returncode == 2 and "G_tune.pkl" in told.stderr
    assert not (work / "personalize").exists() and not [*work.glob(".*")]
