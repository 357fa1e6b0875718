"""What an iteration of a radiance field costs, piece by piece, with Triton's kernels and with PyTorch's operations.

    python benchmarks/radiance_field.py                 # CUDA: checks, hash grid, rendering at 64 and 512, whole iteration
    python benchmarks/radiance_field.py --quick         # fewer sizes and repetitions
    python benchmarks/radiance_field.py --parts grid    # one part; `tune` tries the kernels' block sizes
    python benchmarks/radiance_field.py --tiny          # everything at a size a CPU can do, to see that it runs

The field is vdm-nerf.yaml's, at its start (a soft blob) and fitted to a ball that fills a third of the frame. The whole
iteration has a teacher of SD 2.1-base's shapes with random weights. Prints as it goes; the JSON is rewritten after every
measurement, so that a run cut short leaves what it found. A part that fails leaves its error there.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom"), str(ROOT / "benchmarks")]

import dreammapping  # noqa: E402, F401  registers its classes
import threestudio  # noqa: E402
from dreammapping.evaluation.resources import device_name  # noqa: E402
from threestudio.models import hash_grid_torch  # noqa: E402
from threestudio.models.estimators.marching import march  # noqa: E402
from threestudio.models.geometry.implicit_volume import default_pos_encoding  # noqa: E402
from threestudio.models.hash_grid import Grid  # noqa: E402
from threestudio.models.renderers.rays import Rays, composite  # noqa: E402
from threestudio.utils import triton_support  # noqa: E402
from threestudio.utils.config import load_config  # noqa: E402
from threestudio.utils.ops import get_ray_directions, get_rays  # noqa: E402
from threestudio.utils.volume_rendering import exclusive_sum, render_weight_from_density  # noqa: E402

CONFIG = ROOT / "custom" / "dreammapping" / "configs" / "vdm-nerf.yaml"
PARTS = ("check", "grid", "render", "iteration")
KERNELS = ("triton", "pytorch")
STEP = 1.732 / 512  # of a ray's samples, in units of the box
BALL_RADIUS, BALL_DENSITY = 0.4, 60.0  # world units; a step stops a third of the light


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

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() and not args.tiny else "cpu")
        self.tiny, self.quick = args.tiny, args.quick or args.tiny
        self.repeats = 2 if args.tiny else 5 if args.quick else 15
        self.counts = [3000] if args.tiny else [2_000_000] if args.quick else [200_000, 2_000_000, 8_000_000]
        self.sizes = [16] if args.tiny else [64, 512]
        self.fitted: dict[str, dict[str, Tensor]] = {}
        self.kernels = [k for k in KERNELS if k == "pytorch" or triton_support.triton_runs(self.device)]

    def milliseconds(self, work: Callable[[], Any]) -> float:
        """Median over the repeats, after two runs to warm up; by CUDA's events where there are any."""
        for _ in range(2):
            work()
        return statistics.median(self._once(work) for _ in range(self.repeats))

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
        if self.device.type != "cuda":
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


def off(found: Tensor, expected: Tensor) -> float:
    """Relative difference of two tensors, by norm."""
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))


# ---- the hash grid ----


