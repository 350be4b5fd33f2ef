"""Weights and inputs that are too large to store: drawn again from a name, a seed and a rule."""

import hashlib
import math
import zlib

import numpy as np
import torch


def drawn(
    name: str, shape: tuple[int, ...], rule: tuple = ("normal", 0.0, 1.0), seed: int = 0
) -> torch.Tensor:
    """The numbers of one tensor. NumPy's legacy generator never changes its bit stream."""
    kind, *options = rule
    state = np.random.RandomState((zlib.crc32(name.encode()) ^ seed) & 0xFFFFFFFF)
    count = math.prod(shape)
    if kind == "normal":
        mean, deviation = options
        numbers = mean + deviation * state.standard_normal(count)
    elif kind == "uniform":
        low, high = options
        numbers = low + (high - low) * state.random_sample(count)
    elif kind == "const":
        numbers = np.full(count, options[0])
    else:
        raise ValueError(f"no rule {kind!r}; the rules are normal, uniform and const")
    # batch norm counts its batches in whole numbers
    dtype = np.int64 if name.endswith("num_batches_tracked") else np.float32
    return torch.from_numpy(numbers.astype(dtype).reshape(shape))


def drawn_weights(recipe: dict) -> dict[str, torch.Tensor]:
    """All weights of a recipe but those that the constructor makes; their digest is checked."""
    digest, weights = hashlib.sha256(), {}
    for name, entry in recipe["tensors"].items():
        if entry["rule"][0] != "constructor":
            weights[name] = drawn(name, entry["shape"], entry["rule"], recipe["seed"])
            digest.update(name.encode() + weights[name].numpy().tobytes())
    assert digest.hexdigest() == recipe["sha256_all"], "other numbers than the recipe's"
    return weights


def constructed(recipe: dict) -> set[str]:
    """Names of the tensors that the recipe leaves to the constructor."""
    return {name for name, entry in recipe["tensors"].items() if entry["rule"][0] == "constructor"}
