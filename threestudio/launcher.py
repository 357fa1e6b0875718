"""From the command line's arguments to a run: config, checks, trial folder, parts, Lightning.

Everything that can be wrong with the arguments is found out before the trial folder is made and any weight is read.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

import threestudio
from threestudio.coverage import check_coverage
from threestudio.errors import ConfigError, UserError, suggest
from threestudio.extensions import describe, load_extensions
from threestudio.utils.checkpoint import checkpoint_progress
from threestudio.utils.config import (
    finish_config,
    load_config_file,
    merge_config,
    missing_values_error,
)
from threestudio.utils.files import write_atomic
from threestudio.utils.misc import find_last_path, get_rank, set_device
from threestudio.utils.presets import PresetChoice, choose_preset
from threestudio.utils.processes import device_count
from threestudio.utils.trainer import build_trainer, trainer_defaults, trainer_settings
from threestudio.utils.validation import check_run

_FLAGS = ("--config", "--gpu", "--train", "--validate", "--test", "--export", "--preset", "--verbose", "--typecheck")
_EXPECTED_WARNINGS = (
    r".*ModelCheckpoint with manual optimization",  # saving after the optimizer's step is what we want
    r".*resuming from a checkpoint that ended before the epoch ended",  # the data modules know their place
    r".*Checkpoint directory .* exists and is not empty",
    r".*does not have many workers",
    r".*LeafSpec.* is deprecated",
    r".*when using `ckpt_path`, callbacks used to create the checkpoint",  # an evaluation saves no checkpoints
    r".*predict returned None",
    r".*Using `DistributedSampler` with the dataloaders",  # a view that two processes render is written twice, alike
)


def launch(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Carry out one command; see launch.py for the arguments.

    Raises:
        UserError: a mistake in the arguments, the config or a file it names; its message says what to do.
    """
    check_overrides(overrides)
    set_up_logging(arguments.verbose)
    use_cuda = choose_device(arguments.gpu)
    load_all_extensions()
    config, preset = read_run_config(arguments.config, overrides, arguments.preset, use_cuda=use_cuda)
    status = resume_status(config)
    check_run(config)
    settings = trainer_settings(config, use_cuda)  # may still decide for the CPU

    start_trial(config, arguments, preset)
    handler = log_to_file(config)
    try:
        threestudio.info(f"{preset}\nTrial folder: {config.trial_dir}")
        run(arguments, config, settings, status)
    finally:
        if handler is not None:
            threestudio.logger.removeHandler(handler)
            handler.close()


# ---- before the run ----


def set_up_logging(verbose: bool) -> None:
    """Show what the core logs, without Lightning's advertisements and hardware it looks for in vain."""
    threestudio.logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    for handler in threestudio.logger.handlers:
        if _wanted not in handler.filters:
            handler.addFilter(_wanted)


