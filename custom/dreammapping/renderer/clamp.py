"""Keeping pictures in their range without losing what could bring them back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class StayInRange(torch.autograd.Function):
    """Clamps to [0, 1]. Gradients pass, except those that would push a saturated pixel further out.

    A plain clamp would stop every gradient there, and a pixel that once overshot could never come back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0.0, 1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        # Descent moves against the gradient: a negative one raises the pixel.
        outward = ((x > 1.0) & (grad < 0.0)) | ((x < 0.0) & (grad > 0.0))
        return grad.masked_fill(outward, 0.0)
