"""encoder.py's looks inside: the kernels' errors, where the time goes, the floor, and how the kernels' work is cut."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from dreammapping.teachers.encoder import FrozenEncoder, pieces
from dreammapping.teachers.encoder.arithmetic import Arithmetic, Norm, TorchArithmetic
from dreammapping.teachers.encoder.network import EncoderNetwork
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

SHAPES = ((2, 96, 8, 33, 17), (3, 32, 4, 40, 40), (4, 128, 32, 128, 128), (4, 512, 32, 64, 64), (1, 256, 32, 256, 256))
"""Batch, channels, groups, height, width."""
TUNING_SECONDS = 60
MATRIX, COPIED = 8192, 2**30
"""Side of the matrices and number of bytes of the copy that the ceilings are measured with."""


def kernel_errors(fast: Arithmetic, device: torch.device) -> dict[str, float]:
    """Largest relative error of each operation over SHAPES, against float64; ValueError above what float16 explains."""
    worst: dict[str, float] = {}
    for shape in SHAPES:
        for name, error in _errors(fast, device, *shape).items():
            worst[name] = max(worst.get(name, 0.0), error)
    wrong = {name: error for name, error in worst.items() if not error < 2e-3}
    if wrong:
        raise ValueError(f"the kernels are wrong: {wrong}")
    return worst


def _errors(fast: Arithmetic, device: torch.device, b: int, c: int, g: int, h: int, w: int) -> dict[str, float]:
    exact = TorchArithmetic()
    draw = torch.Generator(device).manual_seed(0)
    half = lambda: _layers(torch.randn(b, c, h, w, generator=draw, device=device) + 3).half()
    vector = lambda: torch.randn(c, generator=draw, device=device)
    x, y, gradient, bias = half(), half(), half(), vector()
    errors = {}
    for silu in (True, False):
        norm, wide = Norm(vector(), vector(), g, 1e-6, silu), (lambda v: None if v is None else v.double())
        norm64 = norm._replace(weight=norm.weight.double(), offset=norm.offset.double())
        for shift, further in ((bias, y), (None, None)):
            statistics_ = fast.statistics(fast.moments(x, shift), h * w, norm)
            known = exact.statistics(exact.moments(x.double(), wide(shift)), h * w, norm64)
            total, moments = fast.add(x, y, bias)
            sums = exact.add(x.double(), y.double(), bias.double())
            name = f"{'norm + SiLU' if silu else 'norm'}"
            args, args64 = (x, shift, statistics_, norm), (x.double(), wide(shift), known, norm64)
            pairs = {
                "statistics": (statistics_, known),
                "add": (total, sums[0]),
                "add's statistics": (fast.statistics(moments, h * w, norm), exact.statistics(sums[1], h * w, norm64)),
                name: (fast.normalize(*args), exact.normalize(*args64)),
                f"{name}, gradient": (
                    fast.input_gradient(gradient, *args, further),
                    exact.input_gradient(gradient.double(), *args64, wide(further)),
                ),
            }
            for key, (got, expected) in pairs.items():
                error = float((got.double() - expected).norm() / expected.norm())
                errors[key] = max(errors.get(key, 0.0), error)
    return errors


def split(bench: Any, encoder: FrozenEncoder) -> dict[str, float]:
    """Milliseconds of forward and backward by kind of work, medians; what lies between the pieces is in none of them."""
    runs: list[dict[str, float]] = []
    for _ in range(3 + bench.repeats):
        with _timed(bench.device, encoder.network) as spans:
            bench.gradient(encoder)
        bench.synchronize()
        total: Counter[str] = Counter()
        for name, elapsed in spans:
            total[name] += elapsed()
        runs.append(total)
    return {name: round(statistics.median(run[name] for run in runs[3:]), 3) for name in sorted(runs[-1])}


@contextmanager
def _timed(device: torch.device, network: EncoderNetwork) -> Iterator[list[tuple[str, Callable[[], float]]]]:
    """Methods of the pieces, outermost only, with a stopwatch around them."""
    arithmetic = type(network.arithmetic)
    methods = [
        (pieces.Attention, "forward", "attention forward"),
        (pieces.Attention, "backward", "attention backward"),
        (pieces.Convolution, "__call__", "convolutions forward"),
        (pieces.Convolution, "input_gradient", "convolutions backward"),
        (pieces.Pointwise, "__call__", "1 x 1 forward"),
        (pieces.Pointwise, "input_gradient", "1 x 1 backward"),
        *((arithmetic, name, "norms forward") for name in ("moments", "statistics", "normalize")),
        (arithmetic, "add", "sums with moments"),
        (arithmetic, "input_gradient", "norms backward"),
    ]
    spans: list[tuple[str, Callable[[], float]]] = []
    depth = [0]

    def watched(method: Callable[..., Any], label: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            depth[0] += 1
            stop = _stopwatch(device) if depth[0] == 1 else None
            result = method(*args, **kwargs)
            depth[0] -= 1
            if stop is not None:
                spans.append((label, stop()))
            return result

        return run

    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in methods]
    try:
        for owner, name, label in methods:
            setattr(owner, name, watched(getattr(owner, name), label))
        yield spans
    finally:
        for owner, name, method in originals:
            setattr(owner, name, method)


def _stopwatch(device: torch.device) -> Callable[[], Callable[[], float]]:
    """Call to stop it; what comes back gives the milliseconds, on CUDA once the device has got there."""
    if device.type != "cuda":
        begin = time.perf_counter()

        def stop() -> Callable[[], float]:
            elapsed = 1e3 * (time.perf_counter() - begin)
            return lambda: elapsed

        return stop
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()

    def stop_event() -> Callable[[], float]:
        last.record()
        return lambda: first.elapsed_time(last)

    return stop_event


class _Counted(TorchArithmetic):
    """Counts the bytes that the kernels of each operation read and write."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()

    def _count(self, name: str, x: Tensor, passes: int) -> None:
        self.bytes[name] += passes * x.numel() * x.element_size()

    def moments(self, x: Tensor, bias: Tensor | None) -> Any:
        self._count("norms forward", x, 1)
        return super().moments(x, bias)

    def add(self, x: Tensor, y: Tensor, bias: Tensor) -> Any:
        self._count("sums with moments", x, 3)
        total, _ = super().add(x, y, bias)
        self._count("norms forward", x, -1)  # its moments come on the way
        return total, _

    def normalize(self, x: Tensor, *args: Any) -> Tensor:
        self._count("norms forward", x, 2)
        return super().normalize(x, *args)

    def input_gradient(self, gradient: Tensor, x: Tensor, *args: Any) -> Tensor:
        self._count("norms backward", x, 5 + (args[-1] is not None))  # two passes over both, and what is written
        return super().input_gradient(gradient, x, *args)


