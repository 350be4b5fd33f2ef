"""Every metric: perfect for the truth, by hand for a known fault, worse for a worse one.

The scores of the release, computed by its own code, are the golden `metrics`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest
import torch
from golden import Find, Golden, Results, Tensors, check_manifest, compare
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from talk3d.core import InputError
from talk3d.identity import EmbedderConfig, FaceEmbedder
from talk3d.media import from_uint8, to_uint8
from talk3d.metrics.face import (
    LOWER_FACE,
    STRICT,
    ActionUnits,
    action_error,
    carry_missed,
    identity_similarity,
    landmark_distance,
    landmark_jitter,
    lip_distances,
    lmd,
    lmd_legacy,
    parse_openface,
)
from talk3d.metrics.image import (
    depth_error,
    frechet_distance,
    jitter,
    lpips_frames,
    psnr,
    psnr_frames,
    psnr_legacy,
    rank_correlation,
    ssim,
)
from talk3d.metrics.sync import correlation, lag_correlations, lips_late
from talk3d.perceptual import AlexNetConfig, AlexNetFeatures, lpips_with
from talk3d.scores import Footage, Judges, load_scores, save_scores, score_table, score_video

# The scores of the release


def units_of(table: torch.Tensor) -> ActionUnits:
    """Action units from the golden's columns, through a csv as OpenFace writes it."""
    names = "01 02 04 05 06 07 09 10 12 14 15 17 20 23 25 26 45".split()
    columns = [f"AU{n}_r" for n in names] + [f"AU{n}_c" for n in names] + ["AU28_c"]
    rows = [", ".join(map(repr, row)) for row in table.tolist()]
    return parse_openface("\n".join([", ".join(columns), *rows]))


def metrics(golden: Tensors, find: Find) -> Results:
    points = golden["in/lm_pred"].numpy(), golden["in/lm_gt"].numpy()
    found = lmd_legacy(*points)
    yield {"out/lmd_per_frame": torch.from_numpy(found.values)}
    yield {"out/lmd": torch.tensor([found.mean], dtype=torch.float64)}
    shorter = len(golden["in/au2"])  # the release compares up to the shorter length
    sides = [units_of(golden[f"in/au{i}"][:shorter]) for i in (1, 2)]
    for kind, letter in (("presence", "c"), ("intensity", "r")):
        for name, units in ((f"aue_{letter}", LOWER_FACE), (f"aue_strict_{letter}", STRICT)):
            error = action_error(*sides, units, kind)
            assert error.judged == units
            yield {f"out/{name}": torch.tensor([error.value], dtype=torch.float64)}
    images = [golden[f"in/img{i}"][None].numpy() for i in (1, 2)]
    tensors = [from_uint8(image).double() for image in images]
    yield {"out/psnr": psnr_frames(*tensors)}
    yield {"out/psnr": psnr(*tensors)[None]}  # of one frame, pooled is the same
    yield {"out/ssim": torch.from_numpy(ssim(*images))}
    floats = [image / np.float32(127.5) - 1 for image in images]
    yield {"out/ssim_float_dr2": torch.from_numpy(ssim(*floats, span=2.0))}


GOLDENS = {"metrics": Golden(metrics, 1e-6, 1e-6)}


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name, find, worst):
    compare(name, GOLDENS[name], find, worst)


def test_the_manifest_agrees(shared):
    check_manifest(GOLDENS, {"metrics"}, shared)


# One small world, and the ways to spoil it

FRAMES, SIDE = 24, 40


