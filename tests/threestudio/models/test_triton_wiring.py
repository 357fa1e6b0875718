"""What stands between the fields and Triton's kernels, with PyTorch in place of these: calls and gradients."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import triton_stand_ins
from tests.helpers.fields import build, views
from threestudio import find
from threestudio.errors import ConfigError
from threestudio.models.hash_grid import Grid
from threestudio.models.networks import get_mlp
from threestudio.utils import triton_support
from threestudio.utils.volume_rendering import exclusive_sum, render_weight_from_density

GRID = {"otype": "HashGrid", "n_levels": 3, "log2_hashmap_size": 7, "base_resolution": 3, "per_level_scale": 1.6}
RAYS = torch.tensor([1, 1, 1, 2, 5, 5])


def test_ray_sums_have_the_gradients_of_either_order(monkeypatch):
    values = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    plain = exclusive_sum(values, RAYS, 7)
    calls = triton_stand_ins.install(monkeypatch)
    torch.testing.assert_close(exclusive_sum(values, RAYS, 7), plain)
    assert calls == ["exclusive_ray_sum"]
    assert exclusive_sum(values, RAYS) is not None and len(calls) == 1  # the number of rays is not known
    ends = torch.arange(6.0).double()
    weigh = lambda depth: render_weight_from_density(ends, ends + 1, depth, RAYS, 7).weights  # noqa: E731
    assert torch.autograd.gradcheck(weigh, values) and torch.autograd.gradgradcheck(weigh, values)


def test_the_grid_differentiates_twice_through_its_kernels(monkeypatch):
    torch.manual_seed(0)
    x = torch.rand(5, 3, dtype=torch.float64)
    grid = Grid(3, {**GRID, "backend": "triton"}).double()
    plain = Grid(3, GRID).double()
    with torch.no_grad():
        plain.params.copy_(grid.params.normal_())
    calls, results = triton_stand_ins.install(monkeypatch), []
    for each in (grid, plain):
        points = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(torch.sin(each(points)).sum(), points, create_graph=True)
        results.append(torch.autograd.grad(slope.square().sum(), [points, each.params]))
        if each is grid:
            assert {"fits", "gather", "scatter", "contract"} <= set(calls)
            calls.clear()
    assert not calls  # on a CPU, "auto" are the compiled loops
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(*results))


def make_volume(backend, **renderer):
    config = {"pos_encoding_config": {**GRID, "backend": backend}, "normal_type": "analytic"}
    made = build({"num_samples_per_ray": 40, **renderer})
    torch.manual_seed(1)
    volume = find("implicit-volume")(config)
    parts = {"material": find("no-material")({"requires_normal": True}), "background": made.background}
    return find("nerf-volume-renderer")({"num_samples_per_ray": 40, **renderer}, geometry=volume, **parts), (
        volume,
        parts,
    )


def rendered(backend, shown, steps=(0, 16), **renderer):
    """Images and the gradients of the field of one view, and of the normals in it."""
    made, alive = make_volume(backend, return_comp_normal=True, **renderer)
    for step in steps:
        torch.manual_seed(step)
        made.update_step(0, step)
    torch.manual_seed(2)
    out = made(**shown)
    (out["comp_rgb"].square().sum() + out["depth"].sum() + out["comp_normal"].square().sum()).backward()
    return out, [p.grad for p in alive[0].parameters()]


@pytest.mark.parametrize("part", [slice(None), slice(2, 3)], ids=["view", "one ray"])
def test_a_view_is_the_same_through_the_kernels(monkeypatch, part):
    shown = {key: value[:, part, part] if value.dim() == 4 else value for key, value in views(1, 5, 5).items()}
    plain, plain_gradients = rendered("auto", shown)
    calls = triton_stand_ins.install(monkeypatch)
    out, gradients = rendered("triton", shown)
    assert {"occupied_steps", "exclusive_ray_sum", "gather", "scatter", "contract", "two_layers"} <= set(calls)
    assert len(out["weights"]) == len(plain["weights"]) > 10
    for name in ("comp_rgb", "depth", "opacity", "comp_normal", "weights"):
        torch.testing.assert_close(out[name], plain[name], atol=1e-5, rtol=1e-5)
    for one, other in zip(gradients, plain_gradients):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_a_view_without_a_sample(monkeypatch):
    triton_stand_ins.install(monkeypatch)
    shown = views(1, 3, 3)
    out, gradients = rendered("triton", shown, steps=())  # nothing was declared occupied
    assert len(out["weights"]) == 1 and not out["opacity"].any()
    assert all(g is None or torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_chunks_computed_again_give_the_same_gradients(size):
    shown = views(1, 4, 4)
    whole, chunked = rendered("auto", shown), rendered("auto", shown, train_chunk_size=size if size > 1 else 50)
    torch.testing.assert_close(chunked[0]["comp_rgb"], whole[0]["comp_rgb"])
    for one, other in zip(chunked[1], whole[1]):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_chunks_keep_less(monkeypatch):
    """What the field's own operations save for the backward pass, in numbers: one chunk's at a time, or all."""
    kept = []
    for size in (0, 64):
        renderer = build({"num_samples_per_ray": 64, "grid_prune": False, "train_chunk_size": size})
        renderer(**views())["comp_rgb"].sum().backward()
        kept.append((max(renderer.geometry.asked), len(renderer.geometry.asked)))
    (whole, once), (most, calls) = kept
    assert most == 64 and once == 1 and calls >= 2 * (whole // 64)  # each chunk forward and again backward


def test_only_one_hidden_layer_with_relu_in_float32_is_fused(monkeypatch):
    calls = triton_stand_ins.install(monkeypatch)
    base = {"otype": "VanillaMLP", "n_neurons": 16}
    for change, fused in [({}, True), ({"activation": "tanh"}, False), ({"n_hidden_layers": 2}, False),
                          ({"backend": "torch"}, False), ({"precision": "bfloat16"}, False)]:  # fmt: skip
        calls.clear()
        assert get_mlp(16, 1, {**base, **change})(torch.rand(4, 16)).dtype == torch.float32
        assert ("two_layers" in calls) == fused, change


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="precision is 'half'.*float32"):
        get_mlp(4, 1, {"otype": "VanillaMLP", "precision": "half"})
    with pytest.raises(ConfigError, match="backend is 'triton'.*CUDA GPU.*backend: auto"):
        Grid(3, {**GRID, "backend": "triton"})(torch.rand(2, 3))


def test_a_gpu_without_triton_is_told_once(monkeypatch):
    warnings = []
    monkeypatch.setattr("threestudio.warn", warnings.append)
    monkeypatch.setattr(triton_support, "_problem", lambda device: "ImportError: no triton")
    triton_support.triton_problem.cache_clear()
    try:
        cuda = torch.device("cuda", 0)
        assert not triton_support.triton_runs(cuda) and not triton_support.triton_runs(cuda)
        assert len(warnings) == 1 and "cuda:0" in warnings[0] and "ImportError: no triton" in warnings[0]
        assert not triton_support.triton_runs(torch.device("cpu")) and len(warnings) == 1
    finally:
        triton_support.triton_problem.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_problem_is_found_by_trying():
    assert "Error" in triton_support._problem(torch.device("cuda", 0))


def test_deterministic_runs_take_pytorch(monkeypatch):
    monkeypatch.setattr(triton_support, "triton_problem", lambda index: None)
    assert triton_support.triton_runs(torch.device("cuda", 0))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert not triton_support.triton_runs(torch.device("cuda", 0))
