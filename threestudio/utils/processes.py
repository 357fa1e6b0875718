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
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import SIGTERMException
from pytorch_lightning.utilities.rank_zero import rank_zero_info

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
        StopTogether(trainer).install()

    def configure_ddp(self) -> None:
        """Leave the module as it is."""


STEPS_BETWEEN_LOOKS = 50
"""So many steps may pass before a run that was told to end (SIGTERM) ends."""


class StopTogether:
    """SIGTERM for several processes: whichever is told to end, all end after the same step.

    In Lightning's place, which has two faults. It asks for signals through the device in every step and reads the answer, so
    that no step can be prepared while the device works on the one before. And the process that gets the signal makes a
    transfer on the spot, beside whatever the others are at, so that the run hangs (seen with Lightning 2.6.6).
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self.trainer, self.asked, self.calls = trainer, False, itertools.count()

    def install(self) -> None:
        """Before Lightning registers its handlers. Versions without the faults (before 2.5.2) are left alone."""
        loop, signals = self.trainer.fit_loop.epoch_loop, getattr(self.trainer, "_signal_connector", None)
        if hasattr(loop, "_broadcast_sigterm_tensor") and hasattr(signals, "_sigterm_notifier_fn"):
            loop._broadcast_sigterm_tensor = self.look
            signals._sigterm_notifier_fn = self.remember

    def remember(self, number: int, frame: Any) -> None:
        """The signal's handler. In a training the other processes hear of it by `look`; elsewhere each ends by itself."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.asked = True
            return
        if self.trainer.strategy.launcher is not None:
            self.trainer.strategy.launcher.kill(number)
        self.trainer._signal_connector.received_sigterm = True

    def look(self) -> None:
        """Before each step, in all processes.

        Raises:
            SIGTERMException: in all of them, if one was told to end.
        """
        if next(self.calls) % STEPS_BETWEEN_LOOKS:
            return
        asked = torch.tensor(int(self.asked), device=self.trainer.strategy.root_device)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        if asked.item():
            rank_zero_info("The run was told to end (SIGTERM). Its last checkpoint goes on from there: resume=FILE")
            raise SIGTERMException


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
