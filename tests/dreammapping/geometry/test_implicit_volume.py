"""dreammapping-implicit-volume: fitted to its first shape once, before the first step of a fresh run, and else implicit-volume."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dreammapping.errors import ConfigError, DreamMappingError
from dreammapping.geometry.field_fit import FitSettings, density_of
from dreammapping.settings import parse_settings
from omegaconf import OmegaConf

threestudio = pytest.importorskip("threestudio")
trimesh = pytest.importorskip("trimesh")

HASH = {"otype": "HashGrid", "n_levels": 5, "log2_hashmap_size": 12, "base_resolution": 4, "per_level_scale": 1.8}
FIELD = {"pos_encoding_config": HASH, "isosurface_threshold": 8.0, "isosurface_resolution": 32, "normal_type": None}
QUICK = {"steps": 120, "batch_size": 2048, "lr": 0.02, "width": 0.05}


@pytest.fixture
def box_file(tmp_path):
    """Half sides 0.2, 0.3, 0.4; red below, green above."""
    box = trimesh.creation.box((0.4, 0.6, 0.8))
    upper = box.vertices[:, 2] > 0
    box.visual.vertex_colors = np.stack([~upper * 255, upper * 255, 0 * upper, 0 * upper + 255], 1).astype(np.uint8)
    box.export(tmp_path / "box.ply")
    return str(tmp_path / "box.ply")


def make(seed: int = 0, name: str = "dreammapping-implicit-volume", **config):
    torch.manual_seed(seed)
    return threestudio.find(name)(OmegaConf.create({**FIELD, **config}))


def of_mesh(path, **config):
    return {"init": {"type": "mesh", "path": path, "normalize": False}, "fit": QUICK} | config


def state(volume) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in volume.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def grid(half: float = 0.9) -> torch.Tensor:
    return torch.stack(torch.meshgrid(*[torch.linspace(-half, half, 24)] * 3, indexing="ij"), -1).reshape(-1, 3)


def box_distance(points: torch.Tensor) -> torch.Tensor:
    beyond = points.abs() - torch.tensor([0.2, 0.3, 0.4])
    return beyond.clamp_min(0).norm(dim=-1) + beyond.amax(-1).clamp_max(0)


@pytest.mark.parametrize("activation, bias", [("softplus", "blob_magic3d"), ("exp", "blob_dreamfusion"), ("softplus", -1.0)])
def test_density_and_color_become_the_meshs(box_file, activation, bias):
    volume = make(**of_mesh(box_file, density_activation=activation, density_bias=bias, density_blob_scale=5.0))
    volume.do_update_step(0, 0)
    points = grid()
    distances = box_distance(points)
    with torch.no_grad():
        output = volume(points)
    density = output["density"][:, 0]
    assert 12 < density[distances < -0.1].mean() < 20  # 16, twice the threshold
    assert density[distances > 0.2].mean() < 0.3
    clear = distances.abs() > 0.03
    assert ((density > 8) == (distances < 0))[clear].float().mean() > 0.998
    low, high = points[:, 2] < -0.25, points[:, 2] > 0.25
    near = distances.abs() < 0.06
    colors = output["features"].sigmoid()
    for part, expected in ((low, [1.0, 0, 0]), (high, [0, 1.0, 0])):
        assert (colors[near & part].mean(0) - torch.tensor(expected)).abs().max() < 0.25


def test_the_extracted_surface_is_the_meshs(box_file):
    volume = make(**of_mesh(box_file))
    volume.do_update_step(0, 0)
    vertices = volume.isosurface().v_pos.detach()
    assert box_distance(vertices).abs().mean() < 0.02
    torch.testing.assert_close(vertices.amax(0), torch.tensor([0.2, 0.3, 0.4]), rtol=0, atol=0.05)


def test_density_falls_over_the_width():
    distances = torch.tensor([-10.0, -0.1, 0.0, 0.1, 10.0])
    tail = 0.5 * math.exp(-1)
    torch.testing.assert_close(density_of(distances, 8.0, 0.1), 8 * torch.tensor([1.0, 1 - tail, 0.5, tail, 0.0]))


def test_small_things_are_not_lost_in_the_cube():
    volume = make(init={"type": "sphere", "radius": 0.06}, fit={**QUICK, "width": 0.02})
    volume.do_update_step(0, 0)
    with torch.no_grad():
        assert volume.forward_density(grid(0.02)).mean() > 8 and volume.forward_density(grid()[grid().norm(dim=-1) > 0.3]).mean() < 0.5


@pytest.mark.parametrize("threshold", ["auto", 0.0])
def test_without_a_usable_threshold_the_density_is_threestudios(threshold):
    volume = make(init={"type": "sphere", "radius": 0.4}, fit={**QUICK, "steps": 200}, isosurface_threshold=threshold)
    volume.do_update_step(0, 0)
    with torch.no_grad():
        assert 35 < volume.forward_density(grid(0.15)).mean() < 65


def test_points_and_a_sphere_are_shapes_too(tmp_path):
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.4)
    trimesh.PointCloud(ball.vertices, np.tile([0, 0, 255], (len(ball.vertices), 1)).astype(np.uint8)).export(tmp_path / "p.ply")
    radius = grid().norm(dim=-1)
    for init in ({"type": "points", "path": str(tmp_path / "p.ply"), "radius": 0.4}, {"type": "sphere", "radius": 0.4, "color": [0.0, 0, 1]}):
        volume = make(init=init, fit=QUICK)
        volume.do_update_step(0, 0)
        with torch.no_grad():
            output = volume(grid())
        shell = (radius - 0.4).abs() < 0.03
        assert output["density"][shell].mean() > 5 and output["density"][radius > 0.6].mean() < 0.5
        assert output["features"].sigmoid()[shell, 2].mean() > 0.8


def test_the_seed_decides_the_fit_and_nothing_else_is_drawn(box_file):
    results = []
    for noise in (0, 1):
        volume = make(**of_mesh(box_file))
        torch.rand(noise)  # whatever was drawn between
        before = torch.get_rng_state()
        volume.do_update_step(0, 0)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(state(volume))
    assert same(*results)
    other = make(seed=1, **of_mesh(box_file))
    other.do_update_step(0, 0)
    assert not same(results[0], state(other))


def test_once_and_only_at_the_start_of_a_fresh_run(box_file):
    config = of_mesh(box_file)
    volume = make(**config)
    blob = state(volume)
    volume.do_update_step(0, 0, on_load_weights=True)
    assert same(state(volume), blob)
    with torch.no_grad():  # as validation calls it
        volume.do_update_step(0, 0)
    fitted = state(volume)
    assert not same(fitted, blob)
    assert all(p.grad is None for p in volume.parameters())
    volume.do_update_step(0, 0)
    assert same(state(volume), fitted)

    resumed = make(**config)
    resumed.do_update_step(0, 7)
    assert same(state(resumed), blob)
    loaded = make(seed=3, **config)
    loaded.load_state_dict(fitted)
    loaded.do_update_step(0, 0)
    assert same(state(loaded), fitted)


def test_weights_of_a_whole_system_count_too(box_file):
    system = torch.nn.Module()
    system.geometry = make(**of_mesh(box_file))
    blob = state(system.geometry)
    others = {key: value for key, value in system.state_dict().items() if not key.startswith("geometry.")}
    system.load_state_dict(others, strict=False)  # as with system.weights_ignore_modules
    system.geometry.do_update_step(0, 0)
    assert not same(state(system.geometry), blob)
    system.geometry = make(**of_mesh(box_file))
    system.load_state_dict(system.state_dict())
    system.geometry.do_update_step(0, 0)
    assert same(state(system.geometry), blob)


def test_without_init_it_is_implicit_volume():
    ours, plain = make(), make(name="implicit-volume")
    ours.do_update_step(0, 0)
    assert same(state(ours), state(plain))


def test_settings_of_a_start_without_its_type_start_nothing():
    """As a preset gives them, for whoever names a type on the command line."""
    ours, plain = make(init={"radius": 0.3, "shap_e": {"model": "nowhere"}}), make(name="implicit-volume")
    ours.do_update_step(0, 0)
    assert same(state(ours), state(plain))
    for forgotten in ({"path": "chair.glb"}, {"prompt": "a chair"}):
        with pytest.raises(ConfigError, match="no type; set system.geometry.init.type"):
            make(init=forgotten)


def test_checkpoints_go_to_and_from_implicit_volume(box_file, tmp_path):
    plain = make(seed=5, name="implicit-volume")
    volume = make(**of_mesh(box_file))
    volume.load_state_dict(plain.state_dict())
    volume.do_update_step(0, 0)
    assert same(state(volume), state(plain))
    plain.load_state_dict(make(seed=6, **of_mesh(box_file)).state_dict())

    torch.save({"state_dict": {f"geometry.{k}": v for k, v in volume.state_dict().items()}, "epoch": 0, "global_step": 0}, tmp_path / "a.ckpt")
    weighted = make(weights=f"{tmp_path / 'a.ckpt'}:geometry", **of_mesh(box_file))
    weighted.do_update_step(0, 0)
    assert same(state(weighted), state(volume))


def test_conversion_takes_the_other_field_and_not_init(box_file):
    other = make(seed=9, name="implicit-volume")
    cls = threestudio.find("dreammapping-implicit-volume")
    volume = cls.create_from(other, OmegaConf.create({**FIELD, **of_mesh(box_file)}))
    assert isinstance(volume, cls)
    volume.do_update_step(0, 0)
    assert same(state(volume), state(other))


def test_the_annealed_blob_is_still_annealed(box_file):
    anneal = {"min_anneal_step": 0, "max_anneal_step": 10, "start_val": 0.5, "end_val": 0.1}
    volume = make(anneal_density_blob_std_config=anneal, **of_mesh(box_file))
    volume.do_update_step(0, 5)
    assert volume.density_blob_std == pytest.approx(0.3)


def test_features_that_are_no_colors_stay_as_they_are(box_file):
    volume = make(n_feature_dims=5, **of_mesh(box_file))
    before = state(volume)
    volume.do_update_step(0, 0)
    for key, value in state(volume).items():
        if key.startswith("feature_network"):
            assert torch.equal(value, before[key])
    assert volume(torch.zeros(1, 3))["density"] > 8


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"init": {"type": "mesh"}}, "needs init.path"),
        ({"init": {"type": "mehs"}}, "did you mean 'mesh'"),
        ({"init": {"pth": "a.obj"}}, "system.geometry.init.pth.*path"),
        ({"fit": {"stps": 3}}, "system.geometry.fit.stps.*steps"),
        ({"fit": {"steps": 0}}, "fit.steps is 0"),
        ({"fit": {"width": -0.1}}, "fit.width is -0.1"),
    ],
)
def test_mistakes_are_told_when_it_is_built(config, message):
    with pytest.raises(DreamMappingError, match=message):
        make(**config)


def test_a_file_that_is_gone_is_told_at_the_start_and_does_not_stop_a_resumed_run(tmp_path):
    config = of_mesh(str(tmp_path / "gone.ply"))
    with pytest.raises(DreamMappingError, match=r"gone\.ply: no such file"):
        make(**config).do_update_step(0, 0)
    make(**config).do_update_step(0, 4)


def test_a_poor_fit_is_warned_of_and_a_good_one_is_not(box_file, caplog):
    for steps, poor in ((120, False), (1, True)):
        caplog.clear()
        with caplog.at_level("INFO"):
            make(**of_mesh(box_file, fit={**QUICK, "steps": steps})).do_update_step(0, 0)
        assert ("Raise system.geometry.fit.steps" in caplog.text) == poor
        assert "overlaps its first shape by" in caplog.text


def test_fit_settings_have_their_defaults():
    assert parse_settings(FitSettings, {"steps": 10}, "x") == FitSettings(steps=10)
