"""The CPU backend against the float64 reference, and what the reference cannot show: threads, NaN, graph, errors."""

from __future__ import annotations

import pytest
import torch

from dreammapping.rasterization import RasterizationError, rasterize

pytest.importorskip("numba")

CASES = {
    "sh4, three cameras": dict(count=200, cameras=3, sh_degree=4),
    "sh3, sides not divisible by the tile": dict(count=150, cameras=2, sh_degree=3, width=19, height=50, seed=1),
    "sh2": dict(count=120, cameras=2, sh_degree=2, width=32, height=16, seed=2),
    "sh1": dict(count=120, cameras=1, sh_degree=1, seed=3),
    "sh0": dict(count=60, cameras=2, sh_degree=0, seed=4),
    "plain colors, crowded": dict(count=900, cameras=1, sh_degree=None, width=33, height=47, seed=5),
    "one Gaussian": dict(count=1, cameras=2, sh_degree=1, seed=6),
    "no Gaussian": dict(count=0, cameras=2, sh_degree=2, seed=7),
    "one pixel": dict(count=80, cameras=1, sh_degree=None, width=1, height=1, seed=8),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_match_the_reference(name, random_case, relative_error):
    case = random_case(**CASES[name])
    weights = case.weights()
    steady = (weights["alpha"] != 0).double()
    assert steady.mean() > 0.9
    want = case.render("reference", torch.float64, weights=weights)
    want_gradients = case.gradients
    got = case.render("numba", torch.float32, weights=weights)
    assert torch.equal(got.info["radii"], want.info["radii"])
    for key in ("rgb", "alpha"):
        assert ((getattr(got, key) - getattr(want, key)) * steady).abs().max() < 1e-5, key
    assert ((got.depth - want.depth) * steady).abs().max() < 1e-4
    for key, gradient in want_gradients.items():
        assert case.gradients[key].shape == gradient.shape
        # The background's is a sum of 1 - alpha, which float32 rounds to 6e-8 however small it is.
        rounding = 1e-5 if key == "background" else 0.0
        error = relative_error(case.gradients[key], gradient)
        assert error <= 1e-4 or error * gradient.norm() <= rounding, key


@pytest.mark.parametrize("output", ["rgb", "alpha", "depth"])
def test_a_loss_on_one_output_alone(output, random_case, relative_error):
    case = random_case(count=100, cameras=2, sh_degree=1, seed=9)
    weights = {output: case.weights()[output]}
    case.render("reference", torch.float64, weights=weights)
    want = case.gradients
    case.render("numba", torch.float32, weights=weights)
    for key, gradient in want.items():
        if gradient is not None:
            assert relative_error(case.gradients[key], gradient) <= 1e-4, key


@pytest.mark.parametrize("number", [2, 3, 7])
def test_the_number_of_threads_changes_no_bit(number, random_case, keep_threads):
    case = random_case(count=3000, cameras=3, sh_degree=1, width=90, height=70, seed=10)
    generator = torch.Generator().manual_seed(0)
    weights = {"rgb": torch.randn(3, 70, 90, 3, generator=generator), "depth": torch.ones(3, 70, 90, 1)}
    results = []
    for threads in (1, number):
        torch.set_num_threads(threads)
        out = case.render("numba", torch.float32, weights=weights)
        results.append([out.rgb, out.alpha, out.depth, *case.gradients.values()])
    for one, many in zip(*results):
        assert torch.equal(one, many)


def test_scene_without_visible_gaussians_shows_the_background(random_case):
    case = random_case(count=20, cameras=2, sh_degree=0)
    case.tensors["means"] += torch.tensor([0.0, 500.0, 0.0])
    out = case.render("numba", torch.float32, weights={"rgb": torch.ones(2, 35, 41, 3)})
    assert torch.equal(out.rgb, case.tensors["background"].float()[:, None, None].expand_as(out.rgb))
    assert not out.alpha.any() and not out.depth.any() and not out.info["radii"].any()
    assert not any(case.gradients[k].any() for k in ("means", "scales", "quats", "opacities", "colors", "means2d"))


@pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gaussian_that_is_no_number_is_culled(name, value, random_case):
    case = random_case(count=40, cameras=1, sh_degree=0)
    without = random_case(count=40, cameras=1, sh_degree=0)
    without.tensors["opacities"][7] = 0.0
    case.tensors[name][7] = value
    if name == "opacities" and value > 1:
        case.tensors[name][7] = -value
    weights = {"rgb": torch.ones(1, 35, 41, 3)}
    want = without.render("numba", torch.float32, weights=weights)
    kept = torch.arange(40) != 7
    expected = {k: v[kept] for k, v in without.gradients.items() if k not in ("background", "means2d")}
    got = case.render("numba", torch.float32, weights=weights)
    assert torch.equal(got.rgb, want.rgb)
    for key, gradient in expected.items():
        assert torch.equal(case.gradients[key][kept], gradient), key


def test_nan_color_stays_where_it_is_seen(random_case):
    case = random_case(count=40, cameras=1, sh_degree=None)
    case.tensors["means"][7] = torch.tensor([0.0, 0.0, 0.0])
    case.tensors["scales"][7] = 0.05
    case.tensors["colors"][7] = float("nan")
    out = case.render("numba", torch.float32)
    assert out.rgb.isnan().any() and out.rgb[0, 0, 0].isfinite().all()


def test_non_contiguous_inputs_and_expanded_gradients(random_case):
    case = random_case(count=50, cameras=2, sh_degree=2)
    want = case.render("numba", torch.float32, weights={"rgb": torch.ones(2, 35, 41, 3)})
    gradient = case.gradients["colors"]
    t = {k: v.float() for k, v in case.tensors.items()}
    colors = t["colors"].transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert not colors.is_contiguous()
    out = rasterize(
        **(t | {"colors": colors}), viewmats=case.viewmats.float(), Ks=case.Ks.float(), width=41, height=35,
        sh_degree=2, backend="numba",
    )  # fmt: skip
    out.rgb.sum().backward()
    assert torch.equal(out.rgb, want.rgb) and torch.equal(colors.grad, gradient)


def test_unused_sh_bands_get_zero_gradient(random_case):
    case = random_case(count=30, cameras=1, sh_degree=3)
    case.sh_degree = 1
    case.render("numba", torch.float32, weights={"rgb": torch.ones(1, 35, 41, 3)})
    assert case.gradients["colors"].shape == (30, 16, 3)
    assert case.gradients["colors"][:, :4].any() and not case.gradients["colors"][:, 4:].any()


def test_refuses_camera_gradients_and_double(random_case):
    case = random_case(count=5, cameras=1, sh_degree=0)
    t = {k: v.float() for k, v in case.tensors.items()}
    call = dict(Ks=case.Ks.float(), width=8, height=8, sh_degree=0, backend="numba")
    with pytest.raises(RasterizationError, match="viewmats.*reference"):
        rasterize(**t, viewmats=case.viewmats.float().requires_grad_(), **call)
    with pytest.raises(RasterizationError, match="float32.*float64"):
        case.render("numba", torch.float64)
