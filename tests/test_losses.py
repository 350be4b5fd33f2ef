"""The training loss across modules: real judges, real windows, and what a switch may change."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from toys import TINY

from talk3d.core import MissingAsset
from talk3d.dataset import Sampling, sync_windows, talking_frames
from talk3d.eg3d import Picture
from talk3d.identity import EmbedderConfig, FaceEmbedder
from talk3d.inversion import Identity
from talk3d.losses import (
    LossNetworks,
    LossWeights,
    SyncWindows,
    Target,
    expert_faces,
    portrait_loss,
    shrink,
    sync_error,
)
from talk3d.perceptual import Perceptual, lpips_with
from talk3d.preprocess import PreprocessConfig, load_track
from talk3d.resample import bicubic_down
from talk3d.train import TrainConfig, draw_batch, new_portrait, step_generator, train, train_step
from talk3d.wav2lip import ExpertConfig, LipSyncExpert


class Layers(nn.Module):
    """A backbone of two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.first(x).relu()
        return [first, self.second(first).relu()]


@pytest.fixture(scope="module")
def judges() -> LossNetworks:
    """All three networks in the official layouts, small and untrained."""
    torch.manual_seed(0)
    expert = LipSyncExpert(ExpertConfig((4, 4, 6, 6, 8), (4, 4, 6, 6, 8)))
    expert.apply(lambda part: setattr(part, "momentum", 1.0))  # batch norm fits what it sees once
    expert(torch.randn(8, 1, 80, 16), torch.rand(8, 15, 48, 96))
    embedder = FaceEmbedder(EmbedderConfig(units=(1, 1, 1, 1), width=4, embedding=16))
    frozen = [network.eval().requires_grad_(False) for network in (embedder, expert)]
    return LossNetworks(lpips_with(Layers()), *frozen)


def pictures(of: Tensor) -> Picture:
    """A render that is exactly these pictures."""
    size = of.shape[-1] // 4
    return Picture(of, shrink(of, size), torch.ones(len(of), size, size))


@pytest.fixture
def target() -> Target:
    """Two windows of random frames; the shown ones are the target."""
    frames = torch.rand(2, 5, 3, 64, 64) * 2 - 1
    face = torch.zeros(4, 64, 64, dtype=torch.bool)
    face[:, 8:60, 12:52] = True
    mouth = face.clone()
    mouth[:, :40] = False
    boxes = torch.tensor([12, 8, 52, 60]).expand(2, 5, 4)
    windows = SyncWindows(frames, boxes, torch.randn(2, 80, 16))
    return Target(frames[:, [1, 3]].flatten(0, 1), mouth, face, windows)


LATE = 60_000  # the schedule has started


def test_every_term_but_sync_is_zero_for_identical_pictures(target, judges):
    _, terms = portrait_loss(pictures(target.rgb), target, LossWeights(), judges, LATE)
    assert len(terms) == 8
    assert terms.pop("sync") > 1e-4
    assert max(map(abs, terms.values())) < 1e-5, terms
    worse = pictures((target.rgb + 0.1 * torch.randn_like(target.rgb)).clamp(-1, 1))
    _, terms = portrait_loss(worse, target, LossWeights(), judges, LATE)
    assert min(terms.values()) > 1e-6, terms


@pytest.mark.parametrize("term", ["l1", "lpips", "identity", "mouth", "mouth_lpips", "sync"])
def test_each_term_pulls_at_the_pictures_and_at_nothing_else(term, target, judges):
    nothing = {"l1": 0.0, "lpips": 0.0, "identity": 0.0, "mouth": 0.0, "mouth_lpips": 0.0}
    weights = replace(LossWeights(**nothing, sync=0.0), **{term: 1.0})
    seen = torch.rand(4, 3, 64, 64, requires_grad=True)
    total, terms = portrait_loss(pictures(seen), target, weights, judges, LATE)
    total.backward()
    assert {name.removesuffix("_raw") for name in terms} == {term}
    assert seen.grad.abs().sum() > 0
    parts = (judges.perceptual, judges.embedder, judges.expert)
    assert all(p.grad is None for part in parts for p in part.parameters())


