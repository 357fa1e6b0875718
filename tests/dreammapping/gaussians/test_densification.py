"""The default strategy: rows, moments and statistics stay together, and the rules are gsplat's."""

from __future__ import annotations

import math

import pytest
import torch
from dreammapping.errors import ConfigError
from dreammapping.gaussians import Densification, DensificationSettings, NoGaussiansLeft, optimizer_views
from dreammapping.gaussians.growth import grow_and_prune
from dreammapping.gaussians.rotation import rotate, rotate_back
from dreammapping.settings import parse_settings

NEVER_PRUNE = {"prune_opa": 0.0, "prune_scale3d": None, "scene_scale": 1.0, "grow_grad2d": 1.0}


def moments(optimizer, model, name):
    state = optimizer.state[model.params[name]]
    return state["exp_avg"], state["exp_avg_sq"]


def grow(model, optimizer, gradient, step=200, radius=None, seed=0, **settings):
    settings = DensificationSettings(**{**NEVER_PRUNE, **settings})
    radius = torch.zeros(model.count) if radius is None else radius
    generator = torch.Generator().manual_seed(seed)
    grow_and_prune(model, optimizer_views(optimizer), gradient, radius, settings, step, generator)
    check_alignment(model, optimizer)


def check_alignment(model, optimizer):
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert len(optimizer.state) == len(model.params)
    for name, value in model.params.items():
        assert value.requires_grad and value.is_leaf and value.shape[0] == model.count
        assert groups[f"gaussians.{name}"]["params"][0] is value
        assert all(m.shape == value.shape for m in moments(optimizer, model, name))


def test_a_gaussian_is_cloned_or_split_by_its_width(scene):
    make_model, make_adam, _ = scene
    model = make_model(4)
    model.params["scales"].data[:] = torch.tensor([0.01, 0.01, 0.5, 0.5]).log()[:, None]
    optimizer = make_adam(model)
    model.params["scales"].data[:] = torch.tensor([0.01, 0.01, 0.5, 0.5]).log()[:, None]
    old = {name: value.detach().clone() for name, value in model.params.items()}
    old_moments = {name: [m.clone() for m in moments(optimizer, model, name)] for name in old}

    grow(model, optimizer, torch.tensor([0.0, 2.0, 2.0, 0.0]), grow_scale3d=0.1)

    # Kept rows 0, 1, 3, then the clone of 1, then both halves of 2.
    assert model.count == 6
    for name, value in model.params.items():
        assert torch.equal(value[:4], old[name][[0, 1, 3, 1]])
        for now, before in zip(moments(optimizer, model, name), old_moments[name]):
            assert torch.equal(now[:3], before[[0, 1, 3]])
            assert now[3:].abs().sum() == 0
    torch.testing.assert_close(model.get_scales[4:], torch.full((2, 3), 0.5 / 1.6))
    assert torch.equal(model.params["opacities"][4:], old["opacities"][[2, 2]])
    assert not torch.equal(model.params["means"][4], model.params["means"][5])
    assert (model.params["means"][4:] - old["means"][2]).norm(dim=-1).max() < 0.5 * 5


def test_halves_are_drawn_from_the_split_gaussian(scene):
    make_model, make_adam, _ = scene
    count = 4000
    model = make_model(count, sh_degree=0)
    with torch.no_grad():
        model.params["means"].zero_()
        model.params["scales"][:] = torch.tensor([0.5, 0.2, 0.05]).log()
        model.params["quats"][:] = torch.tensor([math.cos(math.pi / 4), 0.0, 0.0, math.sin(math.pi / 4)])  # x becomes y
    optimizer = make_adam(model)
    with torch.no_grad():
        model.params["means"].zero_()
        model.params["scales"][:] = torch.tensor([0.5, 0.2, 0.05]).log()
        model.params["quats"][:] = torch.tensor([math.cos(math.pi / 4), 0.0, 0.0, math.sin(math.pi / 4)])
    grow(model, optimizer, torch.full((count,), 2.0), grow_scale3d=0.1)
    spread = model.params["means"].detach().std(0)
    torch.testing.assert_close(spread, torch.tensor([0.2, 0.5, 0.05]), rtol=0.05, atol=0)
    assert model.params["means"].detach().mean(0).abs().max() < 4 * 0.5 / math.sqrt(2 * count)


