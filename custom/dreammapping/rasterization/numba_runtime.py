"""How the kernels of the numba backend are compiled, cached and spread over threads.

The kernels are plain functions of a range ``(start, stop, *arrays)`` that release the GIL; threads take ranges from a
common list. numba's own ``prange`` is not used: it compiles several times slower, one of its threading layers ends the
process when two Python threads render at once, and none survives a fork.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import torch

# Everything of LLVM's fast-math except the assumptions that NaN and infinity never occur.
_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}

# More ranges than threads: tiles differ in cost, and a thread that finishes early takes the next one.
_RANGES_PER_THREAD = 8


TILE = 8
"""Tiles are TILE x TILE pixels. The kernels' constants are compiled in: clear the cache after changing this one."""


_OPTIONS = {"nogil": True, "fastmath": _FASTMATH, "error_model": "numpy"}


def inlined(function: Callable) -> Callable:
    """Compile ``function`` into each kernel that calls it.

    A real call would push every field of every array on the stack. numba's cache of a kernel looks at the file of the
    kernel alone: who changes an inlined function in another one clears the cache.
    """
    return numba.njit(forceinline=True, **_OPTIONS)(function)


def kernel(function: Callable) -> Callable:
    """Compile ``function`` at first call and keep the machine code on disk.

    The cache is numba's: ``NUMBA_CACHE_DIR`` if set, else ``__pycache__`` beside the source if writable, else the
    user's cache folder; without any of them each process compiles anew.
    """
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        warnings.warn(
            "No writable folder for compiled rasterization kernels: every process compiles them anew (about 15 s). "
            "Set NUMBA_CACHE_DIR to a writable folder.",
            stacklevel=2,
        )
        return numba.njit(**_OPTIONS)(function)


def parallel_for(body: Callable, count: int, *arrays: Any, grain: int = 1) -> None:
    """Call ``body(start, stop, *arrays)`` over ranges that together cover ``range(count)``.

    Uses ``torch.get_num_threads()`` threads, the caller being one of them. Ranges are at least ``grain`` long. The
    result must not depend on how the range is cut; each body writes only what belongs to its own indices.
    """
    threads = min(torch.get_num_threads(), max(1, count // grain))
    if count == 0:
        return
    if threads == 1:
        body(0, count, *arrays)
        return
    step = max(grain, -(-count // (threads * _RANGES_PER_THREAD)))
    starts = deque(range(0, count, step))

    def work() -> None:
        while True:
            try:
                start = starts.popleft()
            except IndexError:
                return
            body(start, min(start + step, count), *arrays)

    helpers = [_pool(threads).submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        starts.clear()
        for helper in helpers:
            helper.result()


_lock = threading.Lock()
_executor: ThreadPoolExecutor | None = None
_executor_size = 0


def _pool(threads: int) -> ThreadPoolExecutor:
    global _executor, _executor_size
    with _lock:
        if _executor is None or _executor_size < threads:
            # A smaller pool still in use by another thread finishes its work and is then collected.
            _executor = ThreadPoolExecutor(threads, thread_name_prefix="rasterize")
            _executor_size = threads
        return _executor


def _forget_pool() -> None:
    """A forked child has none of its parent's threads: waiting for them would never end."""
    global _lock, _executor, _executor_size
    _lock, _executor, _executor_size = threading.Lock(), None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
