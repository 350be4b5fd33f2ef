"""Official weights files, written byte for byte as their projects write them, without their code.

A pickle names classes, and Python finds them by name; so classes of the official names are made for
as long as a file is being written, and are gone afterwards.
"""

import contextlib
import io
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from talk3d.eg3d import Generator
from talk3d.resample import blur_kernel

# Rows are basis vectors: (x, y), (x, z), then (z, x) as released or (z, y) as corrected.
AXES = {
    "original": torch.eye(3)[torch.tensor([[0, 1, 2], [0, 2, 1], [2, 0, 1]])],
    "fixed": torch.eye(3)[torch.tensor([[0, 1, 2], [0, 2, 1], [2, 1, 0]])],
}
SOURCES = {
    "training.networks_stylegan2": "raise SystemExit('networks_stylegan2 was executed')\n" * 30,
    "training.triplane": "raise SystemExit('triplane was executed')\n" * 20,
    "training.superresolution": "raise SystemExit('superresolution was executed')\n" * 20,
}
PLAIN = {  # ordinary classes: NEWOBJ and BUILD
    "training.volumetric_rendering.renderer": ("ImportanceRenderer",),
    "training.volumetric_rendering.ray_marcher": ("MipRayMarcher2",),
    "training.volumetric_rendering.ray_sampler": ("RaySampler",),
    "training.triplane": ("OSGDecoder",),
}


def _reconstruct_persistent_obj(meta: dict) -> None:
    raise AssertionError("a persistent object was reconstructed")


class EasyDict(dict):
    """Keys as attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Persistent(nn.Module):
    """A module that is pickled as its source text and its state."""

    home, official_name = "training.networks_stylegan2", ""

    def __reduce__(self):
        meta = {
            "type": "class",
            "version": 6,
            "module_src": SOURCES[self.home],
            "class_name": self.official_name,
            "state": dict(self.__dict__),
        }
        return _reconstruct_persistent_obj, (meta,)


def persistent(name: str, home: str = "training.networks_stylegan2") -> Persistent:
    return type(name, (Persistent,), {"home": home, "official_name": name})()


@contextlib.contextmanager
def official_modules() -> Iterator[dict[str, type]]:
    """Modules of the official names; yields their plain classes."""
    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    EasyDict.__module__ = "dnnlib.util"
    content: dict[str, dict[str, Any]] = {
        "torch_utils.persistence": {"_reconstruct_persistent_obj": _reconstruct_persistent_obj},
        "dnnlib.util": {"EasyDict": EasyDict},
    }
    for module, names in PLAIN.items():
        content[module] = {name: type(name, (nn.Module,), {"__module__": module}) for name in names}
    parents = {name.rpartition(".")[0] for name in content}
    parents |= {name.partition(".")[0] for name in content}
    made = {name: types.ModuleType(name) for name in [*content, *parents]}
    assert not set(made) & set(sys.modules)
    for name, members in content.items():
        vars(made[name]).update(members)
    sys.modules.update(made)
    try:
        yield {name: value for members in content.values() for name, value in members.items()}
    finally:
        for name in made:
            del sys.modules[name]


def grow(module: nn.Module, tensors: dict[str, Tensor], classes: dict[str, type]) -> nn.Module:
    """Put tensors into a module, making the parts their names ask for."""
    buffers = ("resample_filter", "noise_const", "w_avg", "dataset_label_std")
    for name in [name for name in tensors if "." not in name]:
        if name in buffers:
            module.register_buffer(name, tensors[name].clone())
        else:
            module.register_parameter(name, nn.Parameter(tensors[name].clone()))
    for part in dict.fromkeys(name.partition(".")[0] for name in tensors if "." in name):
        start = f"{part}."
        inner = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
        module.add_module(part, grow(part_of(part, inner, classes), inner, classes))
    if "weight" in tensors:  # gains are NumPy numbers in the official layers
        module.weight_gain = np.float64(1 / np.sqrt(max(1, tensors["weight"][0].numel())))
    return module


def part_of(name: str, inner: dict[str, Tensor], classes: dict[str, type]) -> nn.Module:
    """The module an official generator has under a name."""
    if name == "decoder":
        return classes["OSGDecoder"]()
    if name == "net":
        return nn.Sequential(nn.Identity(), nn.Softplus(), nn.Identity())
    names = {"mapping": "MappingNetwork", "synthesis": "SynthesisNetwork", "torgb": "ToRGBLayer"}
    names |= {"backbone": "Generator", "superresolution": "SuperresolutionHybrid"}
    names |= {"conv0": "SynthesisLayer", "conv1": "SynthesisLayer"}
    home = "training.superresolution" if name == "superresolution" else Persistent.home
    return persistent(names.get(name, "FullyConnectedLayer"), home)


def variant_of(generator: Generator) -> str:
    """The published super-resolution module a generator has."""
    config = generator.config
    shape = (config.sr_native, tuple(config.sr_widths), tuple(config.sr_up))
    return {
        (128, (256, 128), (True, True)): "8XDC",
        (128, (128, 64), (True, True)): "8X",
        (128, (128, 64), (False, True)): "4X",
        (64, (128, 64), (False, True)): "2X",
    }[shape]


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Without those that are an ellipsis, which stands for absent."""
    return {name: value for name, value in options.items() if value is not ...}


