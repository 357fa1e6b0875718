"""`init` as a config block: Shap-E's points, and whether the cameras of the shipped config see them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from dreammapping.errors import ConfigError
from dreammapping.initialization import InitSettings, initial_points, points_on_mesh, shap_e_mesh
from dreammapping.initialization.shap_e import ShapESettings
from omegaconf import OmegaConf

from tests.helpers.tiny_shap_e import make_tiny_shap_e

CONFIG = Path(__file__).resolve().parents[3] / "custom" / "dreammapping" / "configs" / "vdm-gs.yaml"


@pytest.fixture(scope="module")
def shap_e(tmp_path_factory) -> dict:
    """The block of a tiny Shap-E."""
    folder = tmp_path_factory.mktemp("shap-e")
    return {"model": str(make_tiny_shap_e(folder / "model")), "steps": 2, "grid_size": 24, "seed": 0, "cache_dir": str(folder / "cache")}


def start(shap_e: dict, seed: int = 0, cap: int = 10_000, **changes):
    settings = InitSettings(**{"type": "shap-e", "prompt": "a red mug", "num_points": 5000, "shap_e": shap_e, **changes})
    return initial_points(settings, torch.Generator().manual_seed(seed), cap)


def test_exactly_as_many_points_as_asked_centered_and_scaled(shap_e):
    cloud = start(shap_e, radius=0.4, num_points=4321)
    assert cloud.points.shape == cloud.colors.shape == (4321, 3)
    assert cloud.points.norm(dim=1).max().item() == pytest.approx(0.4, abs=1e-6)
    assert (cloud.points.amin(0) + cloud.points.amax(0)).abs().max() < 1e-6
    assert len(cloud.colors.unique(dim=0)) > 1000 and cloud.colors.min() >= 0 and cloud.colors.max() <= 1


def test_they_are_samples_of_the_mesh_as_it_stands(shap_e):
    mesh = shap_e_mesh("a red mug", ShapESettings(**shap_e), "cpu")
    expected = points_on_mesh(mesh, 5000, torch.Generator().manual_seed(3))
    cloud = start(shap_e, seed=3, normalize=False)
    assert torch.equal(cloud.points, expected.points) and torch.equal(cloud.colors, expected.colors)
    turned = start(shap_e, seed=3, normalize=False, yaw=90.0).points
    torch.testing.assert_close(turned, torch.stack([-expected.points[:, 1], expected.points[:, 0], expected.points[:, 2]], 1))


def test_points_follow_the_generator_and_the_object_its_own_seed(shap_e):
    first, again, other = (start(shap_e, seed=seed).points for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    other_object = start({**shap_e, "seed": 1}).points
    assert torch.cdist(other_object, first).amin(1).max() > 0.02


def test_grown_points_lie_near_the_surface_not_on_it(shap_e):
    settings = {**shap_e, "growing": True}
    grown, plain = start(settings, normalize=False, num_points=777), start(shap_e, normalize=False)
    vertices = shap_e_mesh("a red mug", ShapESettings(**shap_e), "cpu").vertices
    apart = torch.cdist(grown.points, vertices).amin(1)
    assert grown.count == 777 and apart.max() <= ShapESettings(**settings).growing_distance + 1e-5
    assert grown.colors.mean() > plain.colors.mean() + 0.03  # of the noise


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": None}, "needs init.prompt"),
        ({"prompt": " "}, "needs init.prompt"),
        ({"num_points": None}, "needs init.num_points"),
        ({"num_points": 20_000}, "cap_max"),
        ({"linear_colors": True}, "converted already"),
        ({"shap_e": {"modell": "x"}}, "system.geometry.init.shap_e.modell is not a known key; did you mean 'model'"),
        ({"shap_e": {"steps": "many"}}, "system.geometry.init.shap_e.steps is 'many'"),
    ],
)
def test_mistakes_are_named_before_anything_is_loaded(changes, message):
    with pytest.raises(ConfigError) as caught:
        start(**{"shap_e": {"model": "./nowhere"}, **changes})
    assert message in str(caught.value)


# ---- the cameras ----


@pytest.fixture(scope="module")
def config():
    return OmegaConf.load(CONFIG)


def test_every_unperturbed_camera_of_the_config_sees_the_whole_sphere_of_the_start(config):
    """The image is square, so the sphere is seen if it fits the narrowest view from the shortest distance."""
    data, radius = config.data, config.system.geometry.init.radius
    assert data.height == data.width
    for distance, fovy in ((min(data.camera_distance_range), min(data.fovy_range)), (data.eval_camera_distance, data.eval_fovy_deg)):
        assert math.asin(radius / distance) < math.radians(fovy) / 2


def test_with_the_config_s_perturbations_nearly_all_of_them_do(config):
    pytest.importorskip("threestudio")
    from threestudio.data.uncond import RandomCameraDataModuleConfig, RandomCameraIterableDataset
    from threestudio.utils.config import parse_structured

    given = {**OmegaConf.to_container(config.data), "batch_size": 20_000, "height": 1, "width": 1}
    batch = RandomCameraIterableDataset(parse_structured(RandomCameraDataModuleConfig, given)).batch_at(0)
    world_to_camera = torch.linalg.inv(batch["c2w"].double())
    center = world_to_camera[:, :3, 3]  # of the sphere, as each camera sees it: right, up, backward
    radius = config.system.geometry.init.radius
    half = batch["fovy"].double() / 2
    # Distance of the center to the four planes of each view; all at least the radius: the sphere is inside.
    apart = torch.stack([-center[:, 2] * half.sin() - side * center[:, axis] * half.cos() for axis in (0, 1) for side in (-1, 1)])
    seen = (apart.amin(0) >= radius).double().mean().item()
    print(f"{seen:.4f} of the cameras see the whole sphere; the worst misses {(radius - apart.amin()).item():.3f}")
    assert seen > 0.97
    assert apart.amin() > 0.5 * radius
