from __future__ import annotations

import math

import pytest
import torch
from dreammapping.errors import ConfigError
from dreammapping.gaussians import GaussianModel, LearningRates, LogLinear, build_adam, parameter_groups, update_learning_rates


def test_one_segment_is_a_straight_line_in_the_logarithm():
    schedule = LogLinear.parse([100, 1e-2, 1e-4, 300], "lr")
    assert schedule(0) == schedule(100) == 1e-2
    assert schedule(300) == schedule(10_000) == 1e-4
    assert schedule(200) == pytest.approx(1e-3, rel=1e-12)
    assert schedule(150) == pytest.approx(10**-2.5, rel=1e-12)


def test_three_numbers_start_at_step_zero():
    assert LogLinear.parse([2.0, 8.0, 10], "lr") == LogLinear.parse([0, 2.0, 8.0, 10], "lr")


def test_several_segments_join():
    schedule = LogLinear.parse([0, 1.0, 4.0, 10, 1.0, 20], "lr")
    assert [schedule(s) for s in (0, 5, 10, 15, 20, 30)] == pytest.approx([1, 2, 4, 2, 1, 1])


def test_agrees_with_the_cores_schedules():
    C = pytest.importorskip("threestudio.utils.misc").C
    from omegaconf import OmegaConf

    entries = [50, 5.6e-4, 5.6e-6, 5000]
    for step in (0, 50, 51, 1234, 4999, 5000, 6000):
        expected = C(OmegaConf.create({"v": entries}).v, 0, step, interpolation="exp")
        assert LogLinear.parse(entries, "lr")(step) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, 2.0], "must be a number"),
        ([0, 1, 2, 10, 3], "must be a number"),
        ([0, 1e-3, 0.0, 10], "above 0"),
        ([0, 1e-3, 1e-4, 10.0], "whole numbers"),
        ([10, 1e-3, 1e-4, 10], "must increase"),
        ("fast", "no number"),
        (-1.0, "not negative"),
        (float("nan"), "finite"),
    ],
)
def test_malformed_schedules_name_the_key(value, message):
    with pytest.raises(ConfigError, match=f"system.geometry.position_lr.*{message}"):
        LogLinear.parse(value, "system.geometry.position_lr")


def test_defaults_are_lucid_dreamers():
    schedules = LearningRates().schedules()
    for name, start, end in [
        ("means", 1.6e-4 * 3.5, 1.6e-6 * 3.5),
        ("sh0", 0.005, 0.003),
        ("shN", 0.005 / 20, 0.005 / 20),
        ("opacities", 0.05, 0.05),
        ("scales", 0.005, 0.001),
        ("quats", 0.001, 0.0002),
    ]:
        assert (schedules[name](0), schedules[name](5000)) == pytest.approx((start, end))
        assert schedules[name](2500) == pytest.approx(math.sqrt(start * end))


def test_groups_are_updated_by_name_and_others_left_alone():
    other = torch.nn.Parameter(torch.zeros(2))
    schedules = LearningRates().schedules()
    groups = parameter_groups(GaussianModel(0, 4), schedules)
    optimizer = build_adam([*groups, {"params": [other], "lr": 0.7}])
    update_learning_rates(optimizer, schedules, 5000)
    rates = {group.get("name"): group["lr"] for group in optimizer.param_groups}
    assert rates["gaussians.means"] == pytest.approx(5.6e-6) and rates["gaussians.quats"] == pytest.approx(2e-4)
    assert optimizer.param_groups[-1]["lr"] == 0.7
    assert all(group["eps"] == 1e-15 for group in groups)
