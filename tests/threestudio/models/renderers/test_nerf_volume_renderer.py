"""The volume renderer on fields whose images are known, in training and in evaluation, with every estimator."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers.fields import ESTIMATORS, build, views
from threestudio.errors import UserError


def blob_opacity(batch, peak=20.0, spread=0.25):
    """Exact opacity [B, H, W, 1] of the Gaussian blob cut off by the box, for parallel rays along x."""
    square = batch["rays_o"][..., 1:].square().sum(-1, keepdim=True)
    length = spread * math.sqrt(2 * math.pi) * math.erf(1 / (spread * math.sqrt(2)))
    return 1 - torch.exp(-peak * torch.exp(-square / (2 * spread**2)) * length)


WHOLE = {"grid_prune": False, "num_samples_per_ray": 128}


@pytest.mark.parametrize("config", [WHOLE, *ESTIMATORS[1:]], ids=["whole", "importance", "proposal"])
@pytest.mark.parametrize("training", [True, False])
def test_opacity_of_a_blob(config, training):
    renderer = build(config).train(training)
    batch = views()
    out = renderer(**batch)
    torch.testing.assert_close(out["opacity"], blob_opacity(batch), atol=0.01, rtol=0)
    torch.testing.assert_close(out["comp_rgb"], out["comp_rgb_fg"] + out["comp_rgb_bg"] * (1 - out["opacity"]))
    torch.testing.assert_close(out["comp_rgb_bg"], torch.tensor([0.2, 0.4, 0.6]).expand(2, 6, 5, 3))


def look_often(renderer):
    """Update the grid until random points have found the matter in nearly every cell that holds some."""
    for step in range(0, 320, 16):
        renderer.estimator.update_every_n_steps(step, renderer.geometry.forward_density, warmup_steps=1000)


@pytest.mark.parametrize("training", [True, False])
def test_opacity_of_a_ball_through_the_grid(training):
    sigma, radius = 3.0, 0.6
    renderer = build({"num_samples_per_ray": 1024}, {"peak": sigma, "spread": radius, "hard": True})
    look_often(renderer)
    assert renderer.estimator.binaries.float().mean() < 0.25
    batch = views()
    out = renderer.train(training)(**batch)
    square = batch["rays_o"][..., 1:].square().sum(-1, keepdim=True)
    exact = 1 - torch.exp(-sigma * 2 * (radius**2 - square).clamp(min=0).sqrt())
    torch.testing.assert_close(out["opacity"], exact, atol=0.012, rtol=0)  # a step has sigma * 0.0034
    assert 0 < exact.min() + exact.max() and (exact == 0).any()


@pytest.mark.parametrize("sigma", [12.0, 1.2])
def test_depth_and_spread_of_a_ball(sigma):
    radius = 0.5
    renderer = build({"num_samples_per_ray": 1024}, {"peak": sigma, "spread": radius, "hard": True})
    renderer.update_step(0, 0)
    batch = {"rays_o": torch.tensor([[[[2.0, 0.0, 0.0]]]]), "rays_d": torch.tensor([[[[-1.0, 0.0, 0.0]]]])}
    with torch.no_grad():
        out = renderer.eval()(**batch, light_positions=torch.zeros(1, 3))
    t = torch.linspace(1.5, 2.5, 200001, dtype=torch.float64)  # the integrals of w(t) = sigma e^(-sigma (t - 1.5))
    w = sigma * torch.exp(-sigma * (t - 1.5))
    opacity = float(torch.trapezoid(w, t))
    depth = float(torch.trapezoid(w * t, t))
    mean = depth / opacity  # the variance is that of a probability: at sigma 1.2 the weights sum to 0.7
    spread = float(torch.trapezoid(w / opacity * (t - mean) ** 2, t))
    assert float(out["opacity"]) == pytest.approx(opacity, abs=1e-3)
    assert float(out["depth"]) == pytest.approx(depth, abs=5e-3)
    assert float(out["z_variance"]) == pytest.approx(spread, rel=0.05)


def test_z_variance_is_zero_where_little_is_seen():
    renderer = build({"num_samples_per_ray": 128}, {"peak": 1.0})
    renderer.estimator.fill()
    out = renderer.eval()(**views())
    assert 0.1 < out["opacity"].max() < 0.5 and not out["z_variance"].any()


def test_lengths_of_directions_scale_distances():
    renderer = build({"grid_prune": False, "num_samples_per_ray": 256}, {"peak": 10.0}).eval()
    batch = views()
    plain, long = renderer(**batch), renderer(**{**batch, "rays_d": batch["rays_d"] * 2})
    # t counts in the direction's length, so the same matter has half the optical depth and lies at half the t.
    torch.testing.assert_close(2 * torch.log1p(-long["opacity"]), torch.log1p(-plain["opacity"]), atol=1e-3, rtol=1e-2)
    seen = plain["opacity"] > 0.1
    mean = [(out["depth"] / out["opacity"])[seen] for out in (plain, long)]
    assert ((mean[0] / mean[1] - 2.0).abs() < 0.15).all()


def test_pruned_samples_keep_image_and_gradients():
    """The grid drops only what is empty: the same image and, in its cells, the same gradients as without it."""
    field = {"peak": 15.0, "spread": 0.4, "hard": True}
    batch = views(height=9, width=9)
    results = []
    for prune in (False, True):
        renderer = build({"grid_prune": prune, "prune_alpha_threshold": False, "num_samples_per_ray": 200,
                          "randomized": False}, field)  # fmt: skip
        renderer.update_step(0, 0)
        if prune:
            look_often(renderer)
        out = renderer(**batch)
        out["comp_rgb"].square().sum().backward()
        results.append((out, [p.grad for p in renderer.geometry.parameters()]))
    (whole, whole_grads), (pruned, pruned_grads) = results
    assert 0 < len(pruned["weights"]) < 0.5 * len(whole["weights"])
    torch.testing.assert_close(pruned["comp_rgb"], whole["comp_rgb"], atol=1e-5, rtol=0)
    for one, other in zip(pruned_grads, whole_grads):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_random_shifts_average_to_the_exact_image():
    sigma, radius = 1.0, 0.6
    renderer = build({"num_samples_per_ray": 24, "grid_prune": False}, {"peak": sigma, "spread": radius, "hard": True})
    batch = views(count=1)
    with torch.no_grad():
        drawn = torch.stack([renderer(**batch)["opacity"] for _ in range(100)])
    assert drawn.std(dim=0).max() > 0.02
    square = batch["rays_o"][..., 1:].square().sum(-1, keepdim=True)
    exact = 1 - torch.exp(-sigma * 2 * (radius**2 - square).clamp(min=0).sqrt())
    error = drawn.mean(0) - exact
    # The mean of exp(-depth) is not exp of the mean depth: (sigma step)^2 / 8 at most.
    assert (error.abs() < 4 * drawn.std(dim=0) / math.sqrt(100) + 0.003).all()


def test_gradients_against_finite_differences():
    renderer = build({"num_samples_per_ray": 64, "randomized": False, "prune_alpha_threshold": False})
    renderer.update_step(0, 0)
    renderer.double()
    batch = {key: value.double() for key, value in views(count=1, height=3, width=3).items()}
    geometry = renderer.geometry.double()
    renderer.background.double()

    def image(peak, mixing, offset):
        for name, value in {"peak": peak, "mixing": mixing, "offset": offset}.items():
            geometry._parameters.pop(name, None)
            setattr(geometry, name, value)
        out = renderer(**batch)
        return out["comp_rgb"], out["depth"], out["opacity"]

    inputs = [p.detach().clone().requires_grad_() for p in (geometry.peak, geometry.mixing, geometry.offset)]
    assert torch.autograd.gradcheck(image, inputs, atol=1e-6)


def test_chunked_evaluation_equals_whole():
    config = {"num_samples_per_ray": 128}
    lit = ("diffuse-with-point-light-material", {"ambient_only_steps": 0})
    images = []
    for size in (0, 37):
        renderer = build({**config, "eval_chunk_size": size}, material=lit)
        renderer.material.eval()  # a system does this for all its parts
        renderer.update_step(0, 0)
        with torch.no_grad():
            images.append(renderer.eval()(**views()))
        asked = renderer.geometry.asked
        assert (max(asked) <= 37) == bool(size) and (len(asked) > 5) == bool(size)
    assert set(images[0]) == set(images[1]) == {
        "comp_rgb", "comp_rgb_fg", "comp_rgb_bg", "opacity", "depth", "z_variance", "comp_normal"
    }  # fmt: skip
    for key, value in images[0].items():
        torch.testing.assert_close(images[1][key], value)


def test_training_outputs():
    lit = ("diffuse-with-point-light-material", {})
    renderer = build(
        {"num_samples_per_ray": 64, "return_comp_normal": True, "return_normal_perturb": True}, material=lit
    )
    renderer.update_step(0, 0)
    batch = views()
    out = renderer(**batch, shading="albedo", fovy=torch.ones(2))
    count = len(out["ray_indices"])
    shapes = {key: tuple(out[key].shape) for key in out}
    assert shapes == {
        **{key: (2, 6, 5, 3) for key in ("comp_rgb", "comp_rgb_fg", "comp_rgb_bg", "comp_normal")},
        **{key: (2, 6, 5, 1) for key in ("opacity", "depth", "z_variance")},
        **{key: (count, 1) for key in ("weights", "t_points", "t_intervals", "density")},
        **{key: (count, 3) for key in ("t_dirs", "points", "features", "normal", "shading_normal", "normal_perturb")},
        "ray_indices": (count,),
    }
    rays_o, rays_d = (batch[key].reshape(-1, 3)[out["ray_indices"]] for key in ("rays_o", "rays_d"))
    torch.testing.assert_close(out["points"], rays_o + rays_d * out["t_points"])
    assert torch.equal(out["t_dirs"], rays_d)
    albedo = torch.sigmoid(out["features"]) * out["weights"]
    by_ray = torch.zeros(60, 3).index_add(0, out["ray_indices"], albedo).view(2, 6, 5, 3)
    torch.testing.assert_close(out["comp_rgb_fg"], by_ray)
    # The blob's normals on the axis towards the eye: (n + 1) / 2 with n = -direction.
    middle = renderer(**{**batch, "rays_o": batch["rays_o"] * torch.tensor([1.0, 0.0, 0.0])}, shading="albedo")
    torch.testing.assert_close(middle["comp_normal"][0, 0, 0], torch.tensor([1.0, 0.5, 0.5]), atol=0.02, rtol=0)
    torch.testing.assert_close(middle["comp_normal"][1, 0, 0], torch.tensor([0.0, 0.5, 0.5]), atol=0.02, rtol=0)
    assert not torch.equal(out["normal_perturb"], out["normal"])
    assert "comp_normal" not in build({"num_samples_per_ray": 64, "grid_prune": False})(**batch)


def test_lights_belong_to_their_views():
    lit = ("diffuse-with-point-light-material", {"ambient_light_color": [0, 0, 0], "diffuse_light_color": [1, 1, 1]})
    renderer = build({"num_samples_per_ray": 128, "grid_prune": False}, {"peak": 200.0}, material=lit).eval()
    renderer.material.eval()
    batch = views()
    batch["light_positions"] = torch.tensor([[5.0, 0.0, 0.0], [5.0, 0.0, 0.0]])  # before the first view only
    front, back = renderer(**batch)["comp_rgb_fg"]
    assert front[2:4, 2].min() > 0.1 and back[2:4, 2].max() < 0.02


def test_given_background_colors():
    renderer = build({"num_samples_per_ray": 64, "grid_prune": False}).eval()
    batch = views()
    color = torch.rand(2, 3)
    out = renderer(**batch, bg_color=color)
    torch.testing.assert_close(out["comp_rgb"] - out["comp_rgb_fg"], color[:, None, None] * (1 - out["opacity"]))
    torch.testing.assert_close(out["comp_rgb_bg"], torch.tensor([0.2, 0.4, 0.6]).expand(2, 6, 5, 3))
    per_pixel = color[:, None, None].expand(2, 6, 5, 3)
    torch.testing.assert_close(renderer(**batch, bg_color=per_pixel)["comp_rgb"], out["comp_rgb"])
    with pytest.raises(UserError, match="bg_color"):
        renderer(**batch, bg_color=torch.rand(3, 3))
