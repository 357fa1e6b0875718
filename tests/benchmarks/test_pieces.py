"""The instruments that take a step apart."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.agreement import differences, verdict  # noqa: E402
from benchmarks.pieces import OperationCount, Timeline, medians, waiting_place  # noqa: E402
from benchmarks.plain_step import PlainStep  # noqa: E402
from dreammapping.transfers import to_device  # noqa: E402

from tests.helpers.tiny_teacher import make_tiny_teacher as tiny_teacher  # noqa: E402

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
    same = differences(eager, eager)
    assert verdict({"optimised": same, "eager": same}, on_cuda=False) == []
    assert len(verdict({"optimised": found, "eager": same}, on_cuda=False)) == 2
    half = {"gradients": {"a": 0.008}, "parameters": {"a": 0.2, "psi": 0.0}}
    assert verdict({"optimised": found, "eager": half}, on_cuda=True) == []  # within 1.5 times what half precision costs
    half["parameters"]["a"] = 0.15
    assert verdict({"optimised": found, "eager": half}, on_cuda=True) == ["parameters a 2.5e-01"]
    large = {"gradients": {"a": 0.021}, "parameters": {"a": 0.0, "psi": 0.0}}
    assert verdict({"optimised": large, "eager": large}, on_cuda=True) == ["gradients a 2.1e-02"]


def test_the_plain_steps_gradient_is_that_of_sds(tmp_path):
    folder = tiny_teacher(tmp_path)
    text = torch.randn(1, 24, 16, generator=torch.Generator().manual_seed(0))
    prompts = SimpleNamespace(text_embeddings=text, uncond_text_embeddings=-text)
    rgb = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found = []
    for decode in (False, True):
        plain = PlainStep(folder, prompts, CPU, decode=decode)
        latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2)).requires_grad_()
        plain.encode = lambda images, latents=latents: latents
        torch.manual_seed(5)
        plain(rgb).backward()
        found.append(latents.grad)
    assert torch.equal(*found)  # decoding is a cost and nothing else
    torch.manual_seed(5)
    t, noise = torch.randint(20, 981, (2,)), torch.randn(2, 4, 8, 8)
    ab = plain.alpha_bar[t].view(-1, 1, 1, 1)
    noisy = ab.sqrt() * latents.detach() + (1 - ab).sqrt() * noise
    with torch.no_grad():
        cond, uncond = (plain.unet(noisy, t, x.expand(2, -1, -1)).sample for x in (text, -text))
    expected = (1 - ab) * (cond + 100 * (cond - uncond) - noise) / 2
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-4)


def test_a_wait_is_told_by_our_own_innermost_function():
    assert waiting_place().startswith("outside of our code")
    called = []
    to_device(SimpleNamespace(to=lambda device: called.append(waiting_place())), CPU)
    assert re.fullmatch(r"custom/dreammapping/transfers\.py:\d+ to_device \(<lambda>\)", called[0])


def test_on_a_cpu_optimised_and_eager_are_one_path(tmp_path):
    command = [sys.executable, "benchmarks/agreement.py", "--iterations", "2", "--output", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "within the tolerances" in done.stdout
