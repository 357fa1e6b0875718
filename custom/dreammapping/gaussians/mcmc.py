"""3D Gaussian Splatting as Markov Chain Monte Carlo (Kheradmand et al. 2024), on any device.

gsplat has these operations as CUDA kernels only; here they are written from the paper's formulas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from ..transfers import to_device
from .growth import NoGaussiansLeft
from .model import GaussianModel
from .optimizer import OptimizerView
from .rotation import rotate, rotate_back
from .rows import rebuild, zero_moments
from .settings import DensificationSettings

MAX_COPIES = 51
"""More copies of one Gaussian than this are treated as this many (the paper's code and gsplat)."""

NOISE_SHARPNESS, NOISE_CENTER = 100.0, 0.995
"""k and t of the paper's eq. 8: noise moves only Gaussians whose opacity is below about 1 - t."""


def relocated_values(opacities: Tensor, scales: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """What each of `copies` equal Gaussians at one place must be, so that together they look like one (paper, eq. 9).

    With o' = 1 - (1 - o)^(1/n), the stack's profile along a line is 1 - (1 - o' G)^n = sum_j C(n, j) (-1)^(j-1) o'^j G^j.
    The new scale makes its integral equal the old one's: scale' = scale o / sum_j C(n, j) (-1)^(j-1) o'^j / sqrt(j). (The
    paper has a double sum over binomials; the inner one collapses to C(n, j).)

    Args:
        opacities: [R] in (0, 1).
        scales: [R, 3] > 0.
        copies: [R] n >= 1, limited to 51.

    Returns:
        New opacities [R] and scales [R, 3].
    """
    # In float64, since the alternating sum cancels; so on the CPU, since not every device has that type. R is small.
    n, old = copies.cpu().clamp(1, MAX_COPIES), opacities.cpu().double()
    new = -torch.expm1(torch.log1p(-old) / n)
    powers = new[:, None] ** torch.arange(1, MAX_COPIES + 1)
    total = (_signed_binomials()[n - 1] * powers).sum(-1)
    return new.to(opacities), scales * (old / total).to(scales)[:, None]


@lru_cache(maxsize=1)
def _signed_binomials() -> Tensor:
    """[51, 51] float64: entry (n - 1, j - 1) is C(n, j) (-1)^(j-1) / sqrt(j)."""
    counts = range(1, MAX_COPIES + 1)
    table = [[math.comb(n, j) * (-1) ** (j - 1) / math.sqrt(j) for j in counts] for n in counts]
    return torch.tensor(table, dtype=torch.float64)


@torch.no_grad()
def relocate_and_add(
    model: GaussianModel,
    optimizers: Mapping[str, OptimizerView],
    settings: DensificationSettings,
    step: int,
    generator: torch.Generator,
) -> None:
    """One event of the MCMC strategy: move the dead onto the living, then add `grow_factor` more up to the cap.

    Rows that change start with zero moments, the moved ones too (gsplat leaves them those of their former place).

    Raises:
        NoGaussiansLeft: none is alive.
    """
    raw = model.params
    dead = (raw["opacities"].sigmoid() <= settings.prune_opa) | ~model.finite_rows()
    n_dead = int(dead.sum())
    if n_dead == model.count:
        raise NoGaussiansLeft(step, model.count, "transparent or not finite")
    if n_dead:
        alive = (~dead).nonzero()[:, 0]
        chosen = alive[_draw(raw["opacities"][alive].sigmoid(), n_dead, generator)]
        _shrink_chosen(model, chosen, settings.prune_opa)
        for value in raw.values():
            value.data[dead] = value.data[chosen]
        zero_moments(raw, optimizers, rows=torch.cat([dead.nonzero()[:, 0], chosen]))

    n_new = max(0, min(settings.cap_max, int(settings.grow_factor * model.count)) - model.count)
    if n_new:
        chosen = _draw(raw["opacities"].sigmoid(), n_new, generator)
        _shrink_chosen(model, chosen, settings.prune_opa)
        source = torch.cat([torch.arange(model.count, device=chosen.device), chosen])
        fresh = torch.zeros_like(source, dtype=torch.bool)
        fresh[model.count :] = True
        fresh[chosen] = True
        rebuild(raw, optimizers, source, fresh)


@torch.no_grad()
def add_position_noise(model: GaussianModel, strength: float, generator: torch.Generator) -> None:
    """Move every mean by strength * sigmoid(k (1 - t - opacity)) * Sigma * normal noise (paper, eq. 8).

    Args:
        strength: learning rate of the means times `noise_lr`.
        generator: CPU generator.
    """
    raw = model.params
    means = raw["means"]
    noise = torch.randn(means.shape, generator=generator, dtype=means.dtype)
    noise = to_device(noise, means.device)
    openness = torch.sigmoid(NOISE_SHARPNESS * (1.0 - NOISE_CENTER - raw["opacities"].sigmoid()))
    noise *= (strength * openness)[:, None]
    along_axes = rotate_back(raw["quats"], noise) * (2.0 * raw["scales"]).exp()
    means.add_(rotate(raw["quats"], along_axes))


def _draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """[count] indices drawn with replacement, in proportion to `weights`."""
    # By the inverse of the distribution function: torch.multinomial stops at 2^24 entries.
    cumulative = weights.detach().cpu().double().cumsum(0)
    at = torch.rand(count, generator=generator, dtype=torch.float64) * cumulative[-1]
    return torch.searchsorted(cumulative, at, right=True).clamp_(max=len(cumulative) - 1).to(weights.device)


def _shrink_chosen(model: GaussianModel, chosen: Tensor, min_opacity: float) -> None:
    """Give each chosen Gaussian the values it needs to share its place with as many copies as it was drawn."""
    raw = model.params
    rows, times = chosen.unique(return_counts=True)
    opacities, scales = relocated_values(raw["opacities"][rows].sigmoid(), raw["scales"][rows].exp(), times + 1)
    eps = torch.finfo(torch.float32).eps
    raw["opacities"].data[rows] = torch.logit(opacities.clamp(max(min_opacity, eps), 1.0 - eps))
    raw["scales"].data[rows] = scales.log()
