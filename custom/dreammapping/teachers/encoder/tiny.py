"""A tiny encoder in the VAE's place while a run is young: TAESD and its like, distilled from a VAE's latents.

It is an approximation, chosen by the user. Its latents must be the teacher's, which shapes cannot tell (the tiny
encoders for SD and SDXL have the same), so both encode a picture at the start and are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import TeacherError
from ..loading import load_part, locate

LEAST_CORRELATION = 0.7
SCALES = (0.6, 1.6)
"""Of the regression of the tiny encoder's latents on the VAE's."""


@dataclass
class TinyEncoderOptions:
    """A tiny encoder for the first steps. Off without a model."""

    model: str = ""
    """Folder or hub name of an AutoencoderTiny: madebyollin/taesd for SD 1 and 2, taesdxl, taesd3."""
    until_step: int = 0
    """Steps below this use it. 0: none."""

    @property
    def wanted(self) -> bool:
        return bool(self.model) and self.until_step > 0

    def __post_init__(self) -> None:
        if bool(self.model) != (self.until_step > 0):
            raise ValueError(
                f"model is {self.model!r} and until_step is {self.until_step}; "
                "give both (until_step above 0), or neither"
            )


class TinyEncoder:
    """An AutoencoderTiny's encoder; its latents are scaled as the network reads them."""

    def __init__(self, model: Any, name: str) -> None:
        self.model, self.name = model.eval().requires_grad_(False), name
        self.scale = float(model.config.get("scaling_factor") or 1.0)
        self.shift = float(model.config.get("shift_factor") or 0.0)

    @classmethod
    def load(cls, name: str) -> TinyEncoder:
        """TeacherError (or the framework's own) if it is missing or damaged."""
        from diffusers import AutoencoderTiny

        return cls(load_part(AutoencoderTiny, locate(name), "", use_safetensors=True), name)

    def to(self, device: torch.device, dtype: torch.dtype) -> TinyEncoder:
        self.model.to(device, dtype)
        return self

    def __call__(self, pixels: Tensor) -> Tensor:
        """[B,3,H,W] in [-1,1] -> scaled latents [B,C,h,w], in the pixels' type."""
        latents = self.model.encode(pixels.to(self.model.dtype)).latents.to(pixels.dtype)
        return (latents - self.shift) * self.scale

    @torch.no_grad()
    def check(self, teacher: str, encode: Callable[[Tensor], Tensor], size: tuple[int, int], like: Tensor) -> None:
        """TeacherError unless its latents are those of `encode`, the teacher's mean on pixels as above.

        `size`: the teacher's image size. `like`: for device and type.
        """
        pixels = probe(size, like)
        ours, theirs = self(pixels).float(), encode(pixels).float()
        if ours.shape != theirs.shape:
            raise TeacherError(
                f"system.guidance.tiny_encoder.model {self.name} makes latents {list(ours.shape[1:])} of an image of "
                f"{size[0]} x {size[1]}, the teacher {teacher} {list(theirs.shape[1:])}; take the one made for it"
            )
        correlation, slope = agreement(ours, theirs)
        if not (correlation >= LEAST_CORRELATION and SCALES[0] <= slope <= SCALES[1]):
            raise TeacherError(
                f"system.guidance.tiny_encoder.model {self.name} does not encode as the teacher {teacher} does: on a "
                f"test picture its latents have correlation {correlation:.2f} with the VAE's and {slope:.2f} times "
                f"their size, where at least {LEAST_CORRELATION} and {SCALES[0]} to {SCALES[1]} are asked for. Take "
                "the one made for it (madebyollin/taesd for SD 1 and 2, taesdxl for SDXL, taesd3 for SD 3)"
            )


def agreement(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Correlation over all latents, each channel about its mean, and the slope of ours on theirs."""
    a, b = (v - v.mean((0, 2, 3), keepdim=True) for v in (ours, theirs))
    shared = (a * b).sum()
    return float(shared / (a.norm() * b.norm())), float(shared / b.square().sum())


def probe(size: tuple[int, int], like: Tensor) -> Tensor:
    """A picture [1,3,*size] in [-1,1]: colored waves of several lengths, with edges and flat parts."""
    y, x = (torch.linspace(0, 1, n, device=like.device, dtype=torch.float32) for n in size)
    y, x = y[:, None], x[None, :]
    waves = [torch.sin(6.283 * (f * x + g * y + p)) for f, g, p in ((1, 2, 0.1), (3, -1, 0.4), (-2, 4, 0.7))]
    disk = ((x - 0.55).square() + (y - 0.45).square() < 0.09).float()
    picture = torch.stack([disk * wave + (1 - disk) * level for wave, level in zip(waves, (0.8, -0.2, 0.4))])
    return picture[None].clamp(-1, 1).to(like.dtype)
