"""What takes a step apart: brackets with CUDA events, counted operations, and the list of waits for the device."""

from __future__ import annotations

import statistics
import sys
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.stepping import ROOT, Run


@dataclass
class Bracket:
    """One bracketed piece of a step."""

    name: str
    parent: int
    begin: Any
    host_begin: float
    end: Any = None
    host_end: float = 0.0


class Timeline:
    """Brackets that may be nested; a piece's time is its own, without that of the pieces in it."""

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.open: list[int] = []
        self.brackets: list[Bracket] = []

    @contextmanager
    def piece(self, name: str) -> Iterator[None]:
        self.start(name)
        try:
            yield
        finally:
            self.stop()

    def start(self, name: str) -> None:
        self.open.append(len(self.brackets))
        parent = self.open[-2] if len(self.open) > 1 else -1
        self.brackets.append(Bracket(name, parent, self._now(), time.perf_counter()))

    def stop(self) -> None:
        bracket = self.brackets[self.open.pop()]
        bracket.end, bracket.host_end = self._now(), time.perf_counter()

    @property
    def current(self) -> str:
        return self.brackets[self.open[-1]].name if self.open else "other"

    def take(self) -> tuple[dict[str, float], dict[str, float]]:
        """(device, host) milliseconds by piece since the last call; the device must be idle."""
        device: dict[str, float] = defaultdict(float)
        host: dict[str, float] = defaultdict(float)
        for bracket in self.brackets:
            spent = 1e3 * (bracket.host_end - bracket.host_begin)
            worked = bracket.begin.elapsed_time(bracket.end) if self.on_cuda else spent
            names = [(bracket.name, 1)] + ([(self.brackets[bracket.parent].name, -1)] if bracket.parent >= 0 else [])
            for name, sign in names:
                device[name] += sign * worked
                host[name] += sign * spent
        self.brackets.clear()
        return dict(device), dict(host)

    def _now(self) -> Any:
        if not self.on_cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def bracket_guidance(run: Run, timeline: Timeline) -> None:
    """Brackets inside the guidance: text, encode, encode backward, U-Net, operator. What is left is loss arithmetic."""
    guidance = run.system.guidance
    teacher, distiller = guidance.teacher, guidance.distiller
    guidance._embeddings = _bracketed(guidance._embeddings, "text", timeline)
    teacher.predict = _bracketed(teacher.predict, "U-Net", timeline)
    distiller.recorded = _bracketed(distiller.recorded or distiller.update, "operator", timeline)
    encode = _bracketed(teacher.encode, "encode forward", timeline)

    def encode_both_ways(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        latents = encode(images, generator)
        if images.requires_grad and latents.requires_grad:
            latents.register_hook(lambda _: timeline.start("encode backward"))
            images.register_hook(lambda _: timeline.stop())
        return latents

    teacher.encode = encode_both_ways


def unbracket(run: Run, recorded: Any) -> None:
    """Take the brackets of `bracket_guidance` off a teacher that other runs share."""
    for name in ("predict", "encode"):
        run.system.guidance.teacher.__dict__.pop(name, None)
    run.system.guidance.distiller.recorded = recorded


def _bracketed(function: Any, name: str, timeline: Timeline) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        with timeline.piece(name):
            return function(*args, **kwargs)

    return call


def medians(steps: list[dict[str, float]]) -> dict[str, float]:
    """By piece; a piece that a step did not have counts 0 there."""
    names = dict.fromkeys(name for step in steps for name in step)
    return {name: statistics.median(step.get(name, 0.0) for step in steps) for name in names}


class OperationCount(TorchDispatchMode):
    """Operations and bytes of the products, convolutions and attentions, by the piece that is open.

    Bytes are those of an operation's tensors, each read or written once. A kernel that fuses several may need fewer.
    """

    def __init__(self, timeline: Timeline) -> None:
        super().__init__()
        self.timeline = timeline
        self.operations: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        packet = getattr(function, "overloadpacket", None)
        if packet in flop_registry:
            flops = flop_registry[packet](*args, **(kwargs or {}), out_val=out)
            outputs = out if isinstance(out, (tuple, list)) else [out]
            tensors = [x for x in (*args, *outputs) if isinstance(x, torch.Tensor)]
            self.operations[self.timeline.current].append((flops, sum(x.numel() * x.element_size() for x in tensors)))
        return out

    def floor(self, ceilings: dict[str, float]) -> dict[str, dict[str, float]]:
        """By piece: TFLOP, GB, and the milliseconds that no arrangement of these operations can beat."""
        flops_per_ms, bytes_per_ms = ceilings["tflops"] * 1e9, ceilings["gb_per_s"] * 1e6
        return {
            name: {
                "tflop": sum(f for f, _ in found) / 1e12,
                "gb": sum(b for _, b in found) / 1e9,
                "ms": sum(max(f / flops_per_ms, b / bytes_per_ms) for f, b in found),
            }
            for name, found in self.operations.items()
        }


def measured_ceilings(device: torch.device) -> dict[str, float]:
    """What one large product (16 bits on CUDA) and one large copy reach here: TFLOP/s and GB/s, read and written."""
    side, dtype = (8192, torch.float16) if device.type == "cuda" else (512, torch.float32)
    a = torch.randn(side, side, device=device, dtype=dtype)
    x = torch.empty((256 if device.type == "cuda" else 8) * 2**20, device=device)
    y = torch.empty_like(x)
    product, copy = _best(lambda: a @ a, device), _best(lambda: y.copy_(x), device)
    return {"tflops": 2 * side**3 / product / 1e9, "gb_per_s": 2 * x.numel() * x.element_size() / copy / 1e6}


def _best(function: Any, device: torch.device) -> float:
    """Milliseconds, the least of ten after three."""
    timeline, found = Timeline(device), []
    for _ in range(13):
        with timeline.piece("it"):
            function()
        if timeline.on_cuda:
            torch.cuda.synchronize()
        found.append(timeline.take()[0]["it"])
    return min(found[3:])


def waits(run: Run, steps: int) -> dict[str, float]:
    """Where the host waits for the device in a step: 'file:line function' -> times per step. CUDA only."""
    places: Counter[str] = Counter()

    def note(message: Any, *args: Any, **kwargs: Any) -> None:
        if "synchroniz" in str(message):
            places[waiting_place()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(steps):
                run.advance()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {place: count / steps for place, count in places.most_common()}


def waiting_place() -> str:
    """'file:line function (innermost function)' of our own code that is running; the benchmarks' own frames left out."""
    frames = [f for f in traceback.extract_stack() if f"{ROOT}/benchmarks" not in f.filename and "warnings.py" not in f.filename]
    ours = [f for f in frames if f.filename.startswith((f"{ROOT}/custom", f"{ROOT}/threestudio"))]
    if not ours:
        return f"outside of our code ({frames[-1].name if frames else 'no Python'})"
    return f"{ours[-1].filename.removeprefix(f'{ROOT}/')}:{ours[-1].lineno} {ours[-1].name} ({frames[-1].name})"


def table(entry: dict[str, Any]) -> str:
    """The pieces of one variant, largest first."""
    lines = [f"  {'piece':18}{'device ms':>11}{'host ms':>10}{'floor ms':>10}"]
    floor = entry.get("floor", {})
    for name, ms in sorted(entry["device_ms"].items(), key=lambda item: -item[1]):
        least = f"{floor[name]['ms']:10.2f}" if name in floor else " " * 10
        lines.append(f"  {name:18}{ms:11.2f}{entry['host_ms'].get(name, 0.0):10.2f}{least}")
    lines.append(f"  {'outside of all':18}{entry['outside_ms']:11.2f}")
    lines.append(f"  {'whole step':18}{entry['wall_ms']:11.2f}   without brackets, one after the other")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit("This is a part of benchmarks/iteration_pieces.py; run that.")