def arguments_of(generator: Generator, **rendering: Any) -> EasyDict:
    """The constructor arguments of the official class for one of our generators."""
    config, render = generator.config, generator.config.render
    options = EasyDict(
        image_resolution=config.image_size,
        disparity_space_sampling=render.disparity,
        clamp_mode="softplus",
        superresolution_module=f"training.superresolution.SuperresolutionHybrid{variant_of(generator)}",
        c_gen_conditioning_zero=False,
        gpc_reg_prob=0.5,
        c_scale=config.condition_scale,
        superresolution_noise_mode="none",
        density_reg=0.25,
        reg_type="l1",
        decoder_lr_mul=config.decoder_rate,
        sr_antialias=config.sr_antialias,
        depth_resolution=render.samples,
        depth_resolution_importance=render.importance,
        ray_start="auto" if render.near is None else render.near,
        ray_end="auto" if render.far is None else render.far,
        box_warp=1 if render.box == 1.0 else render.box,
        white_back=render.white,
        avg_camera_radius=2.7,
        avg_camera_pivot=[0, 0, 0.2],
    )
    mapping = EasyDict(num_layers=config.mapping_layers)
    if config.mapping_width is not None:
        mapping.update(layer_features=config.mapping_width)
    widths = {"channel_base": config.channel_base, "channel_max": config.channel_max}
    return EasyDict(
        z_dim=config.z_dim,
        c_dim=25,
        w_dim=config.w_dim,
        img_resolution=config.image_size,
        img_channels=3,
        sr_num_fp16_res=0 if config.sr_clamp is None else 4,
        mapping_kwargs=mapping,
        rendering_kwargs=EasyDict(given(options | rendering)),
        sr_kwargs=EasyDict(widths, fused_modconv_default="inference_only"),
        fused_modconv_default="inference_only",
        num_fp16_res=0,
        conv_clamp=config.backbone_clamp,
        **widths,
    )


def official_generator(
    generator: Generator,
    classes: dict[str, type],
    axes: str | None = None,  # None: those of the generator; "": a file from before there were two
    extra: dict[str, Tensor] | None = None,  # more tensors, by their names
    **rendering: Any,  # options that differ
) -> Persistent:
    """A `TriPlaneGenerator` with the weights of one of ours."""
    tensors = {name: value for name, value in generator.state_dict().items()}
    if variant_of(generator) != "8XDC":
        tensors["superresolution.resample_filter"] = blur_kernel()
    tensors["dataset_label_std"] = torch.linspace(0, 1, 25)
    tensors = given(tensors | (extra or {}))
    module = grow(persistent("TriPlaneGenerator", "training.triplane"), tensors, classes)
    module._init_args, module._init_kwargs = (), arguments_of(generator, **rendering)
    module.rendering_kwargs = module._init_kwargs["rendering_kwargs"]
    module.neural_rendering_resolution = generator.config.neural_resolution
    module._last_planes = None
    renderer = classes["ImportanceRenderer"]()
    renderer.add_module("ray_marcher", classes["MipRayMarcher2"]())
    axes = generator.config.render.axes if axes is None else axes
    if axes:
        renderer.plane_axes = AXES[axes]
    module.add_module("renderer", renderer)
    module.add_module("ray_sampler", classes["RaySampler"]())
    module.register_buffer("scratch", torch.ones(3), persistent=False)
    return module


def official_discriminator() -> Persistent:
    tensors = {"b4.conv.weight": torch.randn(4, 3, 3, 3), "b4.out.weight": torch.randn(1, 4)}
    return grow(persistent("DualDiscriminator"), tensors, {})


def eg3d_pickle(generator: Generator, bare: bool = False, **options: Any) -> bytes:
    """The network pickle of a training run, or the bare module of a personalised generator."""
    with official_modules() as classes:
        module = official_generator(generator, classes, **options)
        if bare:
            return pickle.dumps(module, 4)
        data = {
            "training_set_kwargs": EasyDict(class_name="training.dataset.ImageFolderDataset"),
            "G": official_generator(Generator(generator.config), classes, **options),
            "D": official_discriminator(),
            "G_ema": module,
            "augment_pipe": None,
        }
        return pickle.dumps(data, 4)


def old_stream(value: Any) -> bytes:
    """What `torch.save` wrote before it wrote zip files."""
    torch.save(value, buffer := io.BytesIO(), _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def of_layout(layout: dict[str, tuple[int, ...]], seed: int = 0) -> OrderedDict[str, Tensor]:
    """Tensors of these shapes in half precision, different for every name."""
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    for i, (name, shape) in enumerate(layout.items()):
        kind = torch.int64 if name.endswith("num_batches_tracked") else torch.float16
        tensors[name] = torch.full(shape, seed + i % 1000, dtype=kind)
    return tensors


def save(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
