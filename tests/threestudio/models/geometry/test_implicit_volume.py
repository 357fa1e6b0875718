"""implicit-volume: density, normals and surface where the answer is known in closed form; conversion and resuming."""

from __future__ import annotations

import contextlib
import io
import math

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from threestudio import find
from threestudio.errors import ConfigError
from threestudio.models.geometry.implicit_volume import default_mlp, default_pos_encoding

HASH = {"otype": "HashGrid", "n_levels": 3, "log2_hashmap_size": 8, "base_resolution": 4, "per_level_scale": 1.5}
WAVES = {"otype": "Frequency", "n_frequencies": 2}
SMOOTH = {"otype": "VanillaMLP", "n_neurons": 8, "n_hidden_layers": 1, "activation": "softplus"}
DIFFERENCES = ("finite_difference", "finite_difference_laplacian")
NORMAL_TYPES = (*DIFFERENCES, "analytic", "pred")


def make(seed=0, **config):
    torch.manual_seed(seed)
    return find("implicit-volume")({"pos_encoding_config": HASH, "mlp_network_config": SMOOTH, **config})


def make_blob(**config):
    """The bias alone."""
    volume = make(**config).double()
    torch.nn.init.zeros_(volume.density_network.layers[-1].weight)
    return volume


def points(*shape, radius=0.9):
    return (torch.rand(*shape, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2 - 1) * radius


def test_defaults_are_threestudios():
    cfg = OmegaConf.structured(find("implicit-volume").Config)
    assert (cfg.n_input_dims, cfg.n_feature_dims) == (3, 3)
    assert (cfg.density_activation, cfg.density_bias) == ("softplus", "blob_magic3d")
    assert (cfg.density_blob_scale, cfg.density_blob_std, cfg.normal_type) == (10.0, 0.5, "finite_difference")
    assert (cfg.finite_difference_normal_eps, cfg.isosurface_threshold) == (0.01, 25.0)
    assert cfg.anneal_density_blob_std_config is None
    assert cfg.pos_encoding_config == default_pos_encoding() and cfg.mlp_network_config == default_mlp()


@pytest.mark.parametrize("normal_type", NORMAL_TYPES)
@pytest.mark.parametrize("prefix", [(7,), (2, 5), (1, 2, 3), (0,)])
def test_shapes_follow_the_points(prefix, normal_type):
    volume = make(normal_type=normal_type, n_feature_dims=4).double()
    x = points(*prefix)
    plain, full = volume(x), volume(x, output_normal=True)
    assert set(plain) == {"density", "features"} and set(full) == {"density", "features", "normal", "shading_normal"}
    assert full["density"].shape == (*prefix, 1) and full["features"].shape == (*prefix, 4)
    assert full["normal"].shape == (*prefix, 3) and torch.equal(full["normal"], full["shading_normal"])
    assert torch.allclose(full["normal"].norm(dim=-1), torch.ones(prefix, dtype=x.dtype))
    assert torch.equal(plain["density"], volume.forward_density(x)) and torch.equal(full["density"], plain["density"])
    assert torch.equal(volume.export(x)["features"], plain["features"])
    flat = volume(x.reshape(-1, 3))
    assert torch.allclose(flat["density"].reshape(*prefix, 1), plain["density"])


def test_without_features():
    volume = make(n_feature_dims=0)
    assert set(volume(torch.rand(3, 3))) == {"density"} and volume.export(torch.rand(3, 3)) == {}
    assert not hasattr(volume, "feature_network")


def test_density_biases_in_closed_form():
    x = points(6)
    r = x.norm(dim=-1, keepdim=True)
    expected = {
        "blob_magic3d": 7 * (1 - r / 0.4),
        "blob_dreamfusion": 7 * torch.exp(-(r**2) / (2 * 0.4**2)),
        -1.5: torch.full_like(r, -1.5),
        2: torch.full_like(r, 2.0),
    }
    for bias, raw in expected.items():
        blob = make_blob(density_bias=bias, density_blob_scale=7, density_blob_std=0.4)
        assert torch.allclose(blob.forward_density(x), F.softplus(raw), atol=1e-12)
        network = make(density_bias=bias, density_blob_scale=7, density_blob_std=0.4, density_activation="none")
        network = network.double()
        encoded = network.encoding((x + 1) / 2)
        assert torch.allclose(network.forward_density(x), network.density_network(encoded) + raw, atol=1e-12)


def test_the_radius_is_the_encodings_cube():
    volume = make(radius=2.0, pos_encoding_config={"otype": "Identity"}, density_bias=0, density_activation="none")
    volume = volume.double()
    x = points(4, radius=2.0)
    assert torch.allclose(volume.forward_density(x), volume.density_network(x / 4 + 0.5))


@pytest.mark.parametrize("bias", ["blob_magic3d", "blob_dreamfusion"])
@pytest.mark.parametrize("normal_type", [*DIFFERENCES, "analytic"])
def test_normals_of_a_blob_point_outwards(bias, normal_type):
    blob = make_blob(density_bias=bias, normal_type=normal_type, finite_difference_normal_eps=1e-4)
    x = points(20)
    normal = blob(x, output_normal=True)["normal"]
    assert torch.allclose(normal, F.normalize(x, dim=-1), atol=1e-12 if normal_type == "analytic" else 2e-3)
    if normal_type == "analytic":  # far out, where the density is zero in floating point, there still is a normal
        far = blob(torch.tensor([[80.0, 0.0, 0.0]]).double() if bias == "blob_magic3d" else x[:1], output_normal=True)
        assert torch.allclose(far["normal"].norm(dim=-1), torch.ones(1, dtype=torch.float64))


def test_normals_against_autograd_and_their_order_of_accuracy():
    config = {"pos_encoding_config": WAVES, "density_bias": "blob_dreamfusion"}
    x = points(10, radius=0.8).requires_grad_()
    field = make(**config).double()
    (gradient,) = torch.autograd.grad(field.forward_density(x).sum(), x)
    expected = -F.normalize(gradient, dim=-1)

    def error(normal_type, eps):
        volume = make(**config, normal_type=normal_type, finite_difference_normal_eps=eps).double()
        return float((volume(x, output_normal=True)["normal"] - expected).norm().detach())

    assert error("analytic", 1.0) < 1e-10
    forward, central = ([error(kind, eps) for eps in (2e-2, 1e-2)] for kind in DIFFERENCES)
    assert 1.8 < forward[0] / forward[1] < 2.2 and 3.7 < central[0] / central[1] < 4.3
    assert central[1] < 0.1 * forward[1]


@pytest.mark.parametrize("normal_type", NORMAL_TYPES)
def test_a_loss_on_normals_trains_the_field(normal_type):
    volume = make(normal_type=normal_type)
    x = points(6).float()
    volume(x, output_normal=True)["normal"][:, 0].sum().backward()
    trained = [volume.encoding.encoding.encoding.params]
    trained.append((volume.normal_network if normal_type == "pred" else volume.density_network).layers[0].weight)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 and torch.isfinite(p.grad).all() for p in trained)
    assert not x.requires_grad and x.grad is None  # the caller's tensor is left as it was


