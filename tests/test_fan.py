"""Our FAN and the face-alignment package: the same weights give the same heat maps and points."""

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from talk3d.checkpoint import load_checkpoint, load_strict, read_layout
from talk3d.convert import convert_file
from talk3d.fan import Fan, FanConfig, cut_windows, face_windows, locate, read_heat_maps
from talk3d.networks import load_network

CELLS = 64


@pytest.fixture(scope="module")
def package():
    """Classes and functions of the package, which is an optional library."""
    from talk3d.core import import_torchvision

    import_torchvision()
    return pytest.importorskip("face_alignment")


@pytest.fixture(scope="module")
def official(package):
    """The package's own network, of two stacks to save time, with weights and statistics drawn."""
    from face_alignment.models import FAN

    torch.manual_seed(0)
    network = FAN(2)
    for name, value in network.state_dict().items():
        if value.is_floating_point() and ("running" in name or "bn" in name):
            value.copy_(torch.rand_like(value) * 0.6 + 0.5)
    return network.eval().requires_grad_(False)


def test_the_same_weights_give_the_same_heat_maps(official):
    ours = Fan(FanConfig(stacks=2)).eval().requires_grad_(False)
    load_strict(ours, official.state_dict(), "the package")
    pictures = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    theirs = torch.stack(official(pictures))
    deviation = (ours(pictures) - theirs).abs().max() / theirs.abs().max()
    assert deviation < 1e-5, deviation
    assert theirs.std() > 1e-3, "the maps are not all the same number"


def test_an_official_file_is_recognised_and_loaded(package, tmp_path):
    """The plain state dict that the package downloads, of the published size."""
    from face_alignment.models import FAN

    torch.manual_seed(2)
    network = FAN(4)
    path = tmp_path / "2DFAN4-11f355bf06.pth.tar"
    torch.save(network.state_dict(), path)
    report = convert_file(path, tmp_path / "fan.safetensors")
    assert "holds              fan: " in report
    found = load_checkpoint(tmp_path / "fan.safetensors", "fan").tensors
    assert {k: tuple(v.shape) for k, v in found.items()} == read_layout("fan")
    for name, value in load_network("fan", path).state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name
    for file in tmp_path.iterdir():  # 190 MB
        file.unlink()


def test_heat_maps_are_read_as_the_package_reads_them(package):
    from face_alignment.utils import get_preds_fromhm

    random = np.random.default_rng(0)
    maps = random.random((3, 20, CELLS, CELLS)).astype(np.float32)
    corners = ((0, 0), (0, CELLS - 1), (CELLS - 1, 5), (7, 0))
    for k, (y, x) in enumerate(corners):  # at the border nothing is moved
        maps[0, k, y, x] = 2.0
    theirs, _, score = get_preds_fromhm(maps)
    ours, peak = read_heat_maps(torch.from_numpy(maps), official=True)
    np.testing.assert_array_equal(ours.numpy(), theirs)
    np.testing.assert_array_equal(peak.numpy(), score)


def test_points_come_back_to_the_frame_as_the_package_brings_them(package):
    """It cuts the continuous coordinate to a whole number; ours is half a pixel less, uncut."""
    from face_alignment.utils import get_preds_fromhm

    random = np.random.default_rng(3)
    maps = torch.from_numpy(random.random((2, 68, CELLS, CELLS)).astype(np.float32))

    class Known(torch.nn.Module):
        config = FanConfig()

        def forward(self, x):
            return maps[None]

    boxes = np.array([[90.0, 70.0, 190.0, 200.0], [60.5, 80.0, 170.0, 181.0]])
    frames = np.zeros((2, 240, 320, 3), np.uint8)
    ours, _ = locate(Known(), frames, boxes, official=True)
    x, y, side = face_windows(boxes).T
    for i in range(2):
        _, theirs, _ = get_preds_fromhm(
            maps[i : i + 1].numpy(), np.array([x[i], y[i]]), side[i] / 200
        )
        away = ours[i] + 0.5 - theirs[0]
        assert (away > -1e-3).all() and (away < 1 + 1e-3).all()


def test_windows_are_cut_as_the_package_cuts_them(package):
    """To within the two pixels by which its corners are cut to whole numbers."""
    from face_alignment.utils import crop

    y, x = np.mgrid[:300, :400]
    waves = [np.sin(x / 23 + k) * np.cos(y / 31 - k) for k in range(3)]
    frame = np.rint(np.stack(waves, axis=-1) * 100 + 128).astype(np.uint8)
    for centre, scale in (((200.0, 150.0), 1.1), ((60.0, 250.0), 0.9), ((210.0, 140.0), 0.6)):
        theirs = crop(frame, np.array(centre), scale, 128.0).astype(float)
        window = np.array([[*centre, 200 * scale]])
        ours = cut_windows(frame[None], window, 128)[0].permute(1, 2, 0).numpy() * 255
        whole = (theirs > 0).all(-1).astype(np.uint8)
        inside = cv2.erode(whole, np.ones((7, 7), np.uint8), borderValue=1) > 0
        slope = 100 / 23  # grey levels of a pixel, the steepest
        assert np.abs(ours - theirs)[inside].max() < 2 * slope + 1
        assert np.abs(ours - theirs)[inside].mean() < slope


def test_the_golden_of_the_package(find):
    golden = load_file(find("face_alignment_utils.safetensors"))
    ours, score = read_heat_maps(golden["in/heatmaps"], official=True)
    torch.testing.assert_close(ours, golden["out/preds"], atol=0, rtol=0)
    torch.testing.assert_close(score, golden["out/scores"])
    side = 200 * golden["in/scale"].item()
    points = golden["in/center"] + (ours.double() / CELLS - 0.5) * side
    assert torch.equal(points.trunc().float(), golden["out/preds_orig"])
    window = np.array([[*golden["in/crop_center"].tolist(), 200 * golden["in/crop_scale"].item()]])
    picture = cut_windows(golden["in/img"].numpy()[None], window, CELLS)[0]
    assert picture.shape == (3, CELLS, CELLS)
