"""What normalization has to compute, in plain torch: the reference for triton_kernels.py, and the CPU's stand-in.

Every tensor [B,C,H,W] here is channels-last in memory. An activation is kept as x and a per-channel constant that is
still to be added to it, `bias` [C] or None (see pieces.Activation): adding it in a kernel of its own would read and
write the whole tensor. Statistics and sums are float32 (float64 for float64 tensors).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Moments(NamedTuple):
    """Mean and sum of squared deviations of each channel over S runs of `run` rows (pixels); the last may be shorter.

    They serve any number of groups, so whoever writes an activation can sum them up on the way.
    """

    mean: Tensor  # [B,S,C]
    deviation: Tensor  # [B,S,C]
    run: int


class Norm(NamedTuple):
    """A group normalization's constants, and whether SiLU follows."""

    weight: Tensor  # [C]
    offset: Tensor  # [C]
    groups: int
    eps: float
    silu: bool


class Arithmetic(Protocol):
    """The four operations, with bias [C] or None, and statistics [B,G,2]: mean and 1 / standard deviation of each group."""

    def moments(self, x: Tensor, bias: Tensor | None) -> Moments:
        """Of x + bias."""

    def add(self, x: Tensor, y: Tensor, bias: Tensor) -> tuple[Tensor, Moments]:
        """x + y + bias, and its moments."""

    def statistics(self, moments: Moments, rows: int, norm: Norm) -> Tensor:
        """[B,G,2] from the moments of `rows` = H W pixels."""

    def normalize(self, x: Tensor, bias: Tensor | None, statistics: Tensor, norm: Norm) -> Tensor:
        """The normalization of x + bias, followed by SiLU if the norm says so."""

    def input_gradient(
        self, gradient: Tensor, x: Tensor, bias: Tensor | None, statistics: Tensor, norm: Norm, further: Tensor | None
    ) -> Tensor:
        """d/dx of `normalize` applied to `gradient`, plus `further`: what reaches x by the skip connection."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type that sums over values of `dtype` are kept in."""
    return torch.promote_types(dtype, torch.float32)


class TorchArithmetic:
    """See Arithmetic. Runs anywhere, in any floating-point type."""

    def moments(self, x: Tensor, bias: Tensor | None) -> Moments:
        rows = _biased(x, bias).flatten(2)  # [B,C,HW]
        mean = rows.mean(-1, keepdim=True)
        deviation = (rows - mean).square().sum(-1)
        return Moments(mean.transpose(1, 2), deviation[:, None], rows.shape[-1])

    def add(self, x: Tensor, y: Tensor, bias: Tensor) -> tuple[Tensor, Moments]:
        total = (_biased(x, bias) + y).to(x.dtype)
        return total, self.moments(total, None)

    def statistics(self, moments: Moments, rows: int, norm: Norm) -> Tensor:
        mean, deviation = (_grouped(m, norm.groups) for m in moments[:2])  # [B,S,G,C/G]
        starts = torch.arange(0, rows, moments.run, device=mean.device)
        count = (rows - starts).clamp(max=moments.run).to(mean.dtype)[:, None, None]  # pixels of each run
        total = rows * mean.shape[-1]
        center = (count * mean).sum((1, 3)) / total
        spread = (deviation + count * (mean - center[:, None, :, None]).square()).sum((1, 3)) / total
        return torch.stack([center, (spread + norm.eps).rsqrt()], -1)

    def normalize(self, x: Tensor, bias: Tensor | None, statistics: Tensor, norm: Norm) -> Tensor:
        z = _standardized(x, bias, statistics) * _by_channel(norm.weight) + _by_channel(norm.offset)
        return (F.silu(z) if norm.silu else z).to(x.dtype)

    def input_gradient(
        self, gradient: Tensor, x: Tensor, bias: Tensor | None, statistics: Tensor, norm: Norm, further: Tensor | None
    ) -> Tensor:
        unit, slope = _standardized(x, bias, statistics), gradient.to(wide(x.dtype))
        if norm.silu:
            z = unit * _by_channel(norm.weight) + _by_channel(norm.offset)
            sigmoid = z.sigmoid()
            slope = slope * sigmoid * (1 + z * (1 - sigmoid))
        slope = slope * _by_channel(norm.weight)
        plain, along = (_group_mean(v, norm.groups) for v in (slope, slope * unit))
        rest = (slope - plain - unit * along) * _spread(statistics[..., 1], x)
        return (rest if further is None else rest + further).to(x.dtype)


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    x = x.to(wide(x.dtype))
    return x if bias is None else x + _by_channel(bias)


def _by_channel(values: Tensor) -> Tensor:
    return values[None, :, None, None]


def _grouped(moments: Tensor, groups: int) -> Tensor:
    return moments.unflatten(-1, (groups, -1))


def _spread(per_group: Tensor, like: Tensor) -> Tensor:
    """[B,G] -> [B,C,1,1]."""
    return per_group.repeat_interleave(like.shape[1] // per_group.shape[1], dim=1)[..., None, None]


def _standardized(x: Tensor, bias: Tensor | None, statistics: Tensor) -> Tensor:
    return (_biased(x, bias) - _spread(statistics[..., 0], x)) * _spread(statistics[..., 1], x)


def _group_mean(values: Tensor, groups: int) -> Tensor:
    return _spread(values.unflatten(1, (groups, -1)).mean((2, 3, 4)), values)
