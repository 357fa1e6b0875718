"""Ranks and devices, scalar schedules, weights of single modules, and small helpers extensions import from here."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from packaging import version
from torch import Tensor, nn

from threestudio.errors import CheckpointError
from threestudio.utils.checkpoint import read_checkpoint
from threestudio.utils.schedules import C

__all__ = [
    "C",
    "barrier",
    "broadcast",
    "cleanup",
    "enable_gradient",
    "find_last_path",
    "finish_with_cleanup",
    "get_device",
    "get_rank",
    "load_module_weights",
    "parse_version",
    "set_device",
]

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
_chosen_device: torch.device | None = None


def parse_version(text: str) -> version.Version:
    """`"0.2.3"` as an object that compares by version, not by letters."""
    return version.parse(text)


def get_rank() -> int:
    """Number of this process among those of the run, from the environment; 0 when it runs alone."""
    return _rank_from(_RANK_VARIABLES)


def _rank_from(names: Iterable[str]) -> int:
    for name in names:
        value = os.environ.get(name)
        if value:
            return int(value)
    return 0


def set_device(device: torch.device | str | None) -> None:
    """Fix what `get_device` answers in this process; None returns to the automatic choice."""
    global _chosen_device
    _chosen_device = None if device is None else torch.device(device)


def get_device() -> torch.device:
    """The device new parts are built on: the launcher's choice, else this process's GPU, else the CPU."""
    if _chosen_device is not None:
        return _chosen_device
    if torch.cuda.is_available():
        return torch.device(f"cuda:{_rank_from(('LOCAL_RANK', *_RANK_VARIABLES)) % torch.cuda.device_count()}")
    return torch.device("cpu")


def load_module_weights(
    path: str | os.PathLike[str],
    module_name: str | None = None,
    ignore_modules: list[str] | None = None,
    map_location: Any = None,
) -> tuple[dict[str, Any], int, int]:
    """State dict, epoch and global step from a checkpoint; never executes code from it.

    Args:
        path: checkpoint file; `LAST` in it stands for the newest trial (`find_last_path`).
        module_name: keep only the entries below this module, without its prefix.
        ignore_modules: leave out the entries below these modules. Not together with `module_name`.
        map_location: as in torch.load; the default is `get_device()`.

    Raises:
        CheckpointError: unreadable file, or nothing in it belongs to `module_name`.
    """
    if module_name is not None and ignore_modules is not None:
        raise ValueError("Give either module_name or ignore_modules, not both.")
    file = find_last_path(os.fspath(path))
    checkpoint = read_checkpoint(file, map_location=get_device() if map_location is None else map_location)
    state = checkpoint["state_dict"]
    if module_name is not None:
        prefix = f"{module_name}."
        selected = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        if not selected:
            present = ", ".join(sorted({key.split(".", 1)[0] for key in state})) or "no weights"
            raise CheckpointError(f"{file} holds nothing for '{module_name}'; it has {present}.")
        state = selected
    elif ignore_modules:
        prefixes = tuple(f"{name}." for name in ignore_modules)
        state = {key: value for key, value in state.items() if not key.startswith(prefixes)}
    return state, checkpoint["epoch"], checkpoint["global_step"]


def find_last_path(path: str) -> str:
    """Replace the path component that contains `LAST` by the newest sibling with the same beginning.

    `outputs/run/a_cat@LAST/ckpts/last.ckpt` takes the lexicographically greatest folder `outputs/run/a_cat@*`, which
    is the newest, as names end in a timestamp. Spaces become underscores, as in trial names. Paths without `LAST`
    come back unchanged.

    Raises:
        CheckpointError: there is no such folder.
    """
    parts = Path(path).parts
    index = next((i for i, part in enumerate(parts) if "LAST" in part), None)
    if index is None:
        return path
    folder = Path(*parts[:index])
    if not folder.is_dir():
        folder = Path(*(part.replace(" ", "_") for part in parts[:index]))
    beginning = parts[index].split("LAST", 1)[0].replace(" ", "_")
    names = sorted(entry.name for entry in folder.glob("*") if entry.name.startswith(beginning))
    if not names:
        raise CheckpointError(f"'{path}': {folder} has no entry that starts with '{beginning}', so LAST means nothing.")
    return str(folder.joinpath(names[-1], *parts[index + 1 :]))


def cleanup() -> None:
    """Free what Python and CUDA keep although nothing uses it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    tinycudann = sys.modules.get("tinycudann")
    if tinycudann is not None:
        tinycudann.free_temporary_memory()


def finish_with_cleanup(func: Callable) -> Callable:
    """Decorator: `cleanup()` after each call."""

    @wraps(func)
    def wrapper(*args, **kwargs):
        result = func(*args, **kwargs)
        cleanup()
        return result

    return wrapper


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def barrier() -> None:
    """Wait for all processes of the run; nothing when it runs alone."""
    if _distributed():
        torch.distributed.barrier()


def broadcast(tensor: Tensor, src: int = 0) -> Tensor:
    """`tensor` of process `src` on all processes, in place; unchanged when the run has one process."""
    if _distributed():
        torch.distributed.broadcast(tensor, src=src)
    return tensor


def enable_gradient(model: nn.Module, enabled: bool = True) -> None:
    """Set requires_grad of all parameters of `model`."""
    for parameter in model.parameters():
        parameter.requires_grad_(enabled)
