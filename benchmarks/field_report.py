"""What benchmarks of radiance fields share: a report that is always on disk, timing, the choice of kernels."""

from __future__ import annotations

import gc
import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from threestudio.utils import triton_support

KERNELS = ("triton", "pytorch")


class Report:
    """Numbers by name, on paper after each one."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path, self.entries = path, {**facts, "results": {}}
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, **values: Any) -> None:
        self.entries["results"].setdefault(name, {}).update(values)
        shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        print(f"{name:44} {shown}", flush=True)
        self.path.write_text(json.dumps(self.entries, indent=1), encoding="utf-8")

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """What fails inside is an entry, and the next thing is tried."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  whatever it is, the other parts are worth having
            self.add(name, error=f"{type(error).__name__}: {str(error)[:300]}", where=traceback.format_exc()[-600:])
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class Bench:
    """The device, the sizes, and how to time on it."""

    def __init__(self, tiny: bool, quick: bool) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() and not tiny else "cpu")
        self.tiny = tiny
        self.repeats = 2 if tiny else 5 if quick else 15
        self.counts = [3000] if tiny else [2_000_000] if quick else [200_000, 2_000_000, 8_000_000]
        self.sizes = [16] if tiny else [64, 512]
        self.fit = (20, 2000) if tiny else (400, 2**17)  # steps and points of fitting the field
        self.fitted: dict[str, dict[str, Tensor]] = {}
        self.kernels = [k for k in KERNELS if k == "pytorch" or triton_support.triton_runs(self.device)]

    def milliseconds(self, work: Callable[[], Any]) -> float:
        """Median after two runs to warm up, by CUDA's events where there are any; of 3 runs where one takes long."""
        work()
        repeats = self.repeats if self._once(work) < 100 else min(3, self.repeats)
        return statistics.median(self._once(work) for _ in range(repeats))

    def _once(self, work: Callable[[], Any]) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            work()
            return 1e3 * (time.perf_counter() - start)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def peak_gib(self, work: Callable[[], Any]) -> float | None:
        """Most memory allocated while `work` runs, GiB; it runs on any device."""
        if self.device.type != "cuda":
            work()
            return None
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() / 2**30


@contextmanager
def kernels(name: str) -> Iterator[None]:
    """Only the kernels called so; Triton's are what the device takes by itself."""
    if name == "triton":
        yield
        return
    with mock.patch.object(triton_support, "triton_problem", lambda index: "not wanted"):
        yield


def off(found: Tensor, expected: Tensor, but_for: float = 0.0) -> float:
    """Relative difference of two tensors, by norm; without that share of the rows, of those that differ most."""
    found, expected = found.detach().double(), expected.detach().double()
    difference = found - expected
    if but_for:
        rows = difference.flatten(1).norm(dim=1)
        difference = difference[rows <= rows.quantile(1 - but_for)]
    return float(difference.norm() / expected.norm().clamp(min=1e-30))
