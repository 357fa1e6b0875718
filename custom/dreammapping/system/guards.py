"""Stops a run before it spoils itself."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

from ..errors import DreamMappingError


class DivergenceError(DreamMappingError):
    """The loss or a gradient is no longer a number."""


class SilentTeacher:
    """Counts steps in a row whose residual was no number.

    Guidance replaces such values by zeros, so that one bad step in half precision costs nothing. A teacher that always
    answers so would train nothing, and nobody would notice.
    """

    def __init__(self, patience: int = 20) -> None:
        self.patience = patience
        self._in_a_row: Tensor | None = None

    def watch(self, step: int, residual_norm: Tensor) -> None:
        """To be called in each step. Looks at the count, which waits for the device, every `patience` steps only."""
        bad = (~torch.isfinite(residual_norm.detach())).long().reshape(())
        self._in_a_row = bad if self._in_a_row is None else (self._in_a_row + 1) * bad  # 0 again after a good step
        if (step + 1) % self.patience == 0 and int(self._in_a_row) >= self.patience:
            raise DivergenceError(
                f"Step {step}: for {self.patience} steps the teacher has answered with infinities or no numbers, so "
                "nothing is learned. Its weights may be damaged, or too large for half precision: "
                "set system.guidance.half_precision_weights=false."
            )


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
