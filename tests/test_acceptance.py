"""Ten checks that any implementation of the method must pass, without a pretrained weight.

They repeat in one place, at full size and through public functions, what notebooks test in parts.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from talk3d.audio import unfold_windows
from talk3d.camera import official_pitch, orbit, orbit_camera
from talk3d.deltaplane import DeltaplaneConfig, DeltaplanePredictor, attention_maps
from talk3d.eg3d import Picture
from talk3d.identity import EmbedderConfig, FaceEmbedder, embed
from talk3d.landmarks import SIX, TEMPLATE, head_pose, similarity
from talk3d.losses import LossNetworks, LossWeights, Target, portrait_loss, shrink
from talk3d.metrics.face import landmark_distance
from talk3d.planes import roll_out, rollout_axes
from talk3d.preprocess import PreprocessConfig
from talk3d.syncnet import score_of
from talk3d.tokens import Conditions, TokenConfig, TokenEncoder, encode_octaves
from talk3d.triplane import PLANE_AXES, sample_planes


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def full() -> DeltaplanePredictor:
    """The predictor at full size, with a last layer that has learned something."""
    torch.manual_seed(0)
    return DeltaplanePredictor(DeltaplaneConfig()).eval().requires_grad_(False)


def test_1_the_predictor_has_its_size_and_starts_at_zero(full):
    parts = {name: count(part) for name, part in full.named_children()}
    assert parts["down"] == 5_814_144 and parts["up"] == 4_068_288
    assert parts["bottleneck"] == 7_629_568 and count(full) == 17_512_000
    planes, tokens = torch.randn(1, 3, 32, 256, 256), torch.randn(1, 5, 64)
    identity = full.encode(planes)
    delta = full.decode(identity, tokens)
    assert delta.shape == planes.shape and not delta.any()
    maps = attention_maps(full, identity, tokens)
    assert maps.shape == (2, 1, 4, 3072, 5)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 1, 4, 3072))


def test_2_the_encoders_have_their_sizes():
    encoder = TokenEncoder(TokenConfig())
    parts = {name: count(part) for name, part in encoder.named_children()}
    sizes = {"audio_net": 34_240, "audio_att_net": 3_685}
    assert parts == sizes | {"eye": 10_496, "angle": 12_416, "landmark": 13_376}
    widths = [encode_octaves(torch.zeros(1, n), k).shape[1] for n, k in ((1, 16), (3, 10), (6, 6))]
    assert widths == [33, 63, 78]
    assert encoder.listen(torch.randn(1, 8, 44, 16)).shape == (1, 64)
    assert count(encoder) == 74_277


def test_3_cameras_stand_where_the_release_puts_them():
    yaw, pitch = torch.tensor([0.0, 30.0, 0.0]), torch.tensor([0.0, 0.0, 20.0])
    poses = orbit(yaw, official_pitch(pitch), pivot=(0.0, 0.0, 0.0))
    at = torch.tensor([[0, 0, 2.7], [1.35, 0, 2.33827], [0, -0.6, 2.6325]])
    torch.testing.assert_close(poses[:, :3, 3], at, atol=1e-4, rtol=0)
    torch.testing.assert_close(poses[0, :3, :3], torch.diag(torch.tensor([1.0, -1.0, -1.0])))
    label = orbit_camera(torch.zeros(1), torch.zeros(1)).label[0]
    assert label[16:].tolist() == pytest.approx([3.6, 0, 0.5, 0, 3.6, 0.5, 0, 0, 1])


def test_4_planes_lie_where_the_renderer_reads_them():
    ramp = (torch.arange(64) + 0.5) / 64 - 0.5  # world coordinates of cells
    for p, (column, row) in enumerate(PLANE_AXES["fixed"]):
        for axis, marker in ((column, ramp.expand(64, 64)), (row, ramp[:, None].expand(64, 64))):
            planes = torch.zeros(1, 3, 1, 64, 64)
            planes[0, p, 0] = marker
            points = torch.rand(1, 50, 3, generator=torch.Generator().manual_seed(0)) * 0.8 - 0.4
            found = sample_planes(planes, points, "fixed", 1.0)[0].reshape(50, -1).sum(1)
            share = found / points[0, :, axis]
            torch.testing.assert_close(share, share[:1].expand(50), atol=1e-3, rtol=1e-3)
            rolled = roll_out(planes, rollout_axes("correct", "fixed"))[0, :, p]
            for t, (across, down) in enumerate(PLANE_AXES["fixed"]):
                if axis in (across, down):
                    wanted = ramp if across == axis else ramp[:, None]
                    torch.testing.assert_close(rolled[t], wanted.expand(64, 64))


@pytest.mark.parametrize("logits", [1, 2, 37, 50])
def test_5_sound_is_cut_into_one_window_a_frame(logits):
    values = torch.arange(1.0, logits + 1)[:, None].expand(-1, 44)
    windows = unfold_windows(values)
    assert windows.shape == (logits // 2 + 1, 44, 16)
    for i, window in enumerate(windows[:, 0]):
        wanted = [j + 1 if 0 <= j < logits else 0 for j in range(2 * i - 8, 2 * i + 8)]
        assert window.tolist() == wanted


def test_6_alignment_and_pose_are_recovered():
    generator, turn = np.random.default_rng(0), math.radians(20)
    points = generator.normal(size=(6, 2))
    linear = 1.7 * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    matrix = similarity(points, points @ linear.T + [3, -5])
    np.testing.assert_allclose(matrix, np.c_[linear, [3, -5]], atol=1e-9)
    seen = np.zeros((1, 68, 2))
    head = np.array([TEMPLATE[k] for k in SIX]) * [1, -1, -1] + [0, 0, 0.2]
    yaw = math.radians(12)
    rotation = np.array(
        [[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]]
    )
    space = head @ rotation.T + [0, 0, 1.0]
    focal = 225 / math.tan(math.radians(30))
    seen[0, list(SIX)] = 225 + focal * space[:, :2] / space[:, 2:]
    angles = np.rad2deg(head_pose(seen, (450, 450), points=SIX, sigma=0.0))[0]
    np.testing.assert_allclose(np.abs(angles), [0, 12, 0], atol=0.1)


def test_7_losses_vanish_for_identical_pictures():
    rgb = torch.rand(2, 3, 64, 64) * 2 - 1
    mouth = torch.zeros(2, 64, 64, dtype=torch.bool)
    mouth[:, 40:56, 24:40] = True
    raw = shrink(rgb, 16)
    picture = Picture(rgb, raw, torch.zeros(2, 16, 16))
    torch.manual_seed(0)
    small = EmbedderConfig((1, 1, 2, 1), width=8, embedding=16)
    networks = LossNetworks(embedder=FaceEmbedder(small).eval())
    weights = LossWeights(lpips=0.0, mouth_lpips=0.0, sync=0.0)
    target = Target(rgb, mouth, torch.ones_like(mouth))
    total, terms = portrait_loss(picture, target, weights, networks, step=0)
    assert total.item() == pytest.approx(0, abs=1e-4)
    assert {"l1_raw", "l1", "identity", "mouth"} <= set(terms)
    other = replace(picture, raw=raw + 0.5)
    assert portrait_loss(other, target, weights, networks, step=0)[1]["mouth"] == pytest.approx(
        0.25
    )
    assert torch.allclose(shrink(torch.full((1, 3, 64, 64), 0.3), 16), torch.tensor(0.3))


def test_8_a_video_is_split_at_ten_elevenths():
    train = int(6000 * PreprocessConfig().train_fraction)
    assert (train, 6000 - train) == (5454, 546)


def test_9_scores_of_identical_videos_are_perfect():
    points = torch.randn(4, 68, 2)
    assert landmark_distance(points, points).item() == 0
    torch.manual_seed(0)
    embedder = FaceEmbedder(EmbedderConfig((1, 1, 2, 1), width=8, embedding=16)).eval()
    vector = embed(embedder, torch.rand(2, 3, 112, 112) * 2 - 1)
    torch.testing.assert_close((vector * vector).sum(1), torch.ones(2))
    distances = torch.full((20, 31), 10.0)  # frames, shifts
    distances[:, 17] = 4.0
    score = score_of(distances)
    assert (score.lse_d, score.lse_c) == (pytest.approx(4), pytest.approx(6))
    assert score.offset == -2  # the sound fits two frames later


def test_10_what_is_kept_changes_nothing(full):
    torch.nn.init.normal_(full.up[2].conv1.conv.weight, std=0.05)
    planes, tokens = torch.randn(1, 3, 32, 256, 256), torch.randn(1, 5, 64)
    fresh = full(planes, tokens)
    kept = full.decode(full.encode(planes), tokens, full.folded_up())
    assert (kept - fresh).abs().max() <= 1e-5 * fresh.abs().max()
    assert fresh.abs().max() > 0.01


def test_conditions_reach_the_full_predictor(full):
    """Not of the list: with every token its own, each of the five moves the planes."""
    encoder = TokenEncoder(TokenConfig())
    frame = Conditions(torch.randn(1, 8, 44, 16), *(torch.randn(1, n) for n in (1, 3, 6)))
    tokens, planes = encoder(frame).detach(), torch.randn(1, 3, 32, 256, 256)
    identity = full.encode(planes)
    before = full.decode(identity, tokens)
    for k in range(5):
        louder = tokens.clone()
        louder[:, k] += 1
        assert (full.decode(identity, louder) - before).abs().max() > 1e-6, k
