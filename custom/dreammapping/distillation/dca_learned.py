"""lam_t learned with M_psi: a function of t that never falls and ends at 1.

    L_dca = E|lam_t m - eps|^2,  m = M_psi(e_c) held fixed                L_op (eq. 17) with lam_t in front of M_psi

At each t its minimum is lam = E<m, eps> / E<m, m>, the rule `predict` of dca_measured.py; the differences are that lam
rises with t, as the paper argues the dependence of eps and e_c does, that neighboring t share what they learn, and that
lam is 1 at the last step, where e_c is eps (eq. 20). M_psi itself is trained by eq. 17 as ever: were both trained by one
loss, a factor could move from one to the other.

    lam(t_k) = sum_{i <= k} softmax(theta)_i       at K knots from t = 0 to the last step, linear in between

It starts as 1 - alpha_bar, the paper's annealed side carried through to the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .dca import Coefficient, CutOff, interpolate, register_coefficient
from .draw import NoisyDraw
from .noise_schedule import NoiseSchedule

LEAST_RISE = 1e-3
"""A softmax can start close to zero, but not there."""


@dataclass
class LearnedSettings:
    """Options of the learned coefficient; it is trained by the optimizer of M_psi (`psi_opt`, `psi_lr`)."""

    knots: int = 17
    """At least 2."""

    def __post_init__(self) -> None:
        if self.knots < 2:
            raise ConfigError(f"loss.dca.knots is {self.knots}; it must be at least 2")


@register_coefficient("learned")
class Learned(Coefficient):
    """A monotone, piecewise linear lam_t from at least 0 to exactly 1."""

    Settings = LearnedSettings

    def __init__(self, settings: LearnedSettings, schedule: NoiseSchedule, cut_off: CutOff) -> None:
        super().__init__(settings, schedule, cut_off)
        at = torch.linspace(0, schedule.steps - 1, settings.knots).round().long()
        start = 1 - schedule.alpha_bar[at].float()
        self.theta = nn.Parameter(torch.diff(start, prepend=start.new_zeros(1)).clamp(min=LEAST_RISE).log())

    def values(self) -> Tensor:
        """lam [K] at the knots, with graph."""
        return self.theta.softmax(0).cumsum(0)

    def forward(self, draw: NoisyDraw) -> Tensor:
        return self.lam(draw).detach()

    def lam(self, draw: NoisyDraw) -> Tensor:
        """lam_t [B,1,1,1] with graph."""
        position = draw.t.to(self.theta.dtype) * (self.settings.knots - 1) / (self.schedule.steps - 1)
        return interpolate(self.values(), position).to(draw.alpha_bar.dtype).view_as(draw.alpha_bar)

    def loss(self, draw: NoisyDraw, mapped: Tensor) -> Tensor:
        return (self.lam(draw) * mapped - draw.noise).square().mean()
