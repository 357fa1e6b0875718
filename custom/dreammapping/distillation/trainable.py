"""What a loss may ask of a teacher beyond frozen predictions: a copy of it that can learn other images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

CAMERA_NUMBERS = 16
"""A camera condition is a 4 x 4 matrix, row by row."""


@dataclass(frozen=True)
class AdapterOptions:
    """What kind of copy."""

    model: str | None = None
    """Another model to start from (folder or hub name); None: the teacher's own weights, held only once."""
    rank: int = 4
    """Of the low-rank updates (LoRA), where the copy has any."""
    camera: bool = True
    """Whether its prediction also depends on the camera."""
    scale: float = 1.0
    """How strongly the updates are applied, in training too: W + scale times the update."""


class TrainablePredictor(Protocol):
    """A predictor that starts from a pretrained model and whose `adapter` can be trained."""

    prediction_type: str
    """What `predict` answers: epsilon, v_prediction or sample (diffusers' names)."""
    adapter: nn.Module
    """The trainable parameters, and only those."""

    def predict(
        self, noisy: Tensor, t: Tensor, embedding: Tensor, camera: Tensor | None, *, differentiable: bool = False
    ) -> Tensor:
        """The model's answer [B,C,h,w] float32, in its own kind of prediction.

        noisy [B,C,h,w], t [B], embedding [B,L,E] or [1,L,E], camera [B,16] (zeros: no particular camera) or None for
        a copy without cameras. Without graph unless `differentiable`, which lets gradients reach the adapter.
        """
        ...


@runtime_checkable
class Adaptable(Protocol):
    """A teacher that can make such copies."""

    def trainable_copy(self, options: AdapterOptions, generator: torch.Generator) -> TrainablePredictor:
        """A fresh copy, its new parameters initialized from `generator`. Its calls count as the teacher's."""
        ...
