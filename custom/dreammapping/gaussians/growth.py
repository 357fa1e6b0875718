"""Clone, split, prune and reset opacity: the densification of 3D Gaussian Splatting (Kerbl et al. 2023, section 5.2).

The order of the rows and every rule are those of gsplat's DefaultStrategy. What differs: the cap on the count, the random
numbers come from a generator, Gaussians with a value that is not finite are removed, and opacities are in fact reset
(gsplat 1.5.3 writes `step % reset_every == 0 & step > 0`, which is never true).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DreamMappingError
from ..transfers import to_device
from .model import GaussianModel
from .optimizer import OptimizerView
from .rotation import rotate
from .rows import rebuild, zero_moments
from .settings import DensificationSettings

SPLIT_SHRINK = 1.6
"""The two halves of a split Gaussian are this much smaller (3D Gaussian Splatting, section 5.2)."""


class NoGaussiansLeft(DreamMappingError):
    """Densification would remove every Gaussian; nothing could ever grow again."""

    def __init__(self, step: int, count: int, rule: str) -> None:
        super().__init__(
            f"step {step}: all {count} Gaussians are to be removed ({rule}), so the scene has vanished. Lower "
            "densification.prune_opa, raise opacity_init, or look for a loss that drives opacity to zero or is not finite."
        )


@torch.no_grad()
def grow_and_prune(
    model: GaussianModel,
    optimizers: Mapping[str, OptimizerView],
    mean_gradient: Tensor,
    screen_radius: Tensor,
    settings: DensificationSettings,
    step: int,
    generator: torch.Generator,
) -> None:
    """One event of the default strategy. The new rows: the old ones that were not split, the clones, both halves of the split.

    Args:
        model: N Gaussians; afterwards at most `settings.cap_max`.
        optimizers: `optimizer_views` of the one Adam.
        mean_gradient: [N] screen-space gradient, averaged over the views that saw the Gaussian.
        screen_radius: [N] largest radius on screen since the last event, as a share of the image's longer side.
        generator: CPU generator for the positions of the halves.

    Raises:
        NoGaussiansLeft: everything would go.
    """
    opacity = model.params["opacities"].sigmoid()
    dead = (opacity < settings.prune_opa) | ~model.finite_rows()
    grown = _grow(model, _choose_growing(mean_gradient, dead, settings), settings, generator)
    gone = dead[grown.source]
    if settings.prunes_wide_at(step):
        if settings.prune_scale3d is not None:
            gone |= grown.scales.exp().amax(-1) > settings.prune_scale3d * settings.scene_scale
        if settings.prune_scale2d is not None:
            gone |= screen_radius[grown.source] > settings.prune_scale2d
    kept = (~gone).nonzero()[:, 0]
    if kept.numel() == 0:
        raise NoGaussiansLeft(step, model.count, "transparent, too wide or not finite")
    if grown.fresh.any() or kept.numel() < model.count:
        values = {"means": grown.means[kept], "scales": grown.scales[kept]}
        rebuild(model.params, optimizers, grown.source[kept], grown.fresh[kept], values)


@torch.no_grad()
def reset_opacity(model: GaussianModel, optimizers: Mapping[str, OptimizerView], limit: float) -> None:
    """Limit every opacity to `limit` and let Adam forget its moments."""
    model.params["opacities"].clamp_(max=float(torch.logit(torch.tensor(limit))))
    zero_moments(model.params, optimizers, names=["opacities"])


def _choose_growing(mean_gradient: Tensor, dead: Tensor, settings: DensificationSettings) -> Tensor:
    """[N] bool: a gradient above the threshold, the largest first where the cap leaves no room for all."""
    growing = (mean_gradient > settings.grow_grad2d) & ~dead
    # A dead one and its copies go in the same event, so it makes room now. Each growing one adds exactly one row.
    room = max(0, settings.cap_max - int((~dead).sum()))
    if int(growing.sum()) > room:
        wanted = torch.where(growing, mean_gradient, torch.full_like(mean_gradient, -1.0))
        best = wanted.argsort(descending=True, stable=True)[:room]
        growing = torch.zeros_like(growing)
        growing[best] = True
    return growing


@dataclass(frozen=True)
class _Grown:
    """The list of Gaussians after growing. M rows."""

    source: Tensor  # [M] old row of each
    fresh: Tensor  # [M] bool, clones and halves
    means: Tensor  # [M, 3]
    scales: Tensor  # [M, 3] logarithms


def _grow(model: GaussianModel, growing: Tensor, settings: DensificationSettings, generator: torch.Generator) -> _Grown:
    """Clone the narrow ones of `growing` [N] bool, split the wide ones."""
    raw = model.params
    small = raw["scales"].exp().amax(-1) <= settings.grow_scale3d * settings.scene_scale
    split = growing & ~small
    rows = torch.arange(model.count, device=growing.device)
    halves = rows[split].repeat(2)
    source = torch.cat([rows[~split], rows[growing & small], halves])
    fresh = torch.ones_like(source, dtype=torch.bool)
    fresh[: model.count - halves.numel() // 2] = False
    means, scales = raw["means"][source], raw["scales"][source]
    last = slice(source.numel() - halves.numel(), None)
    means[last] += _offsets(model, halves, generator)
    scales[last] -= math.log(SPLIT_SHRINK)
    return _Grown(source, fresh, means, scales)


def _offsets(model: GaussianModel, halves: Tensor, generator: torch.Generator) -> Tensor:
    """[2n, 3] draws from the Gaussians `halves` (the n split ones, twice over), relative to their means."""
    scales = model.params["scales"][halves].exp()
    normal = torch.randn(scales.shape, generator=generator, dtype=scales.dtype)
    normal = to_device(normal, scales.device)
    return rotate(model.params["quats"][halves], scales * normal)

