"""The stand-ins for nerfacc and tiny-cuda-nn compute what their names say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

STAND_INS = Path(__file__).resolve().parent / "stand_ins"


def load(name: str) -> ModuleType:
    """By path and under another name: an installed package of that name stays what it is for other tests."""
    spec = importlib.util.spec_from_file_location(f"stand_in_{name}", STAND_INS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


nerfacc, tinycudann, absent = load("nerfacc"), load("tinycudann"), load("absent")


def test_a_ray_through_an_even_fog():
    """Opacity is 1 - exp(-sigma length), depth the closed form of the exponential; rays do not mix; one is empty."""
    sigma, length, count = 1.7, 2.0, 4000
    edges = torch.linspace(0, length, count + 1)
    starts, ends = edges[:-1].repeat(2), edges[1:].repeat(2)
    rays = torch.cat([torch.zeros(count), torch.full((count,), 2)]).long()
    density = torch.full_like(starts, sigma)
    density[count:] *= 2
    weights, _, _ = nerfacc.render_weight_from_density(starts, ends, density, ray_indices=rays, n_rays=3)
    opacity = nerfacc.accumulate_along_rays(weights, None, ray_indices=rays, n_rays=3)[:, 0]
    depth = nerfacc.accumulate_along_rays(weights, (starts + ends)[:, None] / 2, ray_indices=rays, n_rays=3)[:, 0]
    densities = torch.tensor([sigma, 0.0, 2 * sigma])
    expected = 1 - torch.exp(-densities * length)
    torch.testing.assert_close(opacity, expected, atol=1e-4, rtol=0)
    mean = 1 / densities[[0, 2]] - (length + 1 / densities[[0, 2]]) * torch.exp(-densities[[0, 2]] * length)
    torch.testing.assert_close(depth[[0, 2]], mean, atol=1e-3, rtol=0)


@pytest.mark.parametrize("stratified", [False, True])
def test_samples_fill_the_box_along_each_ray(stratified: bool):
    grid = nerfacc.OccGridEstimator(torch.tensor([-1.0, -1, -1, 1, 1, 1]), resolution=8)
    grid.binaries.fill_(True)
    origins = torch.tensor([[0.0, 0, 3], [0, 5, 0.5], [3, 3, 3]])
    directions = torch.tensor([[0.0, 0, -1], [0, -1, 0], [0, 0, 1.0]])  # the last one misses
    rays, starts, ends = grid.sampling(origins, directions, render_step_size=0.1, stratified=stratified)
    covered = torch.zeros(3).index_add(0, rays, ends - starts)
    torch.testing.assert_close(covered, torch.tensor([2.0, 2.0, 0.0]), atol=0.11 if stratified else 1e-4, rtol=0)
    assert (rays.diff() >= 0).all() and starts[rays == 0].min() >= 2 and ends[rays == 0].max() <= 4 + 1e-5


def test_the_occupancy_grid_finds_the_object():
    grid = nerfacc.OccGridEstimator(torch.tensor([-1.0, -1, -1, 1, 1, 1]), resolution=16)
    grid.update_every_n_steps(step=0, occ_eval_fn=lambda x: (x[:, :1] > 0).float())
    assert grid.binaries[0, 8:].all() and not grid.binaries[0, :8].any()


@pytest.mark.parametrize("hashed", [False, True])
def test_the_hash_grid_is_continuous_and_differentiable_twice(hashed: bool):
    config = {"otype": "HashGrid", "n_levels": 2, "base_resolution": 4, "log2_hashmap_size": 6 if hashed else 12}
    grid = tinycudann.Encoding(3, config)
    x = torch.rand(50, 3)
    x[:25, 0] = 0.25  # on a cell's boundary
    torch.testing.assert_close(grid(x + 1e-6), grid(x - 1e-6), atol=1e-8, rtol=1e-3)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(grid(x).sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert all(table.grad.abs().sum() > 0 for table in grid.encoding.tables)


def test_a_package_without_contents_is_importable_and_says_so_when_used(monkeypatch: pytest.MonkeyPatch):
    finder = absent._Finder(("package_that_is_absent",))
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, finder])
    from package_that_is_absent.inner import thing

    class Derived(thing):
        pass

    for use in (thing, thing.part, Derived):
        with pytest.raises(absent.AbsentError, match="stand-in"):
            use()
    for name in [name for name in sys.modules if name.startswith("package_that_is_absent")]:
        del sys.modules[name]
