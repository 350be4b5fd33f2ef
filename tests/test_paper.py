"""Profile paper at full size: every stage for a few steps, random weights in official files."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from official import eg3d_pickle, save

from talk3d.assets import OFFICIAL, asset_place
from talk3d.core import import_extra, import_torchvision
from talk3d.eg3d import FFHQ, Generator
from talk3d.evaluate import held_out_cards
from talk3d.identity import EmbedderConfig, FaceEmbedder
from talk3d.media import Clip, read_clip, write_clip
from talk3d.perceptual import AlexNetConfig, AlexNetFeatures
from talk3d.pipeline import (
    Wishes,
    personalize_stage,
    preprocess_stage,
    render_stage,
    restorer_stage,
    train_stage,
)
from talk3d.profiles import PAPER, Profile
from talk3d.provenance import peak_memory_mb
from talk3d.render import load_portrait
from talk3d.restorer import Restorer, RestorerConfig
from talk3d.synthetic import TalkConfig, make_talk
from talk3d.train import read_log
from talk3d.wav2lip import ExpertConfig, LipSyncExpert

pytestmark = pytest.mark.paper
FRAMES, SIDE = 66, 512


def rehearsal() -> Profile:
    """The paper's sizes, losses and networks, and hardly any steps."""
    tracking = PAPER.tracking
    tracking = replace(
        tracking,
        joint=replace(tracking.joint, steps=2),
        tuning=replace(tracking.tuning, steps=2),
        video=replace(tracking.video, steps=1, first_steps=1, batch=2, every=16),
    )
    train = PAPER.train.in_steps(2)  # the second of them with the sync loss
    train = replace(train, weights=replace(train.weights, sync_from=1), validation_frames=2)
    restorer = replace(PAPER.restorer, steps=1, pictures=1, validation_frames=1)
    return replace(PAPER, tracking=tracking, train=train, restorer=restorer)


def random_files(home: Path) -> None:
    """Each official file that a portrait needs, in its layout and container, random weights."""
    import_torchvision()  # mends a wheel that transformers would stumble over
    transformers = import_extra("transformers", "networks")
    torch.manual_seed(0)
    places = {asset.name: asset_place(asset) for asset in OFFICIAL}
    for place in places.values():
        place.parent.mkdir(parents=True, exist_ok=True)
    save(places["eg3d"], eg3d_pickle(Generator(FFHQ)))
    torch.save(FaceEmbedder(EmbedderConfig()).state_dict(), places["arcface"])
    torch.save({"state_dict": LipSyncExpert(ExpertConfig()).state_dict()}, places["lipsync-expert"])
    torch.save({"params_ema": Restorer(RestorerConfig()).state_dict()}, places["gfpgan"])
    torch.save(AlexNetFeatures(AlexNetConfig()).state_dict(), places["alexnet"])
    ear = transformers.Wav2Vec2Config(
        vocab_size=44, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
        intermediate_size=4096, feat_extract_norm="layer", do_stable_layer_norm=True,
        conv_bias=True,
    )  # fmt: skip
    folder, symbols = places["wav2vec2"], ["<pad>", "<s>", "</s>", "<unk>", "|"]
    vocabulary = {symbol: k for k, symbol in enumerate([*symbols, *map(str, range(39))])}
    (home / "vocab.json").write_text(json.dumps(vocabulary))
    transformers.Wav2Vec2ForCTC(ear).save_pretrained(folder)
    transformers.Wav2Vec2CTCTokenizer(str(home / "vocab.json")).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)


def filmed(folder: Path) -> tuple[Path, Path]:
    """A talk of 512 x 512 pixels and its landmarks, drawn small and enlarged."""
    make_talk(folder / "small", TalkConfig(frames=FRAMES, resolution=64, supersample=1, seed=2))
    clip = read_clip(folder / "small" / "video.mp4", shortest=1.0)
    frames = np.stack([cv2.resize(frame, (SIDE, SIDE)) for frame in clip.frames])
    write_clip(folder / "talk.mp4", Clip(frames, clip.fps, clip.audio, clip.rate))
    with np.load(folder / "small" / "landmarks.npz") as known:
        points = (known["landmarks68"] + 0.5) * SIDE / 64 - 0.5
    np.savez(folder / "points.npz", landmarks68=points)
    return folder / "talk.mp4", folder / "points.npz"


def test_every_stage_runs_at_full_size(tmp_path, monkeypatch):
    monkeypatch.setenv("TALK3D_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    random_files(tmp_path)
    profile, (video, points), work = rehearsal(), filmed(tmp_path), tmp_path / "May"

    def timed(name: str, stage: Callable[[], Any]) -> Any:
        started, made = time.monotonic(), stage()
        assert made is not False, f"{name} had nothing to do"
        took, peak = time.monotonic() - started, peak_memory_mb() / 1024
        print(f"{name}: {took:.0f} s, at most {peak:.1f} GB so far")
        return made

    timed("preprocess", lambda: preprocess_stage(video, points, work, profile))
    timed("personalize", lambda: personalize_stage(work, profile, device="cpu"))
    timed("train", lambda: train_stage(work, profile, device="cpu"))
    timed("restorer", lambda: restorer_stage(work, profile, "official", device="cpu"))
    log = read_log(work / "train" / "log.jsonl")
    assert [line["step"] for line in log] == [0, 1]
    assert "sync" not in log[0] and np.isfinite(log[1]["sync"])
    talking = load_portrait(work / "train")
    assert talking.portrait.config.generator.image_size == SIDE
    assert len(talking.drive) == FRAMES
    out = tmp_path / "out.mp4"
    timed("render", lambda: render_stage(work, out, wishes=Wishes(yaw=10.0), device="cpu"))
    again, own = tmp_path / "restored.mp4", Wishes(yaw=10.0, restorer="own")
    timed("render restored", lambda: render_stage(work, again, wishes=own, device="cpu"))
    plain, restored = (read_clip(path, shortest=0.01).frames for path in (out, again))
    assert plain.shape[1:] == (SIDE, SIDE, 3)
    assert plain.shape == restored.shape and not np.array_equal(plain, restored)
    cards = timed("evaluate", lambda: held_out_cards(work))
    [psnr] = [score.value for score in cards["portrait"] if score.name == "PSNR"]
    assert np.isfinite(psnr)
