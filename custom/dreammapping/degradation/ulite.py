"""U-Lite (Dinh et al. 2023, "1M parameters are enough?"): the light U-Net the paper uses as degradation operator.

Axial depthwise convolutions, no residual from input to output, no conditioning. 879,252 parameters with five halvings
at four latent channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError

STEM_WIDTH = 16
"""The published width at full resolution."""
MAX_STAGES = 5
Norm = Callable[[int], nn.Module]


def batch_norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels)


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(8, channels)


class Axial(nn.Module):
    """x + depthwise (k x 1) of x + depthwise (1 x k) of x, dilated: a sum of three branches."""

    def __init__(self, channels: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        options = {"padding": "same", "groups": channels, "dilation": dilation}
        self.vertical = nn.Conv2d(channels, channels, (kernel, 1), **options)
        self.horizontal = nn.Conv2d(channels, channels, (1, kernel), **options)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.vertical(x) + self.horizontal(x)


class Encoder(nn.Module):
    """Axial 7, norm (the skip), 1x1, max-pool 2, GELU: [B,a,H,W] -> [B,b,H/2,W/2] and the skip [B,a,H,W]."""

    def __init__(self, a: int, b: int, norm: Norm) -> None:
        super().__init__()
        self.axial, self.norm, self.point = Axial(a, 7), norm(a), nn.Conv2d(a, b, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        skip = self.norm(self.axial(x))
        return F.gelu(F.max_pool2d(self.point(skip), 2)), skip


class Bottleneck(nn.Module):
    """Squeeze to a quarter, look through three dilations in parallel, norm, 1x1, GELU."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        inner = channels // 4
        self.squeeze = nn.Conv2d(channels, inner, 1)
        self.looks = nn.ModuleList(Axial(inner, 3, dilation) for dilation in (1, 2, 3))
        self.norm, self.point = norm(channels), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return F.gelu(self.point(self.norm(torch.cat([x, *(look(x) for look in self.looks)], 1))))


class Decoder(nn.Module):
    """Nearest x2, join the skip, 1x1, norm, axial 7, 1x1, GELU: [B,a,H,W] and [B,b,2H,2W] -> [B,b,2H,2W]."""

    def __init__(self, a: int, b: int, norm: Norm) -> None:
        super().__init__()
        self.join, self.norm = nn.Conv2d(a + b, b, 1), norm(b)
        self.axial, self.point = Axial(b, 7), nn.Conv2d(b, b, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skip], 1)
        return F.gelu(self.point(self.axial(self.norm(self.join(x)))))


class ULite(nn.Module):
    """[B,channels,h,w] -> the same shape; h and w divisible by 2^stages.

    `width` is that at full resolution, a multiple of 8; None: the published 16 (`choose_width`).
    """

    def __init__(
        self, channels: int = 4, stages: int = MAX_STAGES, norm: Norm = batch_norm, width: int | None = None
    ) -> None:
        super().__init__()
        widths = [choose_width(width) * 2**i for i in range(stages + 1)]
        self.stem = nn.Conv2d(channels, widths[0], 7, padding="same")
        self.encoders = nn.ModuleList(Encoder(a, b, norm) for a, b in zip(widths, widths[1:]))
        self.bottleneck = Bottleneck(widths[-1], norm)
        self.decoders = nn.ModuleList(Decoder(b, a, norm) for a, b in reversed(list(zip(widths, widths[1:]))))
        self.head = nn.Conv2d(widths[0], channels, 1)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        x = self.stem(x.contiguous(memory_format=layout_for(x.device)))
        skips = []
        for encoder in self.encoders:
            x, skip = encoder(x)
            skips.append(skip)
        x = self.bottleneck(x)
        for decoder in self.decoders:
            x = decoder(x, skips.pop())
        return self.head(x)


def layout_for(device: torch.device) -> torch.memory_format:
    """Where depthwise convolutions are quick: channels-last on a CPU, about a third faster there; not on a GPU, where a
    U-Net answers in it, and cuDNN then starts a kernel for each channel in some layers (2.4 of the operator's 2.9 ms)."""
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def choose_width(width: int | None) -> int:
    """The width at full resolution: as given, else the published one. Raises ConfigError unless it is a positive
    multiple of 8.

    All that leaves the network passes a GELU of this width, where a value of either sign takes two channels. So with
    more than half as many latent channels as this, M cannot pass all of the noise on: at 16 for 32 channels,
    |M(e) - eps|^2 stays above 0.5 even where e is eps. Measured, that is the better M (docs/vdm.md).
    """
    if width is None:
        return STEM_WIDTH
    if width < 8 or width % 8:
        raise ConfigError(f"loss.width is {width}; it must be a positive multiple of 8, or left out")
    return width


def choose_stages(height: int, width: int, stages: int | None = None) -> int:
    """The number of halvings for latents of height x width: as given, else the most (up to five) that leave 2 x 2.

    Raises ConfigError if the sides cannot be halved that often, or a given number leaves less than 2 x 2 (batch
    statistics over one pixel of one image do not exist).
    """

    def fits(n: int) -> bool:
        return all(side % 2**n == 0 and side // 2**n >= 2 for side in (height, width))

    if stages is not None:
        if stages < 1 or not fits(stages):
            raise ConfigError(
                f"loss.stages is {stages}: both sides of the {height} x {width} latents must be multiples of "
                f"2^{stages} = {2 ** max(stages, 0)} and at least {2 ** (max(stages, 0) + 1)}; "
                "leave it out to choose automatically"
            )
        return stages
    fitting = [n for n in range(1, MAX_STAGES + 1) if fits(n)]
    if not fitting:
        raise ConfigError(
            f"the nonlinear operator needs latents with even sides of at least 4 pixels, got {height} x {width}; "
            "use operator linear"
        )
    return max(fitting)
