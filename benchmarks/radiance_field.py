"""What an iteration of a radiance field costs, piece by piece, with Triton's kernels and with PyTorch's operations.

    python benchmarks/radiance_field.py                 # CUDA: checks, hash grid, rendering, whole iteration
    python benchmarks/radiance_field.py --quick         # fewer sizes and repetitions
    python benchmarks/radiance_field.py --parts grid    # one part; `tune` tries the kernels' block sizes
    python benchmarks/radiance_field.py --tiny          # everything at a size a CPU can do, to see that it runs

The field is vdm-nerf.yaml's, at its start (a soft blob) and fitted to a ball that fills a third of the frame. The whole
iteration has a teacher of SD 2.1-base's shapes with random weights. Prints as it goes; the JSON is rewritten after
every measurement, so that a run cut short leaves what it found. A part that fails leaves its error there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom"), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from field_kernels import check, time_grid, tune  # noqa: E402
from field_report import Bench, Report, kernels, off  # noqa: E402
from field_scene import CONFIG, Scene, fit_ball  # noqa: E402
from torch import Tensor  # noqa: E402

import dreammapping  # noqa: E402, F401  registers its classes
from dreammapping.evaluation.resources import device_name  # noqa: E402
from threestudio.models.estimators.marching import RaySamples, march  # noqa: E402
from threestudio.models.renderers.rays import composite  # noqa: E402
from threestudio.utils import triton_support  # noqa: E402
from threestudio.utils.config import load_config  # noqa: E402
from threestudio.utils.volume_rendering import render_weight_from_density  # noqa: E402

PARTS = ("check", "grid", "render", "iteration")
MLP = "system.geometry.mlp_network_config"


def pieces(scene: Scene, bench: Bench) -> dict[str, float]:
    """Milliseconds of the parts of a rendering, each alone on the samples of this view."""
    renderer, rays, estimator = scene.renderer, scene.rays, scene.renderer.estimator
    near, far = torch.zeros_like(rays.origins[:, 0]), torch.full_like(rays.origins[:, 0], 1e10)
    space = (estimator.binaries[0], estimator.aabbs[0].view(2, 3), renderer.render_step_size)
    samples = renderer._sample(rays)
    t_points, n_rays = (samples.t_starts + samples.t_ends) / 2, len(rays.origins)
    points = rays.points(samples.ray_indices, t_points)
    unit = (points + 1) / 2
    encoded = scene.geometry.encoding(unit).detach().requires_grad_()
    density = scene.geometry.forward_density(points).detach()[:, 0].requires_grad_()
    colors = torch.rand(len(points), 3, device=points.device, requires_grad=True)

    def marched() -> RaySamples:
        return march(rays.origins, rays.directions, *space, near, far)

    def heads() -> None:
        (scene.geometry.density_network(encoded).sum() + scene.geometry.feature_network(encoded).sum()).backward()

    def compositing() -> None:
        weights = render_weight_from_density(
            samples.t_starts, samples.t_ends, density, samples.ray_indices, n_rays
        ).weights
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


def variants(bench: Bench) -> dict[str, tuple[str, ...]]:
    """Overrides of the config, by what is appended to the measurement's name; the first is the config itself."""
    plain = f"{MLP}={{otype: VanillaMLP, activation: ReLU, output_activation: none, n_neurons: 64, n_hidden_layers: 1}}"
    return {
        "": (),
        ", networks in PyTorch": (plain, f"{MLP}.backend=torch"),
        ", networks in bfloat16": (plain, f"{MLP}.precision=bfloat16"),
        ", recomputed": (f"system.renderer.train_chunk_size={2**9 if bench.tiny else 2**19}",),
    }


def time_rendering(bench: Bench, report: Report) -> None:
    for size in reversed(bench.sizes):
        for state, kinds in (("fitted", bench.kernels), ("start", bench.kernels[:1])):  # all of it is slow in PyTorch
            exact: list[Tensor] = []
            for kind in kinds:
                for variant, overrides in variants(bench).items():
                    # The variants are of the fast path, where they matter.
                    if variant and (kind != bench.kernels[0] or state == "start" or size != bench.sizes[-1]):
                        continue
                    name = f"render/{size}/{state}/{kind}{variant}"
                    with kernels(kind), report.attempt(name):
                        gradients = time_view(bench, report, name, Scene(bench, size, state == "fitted", overrides))
                        exact = exact or gradients
                        report.add(name, gradient_off=max(off(a, b) for a, b in zip(gradients, exact)))


def time_view(bench: Bench, report: Report, name: str, scene: Scene) -> list[Tensor]:
    """A view's milliseconds, memory and pieces. Returns the gradients, from the same random numbers each time."""
    torch.manual_seed(1)
    peak = bench.peak_gib(scene.forward_and_backward)
    gradients = [p.grad.clone() for p in scene.parameters() if p.grad is not None]
    report.add(name, forward_backward_ms=bench.milliseconds(scene.forward_and_backward), peak_gib=peak)
    report.add(name, forward_ms=bench.milliseconds(scene.forward))
    report.add(name, **pieces(scene, bench))
    return gradients


# ---- a whole iteration ----


def time_iteration(bench: Bench, report: Report) -> None:
    """vdm-nerf.yaml's iterations at both resolutions, and from them the run's 5,000 + 20,000."""
    from iteration import random_sd21

    from tests.helpers.tiny_teacher import make_tiny_teacher

    medians = {}
    with tempfile.TemporaryDirectory() as scratch:
        teacher = Path(scratch) / "teacher"
        (make_tiny_teacher if bench.tiny else random_sd21)(teacher)
        for size in bench.sizes:
            with report.attempt(f"iteration/{size}"):
                medians[size] = time_size(bench, report, size, teacher)
    if len(medians) == 2:
        low, high = (medians[size] for size in bench.sizes)
        report.add("run", minutes=(5000 * low + 20000 * high) / 60e3)


def time_size(bench: Bench, report: Report, size: int, teacher: Path) -> float:
    """Milliseconds of an iteration at one resolution, the occupancy's update at every 16th step shared out."""
    from iteration import Run

    data = {"height": size, "width": size, "batch_size": 1, "resolution_milestones": "[]"}
    named = f"system.prompt_processor.pretrained_model_name_or_path={teacher}"
    own = [
        "use_timestamp=false",
        named,
        "system.prompt_processor.spawn=false",
        *(f"data.{k}={v}" for k, v in data.items()),
    ]
    run = Run(load_config(CONFIG, cli_args=own), bench.device)
    renderer = run.system.renderer
    fit_ball(run.system.geometry, renderer, *bench.fit)
    times = [run.step() for _ in range(5 + bench.repeats)][5:]
    update = bench.milliseconds(lambda: renderer.update_step(0, 1600))
    ms = statistics.median(times) + update / 16
    report.add(f"iteration/{size}", ms=ms, occupancy_update_ms=update, peak_gib=bench.peak_gib(run.step))
    return ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=(*PARTS, "tune"), default=None, help="default: all but tune")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and repetitions")
    parser.add_argument("--tiny", action="store_true", help="on the CPU, at a size without meaning")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/radiance_field.json"))
    args = parser.parse_args()
    bench = Bench(args.tiny, args.quick)
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
