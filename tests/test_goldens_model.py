"""Every number that the official Talk3D predictor and encoders gave, within its tolerance."""

import pytest
import torch
from einops import rearrange
from golden import Find, Golden, Results, Tensors, check_manifest, compare
from tiny import parameters
from torch import Tensor, nn

from talk3d.attention import (
    Attention,
    GatedFeedForward,
    PlaneTransformer,
    cross_attention_maps,
    plane_positions,
)
from talk3d.audio import AudioAttNet, AudioNet, gather_context
from talk3d.camera import sway
from talk3d.deltaplane import (
    LEGACY_POSITIONS,
    DeltaplaneConfig,
    DeltaplanePredictor,
    attention_maps,
)
from talk3d.metrics.face import landmark_distance
from talk3d.metrics.image import psnr
from talk3d.official import official_names, predictor_tensors, token_tensors
from talk3d.planes import LEGACY_AXES, PlaneBlock, roll_out
from talk3d.tokens import Conditions, TokenConfig, TokenEncoder, encode_octaves

PLANES = ("xy", "yz", "zx")  # the release's names of planes 0, 1, 2


def planes_of(x: Tensor) -> Tensor:
    """Planes stacked on channels, apart."""
    return rearrange(x, "b (p c) h w -> b p c h w", p=3)


def stacked(x: Tensor) -> Tensor:
    """Planes apart, stacked on channels."""
    return x.flatten(1, 2)


def t3d_aware3d(golden: Tensors, find: Find) -> Results:
    rolled = roll_out(planes_of(golden["in/x"]), LEGACY_AXES)
    yield {"out/cat": stacked(rolled)}
    yield {f"out/split_{name}": rolled[:, p] for p, name in enumerate(PLANES)}


def loaded(module: nn.Module, official: Tensors, rename: dict[str, str]) -> nn.Module:
    """A module with official weights, some parts of their names replaced."""
    ours = {}
    for name, value in official.items():
        for old, new in rename.items():
            name = name.replace(old, new)
        ours[name] = value
    module.load_state_dict(ours)
    return module


def t3d_transformer(golden: Tensors, find: Find) -> Results:
    x, tokens = golden["in/x"], golden["in/c"]
    attention = loaded(Attention(64, 64, 1), parameters(golden, "attn."), {"to_out.0": "to_out"})
    yield {"out/self": attention(x, x), "out/cross": attention(x, tokens)}
    yield {"out/cross_map": attention.scores(x, tokens)}
    names = {"net.0.proj": "wide", "net.2": "narrow"}
    yield {"out/ff": loaded(GatedFeedForward(64), parameters(golden, "ff."), names)(x)}
    positions = plane_positions(8, 64, LEGACY_POSITIONS)
    yield {"out/pos_emb_res8_dim64": rearrange(positions, "p n c -> 1 n (p c)")}
    large = rearrange(plane_positions(32, 256, LEGACY_POSITIONS), "p n c -> 1 n (p c)")
    yield {"out/pos_emb_res32_dim256_rows": large[:, golden["in/pos_rows"].long()]}
    numbers = {"mean": large.double().mean(), "std": large.double().std()}
    numbers |= {"absmax": large.abs().max(), "sum_sq": large.double().square().sum()}
    yield {f"out/pos_emb_res32_dim256_{name}": number for name, number in numbers.items()}
    transformer = PlaneTransformer(positions, 64, heads=1)
    official = {f"transformer.0.{k}": v for k, v in parameters(golden, "tr.").items()}
    names = [f"bottleneck.{name}" for name in transformer.state_dict()]
    ours = predictor_tensors(official, names)
    transformer.load_state_dict({k.removeprefix("bottleneck."): v for k, v in ours.items()})
    planes = planes_of(golden["in/h"])
    cells = transformer.encode(planes)
    yield {"out/tr": stacked(transformer.decode(cells, planes, tokens))}
    yield {"out/tr_maps": cross_attention_maps(transformer, cells, tokens)}


def t3d_eps(golden: Tensors, find: Find) -> Results:
    def per_plane(kind: type[nn.Module], prefix: str, *sizes: int) -> list[nn.Module]:
        norms = []
        for name in PLANES:
            norms.append(kind(*sizes))
            norms[-1].load_state_dict(parameters(golden, f"{prefix}_{name}."))
        return norms

    # the norms of talk3d.attention are torch's own, at their default eps
    norms = per_plane(nn.LayerNorm, "ln.norm", 16)
    parts = golden["in/ln_x"].chunk(3, dim=2)
    yield {"out/ln": torch.cat([norm(x) for norm, x in zip(norms, parts, strict=True)], dim=2)}
    norms = per_plane(nn.GroupNorm, "gn.GN", 32, 64)
    parts = golden["in/gn_x"].chunk(3, dim=1)
    yield {"out/gn": torch.cat([norm(x) for norm, x in zip(norms, parts, strict=True)], dim=1)}
    gate = GatedFeedForward(8)
    gate.wide = nn.Linear(8, 24)
    gate.wide.load_state_dict(parameters(golden, "geglu.proj."))
    yield {"out/geglu": gate.gate(golden["in/geglu_x"][None])[0]}
    block = one_plane_block(golden)
    thrice = golden["in/bn_x"][:, None].expand(-1, 3, -1, -1, -1)
    yield {"out/bn_eval": block.eval()(thrice)[:, 0]}
    yield {"out/bn_train": block.train()(0.1 * thrice)[:, 0]}


