"""The kernels of radiance fields on their own: right first, then how fast."""

from __future__ import annotations

from unittest import mock

import torch
from field_report import Bench, Report, kernels, off
from field_scene import Scene
from torch import Tensor

from threestudio.models import hash_grid_torch
from threestudio.models.estimators.marching import march
from threestudio.models.geometry.implicit_volume import default_pos_encoding
from threestudio.models.hash_grid import Grid
from threestudio.models.networks import get_mlp
from threestudio.utils.volume_rendering import exclusive_sum

STEP = 1.732 / 512  # of a ray's samples, in units of the box
SEAMS = 1e-3
"""Share of points that may be so close to a cell's wall that float32 sees them on the other side."""


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
        # The slope jumps where cells meet, and that digit says in which of two cells a point there is.
        error = off(found, expected, but_for=SEAMS if name == "contract" else 0.0)
        report.add(f"check/{chosen.__name__.split('.')[-1]} {name}", relative_error=error, good=error < 1e-3)
    check_sums(bench, report, x[:, 0])
    check_networks(bench, report, count)
    check_marching(bench, report)


def check_sums(bench: Bench, report: Report, g: Tensor) -> None:
    rays = torch.randint(0, 500, (len(g),), device=bench.device).sort().values
    values = torch.rand(len(g), device=bench.device, requires_grad=True)
    sums = exclusive_sum(values, rays, 501)
    (slope,) = torch.autograd.grad((sums * g).sum(), values)
    with kernels("pytorch"):
        precise = values.detach().double().requires_grad_()
        other = exclusive_sum(precise, rays, 501)
        (other_slope,) = torch.autograd.grad((other * g.double()).sum(), precise)
    errors = off(sums, other), off(slope, other_slope)
    report.add("check/sums along rays", values=errors[0], gradient=errors[1], good=max(errors) < 1e-5)


def check_networks(bench: Bench, report: Report, count: int) -> None:
    for outputs in (1, 3):
        torch.manual_seed(0)
        network = get_mlp(32, outputs, {"otype": "VanillaMLP", "n_neurons": 64, "n_hidden_layers": 1}).to(bench.device)
        x = torch.randn(32, count, device=bench.device).t().requires_grad_()  # as the grid's features lie
        g = torch.randn(count, outputs, device=bench.device)
        out = network(x)
        found = torch.autograd.grad((out * g).sum(), [x, *network.parameters()])
        exact, precise = network.double(), x.detach().double().requires_grad_()
        expected = exact(precise)
        wanted = torch.autograd.grad((expected * g).sum(), [precise, *exact.parameters()])
        gradient = max(off(a, b) for a, b in zip(found, wanted))
        value = off(out, expected)
        report.add(f"check/network of {outputs}", values=value, gradient=gradient, good=max(value, gradient) < 1e-4)


def check_marching(bench: Bench, report: Report) -> None:
    scene = Scene(bench, 32)
    boxed = (scene.rays.origins, scene.rays.directions, torch.rand(32, 32, 32, device=bench.device) < 0.3)
    limits = (
        scene.renderer.bbox,
        0.0068,
        torch.zeros(1024, device=bench.device),
        torch.full((1024,), 9.0).to(bench.device),
    )
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
    for count in bench.counts:
        orders = {"rays": points_on_rays(count, bench.device)}
        if count == 2_000_000:
            orders["random"] = torch.rand(count, 3, device=bench.device)
        for order, x in orders.items():
            for kind in bench.kernels:
                name = f"grid/{count}/{order}/{kind}"
                with kernels(kind), report.attempt(name), torch.no_grad():
                    time_lookups(bench, report, name, grid, x, rate)


def time_lookups(bench: Bench, report: Report, name: str, grid: Grid, x: Tensor, rate: float) -> None:
    """Forward, backward to the table, backward to the points; `over_copy`: bytes asked for, over a copy's rate."""
    module, layout, params = grid._grid.kernels(x), grid.layout, grid.params.detach()
    g = torch.randn(len(x), grid.n_output_dims, device=bench.device)
    # Eight entries read or added to, and one feature vector. The caches serve most of it, so it may exceed 1.
    gigabytes = len(x) * len(layout.levels) * 4 * layout.features * (8 + 1) / 1e9
    works = {
        "forward": lambda: module.gather(x, None, params, layout),
        "backward": lambda: module.scatter(x, None, g, layout),
        "coordinates": lambda: module.contract(x, None, params, g, layout),
    }
    for part, work in works.items():
        ms = bench.milliseconds(work)
        report.add(name, **{f"{part}_ms": ms, f"{part}_over_copy": gigabytes / ms * 1e3 / rate})


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
                    report.add(
                        name, forward_ms=bench.milliseconds(lambda: module.gather(x, None, grid.params, grid.layout))
                    )
                report.add(name, backward_ms=bench.milliseconds(lambda: module.scatter(x, None, g, grid.layout)))
