"""Splat files as a start: placed, complete, and refused in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dreammapping.errors import ConfigError
from dreammapping.gaussians import GaussianModel, save_gaussians
from dreammapping.initialization import InitSettings, initial_gaussians, initial_points
from dreammapping.initialization.points import rotation_to_z_up

threestudio = pytest.importorskip("threestudio")


@pytest.fixture
def splat_file(tmp_path):
    """A long Gaussian along the file's y, a small one at its +z, and a far one that is hardly there."""
    model = GaussianModel(1, 3)
    with torch.no_grad():
        model.params["means"].copy_(torch.tensor([[1.0, 1, 1], [1, 1, 3], [50, 0, 0]]))
        model.params["scales"].copy_(torch.tensor([[0.1, 0.8, 0.1], [0.1, 0.1, 0.1], [1, 1, 1]]).log())
        model.params["quats"][:, 0] = 1
        model.params["opacities"].copy_(torch.tensor([3.0, 2.0, -5.0]))
        model.params["sh0"].copy_(torch.tensor([[[1.0, 0, 0]], [[0, 1.0, 0]], [[0, 0, 0]]]))
        model.params["shN"].normal_(generator=torch.Generator().manual_seed(0))
    return save_gaussians(model, tmp_path / "a.ply")


def settings(path, **values) -> InitSettings:
    return InitSettings(type="splat", path=str(path), **values)


def longest_axis(model: GaussianModel, row: int) -> torch.Tensor:
    from dreammapping.gaussians.rotation import rotate

    axis = torch.eye(3)[model.get_scales[row].argmax()]
    return rotate(model.get_quats[row : row + 1], axis[None])[0].abs().detach()


def test_gaussians_are_turned_centered_and_scaled(splat_file):
    model = initial_gaussians(settings(splat_file, up="y", radius=0.5))
    # The visible two lie 2 apart along the file's z, which becomes -y; they end half the radius off on each side.
    torch.testing.assert_close(model.get_means[:2].detach(), torch.tensor([[0.0, 0.5, 0], [0, -0.5, 0]]))
    torch.testing.assert_close(model.get_scales[0].max().detach(), torch.tensor(0.4))
    torch.testing.assert_close(longest_axis(model, 0), torch.tensor([0.0, 0, 1]))
    assert model.count == 3 and model.sh_degree == 1
    turned = initial_gaussians(settings(splat_file, up="y", yaw=90.0))
    torch.testing.assert_close(turned.get_means[:2].detach(), torch.tensor([[-0.5, 0, 0], [0.5, 0, 0]]))
    kept = initial_gaussians(settings(splat_file, normalize=False))
    torch.testing.assert_close(kept.get_means[1].detach(), torch.tensor([1.0, 1, 3]))


def test_what_is_hardly_there_counts_only_where_nothing_else_is(splat_file, tmp_path):
    model = initial_gaussians(settings(splat_file, normalize=False))
    with torch.no_grad():
        model.params["opacities"].fill_(-5.0)
    path = save_gaussians(model, tmp_path / "faint.ply")
    assert initial_gaussians(settings(path)).bounding_radius() == pytest.approx(0.5)


@pytest.mark.parametrize("up", ["x", "y", "z", "-x", "-y", "-z"])
def test_every_up_axis_becomes_z(up):
    axis = torch.eye(3)["xyz".index(up[-1])] * (-1 if up[0] == "-" else 1)
    turn = rotation_to_z_up(up, 30.0)
    torch.testing.assert_close(turn @ axis, torch.tensor([0.0, 0, 1]))
    torch.testing.assert_close(turn @ turn.T, torch.eye(3))
    assert float(torch.linalg.det(turn)) == pytest.approx(1.0)


def test_the_geometry_starts_with_the_file(splat_file):
    torch.manual_seed(0)
    init = {"type": "splat", "path": str(splat_file), "num_points": 1}
    geometry = threestudio.find("dreammapping-gaussians")({"init": init, "sh_degree": 2})
    expected = initial_gaussians(settings(splat_file))
    assert geometry.count == 3
    assert torch.equal(geometry.gaussians.get_sh[:, :4], expected.get_sh)
    assert torch.equal(geometry.gaussians.params["opacities"], expected.params["opacities"])  # not opacity_init
    flat = threestudio.find("dreammapping-gaussians")({"init": init})
    assert flat.gaussians.sh_degree == 0 and torch.equal(flat.gaussians.params["sh0"], expected.params["sh0"])
    with pytest.raises(ConfigError, match="starts with 3 Gaussians, above densification.cap_max"):
        threestudio.find("dreammapping-gaussians")({"init": init, "densification": {"cap_max": 2}})


def test_a_lower_degree_is_told(splat_file, caplog):
    with caplog.at_level("INFO"):
        threestudio.find("dreammapping-gaussians")({"init": {"type": "splat", "path": str(splat_file)}})
    assert "SH degree 1" in caplog.text


def test_other_geometries_get_the_visible_centers(splat_file):
    cloud = initial_points(settings(splat_file, normalize=False), torch.Generator().manual_seed(0), 10)
    assert cloud.points.tolist() == [[1, 1, 1], [1, 1, 3]]
    np.testing.assert_allclose(cloud.colors[:, 0].numpy(), [0.5 + 0.28209479, 0.5], atol=1e-6)


def test_mistakes_are_explained(splat_file):
    with pytest.raises(ConfigError, match="needs init.path"):
        initial_gaussians(InitSettings(type="splat"))
    with pytest.raises(ConfigError, match="linear_colors"):
        initial_gaussians(settings(splat_file, linear_colors=True))
