"""`BaseSystem`: the Lightning module every system derives from, and what all of them share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, List, Optional

import pytorch_lightning as pl


import threestudio
from threestudio.errors import CheckpointError
from threestudio.systems.utils import check_all_trained, parse_optimizer, parse_scheduler
from threestudio.utils.base import Updateable, update_all, update_all_end
from threestudio.utils.callbacks import BackgroundPictures
from threestudio.utils.checkpoint import read_checkpoint
from threestudio.utils.config import parse_structured
from threestudio.utils.misc import C, cleanup, find_last_path
from threestudio.utils.random_state import TrainingRandomState
from threestudio.utils.saving import SaverMixin


class BaseSystem(pl.LightningModule, Updateable, SaverMixin):
    """Hooks, optimizer, schedules and weights of a system. Subclasses implement `configure` and the steps."""

    @dataclass
    class Config:
        loggers: dict = field(default_factory=dict)
        """`{"wandb": {"enable": bool, "project": str, "name": str}}`"""
        loss: dict = field(default_factory=dict)
        """`lambda_<name>` for each `loss_<name>`: numbers or schedules."""
        optimizer: dict = field(default_factory=dict)
        scheduler: Optional[dict] = None
        weights: Optional[str] = None
        """Checkpoint to take weights from; what does not fit by name is left as it is."""
        weights_ignore_modules: Optional[List[str]] = None
        cleanup_after_validation_step: bool = False
        cleanup_after_test_step: bool = False

    cfg: Config

    def __init__(self, cfg: Any, resumed: bool = False) -> None:
        super().__init__()
        self.cfg = parse_structured(self.Config, cfg)
        self._resumed = resumed
        self._status: tuple[int, int] | None = None
        self._batch_open = False
        if "loggers" in self.cfg:
            self.create_loggers(self.cfg.loggers)
        self.configure()
        if self.cfg.weights is not None:
            self.load_weights(self.cfg.weights, self.cfg.weights_ignore_modules)
        self.post_configure()

    # ---- building ----

    def configure(self) -> None:
        """Build the parts; `self.cfg` is there."""

    def post_configure(self) -> None:
        """Runs after the parts are built and `weights` are loaded."""

    def load_weights(self, weights: str, ignore_modules: list[str] | None = None) -> None:
        """Take over what a checkpoint and this system have in common by name, without its training state.

        Raises:
            CheckpointError: unreadable, nothing in common, or a tensor of another shape.
        """
        path = find_last_path(weights)
        checkpoint = read_checkpoint(path)
        prefixes = tuple(f"{name}." for name in ignore_modules or ())
        if prefixes:
            state = {key: value for key, value in checkpoint["state_dict"].items() if not key.startswith(prefixes)}
        else:
            state = checkpoint["state_dict"]
            self.on_load_checkpoint(checkpoint)  # lets geometries of variable size take the size of the checkpoint
        try:
            result = self.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise CheckpointError(f"The weights in {path} have other shapes than this system's: {error}") from error
        taken = len(state) - len(result.unexpected_keys)
        if taken == 0:
            raise CheckpointError(f"{path} and {type(self).__name__} have no weight in common; nothing was loaded.")
        left = f"; {len(result.missing_keys)} of its own stay as they were" if result.missing_keys else ""
        threestudio.info(f"Took {taken} tensors from {path}{left}.")
        self.do_update_step(checkpoint["epoch"], checkpoint["global_step"], on_load_weights=True)

    def configure_optimizers(self) -> Any:
        """One optimizer from `cfg.optimizer`, with the scheduler of `cfg.scheduler` if there is one."""
        optimizer = parse_optimizer(self.cfg.optimizer, self)
        result: dict[str, Any] = {"optimizer": optimizer}
        if self.cfg.scheduler is not None:
            result["lr_scheduler"] = parse_scheduler(self.cfg.scheduler, optimizer)
        return result

    def configure_callbacks(self) -> list[pl.Callback]:
        """The keeper of the random numbers, without which a resumed run would draw others, and that of the pictures."""
        present = {type(callback) for callback in self.trainer.callbacks}
        return [kind() for kind in (TrainingRandomState, BackgroundPictures) if kind not in present]

    # ---- where the run stands ----

    @property
    def resumed(self) -> bool:
        """Whether this run continues or evaluates a checkpoint."""
        return self._resumed

    def set_resume_status(self, current_epoch: int, global_step: int) -> None:
        """Epoch and step of the checkpoint that is evaluated; outside training Lightning does not know them."""
        self._status = (current_epoch, global_step)

    @property
    def true_global_step(self) -> int:
        """Optimizer steps behind these weights."""
        return self.global_step if self._status is None else self._status[1]

    @property
    def true_current_epoch(self) -> int:
        """Epochs behind these weights."""
        return self.current_epoch if self._status is None else self._status[0]

    def C(self, value: Any) -> float:
        """Value of a schedule now."""
        return C(value, self.true_current_epoch, self.true_global_step)

    # ---- steps, for subclasses ----

    def preprocess_data(self, batch: Any, stage: str) -> None:
        """Change a batch in place before its step; `stage` is train, validation, test or predict."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not implement training_step, so it cannot train.")

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not implement validation_step, so it cannot validate.")

    def on_validation_epoch_end(self) -> None:
        """Runs when all validation batches are done."""

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not implement test_step, so it cannot test.")

    def on_test_epoch_end(self) -> None:
        """Runs when all test batches are done."""

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not implement predict_step, so it cannot export.")

    def on_predict_epoch_end(self) -> None:
        """Runs when all prediction batches are done."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Runs before each optimizer step, with the gradients there."""

    # ---- hooks around batches ----

    def on_train_start(self) -> None:
        check_all_trained(self, self.trainer.optimizers)

    def on_train_batch_start(self, batch: Any, batch_idx: int, unused: int = 0) -> None:
        self._start_batch(batch, "train", self.trainer.train_dataloader)
        self._batch_open = True

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._start_batch(batch, "validation", self.trainer.val_dataloaders, dataloader_idx)

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._start_batch(batch, "test", self.trainer.test_dataloaders, dataloader_idx)

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._start_batch(batch, "predict", self.trainer.predict_dataloaders, dataloader_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.finish_train_batch()

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._end_batch(self.cfg.cleanup_after_validation_step)

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._end_batch(self.cfg.cleanup_after_test_step)

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._end_batch(self.cfg.cleanup_after_test_step)

    def finish_train_batch(self) -> None:
        """The end hooks of a training batch, once per batch, whoever asks first.

        A checkpoint is written between the callbacks' and the module's `on_train_batch_end`; called from a callback
        this brings the hooks before it, so that the checkpoint holds what they changed.
        """
        if self._batch_open:
            self._batch_open = False
            self._end_batch(False)

    def _start_batch(self, batch: Any, stage: str, loaders: Any, loader_index: int = 0) -> None:
        self.preprocess_data(batch, stage)
        loader = loaders[loader_index] if isinstance(loaders, (list, tuple)) else loaders
        self.dataset = loader.dataset
        update_all([self.dataset, self], self.true_current_epoch, self.true_global_step)

    def _end_batch(self, clean: bool) -> None:
        update_all_end([self.dataset, self], self.true_current_epoch, self.true_global_step)
        if clean:
            cleanup()