def test_analytic_normals_in_evaluation_carry_no_graph():
    volume = make(normal_type="analytic")
    x = points(4).float()
    with torch.no_grad():
        quiet = volume(x, output_normal=True)
    assert not any(value.requires_grad for value in quiet.values())
    assert all(torch.equal(value, volume(x, output_normal=True)[name]) for name, value in quiet.items())
    center = volume(torch.zeros(1, 3), output_normal=True)  # the cone's tip has no gradient, but no NaN either
    center["normal"].sum().backward()
    assert torch.isfinite(volume.encoding.encoding.encoding.params.grad).all()


def test_the_surface_of_a_blob():
    blob = make_blob(isosurface_resolution=24, isosurface_threshold=5.0).float()
    mesh = blob.isosurface()
    expected = 0.5 * (1 - math.log(math.exp(5.0) - 1) / 10)  # softplus(10 (1 - r / 0.5)) = 5
    assert len(mesh.t_pos_idx) > 300
    assert (mesh.v_pos.norm(dim=-1) - expected).abs().max() < 0.01
    assert (mesh.v_nrm * F.normalize(mesh.v_pos, dim=-1)).sum(-1).min() > 0.9  # faces look outwards
    assert blob.forward_level(torch.tensor([[7.0]]), 5.0) < 0  # inside


