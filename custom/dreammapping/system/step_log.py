"""What a step reports, sent to the loggers only in the steps that they keep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class StepLog:
    """Collects a step's numbers and hands them to Lightning together.

    `LightningModule.log` copies every number to the device and waits for it, in every step, while loggers keep one step
    in `log_every_n_steps`. So the others are left out, and what is on the device comes over in one transfer.
    """

    def __init__(self, system: Any) -> None:
        self._system = system
        self._values: dict[str, Tensor | float] = {}
        self._on_bar: set[str] = set()

    @property
    def wanted(self) -> bool:
        """Whether the loggers keep this step; to be asked after the optimizer has stepped."""
        try:
            trainer = self._system.trainer
        except RuntimeError:  # stepped by hand
            return False
        every, step = trainer.log_every_n_steps, trainer.global_step
        always = bool(getattr(trainer, "fast_dev_run", False)) or step == trainer.max_steps
        return always or (every > 0 and step % every == 0)

    def add(self, name: str, value: Tensor | float, prog_bar: bool = False) -> None:
        """A number or a tensor of one element; `prog_bar`: for the progress bar, too."""
        self._values[name] = value
        if prog_bar:
            self._on_bar.add(name)

    def clear(self) -> None:
        """Forget what was collected."""
        self._values.clear()

    def send(self) -> None:
        """Hand all over. Lightning keeps one value of each name per step."""
        for name, value in zip(self._values, _on_host(list(self._values.values()))):
            self._system.log(name, value, prog_bar=name in self._on_bar)
        self.clear()


def _on_host(values: list[Tensor | float]) -> list[Tensor]:
    """Scalars float32 on the CPU, those of the device in one transfer."""
    made = [v.detach() if isinstance(v, Tensor) else torch.tensor(float(v)) for v in values]
    far = [v.float().reshape(()) for v in made if v.device.type != "cpu"]
    near = iter(torch.stack(far).cpu().unbind()) if far else iter(())
    return [v.float().reshape(()) if v.device.type == "cpu" else next(near) for v in made]