def _wanted(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return "Tip:" not in message and not message.startswith("TPU available")


def check_overrides(overrides: Sequence[str]) -> None:
    """Arguments that are neither flags nor overrides are mistakes."""
    for text in overrides:
        if text.startswith("-"):
            raise ConfigError(f"There is no flag {text}. {suggest(text.split('=')[0], _FLAGS)}")


def choose_device(requested: str | None) -> bool:
    """Whether to use CUDA: if it is there. Also decides what `get_device` answers from now on.

    Raises:
        UserError: GPUs were asked for explicitly, but CUDA or one of them is absent.
    """
    check_gpu_list(requested)
    cuda = torch.cuda.is_available()
    if requested is not None and not cuda:
        raise UserError(
            f"--gpu {requested} was given, but torch {torch.__version__} finds no CUDA GPU. "
            "Leave --gpu out to run on the CPU, or install a torch build with CUDA and check nvidia-smi."
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if requested is not None and visible != requested:
        threestudio.warn(f"--gpu {requested} has no effect: CUDA_VISIBLE_DEVICES is already set to {visible}.")
    elif requested is not None and len(requested.split(",")) != torch.cuda.device_count():
        # CUDA stops reading the list at the first number it does not know.
        raise UserError(
            f"--gpu {requested} names {len(requested.split(','))} GPUs, of which only the first "
            f"{torch.cuda.device_count()} can be used. nvidia-smi -L lists what there is, counted from 0."
        )
    set_device(None if cuda else "cpu")
    return cuda


def check_gpu_list(requested: str | None) -> None:
    """UserError unless `--gpu` is a list of different GPUs, by number or by the UUID that nvidia-smi -L shows."""
    names = [] if requested is None else [name.strip() for name in requested.split(",")]
    wrong = [name for name in names if not (name.isdigit() or name.startswith(("GPU-", "MIG-")))]
    if wrong or len(set(names)) < len(names):
        found = f"has {wrong[0]!r} in it" if wrong else "names a GPU twice"
        raise UserError(f"--gpu {requested} {found}; it must be a list of different numbers, such as 0 or 0,1.")


def load_all_extensions() -> None:
    """Import the extensions in custom/ of the working directory and of this repository; report those that fail."""
    folders = dict.fromkeys(Path(root, "custom").resolve() for root in (Path.cwd(), Path(__file__).parents[1]))
    loaded = [extension for folder in folders for extension in load_extensions(folder)]
    threestudio.debug(describe(loaded))
    for extension in loaded:
        if extension.cause is not None:
            threestudio.warn(f"The extension {extension.path} failed to import and is left out: {extension.cause}")
            threestudio.debug(extension.details)


def read_run_config(
    path: str, overrides: Sequence[str], preset: str, *, use_cuda: bool
) -> tuple[DictConfig, PresetChoice]:
    """Config file < preset overlays < command line, resolved and checked at the top level."""
    merged = merge_config(path, cli_args=overrides)
    check_coverage(merged)  # before values are asked for that would not help
    choice = choose_preset(preset, path, merged, cuda=use_cuda)
    if choice.files:
        merged = merge_config(path, *choice.files, cli_args=overrides)
    missing = missing_values_error(merged)
    if missing is not None:
        raise missing
    n_gpus = device_count(trainer_defaults(merged.get("trainer") or {}, use_cuda))
    if n_gpus > 1 and merged.get("use_timestamp", True) and merged.get("timestamp") is None:
        threestudio.warn("With several GPUs the trial's name carries no timestamp.")
    return finish_config(merged, n_gpus=n_gpus), choice


def resume_status(config: DictConfig) -> tuple[int, int] | None:
    """Epoch and step of the checkpoint to resume from, after looking whether it can be read; None without one."""
    if config.resume is None:
        return None
    config.resume = find_last_path(config.resume)
    return checkpoint_progress(config.resume)


# ---- the trial folder ----


def start_trial(config: DictConfig, arguments: argparse.Namespace, preset: PresetChoice) -> None:
    """Make the trial folder and write down how the run was started."""
    if get_rank() != 0:
        return
    fresh = config.resume is None and config.use_timestamp and "timestamp" not in load_config_file(arguments.config)
    while True:
        try:
            Path(config.trial_dir).mkdir(parents=True, exist_ok=not (fresh and config.timestamp))
            break
        except FileExistsError:  # another run of the same name started within this second
            time.sleep(0.2)
            config.timestamp = datetime.now().strftime("@%Y%m%d-%H%M%S")
            config.trial_name = config.trial_name[: -len(config.timestamp)] + config.timestamp
            config.trial_dir = os.path.join(config.exp_dir, config.trial_name)
    record = Path(config.trial_dir, "configs", "preset.json")
    if not record.exists():
        preset.save(record)
    command = f"python {' '.join(sys.argv)}\n{arguments}\n{preset}\n"
    write_atomic(Path(config.trial_dir, "cmd.txt"), command.encode())


def log_to_file(config: DictConfig) -> logging.Handler | None:
    """Append what is logged to `logs` in the trial folder, too; on the first process only."""
    if get_rank() != 0:
        return None
    handler = logging.FileHandler(Path(config.trial_dir, "logs"), encoding="utf-8")
    handler.addFilter(_wanted)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    threestudio.logger.addHandler(handler)
    return handler


# ---- the run ----


def run(
    arguments: argparse.Namespace, config: DictConfig, settings: dict[str, Any], status: tuple[int, int] | None
) -> None:
    """Build data, system and trainer, and do what the mode says."""
    for pattern in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    pl.seed_everything(config.seed, workers=True)  # the same on all processes, see utils/processes.py
    data = threestudio.find(config.data_type)(config.data)
    system = threestudio.find(config.system_type)(config.system, resumed=config.resume is not None)
    system.set_save_dir(os.path.join(config.trial_dir, "save"))
    trainer = build_trainer(arguments, config, settings, system)

    if arguments.train:
        if status is not None and status[1] >= trainer.max_steps > 0:
            threestudio.info(f"{config.resume} has all {status[1]} steps; set a larger trainer.max_steps to go on.")
        trainer.fit(system, datamodule=data, ckpt_path=config.resume)
        trainer.test(system, datamodule=data)
        return
    if status is None:
        threestudio.warn("No resume=CHECKPOINT is given, so an untrained system is evaluated.")
    else:
        system.set_resume_status(*status)
    evaluate = trainer.validate if arguments.validate else trainer.test if arguments.test else trainer.predict
    evaluate(system, datamodule=data, ckpt_path=config.resume)
