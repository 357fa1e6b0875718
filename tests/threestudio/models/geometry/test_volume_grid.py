"""volume-grid against linear fields, which interpolation between voxels reproduces exactly."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from threestudio import find
from threestudio.errors import ConfigError

SIZE = [4, 5, 6]  # along z, y, x


def make(**config):
    torch.manual_seed(0)
    return find("volume-grid")({"grid_size": SIZE, **config}).double()


def voxel_centers(radius=1.0):
    """World coordinates (x, y, z) of the voxels, [nz, ny, nx, 3]."""
    z, y, x = (torch.linspace(-radius, radius, n, dtype=torch.float64) for n in SIZE)
    return torch.stack(torch.meshgrid(z, y, x, indexing="ij")[::-1], dim=-1)


def linear(x):
    return 0.3 + x @ torch.tensor([[1.0, -2.0, 0.5], [0.2, 0.1, -0.7]], dtype=x.dtype).T  # [..., 2]


def points(*shape, radius=0.9):
    return (torch.rand(*shape, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2 - 1) * radius


def make_linear(**config):
    """Density of slope (1, -2, 0.5), one feature."""
    grid = make(n_feature_dims=1, density_activation="none", density_bias=0, **config)
    with torch.no_grad():
        grid.grid.copy_(linear(voxel_centers(grid.cfg.radius)).permute(3, 0, 1, 2)[None])
    return grid


def test_defaults_are_threestudios():
    cfg = OmegaConf.structured(find("volume-grid").Config)
    assert tuple(cfg.grid_size) == (100, 100, 100) and cfg.n_feature_dims == 3
    assert (cfg.density_activation, cfg.density_bias, cfg.normal_type) == ("softplus", "blob", "finite_difference")
    assert (cfg.density_blob_scale, cfg.density_blob_std, cfg.isosurface_threshold) == (5.0, 0.5, "auto")


@pytest.mark.parametrize("prefix", [(7,), (2, 5), (1, 2, 3)])
@pytest.mark.parametrize("radius", [1.0, 2.0])
def test_a_linear_field_is_reproduced(prefix, radius):
    volume = make_linear(radius=radius)
    x = points(*prefix, radius=radius)
    out = volume(x, output_normal=True)
    assert torch.allclose(out["density"], linear(x)[..., :1]) and torch.allclose(out["features"], linear(x)[..., 1:])
    assert torch.equal(volume.forward_density(x), out["density"])
    assert torch.allclose(volume.export(x)["features"], out["features"])
    expected = -F.normalize(torch.tensor([1.0, -2.0, 0.5], dtype=x.dtype), dim=-1).expand(*prefix, 3)
    assert torch.allclose(out["normal"], expected) and torch.equal(out["normal"], out["shading_normal"])
    corner = torch.full((1, 3), radius, dtype=x.dtype)
    assert torch.allclose(volume(corner)["density"], linear(corner)[:, :1])


def test_the_scale_is_learned_only_beside_a_number():
    x = points(5)
    volume = make_linear()
    volume.density_scale.data.fill_(math.log(3.0))
    assert torch.allclose(volume.forward_density(x), 3 * linear(x)[..., :1])
    volume.forward_density(x).sum().backward()
    assert torch.allclose(volume.density_scale.grad, volume.forward_density(x).sum())  # d(e^s u)/ds = e^s u
    blob = make()
    assert "density_scale" in dict(blob.named_buffers()) and [name for name, _ in blob.named_parameters()] == ["grid"]


def test_the_blob_in_closed_form():
    x = points(8)
    r = x.norm(dim=-1, keepdim=True)
    out = make(density_blob_scale=4, density_blob_std=0.6)(x, output_normal=True)
    assert torch.allclose(out["density"], F.softplus(4 * (1 - r / 0.6)))
    assert torch.allclose(out["normal"], x / r, atol=1e-5) and out["features"].abs().sum() == 0
    number = make(density_bias=-2.5)
    assert torch.allclose(number.forward_density(x), F.softplus(torch.full_like(r, -2.5)))


def test_gradients_by_finite_differences():
    volume, x = make(n_feature_dims=1), points(3)
    grid = torch.randn(1, 2, *SIZE, dtype=torch.float64, requires_grad=True)

    def render(grid):
        out = torch.func.functional_call(volume, {"grid": grid}, (x, True))
        return out["density"], out["features"]

    assert torch.autograd.gradcheck(render, (grid,), fast_mode=True)


def test_predicted_normals_come_from_their_own_voxels():
    volume = make(normal_type="pred")
    slopes = torch.tensor([0.2, -0.4, 0.4], dtype=torch.float64)
    volume.normal_grid.data.copy_(slopes[None, :, None, None, None].expand_as(volume.normal_grid))
    out = volume(points(2, 3), output_normal=True)
    assert torch.allclose(out["normal"], (slopes / 0.6).expand(2, 3, 3))
    out["normal"][..., 0].sum().backward()
    assert volume.normal_grid.grad.abs().sum() > 0


def test_the_surface_of_the_blob_and_of_a_fit():
    blob = make(isosurface_resolution=24, isosurface_threshold=2.0, density_blob_std=0.8).float()
    mesh = blob.isosurface()
    expected = 0.8 * (1 - math.log(math.exp(2.0) - 1) / 5)
    assert len(mesh.t_pos_idx) > 300 and (mesh.v_pos.norm(dim=-1) - expected).abs().max() < 0.02
    automatic = make(isosurface_resolution=24).float()
    field, _ = automatic.forward_field(torch.rand(4, 3) - 0.5)
    assert torch.equal(automatic.forward_level(field, 1.0), 1.0 - field)
    mesh = automatic.isosurface()  # the threshold is found
    radii = mesh.v_pos.norm(dim=-1)
    assert 0.1 < radii.mean() < 0.8 and radii.std() < 0.02


def test_state_dict_round_trip_and_device():
    first = make_linear(normal_type="pred")
    second = make(n_feature_dims=1, density_activation="none", density_bias=0, normal_type="pred")
    first.normal_grid.data.normal_()
    second.load_state_dict(first.state_dict())
    x = points(4)
    assert all(torch.equal(a, b) for a, b in zip(first(x, True).values(), second(x, True).values()))
    out = make().to("meta")(torch.rand(3, 3, device="meta", dtype=torch.float64), output_normal=True)
    assert all(value.is_meta for value in out.values())


@pytest.mark.parametrize(
    "config, message",
    [
        ({"grid_sizes": [2, 2, 2]}, "grid_sizes is unknown.*grid_size"),
        ({"grid_size": [1, 4, 4]}, "grid_size is"),
        ({"density_bias": "blob_magic3d"}, "density_bias is 'blob_magic3d'.*'blob'"),
        ({"normal_type": "analytic"}, "normal_type is 'analytic'.*finite_difference"),
        ({"density_activation": "softpluss"}, "Unknown activation"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(ConfigError, match=message):
        make(**config)
    with pytest.raises(ConfigError, match="normal_type is null"):
        make(normal_type=None)(points(2), output_normal=True)
