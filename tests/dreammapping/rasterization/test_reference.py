"""The readable rasterizer: its gradients by finite differences, its images by closed form."""

from __future__ import annotations

import math

import pytest
import torch

from dreammapping.rasterization import rasterize
from dreammapping.rasterization.spherical_harmonics import sh_basis, sh_to_rgb

BACKENDS = ("reference", "numba")


def one_pixel_stack(opacities, colors, depths, backend, background=None):
    """Gaussians behind one another, all centered on the center of pixel (10, 6)."""
    count = len(opacities)
    means = torch.zeros(count, 3)
    means[:, 2] = torch.tensor(depths)
    K = torch.tensor([[[50.0, 0, 10.5], [0, 50.0, 6.5], [0, 0, 1]]])
    out = rasterize(
        means, torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1), torch.full((count, 3), 0.1), torch.tensor(opacities),
        torch.tensor(colors), torch.eye(4)[None], K, 21, 15, background=background, backend=backend,
    )  # fmt: skip
    return out.rgb[0, 6, 10], out.alpha[0, 6, 10, 0], out.depth[0, 6, 10, 0]


def test_gradients_by_finite_differences(random_case):
    case = random_case(count=6, cameras=2, sh_degree=2, width=7, height=6, seed=3)
    case.tensors["scales"] = case.tensors["scales"].clamp(0.1, 0.4)
    names = list(case.tensors)

    def render(viewmats, *values):
        out = rasterize(
            **dict(zip(names, values)), viewmats=viewmats, Ks=case.Ks, width=7, height=6, sh_degree=2,
            backend="reference",
        )  # fmt: skip
        return out.rgb, out.alpha, out.depth

    inputs = [case.viewmats, *case.tensors.values()]
    assert torch.autograd.gradcheck(render, [x.clone().requires_grad_() for x in inputs], eps=1e-7, atol=1e-5)


