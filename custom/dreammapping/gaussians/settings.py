"""The numbers of densification, under gsplat's names where gsplat has them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Optional


@dataclass(frozen=True)
class DensificationSettings:
    """When and how Gaussians are added, moved and removed. Defaults: LucidDreamer (arguments/__init__.py, train.py).

    Steps count from 0. Events happen at steps that are multiples of `refine_every`, above `refine_start_iter` and below
    `refine_stop_iter`. Lengths are fractions of `scene_scale`.
    """

    type: Literal["default", "mcmc", "none"] = "default"
    """`default`: clone, split, prune, opacity reset (3D Gaussian Splatting, section 5.2). `mcmc`: relocation, growth and
    position noise (3D Gaussian Splatting as Markov Chain Monte Carlo). `none`: the count never changes."""
    cap_max: int = 500_000
    """The count never exceeds this. At least 1. threestudio-3dgs: 500000 (max_num)."""
    scene_scale: float = 3.5
    """World units. LucidDreamer's default_radius, which it multiplies into every length below and into the position rate."""
    refine_start_iter: int = 100
    refine_stop_iter: int = 3000
    refine_every: int = 100

    prune_opa: float = 0.005
    """Opacity in [0, 1) below which a Gaussian is removed, or at most which (mcmc) it is relocated."""

    grow_grad2d: float = 0.00075
    """`default`. Mean screen-space gradient (image coordinates from -1 to 1) from which a Gaussian grows. It is the gradient
    of the whole weighted loss: another guidance or gradient scale needs another threshold."""
    grow_scale3d: float = 0.003
    """`default`. Growing Gaussians whose largest scale is above this share of the scene scale are split, the others cloned."""
    prune_scale3d: Optional[float] = 0.1
    """`default`. After the first opacity reset, Gaussians wider than this share of the scene scale are removed. None: never."""
    prune_scale2d: Optional[float] = None
    """`default`. After the first opacity reset, Gaussians whose radius on screen since the last event exceeded this share of
    the image's longer side are removed. LucidDreamer sets 20 of 512 pixels, but, as in 3D Gaussian Splatting, its radii are
    cleared before they are looked at; so None (never) is what it does."""
    reset_every: int = 300
    """`default`. Every so many steps opacities are limited to `reset_opacity`. 0: never."""
    reset_opacity: float = 0.01
    """`default`. In (0, 1)."""
    views: Literal["all", "last"] = "all"
    """`default`. Which views of a batch count in the statistics. LucidDreamer looks at the last one only."""
    loss_over_views: Literal["mean", "sum"] = "mean"
    """`default`. Whether the loss is a mean or a sum over the views of a batch. A mean divides each view's gradient by their
    number; the statistics undo that (as gsplat does), so that the threshold does not depend on the batch size."""

    noise_lr: float = 5e5
    """`mcmc`. Strength of the position noise, times the learning rate of the means. gsplat and the paper's code: 5e5."""
    grow_factor: float = 1.05
    """`mcmc`. The count is multiplied by this at each event, up to the cap. Paper: 5 % more. At least 1."""

    def __post_init__(self) -> None:
        _require(self.cap_max >= 1, "cap_max", self.cap_max, "at least 1")
        _require(self.scene_scale > 0 and math.isfinite(self.scene_scale), "scene_scale", self.scene_scale, "above 0")
        _require(self.refine_start_iter >= 0, "refine_start_iter", self.refine_start_iter, "at least 0")
        _require(self.refine_stop_iter >= 0, "refine_stop_iter", self.refine_stop_iter, "at least 0")
        _require(self.refine_every >= 1, "refine_every", self.refine_every, "at least 1")
        _require(self.reset_every >= 0, "reset_every", self.reset_every, "at least 0 (0: never)")
        _require(0 <= self.prune_opa < 1, "prune_opa", self.prune_opa, "at least 0 and below 1")
        _require(0 < self.reset_opacity < 1, "reset_opacity", self.reset_opacity, "between 0 and 1")
        _require(self.grow_factor >= 1, "grow_factor", self.grow_factor, "at least 1")
        for name in ("grow_grad2d", "grow_scale3d", "noise_lr"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("prune_scale3d", "prune_scale2d"):
            value = getattr(self, name)
            _require(value is None or value > 0, name, value, "above 0, or null for never")
        if self.type == "default" and self.reset_every and self.reset_opacity <= self.prune_opa:
            raise ValueError(
                f"reset_opacity is {self.reset_opacity}, not above prune_opa ({self.prune_opa}); the first event after a "
                "reset would remove every Gaussian"
            )

    def refines_at(self, step: int) -> bool:
        """Whether the count may change after `step`."""
        inside = self.refine_start_iter < step < self.refine_stop_iter
        return self.type != "none" and inside and step % self.refine_every == 0

    def resets_at(self, step: int) -> bool:
        """Whether opacities are limited after `step`."""
        due = self.reset_every > 0 and step > 0 and step % self.reset_every == 0
        return self.type == "default" and due and step < self.refine_stop_iter

    def prunes_wide_at(self, step: int) -> bool:
        """Whether too wide Gaussians go, too: only after opacities were reset once, or at once if they never are."""
        return step > self.reset_every


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value}; it must be {rule}")
