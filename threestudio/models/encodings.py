"""Input encodings in plain PyTorch, on any device. All take coordinates in [0, 1], as tiny-cuda-nn's do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from threestudio.errors import ConfigError
from threestudio.utils.base import Updateable


def _positive(config: Mapping[str, Any], key: str, default: int) -> int:
    value = int(config.get(key, default))
    if value < 1:
        raise ConfigError(f"encoding {config.get('otype')}: {key} is {value}; it must be at least 1.")
    return value


class Identity(nn.Module):
    """`x * scale + offset`."""

    def __init__(self, n_input_dims: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.n_output_dims = n_input_dims
        self.scale, self.offset = float(config.get("scale", 1.0)), float(config.get("offset", 0.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.offset


class Frequency(nn.Module):
    """sin and cos of `2^k pi x`, k < n_frequencies; ordered by input, then k, then sin, cos (tiny-cuda-nn's order)."""

    def __init__(self, n_input_dims: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        n_frequencies = _positive(config, "n_frequencies", 12)
        self.n_output_dims = n_input_dims * n_frequencies * 2
        self.bands: Tensor
        self.register_buffer("bands", math.pi * 2.0 ** torch.arange(n_frequencies), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        angles = x[..., None] * self.bands.to(x)  # [N, D, K]
        return torch.stack([torch.sin(angles), torch.cos(angles)], dim=-1).reshape(*x.shape[:-1], -1)


class ProgressiveBandFrequency(nn.Module, Updateable):
    """sin and cos of `2^k x`, whose bands fade in from low to high over `n_masking_step` steps (Nerfies, eq. 8).

    `n_masking_step` of 0 shows all bands at once. Ordered by k, then sin and cos, then input.
    """

    def __init__(self, n_input_dims: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.n_frequencies = _positive(config, "n_frequencies", 12)
        self.n_masking_step = int(config.get("n_masking_step", 0))
        self.n_output_dims = n_input_dims * self.n_frequencies * 2
        self.bands: Tensor
        self.mask: Tensor
        self.register_buffer("bands", 2.0 ** torch.arange(self.n_frequencies), persistent=False)
        self.register_buffer("mask", self._mask_at(0), persistent=False)

    def _mask_at(self, global_step: int) -> Tensor:
        if self.n_masking_step <= 0:
            return torch.ones(self.n_frequencies)
        opened = global_step / self.n_masking_step * self.n_frequencies - torch.arange(self.n_frequencies)
        return (1.0 - torch.cos(math.pi * opened.clamp(0.0, 1.0))) / 2.0

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        self.mask.copy_(self._mask_at(global_step))

    def forward(self, x: Tensor) -> Tensor:
        angles = x[..., None, :] * self.bands.to(x)[:, None]  # [N, K, D]
        waves = torch.stack([torch.sin(angles), torch.cos(angles)], dim=-2)  # [N, K, 2, D]
        return (waves * self.mask.to(x)[:, None, None]).reshape(*x.shape[:-1], -1)


class SphericalHarmonics(nn.Module):
    """Real spherical harmonics of a direction, `degree`^2 values, with the signs of tiny-cuda-nn (Condon-Shortley
    phase).

    The input is a unit vector mapped from [-1, 1] to [0, 1]. The values are built by the recurrences of the associated
    Legendre polynomials, written in x, y, z so that nothing is singular at the poles.
    """

    def __init__(self, n_input_dims: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        if n_input_dims != 3:
            raise ConfigError(f"encoding SphericalHarmonics takes directions (3 inputs), not {n_input_dims} inputs.")
        self.degree = _positive(config, "degree", 4)
        self.n_output_dims = self.degree**2

    def forward(self, x: Tensor) -> Tensor:
        x, y, z = (x * 2.0 - 1.0).unbind(-1)
        values: list[Tensor] = [z] * self.n_output_dims
        cosine, sine = torch.ones_like(x), torch.zeros_like(x)  # real and imaginary part of (x + i y)^m
        leading = 1.0  # (2m - 1)!!
        for m in range(self.degree):
            below, legendre = torch.zeros_like(z), torch.full_like(z, leading)
            for n in range(m, self.degree):
                norm = (-1) ** m * math.sqrt(
                    (2 * n + 1) / (4 * math.pi) * math.factorial(n - m) / math.factorial(n + m) * (2 if m else 1)
                )
                values[n * n + n + m] = norm * legendre * cosine
                if m:
                    values[n * n + n - m] = norm * legendre * sine
                below, legendre = legendre, ((2 * n + 1) * z * legendre - (n + m) * below) / (n - m + 1)
            cosine, sine = x * cosine - y * sine, x * sine + y * cosine
            leading *= 2 * m + 1
        return torch.stack(values, dim=-1)
