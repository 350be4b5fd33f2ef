"""From a video to its landmarks: with the real face-alignment package, and after a kill."""

import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from official import old_stream, save
from toys import started

from talk3d.core import InputError, MissingAsset
from talk3d.finding import finding_stage, load_finder, load_trail
from talk3d.media import FPS, RATE, Clip, iter_frames, write_clip
from talk3d.preprocess import PreprocessConfig, preprocess, read_landmarks
from talk3d.speech import load_speech
from talk3d.synthetic import TalkConfig, make_talk


@pytest.fixture(scope="module")
def talk(tmp_path_factory) -> Path:
    """Sixty frames of the embedded talk."""
    folder = tmp_path_factory.mktemp("talk")
    make_talk(folder, TalkConfig(frames=60, resolution=64, supersample=1), speech=load_speech())
    return folder


def points(path: Path) -> np.ndarray:
    with np.load(path) as file:
        return file["landmarks68"]


def test_a_video_without_landmarks_is_prepared(talk, tmp_path):
    """The mini network finds what the file of the talk says, within a pixel."""
    assert finding_stage(talk / "video.mp4", tmp_path, "mini")
    marks = tmp_path / "landmarks" / "landmarks.npz"
    read_landmarks(marks, 60, (64, 64))
    assert np.abs(points(marks) + 0.5 - points(talk / "landmarks.npz")).mean() < 0.6
    small = PreprocessConfig(size=48)
    found = preprocess(talk / "video.mp4", marks, tmp_path / "found", small)
    truth = preprocess(talk / "video.mp4", talk / "landmarks.npz", tmp_path / "truth", small)
    assert np.abs(found.yaw - truth.yaw).mean() < 3 and np.abs(found.pitch - truth.pitch).mean() < 3


KILLED = """
import sys
import talk3d.finding
talk3d.finding.SAVE_SECONDS = 0.0
talk3d.finding.finding_stage(sys.argv[1], sys.argv[2], "mini")
"""


def test_a_killed_search_goes_on_where_it_was(talk, tmp_path):
    state = tmp_path / "killed" / ".landmarks.partial" / "state.npz"
    arguments = ["-c", KILLED, talk / "video.mp4", state.parents[1]]
    with started(arguments, stderr=subprocess.DEVNULL) as child:
        while child.poll() is None and len(load_trail(state).points) < 5:
            time.sleep(0.05)
        assert child.poll() is None, "it was quicker than the test"
        child.kill()
        child.wait()
    kept = load_trail(state)
    assert 5 <= len(kept.points) < 60
    kept.points[2][:] += 7.0  # what was seen is not looked at again
    with open(state, "wb") as file:
        np.savez(file, points=np.stack(kept.points), thumbnails=np.stack(kept.thumbnails))
    assert finding_stage(talk / "video.mp4", state.parents[1], "mini")
    assert finding_stage(talk / "video.mp4", tmp_path / "whole", "mini")
    apart = points(state.parents[1] / "landmarks" / "landmarks.npz")
    apart = apart - points(tmp_path / "whole" / "landmarks" / "landmarks.npz")
    assert np.allclose(apart[2], 7.0) and np.abs(np.delete(apart, 2, axis=0)).max() < 1e-4
    assert not state.parent.exists()


def test_a_cut_is_refused_and_leaves_nothing(talk, tmp_path):
    frames = list(iter_frames(talk / "video.mp4"))
    frames = np.stack([*frames[:30], *(np.roll(frame, 5, axis=1) for frame in frames[30:])])
    write_clip(tmp_path / "cut.mp4", Clip(frames, FPS, np.zeros(60 * RATE // 25, np.float32), RATE))
    with pytest.raises(InputError, match="the video is cut at 1.20 s; use one shot"):
        finding_stage(tmp_path / "cut.mp4", tmp_path / "out", "mini")
    assert not (tmp_path / "out").exists()


def test_the_real_package_finds_no_face_offline(talk, tmp_path, monkeypatch):
    """Its own detector, with weights that see nothing: refused after a second of video."""
    from face_alignment.detection.sfd.net_s3fd import s3fd
    from face_alignment.models import FAN

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingAsset, match="s3fd-619a316812.pth"):
        load_finder("face-alignment", "cpu")
    place = tmp_path / "hub" / "checkpoints"
    place.mkdir(parents=True)
    blind = {name: torch.zeros_like(value) for name, value in s3fd().state_dict().items()}
    save(place / "s3fd-619a316812.pth", old_stream(blind))
    torch.save(FAN(4).state_dict(), place / "2DFAN4-11f355bf06.pth.tar")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        find, weights = load_finder("face-alignment", "cpu")
    assert len(weights) == 2 and all(len(digest) == 64 for digest in weights.values())
    assert find(np.full((64, 64, 3), 90, np.uint8), None) == []
    for file in place.iterdir():  # 190 MB
        file.unlink()
