"""Stops a run before it spoils itself."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

from ..errors import DreamMappingError


class DivergenceError(DreamMappingError):
    """The loss or a gradient is no longer a number."""


def check_finite(step: int, loss: Tensor, parameters: Iterable[tuple[str, Parameter]]) -> None:
    """Raise DivergenceError if `loss` or a gradient is not finite; to be called before the optimizer uses them.

    Costs one transfer from the device per step.
    """
    named = [(name, p.grad) for name, p in parameters if p.grad is not None]
    with torch.no_grad():
        values = [loss.detach().float(), *(torch.linalg.vector_norm(grad).float() for _, grad in named)]
        finite = torch.isfinite(torch.stack([v.reshape(()).to(loss.device) for v in values])).tolist()
    if all(finite):
        return
    names = ["the loss", *(f"the gradient of {name}" for name, _ in named)]
    broken = [name for name, ok in zip(names, finite) if not ok]
    listed = ", ".join(broken[:4]) + (" and others" if len(broken) > 4 else "")
    raise DivergenceError(
        f"Step {step}: {listed} became infinite or not a number. The step was not taken, and the last checkpoint is "
        "from before it. Resume from that one with smaller steps (system.guidance.grad_scale, "
        "system.geometry.position_lr, scaling_lr), a gradient limit (system.guidance.grad_clip), or, if the teacher "
        "runs in half precision, system.guidance.half_precision_weights=false."
    )
