from __future__ import annotations

import math

import pytest
import torch
from dreammapping.errors import ConfigError
from dreammapping.gaussians import GaussianModel, knn_scales, rgb_to_sh0, sh0_to_rgb
from dreammapping.initialization import ColoredPoints


def test_activated_values_equal_hand_numbers():
    model = GaussianModel(sh_degree=0, count=1)
    with torch.no_grad():
        model.params["means"][:] = torch.tensor([1.0, 2.0, 3.0])
        model.params["scales"][:] = math.log(0.25)
        model.params["quats"][:] = torch.tensor([0.0, 3.0, 0.0, 4.0])
        model.params["opacities"][:] = math.log(0.2 / 0.8)
        model.params["sh0"][:] = 1.0
    torch.testing.assert_close(model.get_scales, torch.full((1, 3), 0.25))
    torch.testing.assert_close(model.get_quats, torch.tensor([[0.0, 0.6, 0.0, 0.8]]))
    torch.testing.assert_close(model.get_opacities, torch.tensor([0.2]))
    torch.testing.assert_close(model.get_rgb, torch.full((1, 3), 0.5 + 0.28209479177387814))
    assert model.bounding_radius() == pytest.approx(math.sqrt(14))


def test_color_and_coefficient_are_inverse():
    rgb = torch.rand(50, 3, dtype=torch.float64)
    torch.testing.assert_close(sh0_to_rgb(rgb_to_sh0(rgb)), rgb)


@pytest.mark.parametrize("sh_degree", [0, 1, 2, 3, 4])
def test_colored_points_become_gaussians_of_that_color_and_opacity(sh_degree):
    cloud = ColoredPoints(torch.rand(20, 3), torch.rand(20, 3))
    model = GaussianModel.from_points(cloud, sh_degree=sh_degree, opacity=0.3)
    torch.testing.assert_close(model.get_rgb, cloud.colors)
    torch.testing.assert_close(model.get_opacities, torch.full((20,), 0.3))
    torch.testing.assert_close(model.get_means, cloud.points)
    assert model.get_sh.shape == (20, (sh_degree + 1) ** 2, 3)
    assert model.params["shN"].abs().sum() == 0


def test_rasterizer_inputs_pass_plain_colors_only_without_view_dependence():
    model = GaussianModel(sh_degree=2, count=3)
    assert model.rasterizer_inputs()["colors"].shape == (3, 9, 3) and model.rasterizer_inputs()["sh_degree"] == 2
    model.active_sh_degree = 0
    assert model.rasterizer_inputs()["colors"].shape == (3, 3) and model.rasterizer_inputs()["sh_degree"] is None


def test_scales_are_the_root_mean_square_distance_to_three_neighbors():
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    distances = torch.cdist(points, points).sort(dim=1).values[:, 1:4]
    torch.testing.assert_close(knn_scales(points), distances.square().mean(1).sqrt(), rtol=1e-9, atol=0)


def test_scales_of_degenerate_clouds_stay_positive():
    assert knn_scales(torch.zeros(1, 3)).tolist() == pytest.approx([0.01])
    assert knn_scales(torch.zeros(5, 3)).tolist() == pytest.approx([math.sqrt(1e-7)] * 5)
    assert knn_scales(torch.tensor([[0.0, 0, 0], [0, 0, 2.0]])).tolist() == pytest.approx([2.0, 2.0])


def test_bad_settings_are_explained():
    cloud = ColoredPoints(torch.rand(2, 3), torch.rand(2, 3))
    with pytest.raises(ConfigError, match="sh_degree is 5"):
        GaussianModel(5)
    with pytest.raises(ConfigError, match="opacity_init is 1"):
        GaussianModel.from_points(cloud, opacity=1)
    with pytest.raises(ConfigError, match="no points"):
        GaussianModel.from_points(ColoredPoints(torch.zeros(0, 3), torch.zeros(0, 3)))


def test_state_of_another_size_loads_into_the_same_parameter_objects(scene):
    make_model, _, _ = scene
    saved, model = make_model(7), make_model(3, seed=5)
    before = dict(model.params.items())
    saved.active_sh_degree = 0
    model.load_state_dict(saved.state_dict())
    for name, value in model.params.items():
        assert value is before[name] and torch.equal(value, saved.params[name])
    assert model.active_sh_degree == 0
    model.get_means.sum().backward()
    assert model.params["means"].grad.shape == (7, 3)


def test_state_of_another_sh_degree_is_refused(scene):
    make_model, _, _ = scene
    with pytest.raises(ConfigError, match="set sh_degree to 2"):
        GaussianModel(0, 3).load_state_dict(make_model(4, sh_degree=2).state_dict())


def test_change_of_sh_degree_keeps_the_shared_coefficients(scene):
    make_model, _, _ = scene
    model = make_model(5, sh_degree=1)
    up, down = model.with_sh_degree(2), model.with_sh_degree(0)
    assert torch.equal(up.get_sh[:, :4], model.get_sh) and up.get_sh[:, 4:].abs().sum() == 0
    assert torch.equal(down.get_sh, model.params["sh0"])
    assert torch.equal(up.params["quats"], model.params["quats"])


def test_rows_with_a_value_that_is_not_finite_are_found(scene):
    make_model, _, _ = scene
    model = make_model(6)
    model.params["shN"].data[1, 2, 0] = float("nan")
    model.params["opacities"].data[4] = float("inf")
    assert model.finite_rows().tolist() == [True, False, True, True, False, True]
