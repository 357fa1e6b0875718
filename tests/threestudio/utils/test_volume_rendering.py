"""Weights along rays: closed forms, a plain loop in float64, finite differences, and nerfacc where it is installed."""

from __future__ import annotations

import math

import pytest
import torch

from threestudio.utils.volume_rendering import (
    accumulate_along_rays,
    exclusive_sum,
    render_visibility_from_density,
    render_weight_from_density,
)

COUNTS = torch.tensor([3, 0, 1, 6, 0, 2, 0])
RAYS = torch.repeat_interleave(torch.arange(7), COUNTS)


def packed(dtype=torch.float64, seed=0):
    """Intervals with gaps on seven rays, three of them empty, and densities."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.rand(len(RAYS), generator=generator, dtype=dtype) * 0.3
    t_starts = torch.rand(len(RAYS), generator=generator, dtype=dtype).cumsum(0)
    return t_starts, t_starts + lengths, torch.rand(len(RAYS), generator=generator, dtype=dtype) * 8


def loop(t_starts, t_ends, sigmas, rays):
    """The definition, one sample after the other, in Python's floats."""
    weights, transmittance, passed, previous = [], [], 1.0, None
    for start, end, sigma, ray in zip(t_starts.tolist(), t_ends.tolist(), sigmas.tolist(), rays.tolist()):
        passed = 1.0 if ray != previous else passed
        alpha = 1.0 - math.exp(-sigma * (end - start))
        weights.append(passed * alpha)
        transmittance.append(passed)
        passed, previous = passed * (1.0 - alpha), ray
    return torch.tensor(weights, dtype=torch.float64), torch.tensor(transmittance, dtype=torch.float64)


def test_packed_weights_equal_a_loop():
    t_starts, t_ends, sigmas = packed()
    found = render_weight_from_density(t_starts, t_ends, sigmas, RAYS)
    weights, transmittance = loop(t_starts, t_ends, sigmas, RAYS)
    torch.testing.assert_close(found.weights, weights)
    torch.testing.assert_close(found.transmittance, transmittance)
    torch.testing.assert_close(found.alphas, 1 - torch.exp(-sigmas * (t_ends - t_starts)))
    values = torch.rand(len(RAYS), 2, dtype=torch.float64)
    sums = accumulate_along_rays(found.weights, values, RAYS, len(COUNTS))
    expected = torch.stack([(weights[RAYS == ray, None] * values[RAYS == ray]).sum(0) for ray in range(7)])
    torch.testing.assert_close(sums, expected)
    assert (sums[COUNTS == 0] == 0).all()


def test_dense_weights_equal_packed_ones():
    t = torch.rand(4, 9, dtype=torch.float64).sort(dim=-1).values
    sigmas = torch.rand(4, 8, dtype=torch.float64) * 5
    dense = render_weight_from_density(t[:, :-1], t[:, 1:], sigmas)
    rays = torch.arange(4).repeat_interleave(8)
    flat = render_weight_from_density(t[:, :-1].flatten(), t[:, 1:].flatten(), sigmas.flatten(), rays)
    for one, other in zip(dense, flat):
        torch.testing.assert_close(one.flatten(), other)
    values = torch.rand(4, 8, 3, dtype=torch.float64)
    torch.testing.assert_close(
        accumulate_along_rays(dense.weights, values), accumulate_along_rays(flat.weights, values.flatten(0, 1), rays, 4)
    )


def test_constant_slab():
    sigma, begin, end = 3.0, 1.0, 1.8
    t = torch.linspace(begin, end, 401, dtype=torch.float64)
    rays = torch.zeros(400, dtype=torch.long)
    weights = render_weight_from_density(t[:-1], t[1:], torch.full((400,), sigma, dtype=torch.float64), rays).weights
    passed = math.exp(-sigma * (end - begin))
    assert float(accumulate_along_rays(weights, None, rays, 1)) == pytest.approx(1 - passed, abs=1e-12)
    depth = accumulate_along_rays(weights, ((t[:-1] + t[1:]) / 2)[:, None], rays, 1)
    assert float(depth) == pytest.approx(begin + 1 / sigma - (end + 1 / sigma) * passed, abs=1e-5)


