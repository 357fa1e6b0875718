"""What happens around training: snapshots of code and config, checkpoints, the progress bar."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

import threestudio
from threestudio.utils.checkpoint import BackgroundCheckpointIO
from threestudio.utils.config import dump_config
from threestudio.utils.files import write_atomic
from threestudio.utils.misc import barrier

_NO_CODE = ("load", "docs")
"""Folders of the working directory that a code snapshot leaves out."""
_LARGEST_SNAPSHOT_FILE = 4 * 2**20  # bytes; code is smaller, weights are larger


class VersionedCallback(Callback):
    """Base of callbacks that write into a folder, or with `use_version` into its next free `version_k`."""

    def __init__(self, save_root: str | os.PathLike[str], version: int | None = None, use_version: bool = True) -> None:
        self.save_root = Path(save_root)
        self.use_version = use_version
        self._version = version

    @property
    def version(self) -> int:
        """The number given, else one above the greatest in the folder."""
        if self._version is None:
            taken = [entry.name.removeprefix("version_") for entry in self.save_root.glob("version_*")]
            self._version = max((int(number) for number in taken if number.isdigit()), default=-1) + 1
        return self._version

    @property
    def savedir(self) -> str:
        """The folder to write into."""
        return str(self.save_root / f"version_{self.version}" if self.use_version else self.save_root)


class CodeSnapshotCallback(VersionedCallback):
    """Copies the code into the run's folder when training starts: what git tracks or would add, without weights and pages."""

    def __init__(
        self,
        save_root: str | os.PathLike[str],
        version: int | None = None,
        use_version: bool = True,
        exclude: Iterable[str | os.PathLike[str]] = (),
    ) -> None:
        super().__init__(save_root, version, use_version)
        self.exclude = [Path(folder).resolve() for folder in (save_root, *exclude)]

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        try:
            files = _git_files()
        except (OSError, subprocess.CalledProcessError):
            threestudio.warn("No code snapshot was made: git is not installed, or this folder is no git repository.")
            return
        try:
            self._copy(files)
        except OSError as error:
            threestudio.warn(f"The code snapshot in {self.savedir} is incomplete: {error}")

    def _copy(self, files: list[Path]) -> None:
        for file in files:
            source = file.resolve()
            skipped = file.parts[0] in _NO_CODE or any(source.is_relative_to(folder) for folder in self.exclude)
            if skipped or not source.is_file() or source.stat().st_size > _LARGEST_SNAPSHOT_FILE:
                continue
            target = Path(self.savedir, file)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def _git_files() -> list[Path]:
    """Tracked and untracked, not ignored files below the working directory, relative to it."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, check=True, capture_output=True).stdout
    return [Path(os.fsdecode(name)) for name in sorted(set(listing.split(b"\0"))) if name]


class ConfigSnapshotCallback(VersionedCallback):
    """Writes `raw.yaml` (the file as given) and `parsed.yaml` (the resolved config) when training starts.

    A resumed run keeps the `raw.yaml` it began with and gets a `parsed.yaml` with what was changed.
    """

    def __init__(
        self,
        config_path: str | os.PathLike[str],
        config: Any,
        save_root: str | os.PathLike[str],
        version: int | None = None,
        use_version: bool = True,
    ) -> None:
        super().__init__(save_root, version, use_version)
        self.config_path = Path(config_path)
        self.config = config

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.write()

    @rank_zero_only
    def write(self) -> None:
        """Write both files now."""
        raw = Path(self.savedir, "raw.yaml")
        if not raw.exists():
            write_atomic(raw, self.config_path.read_bytes())
        dump_config(Path(self.savedir, "parsed.yaml"), self.config)


class RunCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that overwrites instead of numbering, and saves `last` at the final step, whatever its interval.

    A resumed run goes on in the same folder: a file it writes again replaces the one from before the interruption.
    """

    def __init__(self, dirpath: str | os.PathLike[str], **settings: Any) -> None:
        super().__init__(dirpath=dirpath, **{"enable_version_counter": False, **settings})

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        finished = trainer.global_step >= trainer.max_steps > 0
        if finished and self.save_last and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        if isinstance(trainer.strategy.checkpoint_io, BackgroundCheckpointIO):
            # Lightning's own teardown comes after hooks that a broken GPU may keep from ending.
            trainer.strategy.checkpoint_io.finish_quietly()


class BackgroundPictures(Callback):
    """Has the system's pictures written by a thread, except in an export; when a stage ends, however, all are there."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage in ("fit", "validate", "test"):
            pl_module.write_pictures_in_background()

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.finish_pictures()  # before the system makes a video of them, on whichever process it does

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.finish_pictures()
        barrier()  # the first process lists what all have written

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        pl_module.write_pictures_at_once(quietly=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pl_module.write_pictures_at_once()


class CustomProgressBar(TQDMProgressBar):
    """Training progress in optimizer steps out of `max_steps`: loss, steps per second and the time left."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loss: Tensor | float | None = None
        self._on_terminal = sys.stdout.isatty()
        self._interval = 0.2 if self._on_terminal else 10.0  # seconds; a log file needs no ten lines per second
        self._shown = -math.inf

    def init_validation_tqdm(self) -> Any:
        """No bar for the validations within a training that is written to a file."""
        if self.trainer.state.fn == "fit" and not self._on_terminal:
            return Tqdm(disable=True)
        return super().init_validation_tqdm()

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What the system logs to the bar, with the last loss in front."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if self._loss is not None and not any(name.endswith("loss") for name in metrics):
            metrics = {"loss": f"{float(self._loss):.4g}", **metrics}
        return metrics

    def on_train_start(self, trainer: pl.Trainer, *args: Any) -> None:
        super().on_train_start(trainer, *args)
        if trainer.max_steps > 0:
            bar = self.train_progress_bar
            bar.reset(total=trainer.max_steps)
            bar.initial = bar.n = trainer.global_step  # steps done before a resume do not count for the speed
            bar.set_description("Training")

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.max_steps <= 0:  # else one bar runs through all epochs
            super().on_train_epoch_start(trainer, *args)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        self._loss = loss.detach() if isinstance(loss, Tensor) else loss
        if trainer.max_steps <= 0:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            return
        # By time, not by step: showing the loss waits for the GPU.
        now = time.monotonic()
        if not self.is_disabled and (now - self._shown >= self._interval or trainer.global_step >= trainer.max_steps):
            self._shown = now
            self.train_progress_bar.n = trainer.global_step
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))


    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.val_progress_bar.close()
        self.reset_dataloader_idx_tracker()


class ProgressCallback(Callback):
    """Keeps one line about the state of the run in a file that another program can watch."""

    def __init__(self, save_path: str | os.PathLike[str]) -> None:
        self.save_path = Path(save_path)
        self._last = ""

    @rank_zero_only
    def write(self, message: str) -> None:
        """Replace the line."""
        if message != self._last:
            self._last = message
            write_atomic(self.save_path, message.encode())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.write("Rendering validation image ...")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        share = trainer.global_step / trainer.max_steps if trainer.max_steps > 0 else 0.0
        self.write(f"Generating 3D model: {share:.0%} ({trainer.global_step} of {trainer.max_steps} steps)")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.write("Rendering validation image ...")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.write("Rendering video ...")

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.write("Exporting mesh assets ...")