@pytest.mark.parametrize("factor", [2, 4])
def test_the_down_sampler_keeps_constants(factor):
    flat = torch.tensor([-1.0, 0.25, 0.9])[None, :, None, None].expand(2, 3, 64, 48)
    small = bicubic_down(flat, factor)
    torch.testing.assert_close(small, flat[..., : 64 // factor, : 48 // factor], rtol=0, atol=1e-6)


def test_only_frames_1_and_3_of_a_sync_window_are_rendered(target):
    small = shrink(target.rgb, 16)
    seen = expert_faces(small, target.windows).unflatten(1, (5, 3))
    for picture in range(4):
        other = small.clone()
        other[picture] += 0.5
        changed = expert_faces(other, target.windows).unflatten(1, (5, 3)) != seen
        window, frame = divmod(picture, 2)
        where = changed.flatten(2).any(dim=2).nonzero().tolist()
        assert where == [[window, 1 + 2 * frame]], picture


def test_the_expert_hears_and_judges_in_eval_mode(target, judges):
    small = shrink(target.rgb, 16)
    loss = sync_error(small, target.windows, judges.expert)
    deaf = replace(target.windows, mel=target.windows.mel.flip(0))
    assert (sync_error(small, deaf, judges.expert) - loss).abs() > 1e-3
    first = SyncWindows(*(getattr(target.windows, n)[:1] for n in ("frames", "boxes", "mel")))
    rest = SyncWindows(*(getattr(target.windows, n)[1:] for n in ("frames", "boxes", "mel")))
    alone = [
        sync_error(small[:2], first, judges.expert),
        sync_error(small[2:], rest, judges.expert),
    ]
    torch.testing.assert_close(loss, sum(alone) / 2)  # in train mode they would not be independent
    with pytest.raises(ValueError, match="LipSyncExpert is in train mode"):
        sync_error(small, target.windows, LipSyncExpert(ExpertConfig((4,) * 5, (4,) * 5)))


def test_a_part_of_a_judge_in_train_mode_is_found(target, judges):
    judges.embedder.body[0].train()
    try:
        with pytest.raises(ValueError, match="FaceEmbedder is in train mode"):
            portrait_loss(pictures(target.rgb), target, LossWeights(), judges)
    finally:
        judges.embedder.eval()


def test_a_missing_judge_is_named_before_the_first_step(tiny_talk, tmp_path):
    """Sync begins late, but its expert is asked for at once."""
    weights = replace(TINY.train.weights, sync=0.01)
    frames = talking_frames(load_track(tiny_talk / "preprocess"))
    with pytest.raises(MissingAsset, match="supply the expert's file or set sync to 0"):
        train(portrait(tiny_talk), frames, replace(TINY.train, weights=weights), tmp_path)
    assert list(tmp_path.iterdir()) == []


def portrait(folder):
    from talk3d.pipeline import load_identity

    identity: Identity = load_identity(folder / "personalize" / "identity.safetensors")
    return new_portrait(identity, TINY.portrait)


def test_the_full_loss_trains_a_portrait_on_the_embedded_talk(tiny_talk, judges):
    """All eight terms, from a real track: its masks, boxes and sound."""
    frames = talking_frames(load_track(tiny_talk / "preprocess"))
    config = TrainConfig(weights=LossWeights(sync_from=1))
    learner = portrait(tiny_talk)
    optimiser = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], 1e-3)
    first, second = (
        train_step(learner, optimiser, frames, config, judges, 0, step) for step in (0, 1)
    )
    assert set(second) - set(first) == {"sync"} and len(second) == 9
    assert all(0 < value < 1e3 for value in second.values()), second


def test_without_sync_the_same_frames_are_drawn(tiny_talk):
    """Table F.3, w/o sync: the weight is 0, batch and sampling are unchanged."""
    frames = talking_frames(load_track(tiny_talk / "preprocess"))
    full = TrainConfig(weights=LossWeights(sync_from=0))
    without = replace(full, weights=replace(full.weights, sync=0.0))
    for step in range(60):  # several epochs
        one, two = (
            draw_batch(frames, c, step_generator(3, step), 3, step) for c in (full, without)
        )
        assert torch.equal(one.target.rgb, two.target.rgb) and len(one.target.rgb) == 4
        assert torch.equal(one.conditions.audio, two.conditions.audio)
        assert torch.equal(one.conditions.eye, two.conditions.eye)
        assert torch.equal(one.cameras.cam2world, two.cameras.cam2world)
        assert one.target.windows is not None and two.target.windows is None
        torch.testing.assert_close(
            one.target.windows.frames[:, [1, 3]].flatten(0, 1), two.target.rgb
        )


def test_the_sound_of_a_window_is_the_sound_of_its_frames(tiny_talk):
    """Cut out of the spectrogram of the whole recording, as from one of the window alone."""
    from talk3d.spectra import expert_mel

    track = load_track(tiny_talk / "preprocess")
    frames = talking_frames(track)
    windows = sync_windows(frames, torch.tensor([20]), Sampling())
    heard = expert_mel(track.audio[20 * 640 : 25 * 640])[:, 2:14]
    quiet = expert_mel(track.audio[10 * 640 : 15 * 640])[:, 2:14]
    difference = (windows.mel[0][:, 2:14] - heard).abs().mean()
    assert difference < 0.05 < (windows.mel[0][:, 2:14] - quiet).abs().mean()


def test_split_sizes():
    """A video of N frames trains on floor(10 N / 11) of them, whatever N."""
    fraction = PreprocessConfig().train_fraction
    assert int(6000 * fraction) == 5454 and 6000 - int(6000 * fraction) == 546
    assert [n for n in range(1, 20_000) if int(n * fraction) != n * 10 // 11] == []


def test_eye_jitter_is_drawn_fresh_and_not_kept(tiny_talk):
    frames = talking_frames(load_track(tiny_talk / "preprocess"))
    before = frames.drive.eye.clone()
    config, visits = TrainConfig(weights=TINY.train.weights), {}
    for step in range(60):
        random = step_generator(0, step)
        batch = draw_batch(frames, config, random, 0, step)
        for eye, picture in zip(batch.conditions.eye, batch.target.rgb, strict=True):
            frame = (frames.images.float() / 127.5 - 1 - picture).abs().amax(dim=(1, 2, 3)).argmin()
            visits.setdefault(int(frame), []).append(float(eye - before[frame]))
    assert torch.equal(frames.drive.eye, before)
    noises = [noise for seen in visits.values() for noise in seen]
    assert max(map(abs, noises)) <= 0.05 + 1e-6 and max(noises) > 0.04 > -0.04 > min(noises)
    assert all(len(set(seen)) == len(seen) for seen in visits.values() if len(seen) > 1)


def test_a_perceptual_distance_says_what_it_is(judges):
    assert isinstance(judges.perceptual, Perceptual) and judges.perceptual.label == "LPIPS-mini"
