"""A video becomes a person and cameras: the order of the steps, and where the cameras arrive."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from talk3d.dataset import drive_from_track, talking_frames
from talk3d.eg3d import SMALL, Generator
from talk3d.faces import FaceTrack
from talk3d.inversion import InvertConfig, TuneConfig, tune
from talk3d.perceptual import lpips_with
from talk3d.pivotal import (
    DEMO_JOINT,
    JointConfig,
    LookWeights,
    PivotalConfig,
    choose_frames,
    frame_features,
    invert_jointly,
    pick_stills,
)
from talk3d.tracking import (
    TrackingConfig,
    VideoConfig,
    aimed,
    follow,
    load_cameras,
    person_from_video,
    save_cameras,
    start_from,
)

FRAMES = 8


class OneLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.filters = nn.Conv2d(3, 8, 5, stride=2, padding=2)

    def forward(self, x):
        return [self.filters(x).relu()]


@pytest.fixture(scope="module")
def prior() -> Generator:
    torch.manual_seed(0)
    sizes = replace(SMALL, neural_resolution=16, sr_native=16, plane_size=8, mapping_layers=2)
    return Generator(sizes).requires_grad_(False)


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(1)
    return lpips_with(OneLayer())


@pytest.fixture(scope="module")
def track() -> FaceTrack:
    random = np.random.default_rng(0)
    points = random.uniform(4, 28, (FRAMES, 68, 2)).astype(np.float32)
    turn = np.linspace(-8, 8, FRAMES, dtype=np.float32)
    return FaceTrack(
        random.integers(0, 255, (FRAMES, 32, 32, 3), dtype=np.uint8), points, turn, -turn / 2,
        np.zeros((FRAMES, 3), np.float32), np.zeros(FRAMES, np.float32),
        np.zeros((FRAMES, 3, 2), np.float32), 6, 25.0, np.zeros(640 * FRAMES, np.float32), 16000,
    )  # fmt: skip


@pytest.fixture(scope="module")
def config() -> TrackingConfig:
    joint = replace(DEMO_JOINT, steps=4, size=None, look=LookWeights(rgb=1.0), frame_rate=0.01)
    tuning = TuneConfig(InvertConfig(steps=2, rays=64), steps=2, points=200)
    video = VideoConfig(look=LookWeights(rgb=1.0), steps=2, first_steps=3, batch=3)
    return TrackingConfig(3, joint, tuning, video)


def test_the_generator_learns_from_corrected_cameras(prior, track, judge, config):
    learn = torch.arange(track.train)
    person, angles = person_from_video(prior, track, learn, judge, config, seed=3)
    frames = talking_frames(track, learn)
    features = frame_features(track, np.arange(track.train))
    chosen = torch.tensor(choose_frames(features, config.stills))
    found = invert_jointly(prior, pick_stills(frames, chosen), judge, config.joint, seed=3)
    assert found.correction.abs().max() > 0.1 and found.frame.abs().max() > 0
    marks = torch.stack([frames.drive.yaw, frames.drive.pitch], dim=1)
    corrected = aimed(track, torch.cat([marks + found.correction, torch.zeros(2, 2)]))
    again, _ = tune(prior, talking_frames(corrected, learn), config.tuning, seed=3)
    torch.testing.assert_close(person.planes, again.planes)
    plain, _ = tune(prior, frames, config.tuning, seed=3)
    assert (person.planes - plain.planes).abs().max() > 1e-4
    start = replace(start_from(found), w_plus=again.w_plus, offset=torch.zeros_like(again.w_plus))
    every = talking_frames(track, torch.arange(FRAMES))
    torch.testing.assert_close(angles, follow(again.generator, every, start, judge, config.video))


def test_cameras_arrive_in_training_and_rendering(tmp_path, track):
    angles = torch.linspace(-20, 20, 2 * FRAMES).view(FRAMES, 2)
    save_cameras(tmp_path / "cameras.npz", angles)
    again = aimed(track, load_cameras(tmp_path / "cameras.npz"))
    for drive in (drive_from_track(again), talking_frames(again, torch.arange(FRAMES)).drive):
        assert torch.equal(torch.stack([drive.yaw, drive.pitch], dim=1), angles)
    assert np.array_equal(again.angles, track.angles)  # what the head does in the raw frame stays
    assert list(tmp_path.iterdir()) == [tmp_path / "cameras.npz"]


def test_test_frames_do_not_teach_the_generator(prior, track, judge, config):
    learn = torch.arange(track.train)
    person, _ = person_from_video(prior, track, learn, judge, config)
    black = track.crops.copy()
    black[track.train :] = 0
    same, _ = person_from_video(prior, replace(track, crops=black), learn, judge, config)
    assert torch.equal(person.planes, same.planes)


def test_defaults_are_the_numbers_of_the_release():
    joint, tuning, video = JointConfig(), PivotalConfig(), VideoConfig()
    assert TrackingConfig() == TrackingConfig(3, joint, tuning, video)
    assert (joint.steps, joint.rate, joint.noise, joint.noise_until) == (600, 0.01, 0.02, 0.75)
    assert (joint.rise, joint.fall, joint.first, joint.codes) == (0.05, 0.25, 0.02, 10_000)
    assert joint.look == LookWeights(raw=0.05, raw_lpips=1.0, face_lpips=2.0, face_square=1.5)
    assert (joint.axes, joint.stay, joint.frame_rate) == (False, 0.0, 0.0)
    assert (tuning.steps, tuning.rate, tuning.enough, tuning.ball) == (400, 1e-3, 0.006, 1e-4)
    assert (tuning.raw * 512**2, tuning.reach, tuning.truncation) == (128**2, 0.1, 0.5)
    assert (video.first_steps, video.steps, video.rate, video.enough) == (200, 50, 0.01, 0.2)
    assert video.look == LookWeights(rgb=0.25, rgb_lpips=1.0, face_lpips=1.2, face_l1=1.2)
    assert (video.offset, video.stay, video.every, video.smoothing) == (0.01, 0.02, 1, 0.0)
