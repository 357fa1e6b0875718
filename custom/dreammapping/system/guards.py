"""Stops a run before it spoils itself."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

from ..errors import DreamMappingError
from ..transfers import Arriving


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
        self._arriving: tuple[int, Arriving] | None = None

    def watch(self, step: int, residual_norm: Tensor) -> None:
        """To be called in each step. Looks at the count every `patience` steps, on a GPU a step later: none waits."""
        self.settle()
        bad = (~torch.isfinite(residual_norm.detach())).long().reshape(())
        self._in_a_row = bad if self._in_a_row is None else (self._in_a_row + 1) * bad  # 0 again after a good step
        if (step + 1) % self.patience == 0:
            self._arriving = (step, Arriving(self._in_a_row))
            if self._arriving[1].at_once:
                self.settle()

    def settle(self) -> None:
        """Raise DivergenceError for what has been seen but not looked at yet."""
        if self._arriving is None:
            return
        (step, count), self._arriving = self._arriving, None
        if int(count.read()) >= self.patience:
            raise DivergenceError(
                f"Step {step}: for {self.patience} steps the teacher has answered with infinities or no numbers, so "
                "nothing is learned. Its weights may be damaged, or too large for half precision: "
                "set system.guidance.half_precision_weights=false."
            )


class FiniteGuard:
    """Stops a run whose loss or gradients are no longer finite.

    On a CPU before the optimizer uses them. On a GPU a step later, so that no step waits for the device; `settle` must
    then come before anything is kept (a checkpoint, the exported asset).
    """

    def __init__(self) -> None:
        self._arriving: tuple[int, list[str], Arriving] | None = None

    def check(self, step: int, loss: Tensor, parameters: Iterable[tuple[str, Parameter]]) -> None:
        """To be called between backward and the optimizer's step. Raises DivergenceError, see above."""
        self.settle()
        named = [(name, p.grad) for name, p in parameters if p.grad is not None]
        with torch.no_grad():
            values = [loss.detach().float(), *(torch.linalg.vector_norm(grad).float() for _, grad in named)]
            finite = torch.isfinite(torch.stack([v.reshape(()).to(loss.device) for v in values]))
        names = ["the loss", *(f"the gradient of {name}" for name, _ in named)]
        self._arriving = (step, names, Arriving(finite))
        if self._arriving[2].at_once:
            self.settle()

    def settle(self) -> None:
        """Raise DivergenceError if the last checked step was not finite; waits for it."""
        if self._arriving is None:
            return
        (step, names, arriving), self._arriving = self._arriving, None
        finite = arriving.read().tolist()
        if all(finite):
            return
        broken = [name for name, ok in zip(names, finite) if not ok]
        listed = ", ".join(broken[:4]) + (" and others" if len(broken) > 4 else "")
        taken = "The step was not taken, and the last" if arriving.at_once else "The last"
        raise DivergenceError(
            f"Step {step}: {listed} became infinite or not a number. {taken} checkpoint is "
            "from before it. Resume from that one with smaller steps (system.guidance.grad_scale, "
            "system.geometry.position_lr, scaling_lr), a gradient limit (system.guidance.grad_clip), or, if the teacher "
            "runs in half precision, system.guidance.half_precision_weights=false."
        )


def check_finite(step: int, loss: Tensor, parameters: Iterable[tuple[str, Parameter]]) -> None:
    """Raise DivergenceError at once if `loss` or a gradient is not finite. Waits for the device."""
    guard = FiniteGuard()
    guard.check(step, loss, parameters)
    guard.settle()
