"""How long a run took and how much memory it needed."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

import torch


def peak_memory_bytes() -> int | None:
    """Largest resident memory of this process so far, without its children; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return _peak_on_windows()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def _peak_on_windows() -> int | None:
    try:
        import psutil
    except ImportError:
        return None
    return getattr(psutil.Process().memory_info(), "peak_wset", None)


def peak_gpu_memory_bytes(device: torch.device) -> int | None:
    """Most memory torch had reserved on `device` since it started, None if it is not a CUDA device.

    Reserved, because what is allocated leaves out the memory that CUDA graphs keep. CUDA's context comes on top.
    """
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def device_name(device: torch.device) -> str:
    """What a reader of a report wants to know about the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    return device.type


@dataclass
class Stopwatch:
    """Wall-clock seconds that go on after an interruption.

    >>> watch = Stopwatch(already=60.0)
    >>> watch.start()
    >>> watch.seconds >= 60.0
    True
    """

    already: float = 0.0
    """Seconds of earlier runs of this trial."""
    _since: float | None = field(default=None, repr=False)

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self) -> None:
        self.already, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self.already + running
