"""Relocation, growth and noise of 3DGS-MCMC against its formulas."""

from __future__ import annotations

import math

import pytest
import torch
from dreammapping.gaussians import Densification, DensificationSettings, NoGaussiansLeft, optimizer_views
from dreammapping.gaussians.mcmc import _draw, add_position_noise, relocate_and_add, relocated_values


def plain_relocation(opacity: float, n: int) -> tuple[float, float]:
    """The paper's eq. 9 word for word: new opacity, and the factor of the scale."""
    new = 1 - (1 - opacity) ** (1 / n)
    total = sum(
        math.comb(i - 1, k) * (-1) ** k * new ** (k + 1) / math.sqrt(k + 1) for i in range(1, n + 1) for k in range(i)
    )
    return new, opacity / total


@pytest.mark.parametrize("n", [1, 2, 3, 7, 20, 51])
def test_relocation_equals_the_papers_double_sum(n):
    opacities = torch.tensor([0.006, 0.1, 0.5, 0.9, 0.999], dtype=torch.float64)
    new, scales = relocated_values(opacities, torch.ones(5, 3, dtype=torch.float64), torch.full((5,), n))
    expected = [plain_relocation(float(o), n) for o in opacities]
    torch.testing.assert_close(new, torch.tensor([e[0] for e in expected], dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(scales[:, 0], torch.tensor([e[1] for e in expected], dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("n", [2, 5, 20])
def test_the_stack_has_the_opacity_and_the_profile_integral_of_the_one(n):
    opacity, x = 0.8, torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    new, scales = relocated_values(torch.tensor([opacity], dtype=torch.float64), torch.ones(1, 3).double(), torch.tensor([n]))
    one = opacity * torch.exp(-0.5 * x**2)
    stack = 1 - (1 - new * torch.exp(-0.5 * (x / scales[0, 0]) ** 2)) ** n
    assert float(stack.max()) == pytest.approx(opacity, rel=1e-9)
    assert float(torch.trapezoid(stack, x)) == pytest.approx(float(torch.trapezoid(one, x)), rel=1e-6)


def test_many_copies_are_treated_as_fifty_one():
    args = torch.tensor([0.7]), torch.ones(1, 3)
    at_limit, beyond = relocated_values(*args, torch.tensor([51])), relocated_values(*args, torch.tensor([400]))
    assert torch.equal(at_limit[0], beyond[0]) and torch.equal(at_limit[1], beyond[1])


def event(model, optimizer, **settings):
    settings = DensificationSettings(**{"type": "mcmc", "prune_opa": 0.005, "grow_factor": 1.0, **settings})
    relocate_and_add(model, optimizer_views(optimizer), settings, 200, torch.Generator().manual_seed(0))


def test_the_dead_move_onto_the_living(scene):
    make_model, make_adam, _ = scene
    model = make_model(40)
    optimizer = make_adam(model)
    dead = torch.zeros(40, dtype=torch.bool)
    dead[10:15] = True
    model.params["opacities"].data[:] = 0.0
    model.params["opacities"].data[dead] = -10.0
    model.params["scales"].data[20] = float("nan")
    dead[20] = True
    before = {name: value.detach().clone() for name, value in model.params.items()}
    adam_before = optimizer.state[model.params["means"]]["exp_avg"].clone()
    event(model, optimizer)

    assert model.count == 40 and bool(model.finite_rows().all())
    home = (model.params["means"][dead][:, None] == before["means"][None, ~dead]).all(-1)
    assert bool((home.sum(1) == 1).all())  # each dead one sits exactly where one living is
    parents = (~dead).nonzero()[:, 0][home.float().argmax(1)]
    for name, value in model.params.items():
        assert torch.equal(value[dead], value[parents])
    chosen, copies = parents.unique(return_counts=True)
    for parent, n in zip(chosen.tolist(), (copies + 1).tolist()):
        new, factor = plain_relocation(0.5, n)
        assert model.get_opacities[parent].item() == pytest.approx(new, rel=1e-4)
        expected = before["scales"][parent].exp() * factor
        torch.testing.assert_close(model.get_scales[parent], expected, rtol=1e-4, atol=0)

    touched = dead.clone()
    touched[chosen] = True
    adam_after = optimizer.state[model.params["means"]]["exp_avg"]
    assert adam_after[touched].abs().sum() == 0 and torch.equal(adam_after[~touched], adam_before[~touched])
    for name, value in model.params.items():
        assert torch.equal(value[~touched], before[name][~touched])


def test_growth_is_five_percent_up_to_the_cap(scene):
    make_model, make_adam, _ = scene
    model = make_model(100, sh_degree=0)
    optimizer = make_adam(model)
    model.params["opacities"].data.clamp_(min=-4.0)
    for expected in (105, 108, 108):
        before = model.params["means"].detach().clone()
        event(model, optimizer, grow_factor=1.05, cap_max=108)
        assert model.count == expected
        assert torch.equal(model.params["means"][: len(before)], before)
        for name, value in model.params.items():
            state = optimizer.state[value]
            assert state["exp_avg"].shape == value.shape and state["exp_avg"][len(before) :].abs().sum() == 0


def test_no_living_gaussian_is_an_error(scene):
    make_model, make_adam, _ = scene
    model = make_model(3)
    optimizer = make_adam(model)
    model.params["opacities"].data[:] = -20.0
    with pytest.raises(NoGaussiansLeft):
        event(model, optimizer)


def test_draws_follow_the_weights():
    weights = torch.tensor([0.0, 1.0, 2.0, 0.0, 5.0, 0.0])
    draws = _draw(weights, 8000, torch.Generator().manual_seed(0))
    counts = torch.bincount(draws, minlength=6)
    assert counts[[0, 3, 5]].sum() == 0
    expected = torch.tensor([1000.0, 2000, 5000])
    chi_square = ((counts[[1, 2, 4]] - expected) ** 2 / expected).sum()
    assert float(chi_square) < 13.8  # 2 degrees of freedom, p = 0.001


def test_noise_is_the_papers_formula_draw_by_draw(scene):
    make_model, _, _ = scene
    count, strength = 30, 3.0
    model = make_model(count, sh_degree=0)
    with torch.no_grad():
        model.params["scales"].add_(3.5)
        model.params["opacities"].copy_(torch.linspace(-8, -2, count))
    before = model.params["means"].detach().clone()
    add_position_noise(model, strength, torch.Generator().manual_seed(0))

    normal = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    for i in range(count):
        w, x, y, z = model.get_quats[i].detach().double().tolist()
        rotation = torch.tensor([
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ], dtype=torch.float64)  # fmt: skip
        sigma = rotation @ torch.diag(model.get_scales[i].detach().double() ** 2) @ rotation.T
        gate = strength / (1 + math.exp(-100 * (1 - model.get_opacities[i].item() - 0.995)))
        expected = before[i].double() + gate * sigma @ normal[i].double()
        torch.testing.assert_close(model.params["means"][i].double(), expected, rtol=1e-4, atol=1e-6)


def test_opaque_gaussians_hardly_move(scene):
    make_model, _, _ = scene
    model = make_model(50)
    model.params["opacities"].data[:] = 1.0
    before = model.params["means"].detach().clone()
    add_position_noise(model, 10.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.params["means"].detach(), before, rtol=0, atol=1e-12)


def test_noise_scales_with_the_learning_rate_of_the_means(scene):
    make_model, make_adam, _ = scene
    shifts = []
    for rate in (1e-4, 2e-4):
        model = make_model(20)
        optimizer = make_adam(model)
        model.params["opacities"].data[:] = -8.0
        model.params["scales"].data[:] = 0.0
        model.params["means"].data.zero_()
        optimizer_views(optimizer)["means"].param_groups[0]["lr"] = rate
        settings = DensificationSettings(type="mcmc", refine_start_iter=100)
        assert not Densification(settings, 20, seed=1).after_step(5, {}, model, optimizer)
        shifts.append(model.params["means"].detach().clone())
    assert shifts[0].abs().max() > 0
    torch.testing.assert_close(shifts[1], 2 * shifts[0])
