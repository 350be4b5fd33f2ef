"""Every kind of bad video, sound and landmarks: one sentence with its remedy, nothing written."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from toys import (
    FRAMES,
    SIDE,
    environment,
    face_points,
    is_one_sentence,
    noisy_clip,
    truncated,
    without,
)

from talk3d.core import InputError
from talk3d.media import read_audio, read_clip, write_audio, write_clip
from talk3d.preprocess import PreprocessConfig, preprocess

SMALL = PreprocessConfig(size=32)


def refuse(contains: str, video: Path, landmarks: Path, out: Path, **options) -> None:
    """`preprocess` refuses in one sentence and leaves no trace."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(InputError) as caught:
        preprocess(video, landmarks, out, SMALL, **options)
    assert contains in str(caught.value) and is_one_sentence(str(caught.value)), str(caught.value)
    assert sorted(out.parent.iterdir()) == before, "something was left behind"


def test_good_input_passes(good, tmp_path):
    track = preprocess(good / "clip.mp4", good / "clip.npz", tmp_path / "out", SMALL)
    assert track.crops.shape == (FRAMES, 32, 32, 3) and track.train == 54
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "audio.wav",
        "crops.npy",
        "track.json",
        "track.npz",
    ]


def holed(data: bytes) -> bytes:
    """Zeros in the middle of the pictures."""
    start = data.find(b"mdat") + len(data) // 2
    return data[:start] + bytes(3000) + data[start + 3000 :]


def unmade(folder: Path, good: Path) -> dict[str, tuple[Path, str]]:
    """Bad videos, each with a word of its refusal."""
    whole = (good / "clip.mp4").read_bytes()
    contents = {
        "text.mp4": (b"not a video\n" * 99, "is not a video"),
        "text.txt": (b"not a video\n" * 99, "is not a video"),
        "playlist.m3u8": (b"#EXTM3U\n#EXTINF:1,\nhttp://example.org/a.ts\n", "is not a video"),
        "empty.mp4": (b"", "is not a video"),
        "cut.mp4": (truncated(whole), "its end is missing"),
        "hole.mp4": (holed(whole), "is damaged"),
    }
    for name, (data, _) in contents.items():
        (folder / name).write_bytes(data)
    bad = {name: (folder / name, word) for name, (_, word) in contents.items()}
    without(good / "clip.mp4", "audio", folder / "mute.mp4")
    without(good / "clip.mp4", "video", folder / "blind.mp4")
    write_clip(folder / "fast.mp4", noisy_clip(fps=30.0))
    write_clip(folder / "brief.mp4", noisy_clip(frames=40))
    return bad | {
        "absent.mp4": (folder / "absent.mp4", "no such file"),
        "folder": (folder, "is not a file"),
        "mute.mp4": (folder / "mute.mp4", "no audio track"),
        "blind.mp4": (folder / "blind.mp4", "no video track"),
        "fast.mp4": (folder / "fast.mp4", "30 fps; talk3d works at 25: run again with --resample"),
        "brief.mp4": (folder / "brief.mp4", "lasts 1.60 s; give a clip of at least 2 s"),
    }


def test_bad_videos(good, tmp_path):
    (tmp_path / "in").mkdir()
    for video, contains in unmade(tmp_path / "in", good).values():
        refuse(contains, video, good / "clip.npz", tmp_path / "out")


def test_a_stream_that_ends_early_is_not_shortened(good, tmp_path):
    """The index comes first, so the file opens, and whole packets at its end are missing."""
    with av.open(str(good / "clip.mp4")) as source:
        options = {"movflags": "faststart"}
        with av.open(str(tmp_path / "first.mp4"), "w", options=options) as sink:
            kept = {s.index: sink.add_stream_from_template(s) for s in source.streams}
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = kept[packet.stream.index]
                    sink.mux(packet)
    whole = (tmp_path / "first.mp4").read_bytes()
    assert whole.find(b"moov") < whole.find(b"mdat")
    assert len(read_clip(tmp_path / "first.mp4").frames) == FRAMES
    for share in (0.5, 0.7, 0.9):
        (tmp_path / "short.mp4").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputError) as caught:
            read_clip(tmp_path / "short.mp4")
        assert is_one_sentence(str(caught.value))


