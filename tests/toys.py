"""Small worlds for tests: videos, good and bad, a profile that trains in seconds, the commands."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import torch
from cells import ROOT

from talk3d.camera import orbit_camera, project
from talk3d.dataset import Sampling
from talk3d.media import FPS, RATE, Clip
from talk3d.person import PuppetIdentity, neutral_motion
from talk3d.profiles import SMOKE
from talk3d.puppet import Puppet
from talk3d.synthetic import TalkConfig

FRAMES, SIDE = 60, 64


def noisy_clip(frames: int = FRAMES, fps: float = FPS) -> Clip:
    """Hard to compress, so that a hole in the file hits pictures."""
    generator = np.random.default_rng(0)
    rgb = generator.integers(0, 255, (frames, SIDE, SIDE, 3), dtype=np.uint8)
    audio = generator.normal(0, 0.1, round(frames / fps * RATE)).astype(np.float32)
    return Clip(rgb, fps, audio, RATE)


def face_points(frames: int = FRAMES) -> np.ndarray:
    """The landmarks of a still face in the middle of the picture."""
    camera = orbit_camera(torch.zeros(1), torch.zeros(1))
    face = Puppet(PuppetIdentity()).landmarks(neutral_motion(1))
    return np.repeat(project(face, camera).double().numpy() * SIDE - 0.5, frames, axis=0)


def without(video: Path, kind: str, target: Path) -> None:
    """Copy a video without its picture or sound track."""
    with av.open(str(video)) as source, av.open(str(target), "w") as sink:
        kept = {s.index: sink.add_stream_from_template(s) for s in source.streams if s.type != kind}
        for packet in source.demux():
            if packet.dts is not None and packet.stream.index in kept:
                packet.stream = kept[packet.stream.index]
                sink.mux(packet)


def saved_targets(folder: Path, *verdicts: str) -> Path:
    """A folder of records: a wide table, and a wide picture with claims; its texts are hostile."""
    from talk3d.plot import markdown_table, new_figure, save_figure

    where, evil = "Appendix C", "<script>hacked = 1</script><img src=http://x.test/a.png onerror=x>"
    claims = [
        {"id": f"figC2/{k}", "text": evil, "where": where, "verdict": verdict, "evidence": "a" * 90}
        for k, verdict in enumerate(verdicts)
    ]
    value = {"name": "PSNR", "unit": "dB", "better": "up", "ours": 31.2, "paper": 26.8}
    record = {"target": "figC2", "title": evil, "profile": "demo", "seed": 0, "values": [value],
              "claims": claims, "provenance": {"seconds": 1.5, "commit": evil}}  # fmt: skip
    figure = new_figure(7.0, 3.0)
    figure.subplots().plot([0, 1])
    save_figure(figure, folder, record, {})
    table = markdown_table(("method", *"abcdefghij"), [(evil, *[12345.678] * 10)])
    save_figure(None, folder, record | {"target": "tabC1", "claims": []}, {}, table)
    return folder


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def is_one_sentence(text: str) -> bool:
    """No line break, a remedy behind a semicolon, short enough to be read."""
    return "\n" not in text and (";" in text or ": run again" in text) and len(text) < 300


# A portrait that is learnt in a second: everything `smoke` has, at the smallest sizes.
TINY = replace(
    SMOKE,
    talk=TalkConfig(frames=60, resolution=48, supersample=1),
    preprocess=replace(SMOKE.preprocess, size=32),
    portrait=replace(
        SMOKE.portrait,
        generator=replace(
            SMOKE.portrait.generator,
            plane_size=16,
            plane_channels=4,
            neural_resolution=16,
            sr_native=16,
        ),
        deltaplane=replace(SMOKE.portrait.deltaplane, plane_size=16, channels=4, widths=(8, 8, 8)),
    ),
    personalize=replace(SMOKE.personalize, distil_steps=4, steps=4, batch=2, points=500),
    train=replace(
        SMOKE.train, steps=60, sampling=Sampling(windows=1), validate_steps=9, save_seconds=0.0
    ),
)

# The command line, where the word "smoke" means the profile above.
TINY_CLI = """
import signal
import talk3d.profiles
from toys import TINY
from talk3d.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of a background shell ignores it
talk3d.profiles.profile_named = lambda name: TINY
main()
"""


def environment(threads: int | None = None) -> dict[str, str]:
    """What a child needs to import the package and the helpers of the tests."""
    found = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    limit = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return os.environ | limit | {"PYTHONPATH": found.rstrip(os.pathsep)}


def talk3d(*arguments: object, threads: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command the way a user does, in the checkout."""
    command = [sys.executable, "-m", "talk3d.cli", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environment(threads), text=True, capture_output=True
    )


@contextlib.contextmanager
def started(code: list[str], *arguments: object, **options) -> Iterator[subprocess.Popen]:
    """A running Python in a session of its own, of which nothing outlives the block."""
    command = [sys.executable, *code, *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(1), text=True, start_new_session=True, **options
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)  # all of the session are ours
        process.wait()
