"""Lightning's Trainer for a run: device and strategy, loggers, callbacks, checkpoints."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

import threestudio
from threestudio.errors import ConfigError
from threestudio.utils.callbacks import (
    CodeSnapshotCallback,
    ConfigSnapshotCallback,
    CustomProgressBar,
    RunCheckpoint,
)
from threestudio.utils.checkpoint import BackgroundCheckpointIO
from threestudio.utils.config import config_to_primitive
from threestudio.utils.misc import set_device
from threestudio.utils.processes import strategy_for


def trainer_settings(config: DictConfig, use_cuda: bool) -> dict[str, Any]:
    """Keyword arguments for Trainer: the device, and what the config says.

    Raises:
        ConfigError: the config asks for an accelerator that is not there.
    """
    settings = trainer_defaults(config_to_primitive(config.trainer), use_cuda)
    accelerator = settings["accelerator"]
    if accelerator in ("gpu", "cuda") and not use_cuda:
        raise ConfigError(f"trainer.accelerator is {accelerator}, but torch finds no CUDA GPU. Remove it or use cpu.")
    if accelerator == "cpu":
        set_device("cpu")
        if str(settings.get("precision", "")).startswith(("16", "bf16")):
            threestudio.warn(f"trainer.precision {settings['precision']} is meant for GPUs; on the CPU it is 32-true.")
            settings["precision"] = "32-true"
    return settings


def trainer_defaults(given: Mapping[str, Any], use_cuda: bool) -> dict[str, Any]:
    """What the config says of the Trainer, with accelerator and devices: all visible GPUs, or one process on the CPU."""
    accelerator = given.get("accelerator", "auto")
    if accelerator == "auto":
        accelerator = "gpu" if use_cuda else "cpu"
    devices = -1 if accelerator in ("gpu", "cuda") else 1
    return {"devices": devices, **given, "accelerator": accelerator}


def build_trainer(
    arguments: argparse.Namespace, config: DictConfig, settings: dict[str, Any], system: pl.LightningModule
) -> pl.Trainer:
    """The Lightning Trainer of a run; loggers and checkpoints only in training."""
    callbacks: list[pl.Callback] = []
    loggers: list[Any] = []
    settings = {**settings, "strategy": strategy_for(system, settings)}
    settings = {**settings, "enable_checkpointing": arguments.train and settings.get("enable_checkpointing", True)}
    if settings["enable_checkpointing"]:
        callbacks.append(checkpoint_callback(config))
    if arguments.train:
        callbacks += training_callbacks(arguments, config)
        loggers += training_loggers(config.trial_dir)
        loggers += system.get_loggers()
    if settings.get("enable_progress_bar", True):
        callbacks.append(CustomProgressBar())
    try:
        return pl.Trainer(
            callbacks=callbacks,
            logger=loggers or False,
            inference_mode=False,
            plugins=[BackgroundCheckpointIO()],
            **settings,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise ConfigError(f"trainer: Lightning refuses these settings: {error}") from error


def checkpoint_callback(config: DictConfig) -> RunCheckpoint:
    """Checkpoints in `ckpts` of the trial folder."""
    try:
        return RunCheckpoint(Path(config.trial_dir, "ckpts"), **config_to_primitive(config.checkpoint))
    except (MisconfigurationException, TypeError) as error:
        raise ConfigError(f"checkpoint: Lightning refuses these settings: {error}") from error


def training_callbacks(arguments: argparse.Namespace, config: DictConfig) -> list[pl.Callback]:
    """Learning rates, and snapshots of code and config."""
    trial = Path(config.trial_dir)
    return [
        LearningRateMonitor(logging_interval="step"),
        CodeSnapshotCallback(trial / "code", use_version=False, exclude=[config.exp_root_dir]),
        ConfigSnapshotCallback(arguments.config, config, trial / "configs", use_version=False),
    ]


def training_loggers(trial_dir: str) -> list[Any]:
    """CSV always, TensorBoard where it is installed."""
    loggers: list[Any] = [CSVLogger(trial_dir, name="csv_logs")]
    if any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")):
        loggers.insert(0, TensorBoardLogger(trial_dir, name="tb_logs"))
    return loggers
