"""The tiny generator of the goldens: its sizes, its weights and its camera labels."""

from torch import Tensor

from talk3d.camera import Camera
from talk3d.eg3d import SR_VARIANTS, GeneratorConfig
from talk3d.triplane import RenderConfig

TINY = GeneratorConfig(
    z_dim=32,
    mapping_width=32,
    channel_base=1024,
    channel_max=16,
    neural_resolution=16,
    sr_clamp=None,
    render=RenderConfig(samples=12, importance=12, axes="original", sampler="official"),
    **SR_VARIANTS["2X"],
)


def parameters(golden: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The official weights below a prefix."""
    start = f"param/{prefix}"
    return {k.removeprefix(start): v for k, v in golden.items() if k.startswith(start)}


def camera_of(label: Tensor) -> Camera:
    """The camera that a label of 25 numbers describes."""
    pose, intrinsics = label.split([16, 9], dim=1)
    return Camera(pose.unflatten(1, (4, 4)), intrinsics.unflatten(1, (3, 3)))
