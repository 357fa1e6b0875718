"""lam_t measured during the run: a ratio of running averages per bin of t. One of `rule`s, with <x, y> the mean of the
products of two pictures' elements, E over the draws of a bin, m = M_psi(e_c):

    decorrelate   lam = E<e_c, eps> / E<m, eps>        so that E<e_c - lam m, eps> = 0
    predict       lam = E<m, eps> / E<m, m>            the minimum of L(lam) = E|eps - lam m|^2
    correlation   lam = E<e_c, eps> / E|e_c||eps|      what Figure 11 plots, |x| = sqrt(<x, x>)

Decorrelate. The residual e_c - lam m should hold what the teacher wants of the picture and nothing of the noise that
happened to be drawn, which is the reason for subtracting m at all. d/d lam of E<e_c - lam m, eps> is constant, and its
only zero is the ratio above. If m = eps it is the coefficient with which eps has the least variance left in e_c - lam eps
(a control variate; SSD's r, per bin instead of per image). With closed forms (dca.py): sig^2 / (a^2 v + sig^2), the
paper's 1 - alpha_bar where v = 1, but without a jump. If m = E[eps | e_c], then E<m, eps> = E<m, m> and
E<e_c, eps> = E<e_c, m>, so that it also minimizes E|e_c - lam m|^2.

Predict. dL/d lam = -2 E<m, eps> + 2 lam E<m, m> = 0. It makes M_psi the better predictor of eps at each t that one
network for all t is not. It is 1 wherever m = E[eps | e_c], however small t is, because then E<m, eps> = E<m, m>: a
perfect operator needs no annealing by this rule. An operator that has learned nothing at small t gets lam near 0.

Correlation. The paper's argument for annealing taken literally: lam is the linear correlation of eps and e_c (about
zero, weighted by |e_c|). It minimizes E|e_c|e_c|^-1 - lam eps|eps|^-1|^2 up to that weight: the regression of the two in
units of their own sizes. With closed forms and |x_0 - mu| = 1 it is sqrt(1 - alpha_bar): larger than by decorrelate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from .dca import Coefficient, CutOff, interpolate, register_coefficient
from .draw import NoisyDraw
from .noise_schedule import NoiseSchedule

Ratio = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def inner(x: Tensor, y: Tensor) -> Tensor:
    """<x, y> [B]: the mean of the products, so that <eps, eps> is about 1."""
    return (x * y).mean((1, 2, 3))


RULES: dict[str, Ratio] = {
    "decorrelate": lambda cond, mapped, eps: (inner(cond, eps), inner(mapped, eps)),
    "predict": lambda cond, mapped, eps: (inner(mapped, eps), inner(mapped, mapped)),
    "correlation": lambda cond, mapped, eps: (inner(cond, eps), (inner(cond, cond) * inner(eps, eps)).sqrt()),
}
"""Of e_c, M_psi(e_c) and eps [B,C,h,w]: what is averaged above and below the line, [B] each."""


@dataclass
class MeasuredSettings:
    """Options of the measured coefficient."""

    rule: Literal["decorrelate", "predict", "correlation"] = "decorrelate"
    bins: int = 20
    """Of t, equally wide; linear between their middles. At least 2."""
    decay: float = 0.95
    """How much of a bin's average is left after one more image, 0 to 1."""
    pull: float = 0.02
    """Weight of the fixed rule (eq. 18) beside the measured average, so that a bin whose denominator vanishes, as
    decorrelate's does while M_psi is untrained, is not noise divided by noise."""
    largest: float = 1.0
    """lam lies between 0 and this."""

    def __post_init__(self) -> None:
        if self.bins < 2 or not 0 <= self.decay < 1:
            raise ConfigError("loss.dca: bins must be at least 2, and decay at least 0 and below 1")
        if self.pull <= 0 or self.largest <= 0:
            raise ConfigError("loss.dca: pull and largest must be above 0")


@register_coefficient("measured")
class Measured(Coefficient):
    """lam_t = E[above] / E[below] per bin of t, starting at the fixed rule's value."""

    Settings = MeasuredSettings

    def __init__(self, settings: MeasuredSettings, schedule: NoiseSchedule, cut_off: CutOff) -> None:
        super().__init__(settings, schedule, cut_off)
        middle = ((torch.arange(settings.bins) + 0.5) * schedule.steps / settings.bins).long().clamp(max=schedule.steps - 1)
        start = cut_off.lam(middle, schedule.alpha_bar[middle]).float()
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("above", start.clone())
        self.register_buffer("below", torch.ones_like(start))

    def values(self) -> Tensor:
        """lam [bins] in the middles of the bins."""
        s = self.settings
        ratio = (self.above + s.pull * self.start) / (self.below.clamp(min=0) + s.pull)
        return ratio.clamp(0, s.largest)

    def forward(self, draw: NoisyDraw) -> Tensor:
        position = (draw.t.float() + 0.5) * self.settings.bins / self.schedule.steps - 0.5
        return interpolate(self.values(), position).to(draw.alpha_bar.dtype).view_as(draw.alpha_bar)

    @torch.no_grad()
    def observe(self, draw: NoisyDraw, cond: Tensor, mapped: Tensor) -> None:
        bins = self.settings.bins
        place = (draw.t * bins // self.schedule.steps).clamp(max=bins - 1)
        above, below = RULES[self.settings.rule](cond, mapped, draw.noise)
        rows = torch.stack([torch.ones_like(above), above, below]).to(self.above)
        rows = torch.where(rows.isfinite().all(0), rows, 0.0)  # one picture that overflowed must not stay in the average
        sums = rows @ torch.nn.functional.one_hot(place, bins).to(rows)  # a scatter's sum depends on the order on a GPU
        count, above, below = sums
        kept = self.settings.decay**count
        self.above.copy_(torch.lerp(above / count.clamp(min=1e-6), self.above, kept))
        self.below.copy_(torch.lerp(below / count.clamp(min=1e-6), self.below, kept))
