"""The numbers of real heads that the embedded talk is made after, measured again."""

import json

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from talk3d.media import iter_frames
from talk3d.preprocess import PreprocessConfig, load_track, preprocess
from talk3d.synthetic import HEAD_PLACE, REAL_MOTION, motion_numbers

FACE = 0.25  # world units from the top of the puppet's nose to its chin
CORNERS = ((470, 512, 0, 140), (450, 512, 440, 512))  # rows and columns of the clip's shoulders
RADIUS = 2.7  # world units from the camera to the head


def adnerf_poses(shared):
    """Yaw, pitch and roll about the mean (3 t), and where the head is for the camera (t 3)."""
    file = json.loads((shared / "data" / "adnerf_obama_transforms_val.json").read_text())
    matrices = np.array([frame["transform_matrix"] for frame in file["frames"]])
    turns = Rotation.from_matrix(matrices[:, :3, :3])
    yaw, pitch, roll = (turns.mean().inv() * turns).as_euler("YXZ", degrees=True).T
    places = turns.inv().apply(-matrices[:, :3, 3])  # OpenGL: right, up, backwards
    return np.stack([yaw, -pitch, roll]), places * RADIUS / -places[:, 2].mean()


def flow_path(frames, box):
    """How far the outlines in a box move to the right, added up, pixels."""
    top, bottom, left, right = box
    path, before = [0.0], None
    for frame in frames:
        now = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[top:bottom, left:right]
        if before is not None:
            flow = cv2.calcOpticalFlowFarneback(before, now, None, 0.5, 3, 15, 3, 5, 1.2, 0)
            slope = [cv2.Sobel(before, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1))]
            edges = np.hypot(*slope) > 60
            path.append(path[-1] + (np.median(flow[edges][:, 0]) if edges.sum() > 20 else 0.0))
        before = now
    return np.array(path)


def close(numbers, written):
    """Every number as it is written down, to the digits written."""
    assert numbers.keys() == written.keys()
    for name, value in written.items():
        assert abs(numbers[name] - value) <= 0.02 * max(abs(value), 0.1), (name, numbers[name])


def test_the_poses_of_adnerf(shared):
    turn, place = adnerf_poses(shared)
    close(motion_numbers(turn), REAL_MOTION["AD-NeRF poses"])
    assert np.allclose(place.std(axis=0)[:2], HEAD_PLACE, atol=2e-4)
    lift = np.polyfit(turn[1], place[:, 1], 1)[0]
    assert abs(lift + 0.0049) < 2e-4 and abs(np.corrcoef(turn[1], place[:, 1])[0, 1] + 0.77) < 0.01


def test_the_clip(shared, tmp_path):
    video = shared / "data" / "WDA_KatieHill_000.mp4"
    marks = shared / "data" / "WDA_KatieHill_000.landmarks.npz"
    preprocess(video, marks, tmp_path / "track", PreprocessConfig(size=32))
    track = load_track(tmp_path / "track")
    turn = np.stack([track.yaw, track.pitch, np.rad2deg(track.angles[:, 2])]).astype(np.float64)
    with np.load(marks, allow_pickle=False) as file:
        points = file["landmarks68"].astype(np.float64)
    face = np.linalg.norm(points[:, 8] - points[:, 27], axis=1).mean()
    frames = list(iter_frames(video))
    torso = np.mean([flow_path(frames, box) for box in CORNERS], axis=0) * FACE / face
    close(motion_numbers(turn, torso), REAL_MOTION["8 s clip"])


def test_the_flow_finds_a_known_path():
    """A textured picture that sways by a known path, seen through one of the boxes."""
    noise = np.random.default_rng(0).uniform(0, 255, (540, 620)).astype(np.float32)
    picture = cv2.GaussianBlur(noise, (0, 0), 4) * 6 - 640
    path = 15 * np.sin(np.arange(60) / 9)
    frames = []
    for shift in path:
        moved = cv2.warpAffine(picture, np.float32([[1, 0, shift], [0, 1, 0]]), (620, 540))
        frames.append(np.repeat(moved.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2))
    found = flow_path(frames, (300, 400, 200, 400))
    assert np.corrcoef(found, path)[0, 1] > 0.995
    assert found.std() == pytest.approx(path.std(), rel=0.1)