def still_life() -> tuple[np.ndarray, np.ndarray]:
    """Pictures (bytes) and depth of a bright ball that crosses a textured room."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    room = 100 + 40 * np.sin(x / 2) * np.sin(y / 3)
    pictures, depths = [], []
    for i in range(FRAMES):
        ball = np.exp(-((x - 8 - i) ** 2 + (y - 20) ** 2) / 60)
        grey = room * (1 - ball) + 230 * ball
        pictures.append(np.stack([grey, 0.8 * grey, 255 - grey], axis=-1))
        depths.append(3.0 + 0.01 * y - ball)
    return np.stack(pictures).round().astype(np.uint8), np.stack(depths).astype(np.float32)


PICTURES, DEPTH = still_life()
RGB = from_uint8(PICTURES)


def talking_points() -> np.ndarray:
    """Landmarks of a face whose mouth opens more and more, and moves about."""
    rng = np.random.default_rng(5)
    face = rng.uniform(5, 35, (68, 2))
    face[36], face[45] = (10, 15), (30, 15)
    points = np.repeat(face[None], FRAMES, axis=0)
    points[:, 55:60, 1] += 0.6 * np.arange(FRAMES)[:, None]
    return points + 3 * np.sin(np.arange(FRAMES) / 5)[:, None, None]


POINTS = talking_points()
OPENING = np.convolve(np.random.default_rng(1).normal(size=120), np.ones(12) / 12, "valid")


def late(frames: int, count: int = FRAMES) -> list[int]:
    return [max(i - frames, 0) for i in range(count)]


def noisy_pictures(level: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=PICTURES.shape)
    return (PICTURES + 40 * level * noise).round().clip(0, 255).astype(np.uint8)


def blurred_pictures(level: float) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(p, (0, 0), level) if level else p for p in PICTURES])


def units(presence: np.ndarray, found: np.ndarray | None = None) -> ActionUnits:
    """Ten units of the lower face."""
    columns = dict(zip(LOWER_FACE, presence.T.astype(float), strict=True))
    have = np.ones(len(presence), bool) if found is None else found
    return ActionUnits(columns, columns, have, "test")


def flipped(level: float) -> np.ndarray:
    """Presence of units, of which a share of the frames is wrong."""
    truth = np.random.default_rng(2).integers(0, 2, (FRAMES, 10))
    order = np.random.default_rng(3).random((FRAMES, 10))
    return np.where(order < level, 1 - truth, truth)


@pytest.fixture(scope="module")
def networks() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    features = AlexNetFeatures(AlexNetConfig((8, 12, 16, 16, 16)))
    small = EmbedderConfig((1, 1, 2, 1), width=8, embedding=16)
    return {"perceptual": lpips_with(features), "embedder": FaceEmbedder(small).eval()}


@dataclass(frozen=True)
class Rule:
    """How a metric is called on one side's data, what is perfect, and what makes it worse."""

    score: Callable[..., float]  # of networks, ours, truth
    truth: np.ndarray
    perfect: float
    better: str
    noise: Callable[[float], np.ndarray] | None = None
    blur: Callable[[float], np.ndarray] | None = None
    delay: bool = True
    symmetric: bool = True
    nan: bool = True  # whether its data can hold one


def by_frames(metric: Callable) -> Callable[..., float]:
    return lambda networks, a, b: float(metric(from_uint8(a), from_uint8(b)).mean())


def noisy_points(level: float) -> np.ndarray:
    return POINTS + level * np.random.default_rng(0).normal(size=POINTS.shape)


def noisy_depth(level: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=DEPTH.shape)
    return (DEPTH + 0.1 * level * noise).astype(np.float32)


def ordered(networks, a: np.ndarray, b: np.ndarray) -> float:
    if len(a) != len(b):  # the function takes one map
        return float(depth_error(torch.from_numpy(a), torch.from_numpy(b)).mean())
    return float(np.mean([rank_correlation(*pair) for pair in zip(a, b, strict=True)]))


def by_faces(networks, a: np.ndarray, b: np.ndarray) -> float:
    pair = (from_uint8(x) for x in (a, b))
    return identity_similarity(networks["embedder"], *pair).mean().item()


seen = {"noise": noisy_pictures, "blur": blurred_pictures, "nan": False}
RULES = {
    "PSNR": Rule(by_frames(psnr), PICTURES, math.inf, "up", **seen),
    "SSIM": Rule(lambda _, a, b: ssim(a, b).mean(), PICTURES, 1.0, "up", **seen),
    "LPIPS-mini": Rule(
        lambda n, a, b: lpips_frames(n["perceptual"], from_uint8(a), from_uint8(b)).mean().item(),
        PICTURES, 0.0, "down", **seen,
    ),
    "IDSIM-mini": Rule(
        by_faces, PICTURES[:4], 1.0, "up", noise=lambda level: noisy_pictures(level)[:4],
        delay=False, nan=False,
    ),
    "jitter": Rule(by_frames(jitter), PICTURES, 0.0, "down", **seen),
    "depth error": Rule(
        lambda _, a, b: float(depth_error(torch.from_numpy(a), torch.from_numpy(b)).mean()),
        DEPTH, 0.0, "down", noise=noisy_depth,
    ),
    "order of depth": Rule(ordered, DEPTH, 1.0, "up", noise=noisy_depth),
    "landmark distance": Rule(
        lambda _, a, b: landmark_distance(torch.from_numpy(a), torch.from_numpy(b)).item(),
        POINTS, 0.0, "down", noise=noisy_points,
    ),
    "LMD, legacy": Rule(
        lambda _, a, b: lmd_legacy(a, b).mean, POINTS, 0.0, "down", noise=noisy_points
    ),
    "LMD": Rule(
        lambda _, a, b: lmd(a, b).mean, POINTS, 0.0, "down", noise=noisy_points,
        symmetric=False,  # by the size of the true face
    ),
    "landmark jitter": Rule(
        lambda _, a, b: landmark_jitter(a, b).mean, POINTS, 0.0, "down", noise=noisy_points,
        delay=False,
    ),
    "AUE": Rule(
        lambda _, a, b: action_error(units(a), units(b)).value, flipped(0.0), 0.0, "down",
        noise=lambda level: flipped(0.2 * level), delay=False, nan=False,
    ),
    "lips": Rule(
        lambda _, a, b: correlation(a, b), OPENING, 1.0, "up",
        noise=lambda level: OPENING
        + level * OPENING.std() * np.random.default_rng(0).normal(size=len(OPENING)),
    ),
}  # fmt: skip
each = pytest.mark.parametrize("name", RULES)