def test_a_fitted_ball_gives_its_surface():
    volume = make(density_bias=0.0, density_activation="none", isosurface_resolution=20, isosurface_threshold=0.0)
    optimizer = torch.optim.Adam(volume.parameters(), lr=2e-2)
    for _ in range(150):
        x = torch.rand(400, 3) * 2 - 1
        loss = (volume.forward_density(x) - (0.6 - x.norm(dim=-1, keepdim=True))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (volume.isosurface().v_pos.norm(dim=-1) - 0.6).abs().mean() < 0.05


def test_the_blobs_radius_is_annealed():
    schedule = {"min_anneal_step": 10, "max_anneal_step": 20, "start_val": 0.6, "end_val": 0.2}
    blob = make_blob(anneal_density_blob_std_config=schedule)
    x = points(3)
    for step, std in [(0, 0.5), (10, 0.6), (15, 0.4), (20, 0.2), (1000, 0.2), (9, 0.5)]:
        blob.do_update_step(0, step)
        expected = F.softplus(10 * (1 - x.norm(dim=-1, keepdim=True) / std))
        assert torch.allclose(blob.forward_density(x), expected)


def test_create_from_copies_what_fits():
    first = make(seed=1, normal_type="pred")
    x = points(5).float()
    second = find("implicit-volume").create_from(first, first.cfg)
    for name, value in first(x, output_normal=True).items():
        assert torch.equal(second(x, output_normal=True)[name], value), name
    third = find("implicit-volume").create_from(first, {**first.cfg, "n_feature_dims": 5})
    assert torch.equal(third.forward_density(x), first.forward_density(x)) and third(x)["features"].shape == (5, 5)
    fourth = find("implicit-volume").create_from(first, first.cfg, copy_net=False)
    assert torch.equal(fourth.forward_density(x), first.forward_density(x))
    assert not torch.equal(fourth(x)["features"], first(x)["features"])
    with pytest.raises(ConfigError, match="encoding.*same pos_encoding_config"):
        find("implicit-volume").create_from(first, {**first.cfg, "pos_encoding_config": {**HASH, "n_levels": 2}})
    with pytest.raises(TypeError, match="VolumeGrid cannot be converted"):
        find("implicit-volume").create_from(find("volume-grid")({"grid_size": [2, 2, 2]}), {})


def test_resumed_training_equals_uninterrupted_training():
    config = {
        "pos_encoding_config": {
            **HASH, "otype": "ProgressiveBandHashGrid", "start_level": 1, "start_step": 1, "update_steps": 2
        },
        "normal_type": "analytic",
        "anneal_density_blob_std_config": {
            "min_anneal_step": 1, "max_anneal_step": 5, "start_val": 0.5, "end_val": 0.3
        },
    }  # fmt: skip

    def train(volume, optimizer, steps):
        for step in steps:
            volume.do_update_step(0, step)
            out = volume(points(16).float() + 0.01 * step, output_normal=True)
            loss = (out["density"] - 1).square().mean() + out["features"].square().mean() + out["normal"][:, 0].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    whole = make(**config)
    adam = torch.optim.Adam(whole.parameters(), lr=0.01)
    train(whole, adam, range(3))
    saved = io.BytesIO()
    torch.save((whole.state_dict(), adam.state_dict()), saved)
    train(whole, adam, range(3, 6))
    resumed = make(seed=5, **config)
    resumed_adam = torch.optim.Adam(resumed.parameters(), lr=0.01)
    saved.seek(0)
    weights, moments = torch.load(saved)
    resumed.load_state_dict(weights)
    resumed_adam.load_state_dict(moments)
    train(resumed, resumed_adam, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))


@pytest.mark.parametrize("normal_type", NORMAL_TYPES)
def test_the_device_is_that_of_the_data(normal_type, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda **_: contextlib.nullcontext())  # which the device `meta` lacks
    volume = make(normal_type=normal_type).to("meta")
    out = volume(torch.rand(2, 4, 3, device="meta"), output_normal=True)
    assert all(value.is_meta for value in out.values())
    sum(value.sum() for value in out.values()).backward()


def test_names_in_the_state_dict():
    names = set(make(normal_type="pred").state_dict())
    assert {"bbox", "encoding.encoding.encoding.params", "density_network.layers.0.weight"} <= names
    assert {"feature_network.layers.2.weight", "normal_network.layers.2.weight"} <= names


@pytest.mark.parametrize(
    "config, message",
    [
        ({"density_blob_stdd": 1.0}, "density_blob_stdd is unknown.*density_blob_std"),
        ({"density_bias": "blob_magic"}, "density_bias is 'blob_magic'.*blob_magic3d"),
        ({"normal_type": "analytical"}, "normal_type is 'analytical'. Did you mean analytic"),
        ({"density_blob_std": 0}, "density_blob_std is 0"),
        ({"density_blob_scale": [0, 1, 2]}, "density_blob_scale is .*one number"),
        ({"density_activation": "softpluss"}, "Unknown activation 'softpluss'"),
        ({"anneal_density_blob_std_config": {"start_val": 1}}, "keys start_val; it needs min_anneal_step"),
        ({"pos_encoding_config": {"n_levels": 3}}, "no 'otype'"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(ConfigError, match=message):
        make(**config)


def test_normals_without_a_type_are_refused():
    with pytest.raises(ConfigError, match="normal_type is null.*system.geometry.normal_type"):
        make(normal_type=None)(torch.rand(2, 3), output_normal=True)
