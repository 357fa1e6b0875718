"""Distribution Coefficient Annealing: lam_t in e_c - lam_t M_psi(e_c), one choice a file.

    fixed     1 - alpha_bar_t up to a cut-off, 1 above        the paper's eq. 18, here
    measured  from running averages of the draws              dca_measured.py
    learned   a monotone function of t trained on L_op        dca_learned.py

Why 1 - alpha_bar: for a teacher whose images are N(mu, v I) and a rendered image x_0 that stays what it is,

    e_c = k (a (x_0 - mu) + sig eps),   k = sig / (a^2 v + sig^2)

and, with M = eps, the residual e_c - lam eps is free of the drawn noise for lam = k sig = sig^2 / (a^2 v + sig^2): for
v = 1 that is 1 - alpha_bar at every t. The paper's lam is that up to the cut-off and 1 beyond.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import Registry
from ..settings import parse_settings, to_plain
from .draw import NoisyDraw
from .noise_schedule import NoiseSchedule

COEFFICIENTS: Registry[type["Coefficient"]] = Registry("loss.dca.type")
register_coefficient = COEFFICIENTS.register


@dataclass(frozen=True)
class CutOff:
    """Equation 18."""

    step: int | None = 300
    """Steps up to this one use 1 - alpha_bar, others 1. None or a negative number: no annealing."""
    inclusive: bool = True
    """t = step belongs to the annealed side."""

    def lam(self, t: Tensor, alpha_bar: Tensor) -> Tensor:
        """lam_t, for t and alpha_bar of one shape."""
        if self.step is None or self.step < 0:
            return torch.ones_like(alpha_bar)
        annealed = t <= self.step if self.inclusive else t < self.step
        return torch.where(annealed, 1 - alpha_bar, 1.0)


@dataclass
class NoOptions:
    """A coefficient without options of its own."""


class Coefficient(nn.Module):
    """Base of all choices. What they learn are parameters (trained with M_psi) or buffers, both saved with the run."""

    Settings: type = NoOptions

    def __init__(self, settings: Any, schedule: NoiseSchedule, cut_off: CutOff) -> None:
        super().__init__()
        self.settings, self.schedule, self.cut_off = settings, schedule, cut_off

    def forward(self, draw: NoisyDraw) -> Tensor:
        """lam_t [B,1,1,1], without graph, as known before this draw."""
        raise TypeError(f"{type(self).__name__} must define forward")

    def observe(self, draw: NoisyDraw, cond: Tensor, mapped: Tensor) -> None:
        """Learn from e_c and M_psi(e_c) [B,C,h,w] of a draw; both without graph."""

    def loss(self, draw: NoisyDraw, mapped: Tensor) -> Tensor | None:
        """A scalar, with graph to this module's parameters; None if it has none. `mapped` has no graph."""
        return None


@register_coefficient("fixed")
class Fixed(Coefficient):
    """The paper's: 1 - alpha_bar up to `dca_cutoff`, 1 above (eq. 18)."""

    def forward(self, draw: NoisyDraw) -> Tensor:
        return self.cut_off.lam(draw.t.view_as(draw.alpha_bar), draw.alpha_bar)


def build_coefficient(config: Mapping[str, Any], schedule: NoiseSchedule, cut_off: CutOff) -> Coefficient:
    """From a block such as {type: measured, bins: 20}. Raises ConfigError for an unknown type or key."""
    values = dict(to_plain(config) or {})
    cls = COEFFICIENTS.get(values.pop("type", "fixed"))
    return cls(parse_settings(cls.Settings, values, "loss.dca"), schedule, cut_off)


def interpolate(values: Tensor, position: Tensor) -> Tensor:
    """Values [K] read at fractional indices [B], linear in between and constant outside."""
    position = position.clamp(0, len(values) - 1)
    low = position.floor().long().clamp(max=len(values) - 2)
    return torch.lerp(values[low], values[low + 1], position - low)
