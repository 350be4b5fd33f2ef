"""Footage as cameras and phones write it: each kind becomes the same track at 25 fps and 16 kHz."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from toys import FRAMES, SIDE, face_points

from talk3d.core import InputError
from talk3d.faces import FaceTrack
from talk3d.preprocess import PreprocessConfig, preprocess

SMALL, MS = PreprocessConfig(size=32), Fraction(1, 1000)
EVERY = list(range(0, FRAMES * 40, 40))  # milliseconds, 25 fps


def picture(at: float, width: int = SIDE, height: int = SIDE) -> np.ndarray:
    """A lamp over a still face, brighter with time; red at the left, blue below."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., 0], rgb[..., 2] = np.linspace(200, 20, width), np.linspace(20, 200, height)[:, None]
    rgb[..., 1] = 20 + at / 12  # milliseconds
    return rgb


def film(
    path: Path,
    times: list[int],  # of the pictures, milliseconds
    width: int = SIDE,
    height: int = SIDE,
    codec: tuple[str, str] = ("libx264", "yuv420p"),
    sound: tuple[int, str] = (16000, "mono"),
) -> Path:
    """Pictures and a tone of 440 Hz, in stereo on the left only."""
    rate, layout = sound
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate * (times[-1] + 40) // 1000) / rate)
    channels = np.stack([tone, 0 * tone][: 2 if layout == "stereo" else 1]).astype(np.float32)
    with av.open(str(path), "w") as sink:
        video = sink.add_stream(codec[0], rate=25, options={"qp": "4", "bf": "0"})
        video.width, video.height, video.pix_fmt = width, height, codec[1]
        video.codec_context.time_base = video.time_base = MS
        heard = sink.add_stream("flac", rate=rate, layout=layout, format="s16")
        for at in times:
            frame = av.VideoFrame.from_ndarray(picture(at, width, height), format="rgb24")
            frame.pts, frame.time_base = at, MS
            sink.mux(video.encode(frame))
        sink.mux(video.encode())
        block = (channels * 32767).astype(np.int16).T.reshape(1, -1)
        samples = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), "s16", layout)
        samples.sample_rate, samples.pts = rate, 0
        for stream_part in (samples, None):
            sink.mux(heard.encode(stream_part))
    return path


def prepared(video: Path, resample: bool = False, frames: int = FRAMES) -> FaceTrack:
    marks = video.with_suffix(".npz")
    np.savez(marks, landmarks68=face_points(frames))
    return preprocess(video, marks, video.with_suffix(""), SMALL, resample)


KINDS: dict[str, Callable[[Path], Path]] = {
    "48 kHz stereo": lambda path: film(path, EVERY, sound=(48000, "stereo")),
    "44.1 kHz": lambda path: film(path, EVERY, sound=(44100, "mono")),
    "10 bits": lambda path: film(path, EVERY, codec=("libx264", "yuv420p10le")),
    "lossless RGB": lambda path: film(path, EVERY, codec=("ffv1", "bgr0")),
    "odd sides": lambda path: film(path, EVERY, 65, 63, codec=("libx264", "yuv444p")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_the_same_track(kind, tmp_path):
    track = prepared(KINDS[kind](tmp_path / "a.mkv"))
    plain = prepared(film(tmp_path / "plain.mkv", EVERY))
    assert len(track) == FRAMES and track.rate == 16000 and len(track.audio) == FRAMES * 640
    assert np.abs(track.crops.astype(int) - plain.crops).mean() < 4
    spectrum = np.abs(np.fft.rfft(track.audio[:16000]))
    assert spectrum.argmax() == 440
    least, most = (0.2, 0.4) if "stereo" in kind else (0.47, 0.53)  # one channel of two is silent
    assert least < np.abs(track.audio[2000:-2000]).max() < most


UNEVEN = [0, 40, 80, 95, 180, 240, 300, *range(320, FRAMES * 40, 40)]
RATES = {
    "24 fps": [round(i * 1000 / 24) for i in range(58)],
    "29.97 fps": [round(i * 1001 / 30) for i in range(72)],
    "50 fps": list(range(0, 2400, 20)),
    "uneven": UNEVEN,
}


@pytest.mark.parametrize("rate", RATES)
def test_other_times_are_refused_or_picked_by_time(rate, tmp_path):
    times = RATES[rate]
    video = film(tmp_path / "a.mkv", times)
    with pytest.raises(InputError, match="run again with --resample"):
        prepared(video)
    frames = round((times[-1] + 40) / 40) if rate != "50 fps" else FRAMES
    try:
        track = prepared(video, resample=True, frames=frames)
    except InputError as error:  # the last picture may last a frame more or less
        frames = int(str(error).split("the video has ")[1].split(";")[0])
        track = prepared(video, resample=True, frames=frames)
    assert abs(frames * 40 - times[-1] - 40) <= 40 and len(track.audio) == frames * 640
    green = track.crops[..., 1].reshape(frames, -1).mean(axis=1)
    shown = (green - 20) * 12  # the time that is in the picture
    assert (
        np.abs(shown[1:-1] - 40 * np.arange(frames)[1:-1]).max() < 100
    )  # one picture shows for 85 ms
    assert np.corrcoef(shown, np.arange(frames))[0, 1] > 0.999