def scores_at(rule: Rule, networks, steps: list[np.ndarray]) -> list[float]:
    return [rule.score(networks, step, rule.truth) for step in steps]


def in_order(rule: Rule, scores: list[float]) -> bool:
    """Strictly worse from step to step."""
    sign = 1 if rule.better == "up" else -1
    return all(sign * a > sign * b for a, b in zip(scores, scores[1:], strict=False))


@each
def test_the_truth_is_perfect(name, networks):
    rule = RULES[name]
    assert rule.score(networks, rule.truth, rule.truth) == pytest.approx(rule.perfect, abs=1e-6)


@each
def test_more_noise_is_worse(name, networks):
    rule = RULES[name]
    levels = [rule.noise(level) for level in (0.0, 0.25, 0.5, 1.0, 2.0)]
    assert in_order(rule, scores := scores_at(rule, networks, levels)), scores


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.blur])
def test_more_blur_is_worse(name, networks):
    rule = RULES[name]
    levels = [rule.blur(sigma) for sigma in (0.0, 0.6, 1.0, 2.0, 4.0)]
    assert in_order(rule, scores := scores_at(rule, networks, levels)), scores


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.delay])
def test_more_delay_is_worse(name, networks):
    rule = RULES[name]
    steps = [rule.truth[late(k, len(rule.truth))] for k in range(4)]
    assert in_order(rule, scores := scores_at(rule, networks, steps)), scores


@each
def test_symmetry(name, networks):
    rule = RULES[name]
    spoiled = rule.noise(1.0)
    there, back = (
        rule.score(networks, *pair) for pair in ((spoiled, rule.truth), (rule.truth, spoiled))
    )
    assert (there == pytest.approx(back, rel=1e-5)) == rule.symmetric


@each
def test_unequal_lengths_are_refused(name, networks):
    rule = RULES[name]
    count = len(rule.truth)
    with pytest.raises(InputError, match=rf"{count - 1} .* cannot be compared with {count}; cut"):
        rule.score(networks, rule.truth[:-1], rule.truth)


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.nan])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused(name, value, networks):
    rule = RULES[name]
    holed = rule.truth.copy()
    holed[3, ...] = value
    for pair in ((holed, rule.truth), (rule.truth, holed)):
        with pytest.raises(InputError, match="no finite number"):
            rule.score(networks, *pair)


@pytest.mark.parametrize("metric", [psnr, psnr_frames, jitter])
def test_pictures_with_nan_are_refused(metric):
    holed = RGB.clone()
    holed[3, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="of the truth, number 3 of the frames"):
        metric(RGB, holed)


# Known faults, by hand


def test_a_known_shift_has_a_known_score():
    base = torch.full((2, 3, 8, 8), -0.5)
    assert psnr(base + 0.2, base).item() == pytest.approx(20.0, abs=1e-4)
    bytes_ = np.full((1, 8, 8, 3), 100, np.uint8)
    by_hand = (2 * 100 * 110 + 6.5025) / (100**2 + 110**2 + 6.5025)  # flat: only the means count
    assert ssim(bytes_ + 10, bytes_)[0] == pytest.approx(by_hand, abs=1e-9)
    moved = POINTS.copy()
    moved[:, 48:58] += [6.0, 8.0]  # half of the lips by 10: each half 5 about their mean
    assert lmd_legacy(moved, POINTS).mean == pytest.approx(5.0)
    assert lmd(moved, POINTS).mean == pytest.approx(100 * 5 / 20)  # eyes 20 apart
    assert landmark_distance(*map(torch.from_numpy, (moved, POINTS))).item() == pytest.approx(100)
    wrong = flipped(0.0)
    wrong[:6] = 1 - wrong[:6]  # a quarter of the frames, all ten units
    assert action_error(units(wrong), units(flipped(0.0))).value == pytest.approx(10 / 4)
    cloud = np.random.default_rng(0).normal(size=(40, 3))
    assert frechet_distance(cloud + [3.0, 0, 4.0], cloud) == pytest.approx(25.0)
    assert float(depth_error(*(torch.from_numpy(d) for d in (DEPTH + 0.25, DEPTH))).mean()) == (
        pytest.approx(0.25, abs=1e-6)
    )


