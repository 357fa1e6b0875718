from __future__ import annotations

import torch
from dreammapping.evaluation.resources import Stopwatch, peak_gpu_memory_bytes, peak_memory_bytes


def test_peak_memory_sees_an_allocation_and_keeps_it():
    before = peak_memory_bytes()
    if before is None:  # a system that does not tell
        return
    block = bytearray(max(before, 64 << 20))  # touched pages, more than there was
    assert peak_memory_bytes() >= before + len(block) // 4
    del block
    assert peak_memory_bytes() >= before


def test_a_cpu_has_no_gpu_memory():
    assert peak_gpu_memory_bytes(torch.device("cpu")) is None


def test_the_stopwatch_goes_on_where_it_stopped(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    watch = Stopwatch(already=5.0)
    assert watch.seconds == 5.0
    watch.start()
    now[0] += 2.0
    assert watch.seconds == 7.0
    watch.stop()
    now[0] += 50.0
    assert watch.seconds == 7.0
