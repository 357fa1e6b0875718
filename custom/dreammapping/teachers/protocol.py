"""What guidance needs of a diffusion model beyond predicting noise: images in, images out, and its own sizes."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..distillation.teacher import NoisePredictor
from ..processes import Rows


class Teacher(NoisePredictor, Protocol):
    """A frozen text-to-image model. Not a torch module: it is neither saved with a run nor trained by accident."""

    name: str
    """What the config asked for."""
    fingerprint: str
    """Hash of the weights; empty if it could not be determined."""
    image_size: tuple[int, int]
    """(H, W) of the images the model was trained on."""
    latent_shape: tuple[int, int, int]
    """(C, h, w) of their latents."""

    def encode(self, rgb: Tensor, generator: torch.Generator, rows: Rows | None = None) -> Tensor:
        """rgb [B,3,H,W] in [0,1], any size, with graph -> scaled latents [B,C,h,w]; the posterior is sampled from
        `generator`, for the whole batch of which `rgb` holds `rows` (None: this process's)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [B,C,h,w] -> rgb [B,3,H,W] in [0,1], without graph."""
        ...