def test_rows_equal_those_of_gsplats_operations(scene):
    ops = pytest.importorskip("gsplat.strategy.ops")
    make_model, make_adam, _ = scene
    generator = torch.Generator().manual_seed(3)
    gradient = torch.rand(60, generator=generator) * 2
    ours, theirs = make_model(60), make_model(60)
    our_adam, their_adam = make_adam(ours), make_adam(theirs)
    wide = ours.get_scales.amax(-1) > 0.03
    clone, split = (gradient > 1) & ~wide, (gradient > 1) & wide
    assert clone.sum() > 3 and split.sum() > 3
    grow(ours, our_adam, gradient, grow_scale3d=0.03)

    views, state = optimizer_views(their_adam), {}
    ops.duplicate(theirs.params, views, state, clone)
    ops.split(theirs.params, views, state, torch.cat([split, torch.zeros(int(clone.sum()), dtype=torch.bool)]))
    check_alignment(theirs, their_adam)
    assert ours.count == theirs.count
    for name in ours.params:
        known = slice(0, -2 * int(split.sum())) if name == "means" else slice(None)  # the halves' places are random
        torch.testing.assert_close(ours.params[name][known], theirs.params[name][known])
        for a, b in zip(moments(our_adam, ours, name), moments(their_adam, theirs, name)):
            assert torch.equal(a, b)


def test_gsplats_strategies_accept_the_view_on_one_adam(scene):
    gsplat = pytest.importorskip("gsplat")
    make_model, make_adam, _ = scene
    model = make_model(5)
    views = optimizer_views(make_adam(model))
    gsplat.DefaultStrategy().check_sanity(model.params, views)
    gsplat.MCMCStrategy().check_sanity(model.params, views)


def test_transparent_wide_and_broken_gaussians_go(scene):
    make_model, make_adam, _ = scene
    model = make_model(6)
    optimizer = make_adam(model)
    with torch.no_grad():
        model.params["opacities"][:] = 0.0
        model.params["opacities"][1] = -9.0
        model.params["scales"][:] = math.log(0.01)
        model.params["scales"][2, 1] = math.log(0.6)
        model.params["means"][3, 0] = float("nan")
    means = model.params["means"].detach().clone()
    first = moments(optimizer, model, "means")[0].clone()
    still = torch.zeros(6)

    wide_too = {"prune_opa": 0.005, "prune_scale3d": 0.5, "reset_every": 300}
    grow(model, optimizer, still, step=300, **wide_too)  # not yet: opacities have not been reset
    kept = [0, 2, 4, 5]
    assert torch.equal(model.params["means"], means[kept])
    assert torch.equal(moments(optimizer, model, "means")[0], first[kept])
    grow(model, optimizer, still[:4], step=400, radius=torch.tensor([0.0, 0, 0, 0.3]), prune_scale2d=0.2, **wide_too)
    assert torch.equal(model.params["means"], means[[0, 4]])


def test_the_cap_holds_and_the_largest_gradients_win(scene):
    make_model, make_adam, _ = scene
    model = make_model(10, sh_degree=0)
    optimizer = make_adam(model)
    gradient = torch.tensor([5.0, 9, 1.5, 8, 0, 0, 0, 0, 0, 7])
    means = model.params["means"].detach().clone()
    grow(model, optimizer, gradient, cap_max=12, grow_scale3d=1e6)
    assert model.count == 12
    assert torch.equal(model.params["means"][10:], means[[1, 3]])
    grow(model, optimizer, torch.full((12,), 9.0), cap_max=12)
    assert model.count == 12


def test_a_dead_gaussian_makes_room_under_the_cap(scene):
    make_model, make_adam, _ = scene
    model = make_model(10, sh_degree=0)
    optimizer = make_adam(model)
    model.params["opacities"].data[:] = 0.0
    model.params["opacities"].data[:3] = -20.0
    grow(model, optimizer, torch.full((10,), 9.0), cap_max=10, prune_opa=0.005, grow_scale3d=1e6)
    assert model.count == 10 and model.get_opacities.min().item() == 0.5


def test_a_vanished_scene_is_an_error(scene):
    make_model, make_adam, _ = scene
    model = make_model(4)
    optimizer = make_adam(model)
    model.params["opacities"].data[:] = -20.0
    with pytest.raises(NoGaussiansLeft, match="step 200: all 4 Gaussians"):
        grow(model, optimizer, torch.zeros(4), prune_opa=0.005)


# ---------------------------------------------------------------------- statistics and timing


def test_gradients_are_averaged_over_the_views_that_saw_the_gaussian(scene):
    _, _, make_info = scene
    gradients = torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[0.0, 1.0], [float("nan"), 7.0]]])  # pixels, 64 x 32
    radii = torch.tensor([[[2, 2], [3, 1]], [[1, 1], [0, 0]]])
    expected = torch.tensor([(math.hypot(3 * 32, 4 * 16) + 16) / 2, 32.0])
    for loss_over_views, factor in (("sum", 1), ("mean", 2)):
        densification = Densification(DensificationSettings(loss_over_views=loss_over_views), 2)
        densification._collect(make_info(gradients, radii))
        torch.testing.assert_close(densification.mean_gradient, factor * expected)
    last = Densification(DensificationSettings(loss_over_views="sum", views="last"), 2)
    last._collect(make_info(gradients, radii))
    assert last.mean_gradient.tolist() == [16.0, 0.0] and last.count.tolist() == [1.0, 0.0]


