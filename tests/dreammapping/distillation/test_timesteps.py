"""Timestep schedules: bounds at known steps, and what is drawn between them."""

from __future__ import annotations

import pytest
import torch
from dreammapping.distillation import TIMESTEPS, build_timesteps
from dreammapping.errors import ConfigError


def bounds(config, step, total=1000):
    return build_timesteps(config).bounds(step, total)


@pytest.mark.parametrize(
    ("config", "step", "expected"),
    [
        ({}, 7, (0, 999)),  # the paper: U(0, 1000)
        ({"type": "uniform", "min_step": 20, "max_step": 500}, 7, (20, 500)),
        ({"type": "percent"}, 7, (20, 980)),
        ({"type": "percent", "max_step_percent": 1.0}, 7, (20, 999)),
        ({"type": "percent", "sqrt_anneal": True, "trainer_max_steps": 100}, 0, (980, 980)),
        ({"type": "percent", "sqrt_anneal": True, "trainer_max_steps": 100}, 25, (500, 500)),
        ({"type": "percent", "sqrt_anneal": True, "trainer_max_steps": 100}, 400, (20, 20)),
        ({"type": "luciddreamer"}, 0, (21, 980)),
        ({"type": "luciddreamer"}, 750, (21, 740)),
        ({"type": "luciddreamer"}, 1500, (21, 500)),
        ({"type": "luciddreamer"}, 4999, (21, 500)),
        ({"type": "anneal", "anneal_steps": 100}, 0, (980, 980)),
        ({"type": "anneal", "anneal_steps": 100}, 50, (500, 500)),
        ({"type": "anneal", "anneal_steps": 100, "width": 30}, 200, (0, 50)),
        ({"type": "consistency"}, 0, (800, 980)),
        ({"type": "consistency"}, 750, (500, 699)),  # t_2 = 700 - 600 sqrt(1 / 4)
        ({"type": "consistency"}, 9999, (200, 399)),
        ({"type": "consistency", "start": 20, "end": 20}, 0, (200, 399)),  # min_step
        ({"type": "consistency", "max_step": 500, "max_gap": 199}, 0, (500, 500)),
    ],
)
def test_bounds(config, step, expected):
    assert bounds(config, step) == expected


@pytest.mark.parametrize("name", TIMESTEPS.names())
def test_draws_fill_the_bounds_and_repeat_with_the_generator(name):
    sampler = build_timesteps({"type": name})
    low, high = sampler.bounds(100, 1000)
    draws = [sampler.draw(4, 100, 1000, torch.Generator().manual_seed(s)) for s in range(300)]
    values = torch.cat(draws)
    assert values.dtype == torch.int64 and low <= values.min() and values.max() <= high
    # Uniform: the mean of n draws lies within five standard errors.
    error = (high - low) / 12**0.5 / 300**0.5
    assert abs(values.double().mean() - (low + high) / 2) <= 5 * error
    assert torch.equal(draws[3], sampler.draw(4, 100, 1000, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("shared", [True, False])
def test_shared_means_one_t_for_the_batch(shared):
    t = build_timesteps({"type": "uniform", "shared": shared}).draw(8, 0, 1000, torch.Generator().manual_seed(0))
    assert t.shape == (8,) and (len(t.unique()) == 1) == shared


def test_both_ends_are_drawn():
    sampler = build_timesteps({"type": "uniform", "min_step": 3, "max_step": 5})
    assert sampler.draw(200, 0, 1000, torch.Generator().manual_seed(0)).unique().tolist() == [3, 4, 5]


@pytest.mark.parametrize(("step", "expected"), [(0, 700), (1, 689), (750, 400), (3000, 100), (5000, 100)])
def test_consistency_pairs_every_t_with_the_annealed_step(step, expected):
    sampler = build_timesteps({"type": "consistency"})
    t, earlier = sampler.draw(400, step, 1000, torch.Generator().manual_seed(0)), sampler.earlier(400, step, 1000)
    assert earlier.dtype == torch.int64 and earlier.tolist() == [expected] * 400
    assert len(t.unique()) > 50 and 100 <= (t - earlier).min() and (t - earlier).max() <= 299 and t.max() <= 980


def test_only_consistency_makes_pairs():
    paired = {name for name in TIMESTEPS.names() if build_timesteps({"type": name}).earlier(2, 0, 1000) is not None}
    assert paired == {"consistency"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "consistency", "min_gap": 300}, "min_gap <= max_gap"),
        ({"type": "consistency", "anneal_steps": 0}, "anneal_steps at least 1"),
        ({"type": "consistency", "max_step": 199}, "no pair fits"),
        ({"type": "unifrom"}, "did you mean 'uniform'"),
        ({"type": "percent", "max_step": 1}, "system.timesteps.max_step is not a known key"),
    ],
)
def test_mistakes(config, message):
    with pytest.raises(ConfigError, match=message):
        build_timesteps(config, "system.timesteps")


@pytest.mark.parametrize(
    "config", [{"min_step": 5, "max_step": 1000}, {"min_step": 5, "max_step": 4}, {"min_step": -1}]
)
def test_bounds_outside_the_schedule_are_refused(config):
    with pytest.raises(ConfigError, match="must lie within"):
        build_timesteps(config).draw(1, 0, 1000, torch.Generator())


def test_a_schedule_nobody_evaluated_is_refused():
    sampler = build_timesteps({"type": "percent", "max_step_percent": [0, 0.98, 0.5, 5000]})
    with pytest.raises(ConfigError, match="evaluated"):
        sampler.bounds(0, 1000)


def test_pairs_longer_than_the_schedule_are_refused():
    with pytest.raises(ConfigError, match="do not fit into a schedule of 100"):
        build_timesteps({"type": "consistency"}).draw(1, 0, 100, torch.Generator())


def test_luciddreamer_without_steps_to_anneal_over_is_at_its_end():
    steps = build_timesteps({"type": "luciddreamer", "anneal_steps": 0})
    assert steps.bounds(0, 1000) == steps.bounds(10**6, 1000) == (21, 500)
