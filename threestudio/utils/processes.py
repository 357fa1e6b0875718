"""Several processes, one for each device, that train one asset together: who does which part of a batch.

All start from the same seed and draw the random numbers of the whole batch; each keeps its own rows. So the union of the
processes' batches is the batch of a single process.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy

from threestudio.errors import ConfigError


def process_count() -> int:
    """How many processes work together; 1 before they have met."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def own_rows(total: int) -> slice:
    """This process's rows of a batch of `total`; ConfigError unless every process gets as many."""
    processes = process_count()
    if total % processes:
        raise ConfigError(
            f"data.batch_size is {total}, which {processes} processes cannot share evenly; "
            f"make it a multiple of {processes}, or use fewer devices (--gpu, trainer.devices)."
        )
    share = total // processes
    first = share * (torch.distributed.get_rank() if processes > 1 else 0)
    return slice(first, first + share)


class UnwrappedDDPStrategy(DDPStrategy):
    """DDP's processes without its wrapper: the module averages the gradients itself.

    DistributedDataParallel holds on to the parameters it was given. A module whose parameters are replaced while it trains,
    as densification does, would train the new ones on each process's own views.
    """

    def setup(self, trainer: pl.Trainer) -> None:
        super().setup(trainer)
        look_for_signals_rarely(trainer.fit_loop.epoch_loop)

    def configure_ddp(self) -> None:
        """Leave the module as it is."""


STEPS_BETWEEN_LOOKS = 50
"""So many steps pass before a process learns that another was told to end (SIGTERM); its own it heeds at once."""


def look_for_signals_rarely(loop: Any) -> None:
    """Have Lightning's training loop tell the processes of signals every `STEPS_BETWEEN_LOOKS` steps instead of in each.

    It does so through the device and reads the answer (Lightning's issue 21487), so that no step can be prepared while the
    device still works on the one before: half of what a second GPU gains. All processes count the same steps.
    """
    original = getattr(loop, "_broadcast_sigterm_tensor", None)  # since 2.5.2
    if original is None:
        return
    calls = itertools.count()

    def sometimes() -> None:
        if next(calls) % STEPS_BETWEEN_LOOKS == 0:
            original()

    loop._broadcast_sigterm_tensor = sometimes


def device_count(settings: dict[str, Any]) -> int:
    """How many devices the keyword arguments of a Trainer ask for on one machine."""
    devices = settings.get("devices", 1)
    if isinstance(devices, str) and devices != "auto":
        named = [part for part in devices.split(",") if part.strip()]
        devices = int(devices) if len(named) == 1 and devices.lstrip("-").isdigit() else named
    if isinstance(devices, (list, tuple)):
        return len(devices)
    if devices in ("auto", -1):
        return torch.cuda.device_count() if settings.get("accelerator") in ("gpu", "cuda") else 1
    return int(devices)


def strategy_for(system: pl.LightningModule, settings: dict[str, Any]) -> Any:
    """The Trainer's `strategy`: as given, except that a system which averages its gradients itself is not wrapped."""
    given = settings.get("strategy", "auto")
    if device_count(settings) > 1 and given in ("auto", "ddp") and getattr(system, "averages_gradients", False):
        return UnwrappedDDPStrategy()
    return given
