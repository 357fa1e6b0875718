"""Terms beside the distillation loss. `loss.lambda_<name>` in the config switches one on; its value may be a schedule.

A regularizer is a function (out, geometry) -> scalar, where `out` is what the renderer returned. To add one, write it
here and register it; the system finds its weight by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from threestudio.utils.loss import tv_loss
from torch import Tensor

from ..errors import ConfigError
from ..registry import Registry

Regularizer = Callable[[Mapping[str, Any], Any], Tensor]
REGULARIZERS: Registry[Regularizer] = Registry("regularizer")


@REGULARIZERS.register("tv")
def tv(out: Mapping[str, Any], geometry: Any) -> Tensor:
    """Total variation of the image (LucidDreamer)."""
    return tv_loss(_image(out, "comp_rgb", "tv").permute(0, 3, 1, 2))


@REGULARIZERS.register("depth_tv")
def depth_tv(out: Mapping[str, Any], geometry: Any) -> Tensor:
    """Total variation of the depth (LucidDreamer), divided by each view's greatest depth and 0 where nothing is.

    The division makes the term independent of the scene's unit; the weight by opacity keeps it smooth at silhouettes,
    where the expected depth alone would jump between its value and nothing.
    """
    depth = (_image(out, "depth", "depth_tv") * _image(out, "opacity", "depth_tv")).permute(0, 3, 1, 2)
    greatest = depth.detach().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
    return tv_loss(depth / greatest)


@REGULARIZERS.register("scale")
def scale(out: Mapping[str, Any], geometry: Any) -> Tensor:
    """Mean standard deviation of the Gaussians, world units (LucidDreamer): keeps them from growing into fog."""
    return _gaussians(geometry, "scale").get_scales.mean()


@REGULARIZERS.register("opacity")
def opacity(out: Mapping[str, Any], geometry: Any) -> Tensor:
    """Mean opacity of the Gaussians: lets superfluous ones fade, so that pruning can take them."""
    return _gaussians(geometry, "opacity").get_opacities.mean()


@REGULARIZERS.register("position")
def position(out: Mapping[str, Any], geometry: Any) -> Tensor:
    """Mean distance of the Gaussians from the origin, world units: pulls strays in."""
    return _gaussians(geometry, "position").get_means.norm(dim=-1).mean()


@REGULARIZERS.register("sparsity")
def sparsity(out: Mapping[str, Any], geometry: Any) -> Tensor:
    """mean sqrt(alpha^2 + 0.01) over the pixels (DreamFusion): an empty background costs least."""
    return (_image(out, "opacity", "sparsity").square() + 0.01).sqrt().mean()


@REGULARIZERS.register("opaque")
def opaque(out: Mapping[str, Any], geometry: Any) -> Tensor:
    """Binary entropy of the rendered opacity (threestudio): each pixel decides between object and background."""
    alpha = _image(out, "opacity", "opaque").clamp(1e-3, 1 - 1e-3)
    return -(alpha * torch.log(alpha) + (1 - alpha) * torch.log(1 - alpha)).mean()


def _image(out: Mapping[str, Any], key: str, name: str) -> Tensor:
    if key not in out:
        raise ConfigError(
            f"loss.lambda_{name} needs {key!r}, which the renderer does not return; "
            "set it to 0 or choose another renderer"
        )
    return out[key]


def _gaussians(geometry: Any, name: str) -> Any:
    if not hasattr(geometry, "gaussians"):
        kind = type(geometry).__name__
        raise ConfigError(f"loss.lambda_{name} is meant for Gaussians; the geometry is {kind}. Set it to 0")
    return geometry.gaussians
