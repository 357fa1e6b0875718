"""The instruments that take a step apart."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.agreement import differences, verdict  # noqa: E402
from benchmarks.pieces import OperationCount, Timeline, medians  # noqa: E402

CPU = torch.device("cpu")


def test_a_piece_does_not_count_what_is_in_it(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 7.0, 7.0, 8.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    timeline = Timeline(CPU)
    with timeline.piece("outer"):
        with timeline.piece("inner"):
            assert timeline.current == "inner"
    with timeline.piece("inner"):
        pass
    device, host = timeline.take()
    assert device == host == {"outer": 5000.0, "inner": 3000.0}
    assert timeline.take() == ({}, {})


def test_medians_count_a_missing_piece_as_nothing():
    assert medians([{"a": 1.0}, {"a": 3.0, "b": 9.0}, {"a": 2.0}]) == {"a": 2.0, "b": 0.0}


def test_operations_and_bytes_are_counted_by_piece_and_bound_by_the_slower():
    timeline = Timeline(CPU)
    with OperationCount(timeline) as count, timeline.piece("product"):
        torch.ones(10, 20) @ torch.ones(20, 30)
    flops, size = 2 * 10 * 20 * 30, 4 * (200 + 600 + 300)
    (found,) = count.floor({"tflops": flops / 1e12, "gb_per_s": 1e9}).values()  # a second for the operations, no time to copy
    assert found["ms"] == pytest.approx(1000) and found["tflop"] == pytest.approx(flops / 1e12)
    (found,) = count.floor({"tflops": 1e9, "gb_per_s": size / 1e9}).values()
    assert found["ms"] == pytest.approx(1000) and found["gb"] == pytest.approx(size / 1e9)


def test_differences_are_relative_and_judged():
    one = torch.ones(2, dtype=torch.float64)
    eager = {"start": {"a": 0 * one, "psi.w": one}, "gradients": {"a": one}, "end": {"a": 2 * one, "psi.w": 2 * one}}
    other = {**eager, "gradients": {"a": 1.01 * one}, "end": {"a": 2.5 * one, "psi.w": 2 * one}}
    found = differences(other, eager)
    assert found["gradients"]["a"] == pytest.approx(0.01)
    assert found["parameters"] == pytest.approx({"a": 0.25, "psi": 0.0})
    assert not verdict(found, on_cuda=True) and not verdict(found, on_cuda=False)
    assert verdict(differences(eager, eager), on_cuda=False)


def test_on_a_cpu_optimised_and_eager_are_one_path(tmp_path):
    command = [sys.executable, "benchmarks/agreement.py", "--iterations", "2", "--output", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "within the tolerances" in done.stdout
