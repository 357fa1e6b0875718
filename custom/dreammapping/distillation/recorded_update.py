"""What a loss trains in a step, as one recording: its forward, backward and optimizer are a thousand small kernels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from torch import Tensor

from ..processes import together
from ..replay import Recorder, Replayed
from .auxiliary import AuxiliaryOptimizer
from .cfg import Guided
from .draw import NoisyDraw
from .loss import ScoreLoss, ScoreResult, Update
from .step_tensors import flatten, rebuild


class RecordedUpdate:
    """`Distiller.update`, recorded on CUDA where the loss allows it (`ScoreLoss.decisions`), else called.

    The parameters, their moments and the buffers stay the same tensors and change in place, so that saving and
    resuming know nothing of it. After a state has been loaded, `forget` must be called.
    """

    def __init__(
        self, update: Update, loss: ScoreLoss, optimizer: AuxiliaryOptimizer, recorder: Recorder | None = None
    ) -> None:
        self._update, self._loss, self._optimizer = update, loss, optimizer
        what = "the training of the loss's own part"
        self._replayed = Replayed(self._run, what, state=self._state, recorder=recorder)
        self._names: dict[Hashable, tuple[list[str], list[str]]] = {}

    def __call__(self, draw: NoisyDraw, answers: Any) -> tuple[ScoreResult, Mapping[str, Tensor]]:
        """As `Distiller.update`; the auxiliary losses come without graph, as they have been used."""
        transfers = self._optimizer.shared_out and together()  # which wait for other processes
        possible = self._replayed.covers(draw.clean.device) and isinstance(answers, Guided) and not transfers
        decisions = self._loss.decisions(draw) if possible else None
        if decisions is None:
            return self._update(draw, answers)
        self._now = (decisions, draw, answers)
        where = self._optimizer.parameters[0].data_ptr()  # another one: the loss has been moved
        residual, *scalars = self._replayed(*flatten(draw, answers), key=(decisions, where))
        auxiliary, diagnostics = self._names[decisions]
        first = dict(zip(auxiliary, scalars))
        return ScoreResult(residual, first, dict(zip(diagnostics, scalars[len(first) :]))), first

    def forget(self) -> None:
        """The optimizer's tensors have been replaced."""
        self._replayed.forget()

    def _run(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        decisions, draw, answers = self._now
        result, first = self._update(*rebuild(draw, answers, tensors))
        self._names[decisions] = (list(first), list(result.diagnostics))
        found = (result.residual, *first.values(), *result.diagnostics.values())
        return tuple(value.detach() for value in found)

    def _state(self) -> list[Tensor]:
        return [*self._loss.parameters(), *self._loss.buffers(), *self._optimizer.tensors()]
