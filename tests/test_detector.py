"""The real face-alignment package, with weights of random numbers: offline, and nothing executed.

The first picture takes half a minute on two cores: the package compiles a function of its own.
"""

import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from official import old_stream, save

from talk3d.core import InputError, MissingAsset
from talk3d.detector import Aligner, find_landmarks, load_aligner

DETECTOR, NETWORK = "s3fd-619a316812.pth", "2DFAN4-11f355bf06.pth.tar"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """An empty hub cache of torch; a download fails the test."""

    def download(*arguments, **options):
        raise AssertionError(f"a download was tried: {arguments}")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("torch.hub.download_url_to_file", "urllib.request.urlopen"):
        monkeypatch.setattr(name, download)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def weights(place) -> Iterator[Path]:
    """Files of both networks: a detector that sees no face anywhere, random landmarks."""
    from face_alignment.detection.sfd.net_s3fd import s3fd
    from face_alignment.models import FAN

    blind = {name: torch.zeros_like(value) for name, value in s3fd().state_dict().items()}
    save(place / DETECTOR, old_stream(blind))
    torch.save(FAN(4).state_dict(), place / NETWORK)
    yield place
    for file in place.iterdir():  # 190 MB
        file.unlink()


def test_landmarks_of_the_real_package(weights):
    aligner = load_aligner()
    assert isinstance(aligner, Aligner) and aligner.flip_input is False
    assert not hasattr(aligner.face_alignment_net, "_orig_mod"), "it is not compiled"
    frames = np.random.default_rng(0).integers(0, 256, (2, 200, 256, 3), np.uint8)
    boxes = np.array([[90.0, 70.0, 150.0, 130.0], [95.0, 70.0, 155.0, 130.0]])
    landmarks, found = find_landmarks(aligner, frames, boxes)
    assert found.all() and landmarks.dtype == np.float32
    alone = aligner.get_landmarks_from_image(frames[1], [boxes[1]])[0]
    np.testing.assert_array_equal(landmarks[1], alone)
    middle, side = np.array([120, 92.8]), 200 * 120 / 195  # of the square it looks at
    assert np.abs(landmarks[0] - middle).max() <= side / 2 + 1
    assert np.ptp(landmarks[0], axis=0).min() > 10, "random points, not one point"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the package warns of a frame without a face: not here
        with pytest.raises(InputError, match="no face in any of 2 frames"):
            find_landmarks(aligner, frames)


def test_what_is_missing_is_said_and_never_fetched(place):
    with pytest.raises(MissingAsset, match=f"{DETECTOR} is missing"):
        load_aligner()
    save(place / DETECTOR, b"PK")
    with pytest.raises(MissingAsset, match=f"{NETWORK} is missing"):
        load_aligner()
    assert [file.name for file in place.iterdir()] == [DETECTOR]


class Hostile:
    """A pickle that makes a file when it is read as a program."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("name", [DETECTOR, NETWORK])
def test_nothing_in_the_files_is_executed(weights, tmp_path, name):
    target = tmp_path / "executed"
    for content in (pickle.dumps(Hostile(target)), old_stream({"a": Hostile(target)}), b"\x80cut"):
        save(weights / name, content)
        with pytest.raises(InputError, match="is something else .* get it again"):
            load_aligner()
        assert not target.exists()
    torch.save({"a": torch.ones(1)}, weights / name)
    with pytest.raises(InputError, match=r"is something else \(RuntimeError\)"):
        load_aligner()
