"""Files written by a thread, so that whoever hands them over need not wait for encoding and disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

import threestudio
from threestudio.errors import UserError


class BackgroundWriter:
    """Does jobs one after the other, in the order in which they were given, in one thread. To be used by one thread.

    What is handed over and not yet written takes at most `limit` bytes (a single job may be larger): else `put` waits.
    After a failure no further job is done, so that none builds on a file that is not there, until the failure is
    raised: by the next call of any method. A process that ends does the jobs first; one that is killed does not, and
    jobs that replace files in one go leave each as it was or as it should be.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0  # bytes of the jobs that are not done
        self._changed = threading.Condition()
        self._failure: Exception | None = None
        self._pool: ThreadPoolExecutor | None = None

    def put(self, path: str, job: Callable[[], Any], size: int = 0) -> None:
        """Have `job` done, which writes or removes the file `path` and keeps `size` bytes of memory until then.

        Raises:
            UserError: an earlier job failed in a way the user can do something about.
            RuntimeError: an earlier job failed otherwise; the cause is attached.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._held == 0 or self._held + size <= self._limit)
            self._held += size
        if self._failure is not None:
            self._give_back(size)
            self.flush()
        if self._pool is None:
            # Its thread is no daemon: when the interpreter ends, however the run did, Python waits for it.
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="background-writer")
        self._pool.submit(self._do, path, job, size)

    def flush(self) -> None:
        """Wait until all jobs are done. Raises as `put`."""
        if self._pool is not None:
            self._pool.submit(int).result()  # jobs come in order; so those that a failure forbids have been passed over
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """As `flush`, and end the thread; a later `put` starts a new one."""
        try:
            self.flush()
        finally:
            pool, self._pool = self._pool, None
            if pool is not None:
                pool.shutdown()

    def close_quietly(self) -> None:
        """As `close`, but a failure becomes a warning: something else has gone wrong and is to be reported."""
        try:
            self.close()
        except Exception as failure:
            threestudio.warn(str(failure))

    def _do(self, path: str, job: Callable[[], Any], size: int) -> None:
        try:
            if self._failure is None:
                job()
        except Exception as error:
            self._failure = _with_path(path, error)
        finally:
            self._give_back(size)

    def _give_back(self, size: int) -> None:
        with self._changed:
            self._held -= size
            self._changed.notify_all()


def _with_path(path: str, error: Exception) -> Exception:
    """The error to raise later, elsewhere; it names the file, which the traceback there does not."""
    if getattr(error, "is_user_error", False):
        named = error if str(path) in str(error) else UserError(f"{path}: {error}")
    else:
        named = RuntimeError(f"{path} was not written: {type(error).__name__}: {error}")
    if named is not error:
        named.__cause__ = error
    return named


class Snapshot:
    """Tensors and arrays in lists, tuples and dicts, as they are now, whatever happens to them in place afterwards.

    What is on a CUDA GPU is copied behind the work queued there, and nothing waits for it before `read`.
    """

    def __init__(self, data: Any) -> None:
        self.size = 0
        """Bytes of all copies."""
        self._events: list[torch.cuda.Event] = []
        self._data = self._copied(data)

    def read(self) -> Any:
        """The data with all tensors on the CPU; waits until they have arrived. May be called in another thread."""
        for event in self._events:
            event.synchronize()
        return self._data

    def _copied(self, data: Any) -> Any:
        if isinstance(data, torch.Tensor):
            return self._copied_tensor(data.detach())
        if isinstance(data, np.ndarray):
            self.size += data.nbytes
            return data.copy()
        if isinstance(data, dict):
            return {key: self._copied(value) for key, value in data.items()}
        if isinstance(data, (list, tuple)):
            return (tuple if isinstance(data, tuple) else list)(self._copied(item) for item in data)
        return data

    def _copied_tensor(self, x: torch.Tensor) -> torch.Tensor:
        self.size += x.numel() * x.element_size()
        if x.device.type == "cuda":
            # The source may be freed at once: its memory goes to later work of the same stream only.
            copy = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(x.device))
            self._events.append(event)
            return copy
        return x.clone() if x.device.type == "cpu" else x.cpu()