@pytest.mark.parametrize("frames", [-5, -1, 0, 2, 7])
def test_a_delay_is_found(frames):
    ours = np.roll(OPENING, frames)
    assert lips_late(ours, OPENING, 10) == frames
    assert lag_correlations(ours, OPENING, 10).max() > 0.999


# Properties

quick = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
seeds = st.integers(0, 2**31)


@quick
@given(seeds, st.floats(0.05, 0.95))
def test_the_legacy_mask_adds_its_share_in_decibels(seed, share):
    draws = torch.Generator().manual_seed(seed)
    mask = torch.rand(3, 8, 8, generator=draws) < share
    mask[:, 0, 0] = True
    a, b = (torch.rand(3, 3, 8, 8, generator=draws) * 2 - 1 for _ in range(2))
    plain, legacy = psnr(a, b, mask).item(), psnr_legacy(a, b, mask).item()
    assert legacy - plain == pytest.approx(-10 * math.log10(mask.float().mean().item()), abs=1e-3)
    elsewhere = torch.where(mask[:, None], a, -a)  # what lies outside changes neither
    assert psnr(elsewhere, b, mask).item() == pytest.approx(plain, abs=1e-5)
    assert psnr_legacy(elsewhere, b, mask).item() == pytest.approx(legacy, abs=1e-5)
    assert psnr_frames(a, b, mask).mean().item() >= psnr(a, b, mask).item() - 1.0


@quick
@given(seeds, st.floats(0.2, 5), st.floats(-50, 50))
def test_lips_may_be_anywhere_and_lmd_of_any_size(seed, scale, away):
    noise = np.random.default_rng(seed).normal(size=POINTS.shape)
    ours = POINTS + noise
    moved = lip_distances(ours + away, POINTS)
    np.testing.assert_allclose(moved, lip_distances(ours, POINTS), atol=1e-9)
    larger = lmd(scale * ours, scale * POINTS).values
    np.testing.assert_allclose(larger, lmd(ours, POINTS).values, rtol=1e-9)


@quick
@given(st.lists(st.booleans(), min_size=1, max_size=12).filter(any))
def test_missed_frames_are_carried_one_by_one(found):
    points = np.arange(len(found), dtype=float).reshape(-1, 1, 1).repeat(2, axis=2)
    slow, last = [], found.index(True)
    for i, here in enumerate(found):  # the plain loop
        last = i if here else last
        slow.append(last)
    assert carry_missed(points, np.array(found))[:, 0, 0].tolist() == slow


@quick
@given(seeds, st.integers(2, 30), st.integers(2, 30), st.integers(1, 8))
def test_the_frechet_distance_is_a_distance(seed, n, m, width):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, width)), rng.normal(size=(m, width)) * 2
    there, back = frechet_distance(a, b), frechet_distance(b, a)
    assert there >= 0 and there == pytest.approx(back, abs=1e-9)
    assert frechet_distance(a, a[::-1].copy()) == pytest.approx(0, abs=1e-9)
    turn = np.linalg.qr(rng.normal(size=(width, width)))[0]
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(there, abs=1e-8)


@quick
@given(seeds, st.floats(-0.4, 0.4))
def test_an_error_that_stands_still_does_not_tremble(seed, offset):
    still = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 0.4 - 0.2
    moving = torch.linspace(-0.3, 0.3, 5).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    assert jitter(moving + still + offset, moving).max().item() == pytest.approx(0, abs=1e-3)


@quick
@given(seeds)
def test_aue_is_a_share_of_frames_for_each_unit(seed):
    a, b = np.random.default_rng(seed).integers(0, 2, (2, 7, 10))
    error = action_error(units(a), units(b))
    assert error.value == pytest.approx((a != b).mean(axis=0).sum())
    assert 0 <= error.value <= 10


# Missed faces


