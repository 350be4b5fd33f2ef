"""What a training may see, and several processes that train one portrait."""

import os
import shutil
import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cells import ROOT
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from toys import TINY, environment

from talk3d.dataset import talking_frames
from talk3d.losses import LossNetworks, LossWeights
from talk3d.perceptual import lpips_with
from talk3d.pipeline import load_identity, train_stage
from talk3d.preprocess import load_track, save_track
from talk3d.train import TrainConfig, join_team, joined, new_portrait, painter_of, train_step
from talk3d.warm_start import PARTS, RayConfig, WarmStart
from talk3d.wav2lip import ExpertConfig, LipSyncExpert


def test_test_frames_change_nothing(tiny_talk, tmp_path):
    """Their pictures are replaced by noise: the portrait and its log stay as they are."""
    brief = replace(TINY, train=replace(TINY.train, steps=12))
    folders = [tmp_path / name for name in ("as it is", "noise")]
    for folder in folders:
        shutil.copytree(tiny_talk, folder)
    track = load_track(folders[1] / "preprocess")
    crops = np.array(track.crops)
    crops[track.train :] = np.random.default_rng(0).integers(0, 255, crops[track.train :].shape)
    save_track(replace(track, crops=crops), folders[1] / "preprocess")
    assert not np.array_equal(load_track(folders[1] / "preprocess").crops, track.crops)
    one, two = (folder / "train" for folder in folders)
    assert all(train_stage(folder, brief) for folder in folders)
    a, b = (load_file(folder / "portrait.safetensors") for folder in (one, two))
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    for name in ("log.jsonl", "preview.png"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


class Layers(nn.Module):
    """A backbone of one layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.first(x).relu()]


def judges() -> LossNetworks:
    """A perceptual distance, which is summed over a batch, and a lip-sync expert."""
    expert = LipSyncExpert(ExpertConfig((4, 4, 6, 6, 8), (4, 4, 6, 6, 8)))
    expert.apply(lambda part: setattr(part, "momentum", 1.0))  # batch norm fits what it sees once
    expert(torch.randn(8, 1, 80, 16), torch.rand(8, 15, 48, 96))
    return LossNetworks(lpips_with(Layers()), expert=expert.eval().requires_grad_(False))


def one_step(folder: Path, out: Path, rays: bool) -> None:
    """The loss of one step and its gradients, by the team of this process."""
    team = join_team()
    torch.manual_seed(0)
    networks = judges()
    portrait = new_portrait(load_identity(folder / "personalize" / "identity.safetensors"),
                            TINY.portrait).eval()  # fmt: skip
    warm = WarmStart(rays=RayConfig(int(rays), 2), sharpen=1.0)
    config = TrainConfig(
        weights=LossWeights(identity=0.0, mouth_l1=15.0, sync=1.0, sync_from=0), warm=warm
    )
    painter = joined(team, painter_of(portrait, config))
    learned = {n: p for n, p in portrait.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for value in learned.values():  # the first weights are zero and let no gradient through
            value += 0.02 * torch.randn_like(value)
    frames = talking_frames(load_track(folder / "preprocess"))
    adam = torch.optim.Adam([*learned.values()])
    terms = train_step(painter, adam, frames, config, networks, 0, 0, team)
    if team.rank == 0:
        numbers = {f"term {name}": torch.tensor(value) for name, value in terms.items()}
        save_file(
            numbers | {n: p.grad.contiguous() for n, p in learned.items() if p.grad is not None},
            out,
        )


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def launched(size: int, call: str, *arguments: object) -> list[str]:
    """Call a function of this file in so many processes, as a launcher does; what each prints."""
    code = f"import sys; from pathlib import Path; from test_training import *; {call}"
    known = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    known |= {"ACCELERATE_USE_CPU": "true"}
    team = [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(1) | known | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(size)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=120) for process in team]
    finally:
        for process in team:
            process.kill()
    assert [process.returncode for process in team] == [0] * size, "\n".join(e for _, e in told)
    return [printed for printed, _ in told]


def run_team(size: int, folder: Path, out: Path, rays: bool) -> dict[str, Tensor]:
    """What `one_step` leaves when a launcher starts so many processes."""
    call = "one_step(*map(Path, sys.argv[1:3]), sys.argv[3] == 'True')"
    launched(size, call, folder, out, rays)
    return load_file(out)


TERMS = {"l1", "lpips", "mouth", "mouth_lpips", "mouth_l1", "sync", "loss"}


@pytest.mark.parametrize("rays, wanted", [(False, TERMS), (True, {*PARTS, "loss"})])
def test_two_processes_take_the_step_of_one(tiny_talk, tmp_path, rays, wanted):
    """The same loss and gradients for the same batch, terms that are sums or masked included."""
    pytest.importorskip("accelerate", reason="several processes need talk3d[train]")
    alone = run_team(1, tiny_talk, tmp_path / "1.safetensors", rays)
    pair = run_team(2, tiny_talk, tmp_path / "2.safetensors", rays)
    terms = {name.removeprefix("term ") for name in alone if name.startswith("term ")}
    assert wanted <= terms and (wanted == terms or not rays)
    assert alone.keys() == pair.keys()
    largest = max(value.abs().max() for name, value in alone.items() if "term" not in name)
    assert largest > 1e-3
    for name, value in alone.items():
        scale = value.abs().clamp(min=1.0) if "term" in name else largest
        assert ((pair[name] - value).abs() / scale).max() <= 1e-6, name


def stage_in_team(folder: Path) -> None:
    """The training stage, as `accelerate launch -m talk3d.cli train` runs it."""
    brief = replace(TINY, train=replace(TINY.train, steps=6, validate_steps=3))
    print(train_stage(folder, brief, team=join_team()))


def test_two_processes_share_a_stage(tiny_talk, tmp_path):
    """One folder, one log, one portrait; what is done is not done again by either."""
    pytest.importorskip("accelerate", reason="several processes need talk3d[train]")
    folder = tmp_path / "talk"
    shutil.copytree(tiny_talk, folder)
    call = "stage_in_team(Path(sys.argv[1]))"
    assert launched(2, call, folder) == ["True\n", "True\n"]
    lines = (folder / "train" / "log.jsonl").read_text().splitlines()
    assert len(lines) == 6 and (folder / "train" / "portrait.safetensors").is_file()
    before = (folder / "train" / "portrait.safetensors").stat().st_mtime_ns
    assert launched(2, call, folder) == ["False\n", "False\n"]
    assert (folder / "train" / "portrait.safetensors").stat().st_mtime_ns == before
    assert not [*folder.glob(".*partial")]


def test_one_process_needs_no_accelerate(tmp_path):
    code = "import sys, talk3d.train as t; assert t.join_team() is t.ALONE"
    code += "; assert 'accelerate' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=dict(os.environ))