def test_chunks_of_pixels_change_nothing(random_case, monkeypatch):
    case = random_case(count=50, cameras=1, sh_degree=1)
    weights = case.weights()
    whole, gradients = case.render("reference", torch.float64, weights=weights), case.gradients
    monkeypatch.setattr("dreammapping.rasterization.reference._PAIRS_PER_CHUNK", 5000)
    parts = case.render("reference", torch.float64, weights=weights)
    assert torch.allclose(whole.rgb, parts.rgb, rtol=0, atol=1e-14)
    for key, gradient in gradients.items():
        assert torch.allclose(case.gradients[key], gradient, rtol=1e-10, atol=1e-12), key


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("point", [(0.3, -0.2, 2.0), (-0.7, 0.45, 3.0), (0.0, 0.0, 5.0)])
def test_a_gaussian_lands_where_the_pinhole_projection_says(backend, point):
    x, y, z = point
    K = torch.tensor([[[70.0, 0, 31.0], [0, 80.0, 25.0], [0, 0, 1]]])
    viewmat = torch.eye(4)
    viewmat[:3, 3] = torch.tensor([0.1, -0.05, 0.2])
    out = rasterize(
        torch.tensor([[x - 0.1, y + 0.05, z - 0.2]]), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.05),
        torch.tensor([0.9]), torch.ones(1, 3), viewmat[None], K, 63, 51, backend=backend,
    )  # fmt: skip
    u, v = 70 * x / z + 31, 80 * y / z + 25
    assert torch.allclose(out.info["means2d"][0, 0], torch.tensor([u, v]), atol=1e-4)
    weight = out.alpha[0, ..., 0] / out.alpha.sum()
    assert float((weight.sum(0) * (torch.arange(63) + 0.5)).sum()) == pytest.approx(u, abs=0.02)
    assert float((weight.sum(1) * (torch.arange(51) + 0.5)).sum()) == pytest.approx(v, abs=0.02)
    assert out.depth[out.alpha > 0].numpy() == pytest.approx(z, abs=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compositing_in_closed_form(backend):
    background = torch.tensor([[0.2, 0.4, 0.6]])
    red, green = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
    # The farther one is given first: order is by depth.
    rgb, alpha, depth = one_pixel_stack([0.5, 0.25], [green, red], [4.0, 2.0], backend, background)
    # weights: near 0.25, far 0.75 * 0.5 = 0.375, background 0.375
    assert torch.allclose(rgb, torch.tensor([0.25 + 0.075, 0.375 + 0.15, 0.225]), atol=1e-6)
    assert float(alpha) == pytest.approx(0.625, abs=1e-6)
    assert float(depth) == pytest.approx((0.25 * 2 + 0.375 * 4) / 0.625, abs=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_clamp_threshold_and_stop(backend):
    white = [1.0, 1.0, 1.0]
    assert float(one_pixel_stack([0.99999], [white], [2.0], backend)[1]) == pytest.approx(0.999, abs=1e-6)
    assert float(one_pixel_stack([1 / 256], [white], [2.0], backend)[1]) == 0.0
    assert float(one_pixel_stack([1 / 254], [white], [2.0], backend)[1]) == pytest.approx(1 / 254, abs=1e-7)
    # 0.02, 0.0004, 0.000008: the third would pass the stop and is left out.
    rgb, alpha, _ = one_pixel_stack([0.98] * 3, [white, white, [9.0] * 3], [2.0, 3.0, 4.0], backend)
    assert float(alpha) == pytest.approx(1 - 0.0004, abs=1e-6)
    assert float(rgb[0]) == pytest.approx(1 - 0.0004, abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_footprint_of_an_isotropic_gaussian(backend):
    out = rasterize(
        torch.tensor([[0.0, 0.0, 4.0]]), torch.tensor([[0.3, -2.0, 1.0, 0.5]]), torch.full((1, 3), 0.2),
        torch.tensor([0.8]), torch.ones(1, 3), torch.eye(4)[None],
        torch.tensor([[[60.0, 0, 20.5], [0, 60.0, 20.5], [0, 0, 1]]]), 41, 41, backend=backend,
    )  # fmt: skip
    variance = (60 * 0.2 / 4) ** 2 + 0.3
    offsets = torch.arange(41) - 20.0
    expected = 0.8 * torch.exp(-(offsets**2) / (2 * variance))
    expected[expected < 1 / 255] = 0
    assert torch.allclose(out.alpha[0, 20, :, 0], expected, atol=1e-5)
    extent = math.sqrt(2 * math.log(0.8 * 255)) * math.sqrt(variance)
    assert out.info["radii"][0, 0].tolist() == [math.ceil(extent)] * 2


def test_spherical_harmonics_are_orthonormal():
    nodes, weights = (torch.from_numpy(a) for a in __import__("numpy").polynomial.legendre.leggauss(8))
    phi = torch.arange(16, dtype=torch.float64) * (2 * math.pi / 16)
    sine = torch.sqrt(1 - nodes**2)[:, None]
    directions = torch.stack([sine * phi.cos(), sine * phi.sin(), nodes[:, None].expand(-1, 16)], -1)
    basis = sh_basis(directions, 4)
    gram = torch.einsum("tpi,tpj,t->ij", basis, basis, weights) * (2 * math.pi / 16)
    assert torch.allclose(gram, torch.eye(25, dtype=torch.float64), atol=1e-9)


def test_spherical_harmonics_agree_with_gsplat():
    gsplat = pytest.importorskip("gsplat.cuda._torch_impl")
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(50, 3, generator=generator), dim=-1)
    for degree in range(5):
        want = gsplat._eval_sh_bases_fast((degree + 1) ** 2, directions)
        assert torch.allclose(sh_basis(directions, degree), want, atol=1e-5)


def test_sh_color_is_shifted_and_not_negative():
    coefficients = torch.tensor([[[1.0, -3.0, 0.0]]])
    color = sh_to_rgb(coefficients, torch.tensor([[0.0, 0.0, 1.0]]), 0)
    assert torch.allclose(color, torch.tensor([[0.5 + 0.28209479, 0.0, 0.5]]))
