"""The networks that judge lips: apart from each other, resumable, and as good as they say."""

import numpy as np
import pytest
import torch

from talk3d.core import file_sha256
from talk3d.mini import clips as making
from talk3d.mini import sync
from talk3d.mini.clips import TEXTS, ClipConfig, Clips, Take, cast, make_clip
from talk3d.mini.sync import Course
from talk3d.networks import load_mini
from talk3d.person import PuppetIdentity
from talk3d.utterances import UTTERANCES, novel_text

TINY = Course(clips=3, held_out=3, committed=1, clip=ClipConfig(frames=40, side=16), workers=0)
TRAIN = {"lipsync_expert": sync.train_lipsync_expert, "syncnet": sync.train_syncnet}


@pytest.fixture
def taken(monkeypatch) -> list[Take]:
    """Every take that is asked for; noise is given instead of a clip."""
    asked: list[Take] = []

    def noise(take: Take, config: ClipConfig) -> Clips:
        asked.append(take)
        random = np.random.default_rng(take.person)
        t, side = config.frames, config.side
        return Clips(
            random.integers(0, 256, (1, t, side, side, 3), np.uint8),
            np.tile(np.float32([0.3, 0.1, 0.7, 0.7]), (1, t, 1)),
            random.integers(-9000, 9000, (1, 640 * t), np.int16),
            random.uniform(0, 1, (1, t, 4)).astype(np.float32),
            np.ones(1),
        )

    monkeypatch.setattr(making, "make_clip", noise)
    return asked


def sentences(takes: list[Take]) -> set[str]:
    return {novel_text(number) for take in takes for number in take.texts}


@pytest.fixture
def runs(taken, tmp_path) -> dict[str, list[Take]]:
    """What a training run of either network asks for, with as many clips as by default."""
    asked = {}
    for kind, train in TRAIN.items():
        course = Course(held_out=2, committed=1, clip=TINY.clip, workers=0)
        taken.clear()
        train(tmp_path / kind, steps=1, course=course)
        asked[kind] = list(taken)
    return asked


def test_a_run_learns_from_its_own_people_and_sentences(runs):
    for kind, takes in runs.items():
        learned = [take for take in takes if take.stream == kind]
        assert len(learned) == Course().clips and learned == cast(kind, Course().clips)
        assert {take.voice for take in learned} == {"first", "second"}
        numbers = {number for take in learned for number in take.texts}
        assert min(numbers) >= TEXTS[kind] and max(numbers) < TEXTS[kind] + 100_000
        assert not any(take.utterance for take in learned)
        others = [take for take in takes if take.stream != kind]
        assert {take.stream for take in others} == {"held out"}
        assert [take.voice for take in others] == ["first", "second", "a", "b"]


def test_nobody_and_nothing_is_shared(runs):
    learned = {kind: [t for t in takes if t.stream == kind] for kind, takes in runs.items()}
    exam = cast("held out", Course().held_out)
    kept = {utterance.text for utterance in UTTERANCES}
    groups = [*learned.values(), exam]
    people = [{take.identity for take in takes} for takes in groups]
    said = [sentences(takes) for takes in groups]
    committed = {take.identity for voice in "ab" for take in cast(voice, Course().committed)}
    for i in range(3):
        assert PuppetIdentity() not in people[i]
        assert not said[i] & kept and not any(text in told for text in said[i] for told in kept)
        for j in range(i):
            assert not people[i] & people[j] and not said[i] & said[j]
    assert not committed & (people[0] | people[1])


def test_the_sets_of_sentences_begin_beyond_those_of_the_audio_network():
    assert min(TEXTS.values()) >= 100_000 and max(TEXTS.values()) + 100_000 <= 900_000
    assert len({start // 100_000 for start in TEXTS.values()}) == len(TEXTS)


@pytest.mark.parametrize("kind", TRAIN)
def test_an_interrupted_training_ends_with_the_same_file(kind, taken, tmp_path, monkeypatch):
    train, name = TRAIN[kind], {"lipsync_expert": "expert", "syncnet": "scorer"}[kind]
    straight = train(tmp_path / "straight", steps=3, course=TINY)
    objective, calls = getattr(sync, f"{name}_objective"), []

    def failing(pupil, batch):
        calls.append(batch.step)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return objective(pupil, batch)

    with monkeypatch.context() as patched:
        patched.setattr(sync, f"{name}_objective", failing)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "halves", steps=3, course=TINY)
    assert calls == [0, 1, 2]
    made = len(taken)
    assert train(tmp_path / "halves", steps=3, course=TINY) == straight
    assert len(taken) == made, "clips are made once"
    files = [tmp_path / run / "model.safetensors" for run in ("straight", "halves")]
    assert file_sha256(files[0]) == file_sha256(files[1])
    assert files[0].stat().st_size < 1.5e6


@pytest.fixture(scope="module")
def held_out() -> list[Clips]:
    """Two clips of people and sentences that no network learned from."""
    pytest.importorskip("espeakng_loader")
    takes = cast("held out", Course().held_out + 2)[-2:]
    return [make_clip(take, ClipConfig()) for take in takes]


@pytest.mark.parametrize("kind", TRAIN)
def test_the_published_network_finds_the_true_offset(kind, held_out):
    network = load_mini(kind)
    curves = [
        sync.expert_curves(network, clip)
        if kind == "lipsync_expert"
        else -torch.stack([score.curve for score in sync.scorer_scores(network, clip)])
        for clip in held_out
    ]
    assert [int(curve.argmax()) - 15 for curve in curves] == [0, 0]
    for curve in curves:  # it stands out
        assert curve[0, 15] - curve[0].median() > 2 * (curve[0].median() - curve[0].min()).clamp(0)
