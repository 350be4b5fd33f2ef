"""The length of a video does not show in memory: preparing and drawing batches are streams."""

import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
from toys import FRAMES, SIDE, environment, face_points

from talk3d.media import RATE

CHILD = """
import resource, sys
from pathlib import Path
import torch
from talk3d.dataset import talking_frames
from talk3d.preprocess import PreprocessConfig, preprocess

folder, size = Path(sys.argv[1]), int(sys.argv[2])


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


for name in ("short", "long"):
    source = (folder / f"{name}.mp4", folder / f"{name}.npz")
    track = preprocess(*source, folder / name, PreprocessConfig(size=size))
    prepared, data = peak(), talking_frames(track)
    for first in range(0, len(data), len(data) // 10):
        data.target(torch.tensor([first, first + 1]))
    print(len(track), track.crops.nbytes / 2**20, prepared, peak())
"""


def moving_face(folder: Path, name: str, frames: int, side: int) -> None:
    """A drawn face that sways, with noise for sound, written picture by picture."""
    still = (face_points(1)[0] + 0.5) * side / SIDE - 0.5
    sway = 0.05 * side * np.sin(np.arange(frames) / 9)
    marks = still + np.stack([sway, sway[::-1] / 2], axis=1)[:, None]
    np.savez(folder / f"{name}.npz", landmarks68=marks.astype(np.float32))
    picture = np.full((side, side, 3), 120, np.uint8)
    cv2.fillConvexPoly(picture, cv2.convexHull(still.astype(np.int32)), (220, 170, 140))
    noise = np.random.default_rng(0).normal(0, 0.1, (1, RATE)).astype(np.float32)
    with av.open(str(folder / f"{name}.mp4"), "w") as sink:
        video = sink.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        video.width = video.height = side
        video.pix_fmt = "yuv420p"
        sound = sink.add_stream("aac", rate=RATE, layout="mono")
        for number, (x, y) in enumerate(zip(sway, sway[::-1] / 2, strict=True)):
            shift = np.array([[1, 0, x], [0, 1, y]])
            moved = cv2.warpAffine(picture, shift, (side, side), borderMode=cv2.BORDER_REPLICATE)
            frame = av.VideoFrame.from_ndarray(moved, format="rgb24")
            frame.pts = number
            sink.mux(video.encode(frame))
            if number % 25 == 0:
                heard = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
                heard.sample_rate, heard.pts = RATE, number * RATE // 25
                sink.mux(sound.encode(heard))
        for stream in (video, sound):
            sink.mux(stream.encode())


def peaks(folder: Path, size: int) -> list[list[float]]:
    """Frames, megabytes of crops, peak memory after preparing and after drawing; short, long."""
    command = [sys.executable, "-c", CHILD, str(folder), str(size)]
    result = subprocess.run(command, env=environment(1), text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    return [[float(number) for number in line.split()] for line in result.stdout.splitlines()]


def test_a_longer_video_takes_no_more_memory(tmp_path):
    moving_face(tmp_path, "short", FRAMES, 96)
    moving_face(tmp_path, "long", 350, 96)
    short, long = peaks(tmp_path, 512)
    assert long[1] > 250, "in memory, the crops alone would be seen"
    assert long[2] - short[3] < 60, "preparing does not keep the crops"
    assert long[3] - short[3] < 100, "training does not read what it is not asked for"