@pytest.mark.parametrize("missed", [(), (0,), (3, 4, 5), (0, FRAMES - 1)])
def test_missed_faces_are_counted_and_left_out(missed):
    found = ~np.isin(np.arange(FRAMES), missed)
    ours = noisy_points(0.5)
    ours[~found] = np.nan  # a detector may leave anything there
    score = lmd(ours, POINTS, found)
    assert score.missed == len(missed) == int(np.isnan(score.values).sum())
    assert score.mean == pytest.approx(lmd(ours[found], POINTS[found]).mean)
    assert lmd(POINTS, ours, None, found).missed == len(missed)
    legacy = lmd_legacy(ours, POINTS, found)
    assert (legacy.missed, np.isfinite(legacy.values).all()) == (len(missed), True)
    wrong = units(flipped(0.3), found)
    assert action_error(wrong, units(flipped(0.0))).scores.missed == len(missed)
    shaken = landmark_jitter(ours, POINTS, found)
    assert shaken.missed == len(missed)


def test_a_video_without_a_face_is_refused():
    nowhere = np.zeros(FRAMES, bool)
    for metric in (lmd, lmd_legacy, landmark_jitter):
        with pytest.raises(InputError, match="no frame has a face"):
            metric(POINTS, POINTS, nowhere)


# The list of scores


def footage(pictures: np.ndarray = PICTURES) -> Footage:
    return Footage(pictures, landmarks=POINTS, actions=units(flipped(0.0)), depth=DEPTH)


def test_a_list_of_scores_is_perfect_for_the_truth_and_survives_its_file(tmp_path, networks):
    judges = Judges(networks["perceptual"], embedder=networks["embedder"])
    scores = score_video(footage(), footage(), judges)
    for score in scores:
        perfect = {"PSNR": math.inf, "SSIM": 1.0, "IDSIM": 1.0, "order": 1.0, "correlation": 1.0}
        start = next((word for word in perfect if score.name.startswith(word)), None)
        expected = 0.0 if start is None else perfect[start]
        assert score.value == pytest.approx(expected, abs=1e-6), score.name
        assert score.better == ("down" if start is None else "up")
        assert len(score.per_frame) in (0, FRAMES)
        card = score.protocol
        assert card.region and card.scale and card.judge and card.pooling and card.frames
    assert "LPIPS" not in {score.name for score in scores}  # a mini network keeps its name
    assert save_scores(tmp_path / "scores.json", scores)
    assert "Infinity" not in (tmp_path / "scores.json").read_text()
    assert load_scores(tmp_path / "scores.json") == scores
    assert score_table(scores).count("\n") == len(scores) + 1


def test_a_missed_face_is_in_the_list():
    found = np.arange(FRAMES) != 4
    ours = replace(footage(noisy_pictures(0.5)), found=found, finder="FAN-mini")
    missed = {score.name: score.protocol.missed for score in score_video(ours, footage())}
    assert missed["LMD by FAN-mini"] == missed["LMD by FAN-mini, normalised"] == 1
    assert missed["PSNR"] == missed["PSNR of the face"] == 0  # the truth's face was found
    hidden = {s.name: s for s in score_video(footage(), replace(footage(), found=found))}
    face = hidden["PSNR of the face"]
    assert (face.protocol.missed, face.protocol.frames, face.per_frame[4]) == (1, FRAMES - 1, None)


def test_videos_of_unequal_length_are_refused():
    with pytest.raises(
        InputError, match=f"ours has 9 frames, the truth {FRAMES}; cut both to the 9"
    ):
        score_video(Footage(PICTURES[:9]), Footage(PICTURES))


def test_no_stretch_of_frames_is_forgotten():
    """More frames than are looked at together, of which only the last is wrong."""
    many = np.tile(PICTURES, (3, 1, 1, 1))
    spoiled = many.copy()
    spoiled[-1] = 255 - spoiled[-1]
    scores = {s.name: s for s in score_video(Footage(spoiled), Footage(many))}
    frames = scores["PSNR"].per_frame
    assert len(frames) == 3 * FRAMES and [x for x in frames if x != math.inf] == [frames[-1]]
    pooled = psnr(from_uint8(spoiled), from_uint8(many)).item()
    assert scores["PSNR, pooled"].value == pytest.approx(pooled, abs=1e-4)
    assert np.count_nonzero([x or 0 for x in scores["jitter"].per_frame]) == 1
    assert scores["jitter"].value == pytest.approx(
        jitter(from_uint8(spoiled), from_uint8(many)).mean().item(), rel=1e-5
    )


def test_bytes_and_tensors_agree():
    assert (to_uint8(RGB) == PICTURES).all()