def points_on_rays(count: int, device: torch.device) -> Tensor:
    """[count, 3] in the unit cube, 32 samples of a ray after each other, as far apart as the renderer's."""
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(-(-count // 32), 1, 3, generator=generator)
    direction = torch.nn.functional.normalize(torch.randn(len(start), 1, 3, generator=generator), dim=-1)
    points = start + direction * (STEP * torch.arange(32)[:, None])
    return points.clamp(0, 1).reshape(-1, 3)[:count].contiguous().to(device)


def make_grid(device: torch.device, dtype: torch.dtype = torch.float32) -> Grid:
    torch.manual_seed(0)
    grid = Grid(3, default_pos_encoding())
    with torch.no_grad():
        grid.params.normal_()
    return grid.to(device, dtype)


def check(bench: Bench, report: Report) -> None:
    """The kernels against PyTorch in float64, before anything is timed."""
    count = 1000 if bench.tiny else 100_000
    x = points_on_rays(count, bench.device)
    grid, exact = make_grid(bench.device), make_grid(bench.device, torch.float64)
    layout, params = grid.layout, grid.params.detach()
    g = torch.randn(count, grid.n_output_dims, device=bench.device)
    lookups = {"gather": (params,), "scatter": (g,), "contract": (params, g)}
    chosen = exact._grid.kernels(x) if bench.device.type == "cpu" else grid._grid.kernels(x)
    for name, tensors in lookups.items():
        found = getattr(chosen, name)(x, None, *tensors, layout)
        # The far levels turn the last digit of a float32 coordinate into the fourth of a weight.
        expected = getattr(hash_grid_torch, name)(x.double(), None, *(t.double() for t in tensors), layout)
        error = off(found, expected)
        report.add(f"check/{chosen.__name__.split('.')[-1]} {name}", relative_error=error, good=error < 1e-3)
    rays = torch.randint(0, 500, (count,), device=bench.device).sort().values
    values = torch.rand(count, device=bench.device, requires_grad=True)
    sums = exclusive_sum(values, rays, 501)
    (slope,) = torch.autograd.grad((sums * x[:, 0]).sum(), values)
    with kernels("pytorch"):
        precise = values.detach().double().requires_grad_()
        other = exclusive_sum(precise, rays, 501)
        (other_slope,) = torch.autograd.grad((other * x[:, 0].double()).sum(), precise)
    errors = off(sums, other), off(slope, other_slope)
    report.add("check/sums along rays", values=errors[0], gradient=errors[1], good=max(errors) < 1e-5)
    scene = Scene(bench, 32)
    boxed = (scene.rays.origins, scene.rays.directions, torch.rand(32, 32, 32, device=bench.device) < 0.3)
    limits = (scene.renderer.bbox, 0.0068, torch.zeros(1024, device=bench.device), torch.full((1024,), 9.0).to(bench.device))
    found = march(*boxed, *limits)
    with kernels("pytorch"):
        expected = march(*boxed, *limits)
    # A midpoint on a cell's face may round to either side of it.
    missing = abs(len(found.t_starts) - len(expected.t_starts)) / max(1, len(expected.t_starts))
    report.add("check/marching", samples=len(found.t_starts), relative_difference=missing, good=missing < 1e-3)


def time_copy(bench: Bench, report: Report) -> float:
    """GB/s of a plain copy, read and written bytes together."""
    source = torch.empty(2**20 if bench.tiny else 2**28, device=bench.device)
    target = torch.empty_like(source)
    rate = 2 * source.nbytes / bench.milliseconds(lambda: target.copy_(source)) / 1e6
    report.add("copy", gigabytes_per_second=rate)
    return rate


def time_grid(bench: Bench, report: Report) -> None:
    rate = time_copy(bench, report)
    grid = make_grid(bench.device)
    levels, entry = len(grid.layout.levels), 4 * grid.layout.features
    for count in bench.counts:
        orders = {"rays": points_on_rays(count, bench.device)}
        if count == 2_000_000:
            orders["random"] = torch.rand(count, 3, device=bench.device)
        g = torch.randn(count, grid.n_output_dims, device=bench.device)
        touched = count * levels * entry * (8 + 1) / 1e9  # eight entries read or added to, one feature vector
        for order, x in orders.items():
            for kind in bench.kernels:
                name = f"grid/{count}/{order}/{kind}"
                with kernels(kind), report.attempt(name), torch.no_grad():
                    module, layout, params = grid._grid.kernels(x), grid.layout, grid.params.detach()
                    works = {
                        "forward": lambda: module.gather(x, None, params, layout),
                        "backward": lambda: module.scatter(x, None, g, layout),
                        "coordinates": lambda: module.contract(x, None, params, g, layout),
                    }
                    for part, work in works.items():
                        ms = bench.milliseconds(work)
                        report.add(name, **{f"{part}_ms": ms, f"{part}_over_copy": touched / ms * 1e3 / rate})


def tune(bench: Bench, report: Report) -> None:
    """Block sizes and lengths of runs of the kernels, on points along rays."""
    from threestudio.models import hash_grid_triton as module

    grid, x = make_grid(bench.device), points_on_rays(bench.counts[-1], bench.device)
    g = torch.randn(len(x), grid.n_output_dims, device=bench.device)
    for block in (64, 128, 256):
        for run in (1, 4, 8, 16):
            name = f"tune/block {block} run {run}"
            with report.attempt(name), mock.patch.multiple(module, _BLOCK=block, _RUN=run), torch.no_grad():
                if run == 8:
                    report.add(name, forward_ms=bench.milliseconds(lambda: module.gather(x, None, grid.params, grid.layout)))
                report.add(name, backward_ms=bench.milliseconds(lambda: module.scatter(x, None, g, grid.layout)))


# ---- rendering ----


def fit_ball(geometry: Any, renderer: Any, steps: int, count: int) -> None:
    """Make the field a ball, and let the occupancy grid see it."""
    device = renderer.bbox.device
    optimizer = torch.optim.Adam(
        [{"params": geometry.encoding.parameters(), "lr": 0.01}, {"params": geometry.density_network.parameters(), "lr": 0.001}],
        eps=1e-15,
    )
    for _ in range(steps):
        points = (torch.rand(count, 3, device=device) - 0.5) * 1.4
        target = BALL_DENSITY * (points.norm(dim=-1, keepdim=True) < BALL_RADIUS)
        # As light, so that neither side outweighs the other: a density of 1000 is as opaque as one of 100.
        light = torch.exp(-geometry.forward_density(points) * 0.02)
        loss = (light - torch.exp(-target * 0.02)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    for step in range(0, 256, 16):
        renderer.update_step(0, step)


class Scene:
    """The config's field seen by one camera."""

    def __init__(self, bench: Bench, size: int, fitted: bool = False, overrides: tuple[str, ...] = ()) -> None:
        torch.manual_seed(0)
        parts = load_config(CONFIG, cli_args=["use_timestamp=false", *overrides]).system
        self.geometry, self.material, self.background = (
            threestudio.find(parts[f"{kind}_type"])(parts[kind]) for kind in ("geometry", "material", "background")
        )
        made = {"geometry": self.geometry, "material": self.material, "background": self.background}
        self.renderer = threestudio.find(parts.renderer_type)(parts.renderer, **made)
        self.modules = [*made.values(), self.renderer]
        for module in self.modules:
            module.to(bench.device).train()
        self._prepare(bench, fitted)
        pose = torch.eye(4)[None, :3]
        pose[:, 2, 3] = 1.25  # the middle of the config's distances and angles; the camera looks along -z
        local = get_ray_directions(size, size, 0.5 * size / math.tan(math.radians(55) / 2))[None]
        origins, directions = (v.to(bench.device) for v in get_rays(local, pose, keepdim=True))
        self.batch = {"rays_o": origins, "rays_d": directions, "light_positions": torch.zeros(1, 3, device=bench.device)}
        self.rays = Rays(origins.reshape(-1, 3), directions.reshape(-1, 3), self.batch["light_positions"])

    def _prepare(self, bench: Bench, fitted: bool) -> None:
        """Fitted once; the others take the first one's state, so that all render the same."""
        parts = {"geometry": self.geometry, "estimator": self.renderer.estimator}
        if fitted and bench.fitted:
            for name, part in parts.items():
                part.load_state_dict(bench.fitted[name])
            return
        fit_ball(self.geometry, self.renderer, *((20, 2000) if bench.tiny else (400, 2**17)) if fitted else (0, 0))
        if fitted:
            bench.fitted = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}

    def parameters(self) -> list[Tensor]:
        return [p for module in (self.geometry, self.material, self.background) for p in module.parameters()]

    def forward(self) -> dict[str, Any]:
        return self.renderer(**self.batch)

    def forward_and_backward(self) -> dict[str, Any]:
        for parameter in self.parameters():
            parameter.grad = None
        out = self.forward()
        (out["comp_rgb"].square().mean() + out["opacity"].square().mean()).backward()
        return out


def pieces(scene: Scene, bench: Bench) -> dict[str, float]:
    """Milliseconds of the parts of a rendering, each alone on the samples of this view."""
    renderer, rays, estimator = scene.renderer, scene.rays, scene.renderer.estimator
    near, far = torch.zeros_like(rays.origins[:, 0]), torch.full_like(rays.origins[:, 0], 1e10)
    marched = lambda: march(rays.origins, rays.directions, estimator.binaries[0], estimator.aabbs[0].view(2, 3), renderer.render_step_size, near, far)  # noqa: E731, E501
    samples = renderer._sample(rays)
    t_points, n_rays = (samples.t_starts + samples.t_ends) / 2, len(rays.origins)
    points = rays.points(samples.ray_indices, t_points)
    unit = (points + 1) / 2
    encoded = scene.geometry.encoding(unit).detach().requires_grad_()
    density = scene.geometry.forward_density(points).detach()[:, 0].requires_grad_()
    colors = torch.rand(len(points), 3, device=points.device, requires_grad=True)

    def heads() -> None:
        (scene.geometry.density_network(encoded).sum() + scene.geometry.feature_network(encoded).sum()).backward()

    def compositing() -> None:
        weights = render_weight_from_density(samples.t_starts, samples.t_ends, density, samples.ray_indices, n_rays).weights
        out = composite(weights, t_points, colors, samples.ray_indices, n_rays)
        (out["comp_rgb_fg"].sum() + out["opacity"].square().sum()).backward()

    def lookup_and_back() -> None:
        scene.geometry.encoding(unit).backward(encoded.detach())

    works = {
        "march": marched, "choose_samples_with_march": lambda: renderer._sample(rays),
        "points": lambda: rays.points(samples.ray_indices, t_points), "grid_forward": lambda: scene.geometry.encoding(unit),
        "grid_forward_backward": lookup_and_back, "networks_forward_backward": heads,
        "compositing_forward_backward": compositing, "occupancy_update": lambda: renderer.update_step(0, 1600),
    }  # fmt: skip
    counts = {"marched": len(marched().t_starts), "kept": len(points), "samples_per_ray": len(points) / n_rays}
    state = {key: value.clone() for key, value in estimator.state_dict().items()}
    found = {f"{name}_ms": bench.milliseconds(work) for name, work in works.items()}
    estimator.load_state_dict(state)
    return {**counts, **found}


def time_rendering(bench: Bench, report: Report) -> None:
    variants = {
        "": (), " bfloat16 networks": ("system.geometry.mlp_network_config.precision=bfloat16",),
        " recomputed": (f"system.renderer.train_chunk_size={2**9 if bench.tiny else 2**19}",),
    }  # fmt: skip
    mlp = "system.geometry.mlp_network_config={otype: VanillaMLP, activation: ReLU, output_activation: none, n_neurons: 64, n_hidden_layers: 1}"  # noqa: E501
    for size in bench.sizes:
        for state in ("fitted", "start"):
            for kind in bench.kernels:
                exact: list[Tensor] = []
                for variant, overrides in variants.items():
                    if variant and (kind != bench.kernels[0] or state == "start" or size != bench.sizes[-1]):
                        continue
                    name = f"render/{size}/{state}/{kind}{variant}"
                    with kernels(kind), report.attempt(name):
                        scene = Scene(bench, size, state == "fitted", (mlp, *overrides))
                        torch.manual_seed(1)
                        peak = bench.peak_gib(scene.forward_and_backward)
                        found = [p.grad.clone() for p in scene.parameters() if p.grad is not None]
                        report.add(name, forward_backward_ms=bench.milliseconds(scene.forward_and_backward), peak_gib=peak)
                        report.add(name, forward_ms=bench.milliseconds(scene.forward))
                        if variant:
                            report.add(name, gradient_off=max(off(a, b) for a, b in zip(found, exact)))
                        else:
                            exact = found
                            report.add(name, **pieces(scene, bench))


# ---- a whole iteration ----


def time_iteration(bench: Bench, report: Report) -> None:
    """vdm-nerf.yaml's iterations at both resolutions, and from them the run's 5,000 + 20,000."""
    from iteration import Run, random_sd21

    with tempfile.TemporaryDirectory() as scratch:
        teacher = random_sd21(Path(scratch) / "teacher")
        medians = {}
        for size in bench.sizes:
            with report.attempt(f"iteration/{size}"):
                own = [f"data.{key}={value}" for key, value in
                       {"height": size, "width": size, "batch_size": 1, "resolution_milestones": "[]"}.items()]  # fmt: skip
                named = f"system.prompt_processor.pretrained_model_name_or_path={teacher}"
                spawn = "system.prompt_processor.spawn=false"
                run = Run(load_config(CONFIG, cli_args=["use_timestamp=false", named, spawn, *own]), bench.device)
                fit_ball(run.system.geometry, run.system.renderer, 400, 2**17)
                times = [run.step() for _ in range(5 + bench.repeats)][5:]
                update = bench.milliseconds(lambda: run.system.renderer.update_step(0, 1600))
                medians[size] = statistics.median(times) + update / 16
                peak = bench.peak_gib(run.step)
                report.add(f"iteration/{size}", ms=medians[size], occupancy_update_ms=update, peak_gib=peak)
                del run
    if len(medians) == 2:
        low, high = (medians[size] for size in bench.sizes)
        report.add("run", minutes=(5000 * low + 20000 * high) / 60e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=(*PARTS, "tune"), default=None, help="default: all but tune")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and repetitions")
    parser.add_argument("--tiny", action="store_true", help="on the CPU, at a size without meaning")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/radiance_field.json"))
    args = parser.parse_args()
    bench = Bench(args)
    facts = {"device": device_name(bench.device), "torch": torch.__version__, "kernels": bench.kernels}
    if bench.device.type == "cuda":
        facts["triton_problem"] = triton_support.triton_problem(torch.cuda.current_device())
    report = Report(args.output, facts)
    print(json.dumps(facts))
    parts = args.parts or [part for part in PARTS if part != "iteration" or bench.device.type == "cuda"]
    works = {"check": check, "grid": time_grid, "render": time_rendering, "iteration": time_iteration, "tune": tune}
    for part in parts:
        with report.attempt(part):
            works[part](bench, report)
    print(f"raw numbers: {args.output}")


if __name__ == "__main__":
    main()