def delayed(video: Path, kind: str, target: Path) -> None:
    """Copy a video so that the second half of one of its tracks comes 0.2 s late."""
    with av.open(str(video)) as source, av.open(str(target), "w") as sink:
        kept = {s.index: sink.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                if packet.stream.type == kind and packet.pts * packet.time_base > 1.2:
                    late = int(0.2 / packet.time_base)
                    packet.pts, packet.dts = packet.pts + late, packet.dts + late
                packet.stream = kept[packet.stream.index]
                sink.mux(packet)


def test_holes_in_the_times_are_seen(good, tmp_path):
    """25 fps on paper, but frames or sound were lost on the way."""
    (tmp_path / "in").mkdir()
    video, marks = tmp_path / "in" / "hole.mkv", good / "clip.npz"
    delayed(good / "clip.mp4", "none", video)
    assert len(read_clip(video).frames) == FRAMES
    delayed(good / "clip.mp4", "video", video)
    refuse("--resample", video, marks, tmp_path / "out")
    assert len(read_clip(video, resample=True).frames) == FRAMES + 5
    delayed(good / "clip.mp4", "audio", video)
    refuse("has a gap in its sound at 1.2", video, marks, tmp_path / "out")


def test_resample_takes_another_rate(good, tmp_path):
    write_clip(tmp_path / "fast.mp4", noisy_clip(frames=75, fps=30.0), crf=28)
    np.savez(tmp_path / "marks.npz", landmarks68=face_points(63))
    out = tmp_path / "out"
    track = preprocess(tmp_path / "fast.mp4", tmp_path / "marks.npz", out, SMALL, resample=True)
    assert len(track) == 63 and len(track.audio) == 63 * 640  # 2.5 s, rounded up to whole frames


def test_bad_landmarks(good, tmp_path):
    (tmp_path / "in").mkdir()
    points, hole = face_points(), face_points()
    hole[9, 5, 0] = np.nan
    arrays = {
        "59 frames, the video has 60": {"landmarks68": points[:-1]},
        "NaN in 1 frames, the first is 9": {"landmarks68": hole},
        "no array landmarks68": {"points": points},
        "shape (60, 478, 3)": {"landmarks68": np.zeros((60, 478, 3))},
        "give pixel coordinates": {"landmarks68": points / SIDE},
        "mirrored": {"landmarks68": [SIDE, 0] + points * [-1, 1]},
        "plain numbers": {"landmarks68": np.array([{}], dtype=object)},
    }
    for contains, content in arrays.items():
        np.savez(tmp_path / "in" / "bad.npz", **content)
        refuse(contains, good / "clip.mp4", tmp_path / "in" / "bad.npz", tmp_path / "out")
    (tmp_path / "in" / "cut.npz").write_bytes(truncated((good / "clip.npz").read_bytes()))
    refuse("numpy.savez", good / "clip.mp4", tmp_path / "in" / "cut.npz", tmp_path / "out")
    refuse("no such file", good / "clip.mp4", tmp_path / "in" / "no.npz", tmp_path / "out")


def test_an_unwritable_folder(good, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write .*; choose another folder"):
        preprocess(good / "clip.mp4", good / "clip.npz", tmp_path / "file" / "out", SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    with pytest.raises(InputError, match="cannot write"):
        write_clip("/proc/no/clip.mp4", noisy_clip())


DISK_FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from talk3d.core import InputError
from talk3d.media import read_clip, write_audio, write_clip
from talk3d.preprocess import PreprocessConfig, preprocess
good, out = Path(sys.argv[1]), Path(sys.argv[2])
clip = read_clip(good / "clip.mp4")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
works = {
    "clip": lambda: write_clip(out / "clip.mp4", clip),
    "wav": lambda: write_audio(out / "sound.wav", clip.audio),
    "flac": lambda: write_audio(out / "sound.flac", clip.audio),
    "track": lambda: preprocess(good / "clip.mp4", good / "clip.npz", out / "track",
                                PreprocessConfig(size=32)),
}
for name, work in works.items():
    try:
        work()
        print(name, "written")
    except InputError as error:
        print(name, "refused", error)
"""


def child(code: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment(), text=True, capture_output=True)


@pytest.mark.parametrize("size", [4096, 50_000])
def test_a_full_disk_is_heard_of(good, tmp_path, size):
    """A limit on the size of files stands in for a full disk: both fail in `write`."""
    result = child(DISK_FULL, good, tmp_path, size)
    told = result.stdout.splitlines()
    assert result.returncode == 0 and len(told) == 4, result.stderr
    assert all(" refused cannot write " in line for line in told), told
    left = [p.name for p in tmp_path.rglob("*") if p.is_file()]
    assert left == [], left


def test_ffmpeg_says_nothing(good, tmp_path):
    """Only our sentence reaches the terminal."""
    (tmp_path / "hole.mp4").write_bytes(holed((good / "clip.mp4").read_bytes()))
    result = child(NOISE, good / "clip.mp4", tmp_path / "hole.mp4", tmp_path / "copy.mp4")
    assert (result.returncode, result.stderr) == (0, "")
    assert "hole.mp4 is damaged" in result.stdout


NOISE = """
import sys
from talk3d.core import InputError
from talk3d.media import read_clip, write_clip
write_clip(sys.argv[3], read_clip(sys.argv[1]))
try:
    read_clip(sys.argv[2])
except InputError as error:
    print(error)
"""


def test_damaged_sound(tmp_path):
    sound = noisy_clip().audio
    write_audio(tmp_path / "a.wav", sound)
    write_audio(tmp_path / "a.flac", sound)
    for name in ("a.wav", "a.flac"):
        assert len(read_audio(tmp_path / name)[0]) == len(sound)
        (tmp_path / f"cut_{name}").write_bytes(truncated((tmp_path / name).read_bytes()))
        with pytest.raises(InputError) as caught:
            read_audio(tmp_path / f"cut_{name}")
        assert is_one_sentence(str(caught.value))