@pytest.mark.parametrize("ray_indices", [RAYS, None])
def test_gradients_against_finite_differences(ray_indices):
    t_starts, t_ends, sigmas = packed()
    if ray_indices is None:
        t_starts, t_ends, sigmas = (value.view(3, 4) for value in (t_starts, t_ends, sigmas))
    inputs = [value.requires_grad_() for value in (t_starts, t_ends, sigmas)]
    assert torch.autograd.gradcheck(lambda *args: render_weight_from_density(*args, ray_indices), inputs)
    values = torch.rand(*t_starts.shape, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand_like(t_starts).requires_grad_()
    assert torch.autograd.gradcheck(lambda w, v: accumulate_along_rays(w, v, ray_indices, 7), (weights, values))


def test_float32_keeps_its_digits_with_many_rays_and_opaque_ones():
    torch.manual_seed(0)
    counts = torch.randint(20, 80, (4000,))
    rays = torch.repeat_interleave(torch.arange(4000), counts)
    depth = torch.rand(len(rays)) * 0.1
    depth[rays % 2 == 0] *= 1e4  # between them lie opaque rays, which make a running sum over all of them large
    start = torch.zeros_like(depth)
    found = render_weight_from_density(start, torch.ones_like(depth), depth, rays)
    exact = render_weight_from_density(start.double(), torch.ones_like(depth).double(), depth.double(), rays)
    torch.testing.assert_close(found.transmittance.double(), exact.transmittance, rtol=1e-5, atol=1e-7)
    thin = render_weight_from_density(start[:1], start[:1] + 1, torch.tensor([1e-9]), rays[:1])
    assert float(thin.weights) == pytest.approx(1e-9, rel=1e-6)


def test_a_broken_ray_stays_alone():
    found = exclusive_sum(
        torch.tensor([1.0, math.nan, 2.0, math.inf, 1.0, 1.0, 4.0]), torch.tensor([0, 0, 0, 1, 1, 2, 2])
    )
    assert found[5:].tolist() == [0.0, 1.0] and found[0] == 0 and found[3] == 0 and found[4] == math.inf


def test_half_precision_densities_and_no_samples():
    t_starts, t_ends, sigmas = packed(torch.float32)
    assert render_weight_from_density(t_starts, t_ends, sigmas.half(), RAYS).weights.dtype == torch.float32
    empty = torch.zeros(0, requires_grad=True)
    weights = render_weight_from_density(empty, empty, empty, torch.zeros(0, dtype=torch.long)).weights
    opacity = accumulate_along_rays(weights, None, torch.zeros(0, dtype=torch.long), 3)
    opacity.sum().backward()
    assert opacity.tolist() == [[0.0]] * 3
    with pytest.raises(TypeError, match="n_rays"):
        accumulate_along_rays(weights, None, torch.zeros(0, dtype=torch.long))


def test_visibility():
    sigmas, rays = torch.tensor([0.001, 5.0, 5.0, 5.0, 1.0]), torch.tensor([0, 0, 0, 0, 1])
    starts = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.0])
    visible = render_visibility_from_density(starts, starts + 1, sigmas, rays, early_stop_eps=1e-3, alpha_thre=0.01)
    assert visible.tolist() == [False, True, True, False, True]  # transparent; seen; seen through 7e-3; behind 5e-5


def test_agrees_with_nerfacc():
    nerfacc = pytest.importorskip("nerfacc")
    t = torch.rand(4, 9).sort(dim=-1).values
    sigmas, values = torch.rand(4, 8) * 5, torch.rand(4, 8, 3)
    theirs = nerfacc.render_weight_from_density(t[:, :-1], t[:, 1:], sigmas)
    ours = render_weight_from_density(t[:, :-1], t[:, 1:], sigmas)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other)
    rays = torch.arange(4).repeat_interleave(8)
    torch.testing.assert_close(
        accumulate_along_rays(ours.weights.flatten(), values.flatten(0, 1), rays, 5),
        nerfacc.accumulate_along_rays(ours.weights.flatten(), values.flatten(0, 1), rays, 5),
    )
