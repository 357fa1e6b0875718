"""Reading and writing checkpoints: a file is whole or absent, and loading one never executes code from it."""

from __future__ import annotations

import errno
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pytorch_lightning.plugins.io import CheckpointIO

import threestudio
from threestudio.errors import CheckpointError
from threestudio.utils.background_writer import BackgroundWriter
from threestudio.utils.files import atomic_path

WAITING_CHECKPOINTS = 2**30
"""Bytes of checkpoints that may wait for the disk. A step writes two: its own and `last`."""

_REQUIRED = ("state_dict", "epoch", "global_step")


def read_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu", *, mmap: bool = False) -> dict[str, Any]:
    """The content of a training checkpoint: `state_dict`, `epoch`, `global_step` and more.

    With `mmap` the tensors stay on disk until they are used, so a look at the counters is cheap.

    Raises:
        CheckpointError: missing, truncated, foreign, or holding Python objects that would need pickle.
    """
    file = Path(path)
    if not file.is_file():
        there = "it is a folder" if file.is_dir() else "there is no such file"
        raise CheckpointError(f"Cannot read the checkpoint {file}: {there}.{_neighbours(file)}")
    try:
        content = torch.load(file, map_location=map_location, weights_only=True, mmap=mmap and zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(file):
            raise _unreadable(file, error) from error
        raise CheckpointError(
            f"{file} holds Python objects besides tensors and plain values, and loading those could execute code, "
            f"so it is refused. Checkpoints written by older programs may be like that. {_first_line(error)}"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _unreadable(file, error) from error
    missing = [key for key in _REQUIRED if not isinstance(content, dict) or key not in content]
    if missing:
        raise CheckpointError(f"{file} is no training checkpoint: it lacks {', '.join(missing)}.")
    return content


def checkpoint_progress(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Epoch and optimizer step of a checkpoint; raises CheckpointError like `read_checkpoint`."""
    content = read_checkpoint(path, mmap=True)
    return content["epoch"], content["global_step"]


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's way to disk, made safe: written beside the target, flushed, then renamed over it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
        """Write `checkpoint`; when that fails the previous file is untouched.

        Raises:
            CheckpointError: the disk is full or the folder cannot be written.
        """
        self._place(path, lambda stream: torch.save(checkpoint, stream))

    def _place(self, path: str, fill: Callable[[BinaryIO], Any]) -> None:
        """Write the file that `fill` fills; raises as `save_checkpoint`."""
        try:
            with atomic_path(path) as temporary:
                with open(temporary, "wb") as stream:
                    fill(stream)
                self._warn_about_objects(temporary)
        except (OSError, RuntimeError) as error:  # torch's zip writer turns a failed write into a RuntimeError
            raise CheckpointError(_write_message(Path(path), error)) from error

    def load_checkpoint(self, path: str, map_location: Any = None, **_: Any) -> dict[str, Any]:
        """Read a checkpoint with weights only, on the CPU unless told otherwise."""
        return read_checkpoint(path, map_location="cpu" if map_location is None else map_location)

    def remove_checkpoint(self, path: str) -> None:
        """Delete a checkpoint that newer ones replaced."""
        Path(path).unlink(missing_ok=True)

    def _warn_about_objects(self, file: Path) -> None:
        """Tell at the first save, not at the resume, that something in the checkpoint cannot be read back."""
        inspect = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
        names = inspect(file) if inspect else []
        if names:
            threestudio.warn(
                f"The checkpoint holds objects of {', '.join(sorted(names))}; it cannot be resumed from, "
                "as loading them could execute code. A state_dict may hold tensors and plain values only."
            )


class BackgroundCheckpointIO(AtomicCheckpointIO):
    """As AtomicCheckpointIO, but a thread writes to the disk.

    `save_checkpoint` serializes into memory, so the file holds what was there at that moment, byte for byte as if it
    had been written then. Checkpoints are written and removed in the order in which that was asked for, and none is
    removed after one could not be written. A failure is raised by the next call, at the latest by `teardown`, with
    which a trainer ends each of its stages.
    """

    def __init__(self) -> None:
        self._writer = BackgroundWriter(limit=WAITING_CHECKPOINTS)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
        """Have `checkpoint` written; CheckpointError if an earlier one could not be."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        data = content.getbuffer()
        self._writer.put(str(path), lambda: self._place(path, lambda stream: stream.write(data)), data.nbytes)

    def load_checkpoint(self, path: str, map_location: Any = None, **options: Any) -> dict[str, Any]:
        """As AtomicCheckpointIO; what is being written is there before."""
        self._writer.flush()
        return super().load_checkpoint(path, map_location, **options)

    def remove_checkpoint(self, path: str) -> None:
        """Have a checkpoint deleted, once the newer ones are on disk."""
        self._writer.put(str(path), partial(super().remove_checkpoint, path))

    def teardown(self) -> None:
        """Wait until everything is written. CheckpointError if something could not be."""
        self._writer.close()

    def finish_quietly(self) -> None:
        """As `teardown`, for a run that fails already: that a checkpoint could not be written is a warning."""
        self._writer.close_quietly()


def _write_message(path: Path, error: Exception) -> str:
    kept = "The previous file is unchanged." if path.exists() else "No file was left behind."
    cause = error if isinstance(error, OSError) else error.__context__
    number = getattr(cause, "errno", None)
    if number in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return f"Could not write the checkpoint {path}: the disk is full. {kept} Free some space, then resume the run."
    return f"Could not write the checkpoint {path}: {_first_line(error)} {kept}"


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    size = file.stat().st_size
    return CheckpointError(
        f"{file} ({size:,} bytes) is truncated or no checkpoint: {_first_line(error)}{_neighbours(file)}"
    )


def _neighbours(file: Path) -> str:
    """Other checkpoints of the same folder, newest first."""
    try:
        others = [entry for entry in file.parent.glob("*.ckpt") if entry != file and entry.is_file()]
        others.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
    except OSError:
        return ""
    return f" Others beside it: {', '.join(entry.name for entry in others[:5])}." if others else ""


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
