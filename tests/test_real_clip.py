"""The real clip and its landmarks, when the shared reference data is there."""

import shutil

import numpy as np
import pytest

from talk3d.faces import cavity_area, cavity_threshold, mouth_box
from talk3d.landmarks import RIGID, SIX, reference_points
from talk3d.media import read_audio, read_clip
from talk3d.preprocess import PreprocessConfig, load_track, preprocess


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