def one_plane_block(golden: Tensors) -> PlaneBlock:
    """A down block without roll-out whose three planes have the same official weights."""
    block = PlaneBlock(6, 4, "down", None)
    official = {
        f"Downnet.Downnet1_{plane}.{name}": value
        for plane in PLANES
        for name, value in parameters(golden, "bn.").items()
    }
    names = [f"down.0.{name}" for name in block.state_dict()]
    ours = predictor_tensors(official, names)
    block.load_state_dict({k.removeprefix("down.0."): v for k, v in ours.items()})
    return block


def t3d_conditions(golden: Tensors, find: Find) -> Results:
    for channels, suffix in ((44, ""), (29, "29")):
        net = AudioNet(channels)
        net.load_state_dict(parameters(golden, f"audio_net{suffix}."))
        windows = golden["in/audio29" if suffix else "in/audio_window"]
        yield {f"out/audio_net{suffix}": net(windows)}
    attend = AudioAttNet()
    attend.load_state_dict(parameters(golden, "audio_att_net."))
    heard = golden["out/audio_net"][None]
    yield {"out/audio_att_net": attend(heard), "out/audio_att_weights": attend.weights(heard)}
    windows = gather_context(golden["in/features_seq"], torch.arange(20))
    yield {f"out/window_{i}": windows[i] for i in (0, 2, 9, 18, 19)}
    points = golden["in/landmark"].flatten(1)
    yield {"out/blink_embed": encode_octaves(golden["in/eye"], 16)}
    yield {"out/angle_embed": encode_octaves(golden["in/angle"], 10)}
    yield {"out/landmark_embed": encode_octaves(points, 6)}
    encoder = TokenEncoder(TokenConfig(angle="legacy"))
    official = parameters(golden) | {"null_vector": golden["in/null_vector"]}
    official = {k: v for k, v in official.items() if not k.startswith("audio_net29")}
    encoder.load_state_dict(token_tensors(official))
    audio = golden["in/audio_scales"][:, None, None, None] * golden["in/audio_window"]
    tokens = encoder(Conditions(audio, golden["in/eye"], golden["in/angle"], points))
    yield {"out/condition_tokens": tokens, "out/blink": tokens[:, 1:2]}
    yield {"out/angle_tok": tokens[:, 3:4], "out/landmark_tok": tokens[:, 4:5]}


TINY = DeltaplaneConfig(plane_size=64, channels=8, widths=(16, 32, 64), heads=1, rollout="legacy")


def t3d_predictor_tiny(golden: Tensors, find: Find) -> Results:
    net = DeltaplanePredictor(TINY)
    names = list(net.state_dict())
    net.load_state_dict(predictor_tensors(parameters(golden), names))
    planes, tokens = planes_of(golden["in/plane"]), golden["in/cond"]
    net.eval()
    with torch.no_grad():
        identity = net.encode(planes)
        first, second = identity.skips
        yield {"mid/down": stacked(identity.bottom)}
        yield {"mid/s1_stride4": stacked(first)[..., ::4, ::4]}
        yield {"mid/s2_stride2": stacked(second)[..., ::2, ::2]}
        yield {"out/delta_eval": stacked(net(planes, tokens))}
        yield {"out/delta_eval": stacked(net.decode(identity, tokens, net.folded_up()))}
        yield {"out/maps_eval": attention_maps(net, identity, tokens)}
    net.train()
    planes.requires_grad_()
    tokens.requires_grad_()
    delta = net(planes, tokens)
    norm = net.up[2].conv1.norm
    yield {"out/delta_train": stacked(delta)}
    yield {"out/bn_running_mean_after": norm.running_mean[:8]}
    yield {"out/bn_running_var_after": norm.running_var[:8]}
    loss = (stacked(delta) * golden["grad/w"]).mean()
    loss.backward()
    yield {"grad/loss": loss, "grad/cond": tokens.grad}
    yield {"grad/plane_stride4": stacked(planes.grad)[..., ::4, ::4]}
    stored = {k.removeprefix("grad/") for k in golden if k.startswith("grad/")}
    for name, parameter in net.named_parameters():
        officials = official_names(name)
        if stored & set(officials):
            parts = parameter.grad.chunk(len(officials))
            found = zip(officials, parts, strict=True)
            yield {f"grad/{k}": grad for k, grad in found if k in stored}


def t3d_helpers(golden: Tensors, find: Find) -> Results:
    yaw, pitch = map(torch.deg2rad, sway(50))
    yield {"out/orbit_yaw_len50": yaw[:, None], "out/orbit_pitch_len50": pitch[:, None]}
    yield {"out/psnr_m2": psnr(golden["in/a"], golden["in/b"])[None]}
    distance = landmark_distance(golden["in/lm_fake"], golden["in/lm_real"])
    yield {"out/compare_landmarks": distance[None]}


GOLDENS = {
    "t3d_aware3d": Golden(t3d_aware3d, 1e-6, 1e-5),
    "t3d_transformer": Golden(t3d_transformer, 2e-5, 1e-4),
    "t3d_eps": Golden(t3d_eps, 2e-5, 1e-3),
    "t3d_conditions": Golden(t3d_conditions, 1e-5, 1e-4),
    "t3d_predictor_tiny": Golden(
        t3d_predictor_tiny, 5e-5, 1e-3, vanishing=r"grad/.*\.conv\d\.bias"
    ),
    "t3d_helpers": Golden(t3d_helpers, 1e-6, 1e-5),
}


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name, find, worst):
    compare(name, GOLDENS[name], find, worst)


def test_no_golden_is_left_out(shared):
    official = {path.stem for path in (shared / "goldens").glob("t3d_*.safetensors")}
    check_manifest(GOLDENS, official - {"t3d_alignment", "t3d_bicubic_down"}, shared)
