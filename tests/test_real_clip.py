"""The real clip and its landmarks, when the shared reference data is there."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from toys import TINY

from talk3d.faces import cavity_area, cavity_threshold, mouth_box
from talk3d.landmarks import RIGID, SIX, reference_points
from talk3d.media import read_audio, read_clip, read_metadata
from talk3d.pipeline import (
    Wishes,
    personalize_stage,
    preprocess_stage,
    render_stage,
    train_stage,
)
from talk3d.preprocess import PreprocessConfig, load_track, preprocess
from talk3d.render import load_portrait
from talk3d.views import depth_checks, five_views


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory):
    """The clip's raw landmarks and its track at 64 pixels, read back from disk."""
    marks = shared / "data" / "WDA_KatieHill_000.landmarks.npz"
    folder = tmp_path_factory.mktemp("real")
    video = shared / "data" / "WDA_KatieHill_000.mp4"
    preprocess(video, marks, folder / "track", PreprocessConfig(size=64))
    with np.load(marks, allow_pickle=False) as file:
        landmarks = file["landmarks68"].astype(np.float64)
    track = load_track(folder / "track")
    shutil.rmtree(folder)  # pictures of a real person do not outlive the test
    return landmarks, track


def test_the_clip_is_read_whole(shared):
    clip = read_clip(shared / "data" / "WDA_KatieHill_000.mp4")
    assert clip.frames.shape == (200, 512, 512, 3)
    assert len(clip.audio) == 128_000 and 0.01 < clip.audio.std() < 0.5
    sound, rate = read_audio(shared / "data" / "RD_Radio31_000.wav")
    assert rate == 16_000 and len(sound) == 128_000


def test_the_crop_holds_the_head(real):
    landmarks, track = real
    six = track.landmarks[:, list(SIX)]
    assert np.abs(six.mean(axis=0) - reference_points(64)).max() < 2.5
    rigid = list(RIGID)
    moved = np.abs(np.diff(track.landmarks[:, rigid], axis=0)).mean() / 64
    assert moved < 0.4 * np.abs(np.diff(landmarks[:, rigid], axis=0)).mean() / 160
    assert track.train == 181 and len(track.audio) == 200 * 640


def test_pose_and_camera_are_those_of_a_talking_head(real):
    landmarks, track = real
    assert 8 < track.yaw.std() < 14 and 4 < track.pitch.std() < 10
    assert abs(track.yaw.mean()) < 10 and abs(track.pitch.mean()) < 10
    assert np.abs(np.diff(track.yaw)).max() < 6 and np.abs(np.diff(track.pitch)).max() < 6
    nose = landmarks[:, 30, 0] - landmarks[:, [36, 45], 0].mean(axis=1)
    assert np.corrcoef(track.yaw, nose)[0, 1] < -0.95, "seen from +x, the nose is at the left"
    assert np.corrcoef(track.angles[:, 1], track.yaw)[0, 1] > 0.95
    eyes = landmarks[:, 45] - landmarks[:, 36]
    line = -np.rad2deg(np.arctan2(eyes[:, 1], eyes[:, 0]))  # counter-clockwise
    assert np.corrcoef(np.rad2deg(track.angles[:, 2]), line)[0, 1] > 0.7


def test_the_cavity_follows_the_lips(real):
    landmarks, track = real
    gap = np.linalg.norm(landmarks[:, 62] - landmarks[:, 66], axis=1)
    gap /= np.linalg.norm(landmarks[:, 36] - landmarks[:, 45], axis=1)
    box = mouth_box(track.landmarks[: track.train])
    threshold = cavity_threshold(track.crops[: track.train], box)
    assert np.corrcoef(cavity_area(track.crops, box, threshold), gap)[0, 1] > 0.5
    assert 0.0 <= track.eye.min() and track.eye.max() == 2.0, "the eyes blink"


def test_the_whole_path_to_a_talking_portrait(shared, tmp_path):
    """Video to portrait to video with another's sound and to five views with depth, at toy size."""
    data, folder = shared / "data", tmp_path / "portrait"
    fit = replace(TINY.personalize, distil_steps=120, steps=10, points=2000)
    profile = replace(TINY, personalize=fit, train=replace(TINY.train, steps=10))
    video, marks = data / "WDA_KatieHill_000.mp4", data / "WDA_KatieHill_000.landmarks.npz"
    assert preprocess_stage(video, marks, folder, profile)
    assert personalize_stage(folder, profile) and train_stage(folder, profile)

    out = tmp_path / "out.mp4"
    render_stage(folder, out, data / "RD_Radio31_000.wav", Wishes(yaw=15.0, pitch=10.0))
    clip = read_clip(out)
    assert clip.frames.shape == (200, 32, 32, 3) and clip.frames.std() > 5
    assert abs(clip.seconds - 8) <= 1 / 25 and clip.audio.std() > 0.01
    assert "synthetic" in read_metadata(out)["comment"]

    track = load_track(folder / "preprocess")
    views = five_views(load_portrait(folder / "train"), 190)
    values = {row["name"]: row["ours"] for row in depth_checks(views, None, track, 190)}
    assert values["share of finite depths"] == 1.0
    assert values["background behind the face, frontal view"] > 0.1
    shutil.rmtree(tmp_path)  # pictures of a real person do not outlive the test
