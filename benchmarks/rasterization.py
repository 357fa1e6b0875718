"""Times the rasterizers, forward and backward, and measures their errors against the float64 reference.

    python benchmarks/rasterization.py --views 4 --size 128 --count 10000 --threads 2

On a CPU: numba and a tiled pure-torch rasterizer. With CUDA also gsplat (``--device cuda``). Prints a table and writes the
numbers as JSON. The runs of the candidates alternate, so that a change of the machine's load meets all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "custom"), str(ROOT / "benchmarks")]

from tiled_torch import rasterize_tiled_torch  # noqa: E402

from dreammapping.rasterization import rasterize  # noqa: E402
from dreammapping.rasterization.types import Rasterization, Scene  # noqa: E402

LEAVES = ("means", "quats", "scales", "opacities", "colors")


def make_scene(kind: str, count: int, views: int, size: int, sh_degree: int, seed: int = 0) -> Scene:
    """An object-like cloud between radius 0.5 and 0.8, seen from a circle of radius 3 (field of view 45 degrees).

    kind "object": sizes of about the distance between neighbors, opacities from nearly 0 to nearly 1.
    kind "init": the same with opacity 0.1 everywhere, as at the start of a run; tiles finish late.
    """
    g = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=-1)
    means = directions * (0.5 + 0.3 * torch.rand(count, 1, generator=g))
    scales = 0.024 * (10_000 / max(count, 1)) ** (1 / 3) * torch.exp(0.4 * torch.randn(count, 3, generator=g))
    opacities = torch.sigmoid(2 * torch.randn(count, generator=g))
    if kind == "init":
        opacities = torch.full((count,), 0.1)
    colors = 0.3 * torch.randn(count, (sh_degree + 1) ** 2, 3, generator=g)
    viewmats = torch.eye(4).repeat(views, 1, 1)
    for view in range(views):
        angle = 2 * math.pi * view / views
        cos, sin = math.cos(angle), math.sin(angle)
        viewmats[view, :3, :3] = torch.tensor([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])
    viewmats[:, 2, 3] = 3.0
    focal = 0.5 * size / math.tan(math.radians(22.5))
    Ks = torch.tensor([[focal, 0.0, size / 2], [0.0, focal, size / 2], [0.0, 0.0, 1.0]]).repeat(views, 1, 1)
    quats, background = torch.randn(count, 4, generator=g), torch.rand(views, 3, generator=g)
    return Scene(
        means, quats, scales, opacities, colors, viewmats, Ks, size, size, sh_degree, 0.01, 1e10, background, 0.3
    )


def convert(scene: Scene, dtype: torch.dtype, device: str) -> Scene:
    """A copy whose Gaussians are leaves that require gradients."""
    values = dict(vars(scene))
    for name, value in values.items():
        if isinstance(value, Tensor):
            values[name] = value.detach().to(device, dtype, copy=True).requires_grad_(name in LEAVES)
    return Scene(**values)


def backend_call(name: str) -> Callable[[Scene], Rasterization]:
    """The public function with a fixed backend, as a function of a Scene."""
    return lambda scene: rasterize(**vars(scene), backend=name)


def candidates(device: str) -> dict[str, Callable[[Scene], Rasterization]]:
    """What can run on the device, by name."""
    if device == "cuda":
        return {"gsplat": backend_call("gsplat"), "tiled torch": rasterize_tiled_torch}
    return {"numba": backend_call("numba"), "tiled torch": rasterize_tiled_torch}


def step(render: Callable[[Scene], Rasterization], scene: Scene, v_rgb: Tensor) -> tuple[float, float]:
    """Milliseconds of the forward pass and of forward and backward together."""
    for name in LEAVES:
        getattr(scene, name).grad = None
    _wait(scene)
    start = time.perf_counter()
    out = render(scene)
    _wait(scene)
    middle = time.perf_counter()
    out.rgb.backward(v_rgb)
    _wait(scene)
    return (middle - start) * 1e3, (time.perf_counter() - start) * 1e3


def _wait(scene: Scene) -> None:
    if scene.means.is_cuda:
        torch.cuda.synchronize()


def time_candidates(scene: Scene, device: str, repeats: int) -> dict[str, dict]:
    """Alternating runs after two warm-ups each (the first of which compiles)."""
    scene = convert(scene, torch.float32, device)
    views = scene.viewmats.shape[0]
    v_rgb = torch.randn(views, scene.height, scene.width, 3, generator=torch.Generator().manual_seed(1)).to(device)
    calls, first = candidates(device), {}
    for name, render in calls.items():
        first[name] = step(render, scene, v_rgb)[1]
        step(render, scene, v_rgb)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, render in calls.items():
            times[name].append(step(render, scene, v_rgb))
    return {
        name: {
            "first_ms": first[name],
            "forward_ms": [f for f, _ in pairs],
            "total_ms": [t for _, t in pairs],
        }
        for name, pairs in times.items()
    }


def measure_errors(device: str, sh_degree: int) -> dict[str, dict[str, float]]:
    """Errors against the reference in float64 on a small scene: the largest of the values, relative of the gradients.

    A rounding error may flip the alpha threshold of single pixels, so the share of such pixels is given instead of
    letting them decide about the largest error.
    """
    scene = make_scene("object", 600, 2, 72, sh_degree, seed=3)
    generator = torch.Generator().manual_seed(2)
    v = {k: torch.randn(2, 72, 72, d, generator=generator) for k, d in (("rgb", 3), ("alpha", 1))}

    def run(render: Callable[[Scene], Rasterization], dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        copy = convert(scene, dtype, device)
        out = render(copy)
        sum((getattr(out, k) * w.to(device, dtype)).sum() for k, w in v.items()).backward()
        return torch.cat([out.rgb, out.alpha], -1).detach().double(), {k: getattr(copy, k).grad.double() for k in LEAVES}

    image, gradients = run(backend_call("reference"), torch.float64)
    errors = {}
    for name, render in candidates(device).items():
        got, got_gradients = run(render, torch.float32)
        difference = (got - image).abs().amax(-1)
        flipped = difference > 1e-3
        errors[name] = {"value": float(difference[~flipped].max()), "flipped_pixels": float(flipped.double().mean())}
        for key, want in gradients.items():
            errors[name][key] = float((got_gradients[key] - want).norm() / want.norm())
    return errors


def print_times(title: str, results: dict[str, dict]) -> None:
    print(f"\n{title}\n{'':14}{'forward':>10}{'fwd + bwd median':>18}{'min':>9}{'max':>9}{'first call':>12}  (ms)")
    for name, r in results.items():
        total = r["total_ms"]
        print(
            f"{name:14}{statistics.median(r['forward_ms']):10.1f}{statistics.median(total):18.1f}{min(total):9.1f}"
            f"{max(total):9.1f}{r['first_ms']:12.0f}"
        )
    names = list(results)
    fast, slow = (statistics.median(results[n]["total_ms"]) for n in names[:2])
    print(f"{names[0]} is {slow / fast:.1f} times as fast as {names[1]}")


def print_errors(errors: dict[str, dict[str, float]]) -> None:
    print("\nerror against the float64 reference (values absolute, gradients relative)")
    for name, row in errors.items():
        print(f"{name:14}" + "  ".join(f"{key} {value:.1e}" for key, value in row.items()))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--size", type=int, default=128, help="image width and height in pixels")
    parser.add_argument("--count", type=int, default=10_000, help="number of Gaussians")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()], help="one table for each")
    parser.add_argument("--sh-degree", type=int, default=0)
    parser.add_argument("--scenes", nargs="+", choices=("object", "init"), default=["object", "init"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/rasterization.json"))
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
        for kind in args.scenes:
            scene = make_scene(kind, args.count, args.views, args.size, args.sh_degree)
            results = time_candidates(scene, args.device, args.repeats)
            title = f"{kind}: {args.views} x {args.size}^2, {args.count} Gaussians, SH {args.sh_degree}, {threads} threads"
            print_times(title, results)
            report["runs"].append({"scene": kind, "threads": threads, "results": results})
    report["errors"] = measure_errors(args.device, max(args.sh_degree, 2))
    print_errors(report["errors"])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1))
    print(f"\nwritten to {args.output}")


if __name__ == "__main__":
    main()
