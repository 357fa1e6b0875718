"""Encoding in a child process, whose memory is gone when it ends."""

from __future__ import annotations

import importlib.machinery
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from threestudio.errors import PretrainedError


def run_encoder(encode: Callable[..., None], arguments: tuple[Any, ...], in_child: bool) -> None:
    """Call `encode(*arguments)`, in a fresh child process if asked for and possible.

    Raises:
        PretrainedError: the child failed; carries its message, or its traceback if it was no user error.
    """
    if in_child and not _importable(encode):
        from threestudio import warn

        warn(
            f"{encode.__module__} cannot be imported by a child process (it lies in an extension); "
            "encoding here instead."
        )
        in_child = False
    if not in_child:
        encode(*arguments)
        return
    # Not fork: CUDA and OpenMP do not survive it.
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run_and_report, args=(sender, encode, arguments))
    process.start()
    sender.close()
    try:
        problem = receiver.recv()
    except EOFError:  # it died without a word: killed, or out of memory
        problem = "it ended without a message"
    process.join()
    if problem is not None or process.exitcode != 0:
        raise PretrainedError(
            f"Encoding the prompts in a child process failed (exit code {process.exitcode}): {problem}\n"
            "prompt_processor.spawn=false encodes in this process instead."
        )


def _importable(function: Callable[..., None]) -> bool:
    """Whether a new interpreter finds the function's module. Extensions are loaded from files, off the module path."""
    root = (function.__module__ or "").partition(".")[0]
    return importlib.machinery.PathFinder.find_spec(root) is not None


def _run_and_report(sender: Connection, encode: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """In the child: send None on success, else the message of a user error or the traceback of another."""
    try:
        encode(*arguments)
    except Exception as error:
        sender.send(str(error) if getattr(error, "is_user_error", False) else traceback.format_exc())
    else:
        sender.send(None)
