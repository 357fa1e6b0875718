"""Times the hash grid, forward and forward with backward, in queries per second of the clock and of CPU time.

    python benchmarks/hash_grid.py --points 200000 --threads 1 2

threestudio's grid: 16 levels from 16 to 4096 points along an axis, 2 features each, tables of 2^19 entries. On a CPU:
the compiled loops and PyTorch. With CUDA: PyTorch, Triton's kernels, and tiny-cuda-nn where it is
installed. Random points are the worst
case; points along rays (`--order rays`) share cells. Prints a table and writes the numbers as JSON. The runs of the
candidates alternate, so that a change of the machine's load meets all of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "custom")]

from threestudio.models import hash_grid, hash_grid_numba, hash_grid_torch  # noqa: E402
from threestudio.models.geometry.implicit_volume import default_pos_encoding  # noqa: E402
from threestudio.models.networks import get_encoding  # noqa: E402
from threestudio.utils.triton_support import triton_runs  # noqa: E402

SAMPLES_PER_RAY = 64
Seconds = tuple[float, float]


def make_points(count: int, order: str, device: str) -> Tensor:
    """[count, 3] in the unit cube: all over it, or as samples along rays through it."""
    generator = torch.Generator().manual_seed(0)
    if order == "random":
        return torch.rand(count, 3, generator=generator).to(device)
    ends = torch.rand(2, -(-count // SAMPLES_PER_RAY), 1, 3, generator=generator)
    along = torch.linspace(0, 1, SAMPLES_PER_RAY)[:, None]
    return (ends[0] + along * (ends[1] - ends[0])).reshape(-1, 3)[:count].contiguous().to(device)


def candidates(device: str) -> dict[str, tuple[nn.Module, ModuleType | None]]:
    """Encodings by name, each with the implementation it is pinned to."""
    config = {**default_pos_encoding(), "backend": "torch"}
    found: dict[str, tuple[nn.Module, ModuleType | None]] = {}
    if device == "cpu":
        found["compiled loops"] = (get_encoding(3, config), hash_grid_numba)
    found["PyTorch"] = (get_encoding(3, config), hash_grid_torch)
    if triton_runs(torch.device(device)):
        from threestudio.models import hash_grid_triton

        found["Triton"] = (get_encoding(3, config), hash_grid_triton)
    if device == "cuda" and importlib.util.find_spec("tinycudann"):
        found["tiny-cuda-nn"] = (get_encoding(3, {**config, "backend": "tcnn"}), None)
    return {name: (encoding.to(device), module) for name, (encoding, module) in found.items()}


def step(encoding: nn.Module, module: ModuleType | None, x: Tensor, g: Tensor, normals: bool) -> dict[str, Seconds]:
    """The forward pass; forward and backward; and both through the gradient in the points."""
    choose, hash_grid._backend = hash_grid._backend, lambda *_: module
    try:
        encoding.zero_grad(set_to_none=True)
        watch, seconds = Watch(x), {}
        out = encoding(x)
        seconds["forward"] = watch.read()
        out.backward(g)
        seconds["forward + backward"] = watch.read()
        if normals:
            points, watch = x.clone().requires_grad_(), Watch(x)
            (slope,) = torch.autograd.grad((encoding(points) * g).sum(), points, create_graph=True)
            slope.square().sum().backward()
            seconds["normals + backward"] = watch.read()
        return seconds
    finally:
        hash_grid._backend = choose


class Watch:
    """Seconds since its making: on the clock, and of this process on all cores, which others disturb less."""

    def __init__(self, x: Tensor) -> None:
        self.is_cuda = x.is_cuda
        self.start = self._now()

    def _now(self) -> Seconds:
        if self.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def read(self) -> Seconds:
        clock, process = self._now()
        return clock - self.start[0], process - self.start[1]


def measure(args: argparse.Namespace) -> dict[str, dict[str, list[Seconds]]]:
    """All runs by candidate and pass, after one warm-up (which compiles)."""
    x = make_points(args.points, args.order, args.device)
    g = torch.randn(args.points, 32, generator=torch.Generator().manual_seed(1)).to(args.device)
    encodings = candidates(args.device)
    for encoding, module in encodings.values():
        step(encoding, module, x[:1000], g[:1000], args.normals)
    runs: dict[str, dict[str, list[Seconds]]] = {name: {} for name in encodings}
    for _ in range(args.repeats):
        for name, (encoding, module) in encodings.items():
            for part, seconds in step(encoding, module, x, g, args.normals).items():
                runs[name].setdefault(part, []).append(seconds)
    return runs


def print_table(title: str, runs: dict[str, dict[str, list[Seconds]]], points: int) -> None:
    header = f"{'median ms':>11}{'min ms':>9}{'CPU ms':>9}{'queries/s, median':>20}{'per CPU second':>17}"
    print(f"\n{title}\n{'':36}{header}")
    for name, parts in runs.items():
        for part, seconds in parts.items():
            clock, process = statistics.median(c for c, _ in seconds), statistics.median(p for _, p in seconds)
            best = min(c for c, _ in seconds)
            print(
                f"{name:16}{part:20}{clock * 1e3:11.1f}{best * 1e3:9.1f}{process * 1e3:9.1f}"
                f"{points / clock / 1e6:18.2f} M{points / process / 1e6:15.2f} M"
            )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=200_000)
    parser.add_argument("--order", choices=("random", "rays"), default="random")
    parser.add_argument("--normals", action="store_true", help="also time analytic normals and their backward pass")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()], help="one table for each")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/hash_grid.json"))
    return parser.parse_args()


def main() -> None:
    args = parse()
    machine = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    report = {
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "machine": machine, "cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__,
        "runs": [],
    }  # fmt: skip
    print(f"{machine}, {os.cpu_count()} cores, torch {torch.__version__}")
    for threads in args.threads:
        torch.set_num_threads(threads)
        runs = measure(args)
        print_table(f"{args.points} {args.order} points, {threads} threads", runs, args.points)
        report["runs"].append({"threads": threads, "seconds": runs})
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1))
    print(f"\nwritten to {args.output}")


if __name__ == "__main__":
    main()
