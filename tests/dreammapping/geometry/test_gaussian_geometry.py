from __future__ import annotations

import pytest
import torch
from dreammapping.errors import DreamMappingError
from dreammapping.gaussians import build_adam

threestudio = pytest.importorskip("threestudio")

SMALL = {"init": {"num_points": 60}, "densification": {"cap_max": 200, "refine_start_iter": 0, "refine_every": 2}}


def make(**config):
    torch.manual_seed(config.pop("seed", 0))
    return threestudio.find("dreammapping-gaussians")({**SMALL, **config})


def step_once(geometry, optimizer, step):
    """One training step with a rasterizer that only projects along z."""
    geometry.update_learning_rates(optimizer, step)
    means2d = geometry.gaussians.get_means[None, :, :2] * 10.0
    info = {"means2d": means2d, "radii": torch.ones(1, geometry.count, 2), "width": 16, "height": 16}
    geometry.before_backward(step, info)
    (means2d.square().sum() + geometry.gaussians.get_opacities.sum() + geometry.gaussians.get_rgb.sum()).backward()
    optimizer.step()
    changed = geometry.after_optimizer_step(step, info, optimizer)
    optimizer.zero_grad(set_to_none=True)
    return changed


def test_the_seed_decides_the_start():
    a, b, c = make(), make(), make(seed=1)
    assert torch.equal(a.gaussians.params["means"], b.gaussians.params["means"])
    assert not torch.equal(a.gaussians.params["means"], c.gaussians.params["means"])
    assert torch.equal(a.densification.generator.get_state(), b.densification.generator.get_state())
    assert a.count == 60 and 0.3 < a.bounding_radius() <= 0.5
    torch.testing.assert_close(a.gaussians.get_opacities, torch.full((60,), 0.1))


def test_config_reaches_learning_rates_and_densification():
    geometry = make(position_lr=[0, 1e-2, 1e-4, 100], feature_rest_lr=0.5, densification={"type": "mcmc", "cap_max": 99})
    optimizer = build_adam(geometry.optimizer_groups())
    rates = lambda: {g["name"]: g["lr"] for g in optimizer.param_groups}  # noqa: E731
    assert rates()["gaussians.means"] == 1e-2 and rates()["gaussians.shN"] == 0.5
    geometry.update_learning_rates(optimizer, 50)
    assert rates()["gaussians.means"] == pytest.approx(1e-3)
    assert geometry.densification.settings.type == "mcmc" and geometry.densification.settings.cap_max == 99


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"densification": {"cap_maxx": 3}}, "system.geometry.densification.cap_maxx.*cap_max"),
        ({"init": {"tpye": "sphere"}}, "system.geometry.init.tpye.*type"),
        ({"init": {"num_points": 500}}, "cap_max"),
        ({"position_lr": [1, 2]}, "system.geometry.position_lr"),
        ({"sh_degree": 9}, "sh_degree is 9"),
        ({"sh_degree_interval": -1}, "sh_degree_interval is -1"),
        ({"load_splat": "gone.ply"}, "gone.ply"),
    ],
)
def test_mistakes_in_the_config_are_named(config, message):
    with pytest.raises(DreamMappingError, match=message):
        make(**config)


def test_a_run_resumes_with_the_number_of_gaussians_it_had():
    straight, first = make(), make()
    adam, first_adam = (build_adam(g.optimizer_groups()) for g in (straight, first))
    counts = []
    for step in range(8):
        step_once(straight, adam, step)
        counts.append(straight.count)
    assert counts[0] < counts[3] < counts[-1] <= 200
    for step in range(5):
        step_once(first, first_adam, step)

    second = make(seed=7)
    state = {f"geometry.{key}": value for key, value in first.state_dict().items()}
    second.prepare_for_state_dict(state, "geometry.")
    assert second.count == first.count == second.densification.grad2d.shape[0]
    second.load_state_dict(first.state_dict())
    second_adam = build_adam(second.optimizer_groups())
    second_adam.load_state_dict(first_adam.state_dict())
    for step in range(5, 8):
        step_once(second, second_adam, step)
    for name, value in straight.gaussians.params.items():
        assert torch.equal(value, second.gaussians.params[name]), name
    assert torch.equal(straight.densification.generator.get_state(), second.densification.generator.get_state())


def test_weights_of_a_checkpoint_with_another_count_load(tmp_path):
    trained = make(init={"num_points": 33}, seed=5)
    checkpoint = {
        "state_dict": {f"geometry.{key}": value for key, value in trained.state_dict().items()},
        "epoch": 0,
        "global_step": 10,
        "pytorch-lightning_version": "2.0.0",
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    geometry = make(weights=f"{tmp_path / 'last.ckpt'}:geometry")
    assert geometry.count == 33
    assert torch.equal(geometry.gaussians.params["means"], trained.gaussians.params["means"])


def test_sh_degree_rises_and_never_falls():
    geometry = make(sh_degree=2, sh_degree_interval=10)
    seen = []
    for step in (0, 9, 10, 25, 90):
        geometry.do_update_step(0, step)
        geometry.do_update_step(0, step)  # the hook may come twice in a step
        seen.append(geometry.gaussians.active_sh_degree)
    assert seen == [0, 0, 1, 2, 2]
    fresh = make(sh_degree=2, sh_degree_interval=10)
    fresh.load_state_dict(geometry.state_dict())
    fresh.do_update_step(0, 0)  # a run that only tests
    assert fresh.gaussians.active_sh_degree == 2


def test_a_splat_file_continues_where_it_was_saved(tmp_path):
    pytest.importorskip("gsplat")
    first = make(sh_degree=1)
    step_once(first, build_adam(first.optimizer_groups()), 0)
    second = make(load_splat=str(first.save(tmp_path / "a.ply")), sh_degree=1)
    for name, value in first.gaussians.params.items():
        assert torch.equal(value, second.gaussians.params[name])
    with pytest.raises(DreamMappingError, match="cap_max"):
        make(load_splat=str(tmp_path / "a.ply"), densification={"cap_max": 10})


def test_create_from_other_gaussians_and_from_a_surface():
    cls = threestudio.find("dreammapping-gaussians")
    source = make(init={"num_points": 20})
    copy = cls.create_from(source, {**SMALL, "sh_degree": 1})
    assert torch.equal(copy.gaussians.params["means"], source.gaussians.params["means"])
    assert copy.gaussians.params["means"] is not source.gaussians.params["means"] and copy.gaussians.sh_degree == 1

    class Tetrahedron:
        def isosurface(self):
            class Mesh:
                v_pos = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
                t_pos_idx = torch.tensor([[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]])

            return Mesh

    surface = cls.create_from(Tetrahedron(), SMALL).export()["means"]
    on_face = torch.minimum(surface.amin(1), (surface.sum(1) - 1).abs())
    assert len(surface) == 60 and on_face.abs().max() < 1e-6
    with pytest.raises(TypeError):
        cls.create_from(object(), SMALL)


def test_export_gives_activated_values():
    exported = make(sh_degree=1).export()
    assert {k: tuple(v.shape) for k, v in exported.items()} == {
        "means": (60, 3), "scales": (60, 3), "quats": (60, 4), "opacities": (60,), "sh": (60, 4, 3),
    }  # fmt: skip
    assert not any(v.requires_grad for v in exported.values()) and exported["scales"].min() > 0
