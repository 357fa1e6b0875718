"""Degradation operators M_psi by name: noise [B,C,h,w] to noise of the same shape (paper section 4.2, Fig. 7).

All are called as operator(eps, t); only the time-conditioned wrapper looks at t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..registry import Registry
from .ulite import ULite, batch_norm, choose_stages, group_norm


@dataclass(frozen=True)
class OperatorShape:
    """What an operator is built for."""

    channels: int
    height: int
    width: int
    stages: int | None
    """U-Lite's halvings; None chooses."""
    norm: str
    """batch or group."""
    linear_init: str
    """ones (identity) or normal."""
    stem: int | None = None
    """U-Lite's channels at full resolution; None chooses."""


OPERATORS: Registry[Callable[[OperatorShape], nn.Module]] = Registry("loss.operator")


class Linear(nn.Module):
    """W * eps, one learnable weight per latent element, shared by the batch; starts as the identity or as N(0, 1)."""

    def __init__(self, shape: OperatorShape) -> None:
        super().__init__()
        size = (1, shape.channels, shape.height, shape.width)
        self.weight = nn.Parameter(torch.ones(size) if shape.linear_init == "ones" else torch.randn(size))

    def forward(self, eps: Tensor, t: Tensor | None = None) -> Tensor:
        return self.weight * eps


class WithNoise(nn.Module):
    """M(eps) + n, n one learnable tensor [1,C,h,w] starting at zero: eq. 12's observation noise."""

    def __init__(self, inner: nn.Module, shape: OperatorShape) -> None:
        super().__init__()
        self.inner = inner
        self.noise = nn.Parameter(torch.zeros(1, shape.channels, shape.height, shape.width))

    def forward(self, eps: Tensor, t: Tensor | None = None) -> Tensor:
        return self.inner(eps, t) + self.noise


class TimeConditioned(nn.Module):
    """(1 + c(t)) M((1 + a(t)) eps + b(t)) + d(t) with a, b, c, d [C] from a small network of t that starts at zero (no
    effect).

    The factor behind M is needed beside the one before it: where a batch shares one t, M's batch normalization takes a
    common factor of its input out again, and the best predictor of the noise shrinks as t falls.
    """

    def __init__(self, inner: nn.Module, channels: int, steps: int, width: int = 32) -> None:
        super().__init__()
        self.inner = inner
        self.network = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 4 * channels))
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)
        frequencies = torch.exp(-math.log(1000.0) * torch.arange(width // 2) / (width // 2)) * (1000.0 / steps)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, eps: Tensor, t: Tensor) -> Tensor:
        angles = t.to(self.frequencies.dtype)[:, None] * self.frequencies
        numbers = self.network(torch.cat([angles.sin(), angles.cos()], 1))[:, :, None, None]
        scale, shift, scale_out, shift_out = numbers.chunk(4, 1)
        return (1 + scale_out) * self.inner((1 + scale) * eps + shift, t) + shift_out


@OPERATORS.register("nonlinear")
def nonlinear(shape: OperatorShape) -> nn.Module:
    """U-Lite, the paper's choice."""
    stages = choose_stages(shape.height, shape.width, shape.stages)
    return ULite(shape.channels, stages, group_norm if shape.norm == "group" else batch_norm, shape.stem)


@OPERATORS.register("nonlinear_noise")
def nonlinear_noise(shape: OperatorShape) -> nn.Module:
    """U-Lite plus a learnable noise."""
    return WithNoise(nonlinear(shape), shape)


@OPERATORS.register("linear")
def linear(shape: OperatorShape) -> nn.Module:
    """One learnable factor per latent element."""
    return Linear(shape)


def build_operator(
    name: str,
    latent_shape: tuple[int, int, int],
    *,
    generator: torch.Generator,
    stages: int | None = None,
    norm: str = "batch",
    linear_init: str = "ones",
    time_steps: int | None = None,
    width: int | None = None,
) -> nn.Module:
    """The operator called `name` for latents (C, h, w), on the CPU in float32, initialized from `generator`.

    `time_steps` (the schedule's length) makes it depend on t. Raises ConfigError for an unknown name, sides it
    cannot halve or a width that does not fit.
    """
    build = OPERATORS.get(name)
    shape = OperatorShape(*latent_shape, stages=stages, norm=norm, linear_init=linear_init, stem=width)
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):  # layers initialize from the global generator; leave it as it was
        torch.manual_seed(seed)
        operator = build(shape)
        return operator if time_steps is None else TimeConditioned(operator, shape.channels, time_steps)
