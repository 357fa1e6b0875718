"""The random numbers of training: captured after every batch, saved with the checkpoint, given back before the next.

Between two training batches other things draw numbers too (validation, data loaders that start, loggers). They do not
disturb training, because each batch starts from the state in which the batch before it ended. A resumed run therefore
draws what an uninterrupted one would have drawn.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch


def capture_random_state() -> dict[str, Any]:
    """States of Python's, NumPy's and torch's global generators, as tensors and plain values only."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": {"version": version, "numbers": list(numbers), "gauss": gauss},
        "numpy": {
            "name": str(name),
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Give the global generators the states of `capture_random_state`; GPUs that are not there now are left out."""
    python = state["python"]
    random.setstate((python["version"], tuple(python["numbers"]), python["gauss"]))
    saved = state["numpy"]
    keys = saved["keys"].numpy().astype(np.uint32)
    np.random.set_state((saved["name"], keys, saved["position"], saved["has_gauss"], saved["cached"]))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        for index, entry in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(entry.cpu(), index)


class TrainingRandomState(pl.Callback):
    """Keeps the random numbers of training one unbroken sequence over validations, epochs and resumes.

    It also runs the system's work at the end of a batch, so that this is done when a checkpoint is written right after
    (Lightning calls the checkpoint callback before the module's own `on_train_batch_end`).
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None
        self._loaded: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self._loaded:
            # Processes draw alike, so one that was not there before takes the first's state.
            self._state = self._loaded[trainer.global_rank if trainer.global_rank < len(self._loaded) else 0]
            self._loaded = []
        if self._state is not None:
            restore_random_state(self._state)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        finish = getattr(pl_module, "finish_train_batch", None)
        if finish is not None:
            finish()
        self._state = capture_random_state()

    def state_dict(self) -> dict[str, Any]:
        """The state of each process, in the order of their ranks."""
        mine = self._state or capture_random_state()
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return {"ranks": [mine]}
        states: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(states, mine)
        return {"ranks": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = list(state_dict["ranks"])