def floor(bench: Any) -> dict[str, Any]:
    """Counted operations and bytes of our variant, the measured ceilings, and the time at these."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL.from_config(bench.vae.config).requires_grad_(False).to(torch.float16)
        counted, counter = _Counted(), FlopCounterMode(display=False)
        pixels = torch.empty_like(bench.pixels, device="meta").requires_grad_()
        with counter:
            FrozenEncoder(vae, counted)(pixels).sum().backward()
    flops: Counter[str] = Counter()
    for operation, count in counter.get_flop_counts()["Global"].items():
        flops["convolutions" if "conv" in str(operation) else "products"] += count
    rate, bandwidth = ceilings(bench)
    parts = {f"{name} ms": 1e3 * count / rate for name, count in flops.items()}
    parts |= {f"{name} ms": 1e3 * count / bandwidth for name, count in counted.bytes.items()}
    return {
        "flop": dict(flops),
        "bytes": dict(counted.bytes),
        "product_tflops": rate / 1e12,
        "copy_tbytes": bandwidth / 1e12,
        **parts,
        "total ms": sum(parts.values()),
    }


def ceilings(bench: Any) -> tuple[float, float]:
    """Operations per second of a large product in the variants' type, bytes per second of a large copy (read and
    written)."""
    on_gpu = bench.device.type == "cuda"
    n, size = (MATRIX, COPIED) if on_gpu else (256, 2**20)
    a, b = torch.randn(2, n, n, device=bench.device).to(bench.dtype)
    source = torch.zeros(size, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    product = bench.milliseconds(lambda: a @ b)
    copied = bench.milliseconds(lambda: target.copy_(source))
    return 2e3 * n**3 / product, 2e3 * size / copied


def top_kernels(bench: Any, encoder: FrozenEncoder, count: int = 24) -> list[str]:
    """The kernels of three passes forward and backward that take longest, milliseconds a pass."""
    from torch.profiler import ProfilerActivity, profile

    for _ in range(3):
        bench.gradient(encoder)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as record:
        for _ in range(3):
            bench.gradient(encoder)
        torch.cuda.synchronize()
    kernels = [event for event in record.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    return [f"{k.self_device_time_total / 3e3:7.3f} ms {k.count // 3:4d} x {k.key[:120]}" for k in kernels[:count]]


def tune(bench: Any) -> dict[str, Any]:
    """Milliseconds of the normalization of the largest activation, forward and backward, for cuts of the work.

    Two rounds: tile, warps and stages; then with the best of these the number of programs and of runs per image. Stops
    after TUNING_SECONDS.
    """
    from dreammapping.teachers.encoder.triton_arithmetic import Launch, TritonArithmetic

    c = bench.vae.config.block_out_channels[0]
    x, y = (_layers(torch.randn(len(bench.pixels), c, *bench.pixels.shape[2:], device=bench.device)).half() for _ in "xy")
    bias, norm = torch.randn(c, device=bench.device), Norm(*torch.randn(2, c, device=bench.device), 32, 1e-6, True)
    begin, tried = time.perf_counter(), []

    def total(settings: dict[str, int]) -> float:
        kernels = TritonArithmetic(Launch(**settings))
        statistics_ = kernels.statistics(kernels.moments(x, bias), x.shape[2] * x.shape[3], norm)
        parts = {
            "moments": bench.milliseconds(lambda: kernels.moments(x, bias)),
            "add": bench.milliseconds(lambda: kernels.add(x, y, bias)),
            "normalize": bench.milliseconds(lambda: kernels.normalize(x, bias, statistics_, norm)),
            "input_gradient": bench.milliseconds(lambda: kernels.input_gradient(y, x, bias, statistics_, norm, y)),
        }
        tried.append(settings | parts)
        return sum(parts.values())

    def best_of(choices: list[dict[str, int]]) -> dict[str, int]:
        timed = [(total(choice), i) for i, choice in enumerate(choices) if time.perf_counter() - begin < TUNING_SECONDS]
        return choices[min(timed)[1]] if timed else choices[0]

    cuts = [(4096, 8), (4096, 4), (2048, 4), (2048, 8), (8192, 8), (8192, 16), (4096, 16)]
    best = best_of([{"tile": tile, "warps": warps, "stages": stages} for stages in (1, 3) for tile, warps in cuts])
    best = best_of([best | {"programs": n, "longest": max(n // len(x), 1)} for n in (1024, 512, 2048, 4096, 8192)])
    return {"best": best, "tried": tried}


def _layers(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
