"""The kept speech: made again byte for byte, in its splits, and each phoneme with its mouth."""

import importlib.util
import math

import numpy as np
import pytest

from talk3d.speech import VISEMES, load_speech, package_clips, viseme, visemes_from_phonemes
from talk3d.utterances import (
    PHONES,
    UTTERANCES,
    VOICES,
    load_utterance,
    make_utterances,
    novel_speech,
    novel_text,
    phones_of,
)

NAMES = [one.name for one in UTTERANCES]
can_speak = importlib.util.find_spec("espeakng_loader") is not None
needs_espeak = pytest.mark.skipif(not can_speak, reason="the extra speech is not installed")


@needs_espeak
def test_all_utterances_are_made_again_byte_for_byte(tmp_path):
    make_utterances(tmp_path)
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == sorted(f"{name}.{end}" for name in NAMES for end in ("flac", "json"))
    for name in made:
        assert (tmp_path / name).read_bytes() == (package_clips() / name).read_bytes(), name


def test_the_package_holds_these_clips_and_no_others():
    files = [path for path in package_clips().iterdir() if path.is_file()]
    assert {path.stem for path in files} == {*NAMES, "embedded"}
    assert {path.suffix for path in files} == {".flac", ".json"}
    assert sum(path.stat().st_size for path in files) <= 8_000_000


def test_splits_hold_what_they_must():
    seconds: dict[tuple[str, str], float] = {}
    for one in UTTERANCES:
        length = load_utterance(one.name).seconds
        assert length >= 8, one.name
        seconds[one.split, one.voice] = seconds.get((one.split, one.voice), 0.0) + length
    assert len(UTTERANCES) >= 24 and sum(seconds.values()) >= 360
    assert max(seconds["train", "first"], seconds["train", "second"]) >= 70
    assert len(set(VOICES.values())) == 4
    trained = {voice for split, voice in seconds if split == "train"}
    assert trained == {voice for split, voice in seconds if split == "test"}
    assert (
        {voice for split, voice in seconds if split in "ab"} == {"a", "b"} == set(VOICES) - trained
    )


def test_no_text_is_said_twice():
    texts = [*(one.text for one in UTTERANCES), load_speech("embedded").text]
    assert len(set(texts)) == len(texts)
    novel = {
        novel_text(n)
        for start in (0, 100_000, 200_000, 800_000, 900_000)
        for n in range(start, start + 3000)
    }
    assert len(novel) == 15_000
    assert not novel & set(texts)
    assert max(len(text.split()) for text in novel) < min(len(text.split()) for text in texts)


@pytest.mark.parametrize("name", NAMES)
def test_lips_obey_the_phonemes(name):
    speech = load_utterance(name)
    mouth = visemes_from_phonemes(speech.phonemes, math.ceil(speech.seconds * 25))
    middles = {p: int((p.start + p.end) / 2 * 25) for p in speech.phonemes}
    pressed = [k for p, k in middles.items() if p.symbol in ("p", "b", "m", "m-")]
    assert len(pressed) >= 3
    assert (mouth.opening[pressed] == 0).all()
    assert (mouth.jaw <= 1).all() and (mouth.jaw >= 0).all()
    wide = [k for p, k in middles.items() if viseme(p.symbol)[0] >= 0.8 and p.end - p.start > 0.1]
    narrow = [k for p, k in middles.items() if p.symbol.strip("',") in ("i:", "u:", "i", "u")]
    assert np.mean(mouth.opening[wide]) > np.mean(mouth.opening[narrow]) + 0.2


@pytest.mark.parametrize("name", NAMES)
def test_each_phoneme_has_a_mouth_and_a_phone(name):
    speech = load_utterance(name)
    assert all(p.symbol.lstrip("',%=") in VISEMES for p in speech.phonemes)
    assert set(phones_of(speech)) <= set(PHONES)
    starts = [p.start for p in speech.phonemes]
    assert starts == sorted(starts) and speech.phonemes[-1].end <= speech.seconds + 1e-4


@needs_espeak
@pytest.mark.parametrize("role", list(VOICES))
def test_new_sentences_have_mouths_in_every_voice(role):
    spoken = [novel_speech(700_000 + number, role) for number in range(12)]
    assert all(viseme(p.symbol) for speech in spoken for p in speech.phonemes)
    assert len({phone for speech in spoken for phone in phones_of(speech)}) > 36
