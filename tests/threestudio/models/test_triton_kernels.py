"""Triton's kernels against PyTorch in float64: on a GPU, or anywhere in Triton's interpreter.

TRITON_INTERPRET=1 pytest tests/threestudio/models/test_triton_kernels.py
"""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a CUDA GPU, or TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton")

from tests.helpers import triton_stand_ins  # noqa: E402
from threestudio.models import hash_grid_torch, hash_grid_triton, mlp_triton  # noqa: E402
from threestudio.models.estimators import marching_triton  # noqa: E402
from threestudio.models.hash_grid_layout import make_layout  # noqa: E402
from threestudio.utils.ray_scan_triton import exclusive_ray_sum  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = {"n_levels": 3, "log2_hashmap_size": 7, "base_resolution": 3, "per_level_scale": 1.8}


def off(found, expected):
    return float((found.detach().double() - expected.detach().double()).norm() / expected.detach().double().norm())


@pytest.mark.parametrize(
    "config",
    [
        {"otype": "HashGrid"},
        {"otype": "HashGrid", "interpolation": "Smoothstep", "n_features_per_level": 4},
        {"otype": "HashGrid", "interpolation": "Nearest"},
        {"otype": "Grid", "type": "Tiled", "n_features_per_level": 1},
    ],
)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_the_hash_grid(config, dtype, tolerance):
    layout = make_layout(3, {**SMALL, **config})
    if config["otype"] == "HashGrid":
        assert {level.hashed for level in layout.levels} == {True, False}
    torch.manual_seed(0)
    count = 150
    # Some points outside the unit cube: what they get is not specified, but it must not be memory of others.
    x = (torch.rand(count, 3) * 1.4 - 0.2).to(dtype)
    x[20:60] = x[20] + 1e-3 * torch.arange(40)[:, None]  # along a ray, where additions are collected
    g, params = (
        torch.randn(count, 3 * layout.features).to(dtype),
        torch.randn(layout.entries * layout.features).to(dtype),
    )
    x, g, params = x.to(DEVICE), g.to(DEVICE), params.to(DEVICE)
    assert hash_grid_triton.fits(x, layout)
    for name, tensors in (("gather", (params,)), ("scatter", (g,)), ("contract", (params, g)),
                          ("scatter", (g.t().contiguous().t(),)), ("scatter", (g[:1].expand_as(g),))):  # fmt: skip
        found = getattr(hash_grid_triton, name)(x, None, *tensors, layout)
        expected = getattr(hash_grid_torch, name)(x, None, *tensors, layout)
        assert found.dtype == dtype and found.shape == expected.shape
        assert (found - expected).norm() <= tolerance * expected.norm(), name
    nothing = hash_grid_triton.gather(x[:0], None, params, layout)
    assert nothing.shape == (0, 3 * layout.features)
    assert not hash_grid_triton.scatter(x[:0], None, g[:0], layout).any()


@pytest.mark.parametrize("reverse", [False, True])
def test_sums_along_rays(reverse):
    torch.manual_seed(0)
    counts = torch.tensor([3, 0, 1, 40, 0, *[2] * 40, 0])
    starts = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    values = torch.randn(int(starts[-1]), dtype=torch.float64)
    values[5] = float("nan")  # stays on its ray
    found = exclusive_ray_sum(values.to(DEVICE), starts.to(DEVICE), reverse).cpu()
    torch.testing.assert_close(found, triton_stand_ins.exclusive_ray_sum(values, starts, reverse), equal_nan=True)
    assert len(exclusive_ray_sum(values[:0].to(DEVICE), starts[:1].to(DEVICE), reverse)) == 0


def test_marching():
    torch.manual_seed(0)
    count = 40
    origins, directions = torch.rand(count, 3) * 6 - 0.5, torch.randn(count, 3) * 0.5
    occupied = torch.rand(4, 5, 6) < 0.4
    t_min, t_max = torch.rand(count), torch.rand(count) * 4 + 1
    first, counts = torch.randint(0, 4, (count,)), torch.randint(0, 30, (count,))
    inputs = (origins, directions, t_min, t_max, first, counts, occupied)
    found = marching_triton.occupied_steps(*(value.to(DEVICE) for value in inputs), 0.1)
    expected = triton_stand_ins.occupied_steps(*inputs, 0.1)
    assert len(expected[0]) > 50
    for one, other in zip(found, expected):
        assert one.dtype == torch.long and torch.equal(one.cpu(), other)
    none = marching_triton.occupied_steps(*(v.to(DEVICE) for v in (*inputs[:-1], torch.zeros_like(occupied))), 0.1)
    assert [len(value) for value in none] == [0, 0]
    empty = marching_triton.occupied_steps(*(v[:0].to(DEVICE) for v in inputs[:-1]), occupied.to(DEVICE), 0.1)
    assert [len(value) for value in empty] == [0, 0]


@pytest.mark.parametrize("outputs, layout", [(1, "rows"), (3, "columns")])
def test_two_layers(outputs, layout, monkeypatch):
    monkeypatch.setattr(mlp_triton, "_PROGRAMS", 3)  # so that each has several blocks
    torch.manual_seed(0)
    x = torch.randn(333, 32) if layout == "rows" else torch.randn(32, 333).t()
    exact = [value.double().requires_grad_() for value in (x, torch.randn(64, 32), torch.randn(outputs, 64))]
    ours = [value.detach().float().to(DEVICE).requires_grad_() for value in exact]
    g = torch.randn(333, outputs)
    expected = (exact[0] @ exact[1].t()).relu() @ exact[2].t()
    found = mlp_triton.two_layers(*ours)
    assert off(found.cpu(), expected) < 2e-6
    wanted = torch.autograd.grad((expected * g).sum(), exact)
    for one, other in zip(torch.autograd.grad((found * g.to(DEVICE)).sum(), ours), wanted):
        assert one.shape == other.shape and off(one.cpu(), other) < 1e-5


def test_two_layers_twice_differentiated_and_without_rows():
    torch.manual_seed(0)
    x, first, last = torch.randn(20, 16), torch.randn(16, 16), torch.randn(1, 16)
    results = []
    for run, dtype in (
        (mlp_triton.two_layers, torch.float32),
        (lambda x, a, b: (x @ a.t()).relu() @ b.t(), torch.float64),
    ):
        inputs = [value.to(DEVICE, dtype).requires_grad_() for value in (x, first, last)]
        (slope,) = torch.autograd.grad(torch.sin(run(*inputs)).sum(), inputs[0], create_graph=True)
        results.append(torch.autograd.grad(slope.square().sum(), inputs))
    assert all(off(one, other) < 1e-4 for one, other in zip(*results))
    inputs = [value.to(DEVICE).requires_grad_() for value in (x[:0], first, last)]
    out = mlp_triton.two_layers(*inputs)
    out.sum().backward()
    assert out.shape == (0, 1) and not inputs[1].grad.any()
