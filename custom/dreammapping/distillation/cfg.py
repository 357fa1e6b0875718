"""Classifier-free guidance, in one place, with its convention spelled out.

    seed :  e_cfg = e_c + s (e_c - e_u)      the DreamMapping paper's eq. 4
    usual:  e_cfg = e_u + S (e_c - e_u)      Imagen, diffusers, most code;  S = s + 1

Everything internal uses the paper's s. Perp-Neg (Armandpour et al. 2023) enlarges the direction e_c - e_u by what the
negative prompts point at, perpendicular to it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


class CFGConvention(enum.Enum):
    """What a number called "guidance scale" means."""

    SEED = "seed"
    USUAL = "usual"


def seed_scale(scale: float, convention: CFGConvention) -> float:
    """The paper's s for a scale given in `convention`."""
    return scale if convention is CFGConvention.SEED else scale - 1


@dataclass(frozen=True)
class Guided:
    """The predictions of one guided call, all [B,C,h,w] float32, without graph."""

    cond: Tensor
    """e_c, the plain prediction for the prompt."""
    uncond: Tensor
    """e_u, the anchor's prediction (empty or negative prompt)."""
    guided: Tensor
    """e_cfg."""
    others: Mapping[str, Tensor] = field(default_factory=dict)
    """Further embeddings that were asked for in the same call."""
    perp_neg: Tensor | None = None
    """What Perp-Neg adds to the direction e_c - e_u; None without it."""

    @property
    def direction(self) -> Tensor:
        """The way to the prompt, before any scale: e_c - e_u, and what Perp-Neg adds."""
        plain = self.cond - self.uncond
        return plain if self.perp_neg is None else plain + self.perp_neg

    @property
    def term(self) -> Tensor:
        """The conditional term e_cfg - e_c = s (e_c - e_u) of eq. 10 (Perp-Neg adds (s + 1) times its directions)."""
        return self.guided - self.cond


def guide(
    cond: Tensor,
    uncond: Tensor,
    scale: float,
    convention: CFGConvention,
    negatives: Sequence[Tensor] = (),
    weights: Tensor | None = None,
) -> Tensor:
    """e_cfg [B,C,h,w].

    With Perp-Neg: `negatives` are K predictions [B,C,h,w] and `weights` [B,K] their signed weights; then
    e_cfg = e_u + (s + 1) (C + sum_i w_i perp(e_i - e_u, C)) with C = e_c - e_u.
    """
    s = seed_scale(scale, convention)
    guided = cond + s * (cond - uncond)
    addition = perp_neg(cond, uncond, negatives, weights)
    return guided if addition is None else guided + (s + 1) * addition


def perp_neg(cond: Tensor, uncond: Tensor, negatives: Sequence[Tensor], weights: Tensor | None) -> Tensor | None:
    """What Perp-Neg adds to C = e_c - e_u: sum_i w_i perp(e_i - e_u, C) [B,C,h,w]; None without negatives.

    `negatives` are K predictions [B,C,h,w], `weights` [B,K]. Raises ValueError for weights of another shape.
    """
    if not negatives:
        return None
    if weights is None or weights.shape != (cond.shape[0], len(negatives)):
        raise ValueError(f"Perp-Neg needs weights of shape {(cond.shape[0], len(negatives))}")
    weighted = (
        weights[:, i].to(cond).view(-1, 1, 1, 1) * perpendicular(negative - uncond, cond - uncond)
        for i, negative in enumerate(negatives)
    )
    return sum(weighted, start=torch.zeros_like(cond))


def perpendicular(x: Tensor, y: Tensor) -> Tensor:
    """The part of x [B,C,h,w] perpendicular to y, per image; x itself where y is zero."""
    dims = tuple(range(1, x.ndim))
    along = (x * y).sum(dims, keepdim=True) / (y * y).sum(dims, keepdim=True).clamp(min=1e-12)
    return x - along * y