def test_statistics_equal_gsplats(scene):
    gsplat = pytest.importorskip("gsplat")
    make_model, _, make_info = scene
    generator = torch.Generator().manual_seed(0)
    strategy = gsplat.DefaultStrategy(refine_scale2d_stop_iter=100)
    state, model = strategy.initialize_state(), make_model(30)
    densification = Densification(DensificationSettings(prune_scale2d=0.5), 30)
    for _ in range(3):
        gradients = torch.randn(4, 30, 2, generator=generator)
        radii = torch.randint(0, 4, (4, 30, 1), generator=generator).expand(-1, -1, 2).contiguous()
        info = {**make_info(gradients, radii), "gaussian_ids": None}
        strategy._update_state(model.params, state, info)
        densification._collect(info)
    torch.testing.assert_close(densification.grad2d, state["grad2d"])
    assert torch.equal(densification.count, state["count"])
    # gsplat's own comment says its radii should be a scatter maximum; ours is, so it can only be larger.
    assert bool((densification.radii >= state["radii"]).all())


def test_events_and_resets_fall_on_lucid_dreamers_steps():
    settings = DensificationSettings()
    assert [s for s in range(5000) if settings.refines_at(s)] == list(range(200, 3000, 100))
    assert [s for s in range(5000) if settings.resets_at(s)] == list(range(300, 3000, 300))
    assert [s for s in (0, 300, 301, 2900) if settings.prunes_wide_at(s)] == [301, 2900]
    assert not any(DensificationSettings(type="none").refines_at(s) for s in range(1000))
    assert not any(DensificationSettings(reset_every=0).resets_at(s) for s in range(1000))


def test_opacity_reset_limits_values_and_clears_only_their_moments(scene):
    make_model, make_adam, make_info = scene
    model = make_model(5)
    optimizer = make_adam(model)
    model.params["opacities"].data[0] = -6.0
    means_before = moments(optimizer, model, "means")[0].clone()
    settings = DensificationSettings(refine_start_iter=10_000, refine_stop_iter=20_000, reset_every=10)
    densification = Densification(settings, 5)
    info = make_info(torch.zeros(1, 5, 2), torch.ones(1, 5, 2))
    densification.after_step(9, info, model, optimizer)
    assert model.get_opacities.max().item() > 0.1
    changed = densification.after_step(10, info, model, optimizer)
    assert not changed and model.get_opacities.max().item() == pytest.approx(0.01)
    assert model.params["opacities"][0].item() == -6.0
    assert moments(optimizer, model, "opacities")[0].abs().sum() == 0
    assert torch.equal(moments(optimizer, model, "means")[0], means_before)


def test_an_event_empties_the_statistics_and_frees_no_graph(scene):
    """The old graph is still alive while the new parameters are used, as it is in a training loop."""
    make_model, make_adam, _ = scene
    model = make_model(8)
    optimizer = make_adam(model)
    settings = DensificationSettings(refine_start_iter=0, refine_every=1, grow_grad2d=1e-9, prune_opa=0.0, reset_every=0)
    densification = Densification(settings, 8)
    for step in (1, 2):
        means2d = model.get_means[None, :, :2] * 1.0
        info = {"means2d": means2d, "radii": torch.ones(1, model.count, 2), "width": 8, "height": 8}
        densification.before_backward(step, info)
        sum(v.square().sum() for v in [means2d, *model.params.values()]).backward()
        optimizer.step()
        assert densification.after_step(step, info, model, optimizer)
        optimizer.zero_grad(set_to_none=True)
        assert densification.grad2d.shape == (model.count,) and densification.grad2d.abs().sum() == 0
        check_alignment(model, optimizer)
    assert model.count == 32


def test_rotation_by_quaternion_equals_scipys():
    from scipy.spatial.transform import Rotation

    quats, vectors = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    expected = Rotation.from_quat(quats.roll(-1, dims=1).numpy()).apply(vectors.numpy())
    torch.testing.assert_close(rotate(quats, vectors), torch.from_numpy(expected))
    torch.testing.assert_close(rotate_back(quats, rotate(quats, vectors)), vectors)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cap_max": 0}, "cap_max is 0"),
        ({"refine_every": 0}, "refine_every is 0"),
        ({"prune_opa": 0.02}, "reset_opacity is 0.01, not above prune_opa"),
        ({"type": "mcmcc"}, "'mcmc'"),
        ({"grow_grad": 1.0}, "grow_grad2d"),
        ({"prune_scale3d": -1.0}, "null for never"),
    ],
)
def test_bad_settings_are_explained(values, message):
    with pytest.raises(ConfigError, match=message):
        parse_settings(DensificationSettings, values, "densification")
