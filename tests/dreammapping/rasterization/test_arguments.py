"""The public function: which backend it takes, what it returns, and what it says about mistakes."""

from __future__ import annotations

import pytest
import torch

from dreammapping.rasterization import RasterizationError, rasterize


def arguments(**changes):
    base = dict(
        means=torch.rand(4, 3), quats=torch.rand(4, 4), scales=torch.rand(4, 3), opacities=torch.rand(4),
        colors=torch.rand(4, 3), viewmats=torch.eye(4)[None], Ks=torch.eye(3)[None], width=9, height=7,
    )  # fmt: skip
    return base | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(means=torch.rand(4, 2)), r"means must have shape \[N, 3\], got \[4, 2\]"),
        (dict(quats=torch.rand(3, 4)), r"quats must have shape \[4, 4\].*got \[3, 4\]"),
        (dict(opacities=torch.rand(4, 1)), r"opacities must have shape \[4\]"),
        (dict(colors=torch.rand(4, 9, 3)), "pass sh_degree"),
        (dict(colors=torch.rand(4, 3, 3), sh_degree=1), "K >= 4"),
        (dict(colors=torch.rand(4, 36, 3), sh_degree=5), "from 0 to 4, got 5"),
        (dict(viewmats=torch.eye(4)), r"viewmats must have shape \[C, 4, 4\]"),
        (dict(Ks=torch.eye(3).repeat(2, 1, 1)), r"Ks must have shape \[1, 3, 3\]"),
        (dict(background=torch.rand(3)), r"background must have shape \[1, 3\]"),
        (dict(scales=torch.rand(4, 3).double()), "scales is torch.float64 but means is torch.float32"),
        (dict(means=torch.ones(4, 3, dtype=torch.long)), "floating-point"),
        (dict(quats=[[1.0, 0, 0, 0]] * 4), "quats must be a torch.Tensor, got list"),
        (dict(colors=torch.rand(4, 3, device="meta")), "colors is on meta but means is on cpu"),
        (dict(width=0), "width must be a positive integer, got 0"),
        (dict(height=7.0), "height must be a positive integer"),
        (dict(near=0.0), "0 < near < far"),
        (dict(eps2d=-1.0), "eps2d"),
        (dict(backend="numpy"), "unknown backend 'numpy'. Known: auto, gsplat, numba, reference"),
        (dict(backend="gsplat"), "needs CUDA tensors, got tensors on cpu"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(RasterizationError, match=message) as caught:
        rasterize(**arguments(**changes))
    assert caught.value.is_user_error


def test_missing_gsplat_names_the_package_and_cuda(monkeypatch):
    import sys

    from dreammapping.rasterization import gsplat_backend

    monkeypatch.setitem(sys.modules, "gsplat", None)
    with pytest.raises(RasterizationError, match="pip install gsplat.*CUDA"):
        gsplat_backend._import_gsplat()


def test_auto_takes_numba_for_float32_and_the_reference_otherwise(monkeypatch):
    import dreammapping.rasterization.numba_backend as numba_backend

    taken = []
    monkeypatch.setattr(numba_backend, "rasterize_numba", lambda scene: taken.append(scene.means.dtype))
    rasterize(**arguments())
    assert taken == [torch.float32]
    doubles = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in arguments().items()}
    assert rasterize(**doubles).rgb.dtype == torch.float64


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_info_has_what_densification_reads(backend):
    means = torch.tensor([[0.0, 0.0, 2.0], [0.1, 0.0, -2.0]], requires_grad=True)
    K = torch.tensor([[[20.0, 0, 8], [0, 20, 6], [0, 0, 1]]]).repeat(2, 1, 1)
    out = rasterize(
        means, torch.tensor([[1.0, 0, 0, 0]] * 2), torch.full((2, 3), 0.2), torch.tensor([0.5, 0.5]),
        torch.rand(2, 3), torch.eye(4).repeat(2, 1, 1), K, 16, 12, backend=backend,
    )  # fmt: skip
    info = out.info
    assert out.rgb.shape == (2, 12, 16, 3) and out.alpha.shape == out.depth.shape == (2, 12, 16, 1)
    assert info["means2d"].shape == (2, 2, 2) and info["conics"].shape == (2, 2, 3)
    assert info["radii"].shape == (2, 2, 2) and info["radii"].dtype == torch.int32
    assert info["depths"].shape == info["opacities"].shape == (2, 2)
    assert (info["width"], info["height"], info["n_cameras"], info["gaussian_ids"]) == (16, 12, 2, None)
    assert (info["radii"][:, 0] > 0).all() and not info["radii"][:, 1].any()
    info["means2d"].retain_grad()
    (out.rgb * torch.arange(16.0)[:, None]).sum().backward()
    assert info["means2d"].grad[:, 0].any() and not info["means2d"].grad[:, 1].any()
    # d u / d x = f / z = 10 for each of the two equal cameras; nothing else depends on x at the image center.
    assert means.grad[0, 0] == pytest.approx(float(10 * info["means2d"].grad[:, 0, 0].sum()), rel=1e-3)
