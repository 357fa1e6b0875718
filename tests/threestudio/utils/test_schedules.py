from __future__ import annotations

import math

import pytest
from omegaconf import OmegaConf

from threestudio.errors import ConfigError
from threestudio.utils.config import C_max
from threestudio.utils.misc import C


@pytest.mark.parametrize("value", [3, 0.25])
def test_a_number_is_constant(value):
    assert C(value, 5, 100) == value and C_max(value) == value


@pytest.mark.parametrize("make", [list, tuple, OmegaConf.create])
@pytest.mark.parametrize("step, expected", [(0, 2.0), (25, 3.0), (50, 4.0), (100, 6.0), (999, 6.0)])
def test_three_entries_start_at_zero(make, step, expected):
    assert C(make([2.0, 6.0, 100]), 0, step) == pytest.approx(expected)


@pytest.mark.parametrize("step, expected", [(0, 1.0), (100, 1.0), (150, 3.0), (200, 5.0), (300, 5.0)])
def test_four_entries_wait_for_the_start(step, expected):
    assert C([100, 1.0, 5.0, 200], 0, step) == pytest.approx(expected)


@pytest.mark.parametrize("step, expected", [(5, 0.5), (10, 1.0), (15, 2.0), (20, 3.0), (30, 1.5), (40, 0.0), (50, 0.0)])
def test_more_entries_are_further_segments(step, expected):
    assert C([0, 0.0, 1.0, 10, 3.0, 20, 0.0, 40], 0, step) == pytest.approx(expected)


def test_a_float_end_counts_epochs():
    assert C([0, 0.0, 1.0, 10.0], epoch=5, global_step=999) == pytest.approx(0.5)
    assert C([0, 0.0, 1.0, 10], epoch=5, global_step=1) == pytest.approx(0.1)


def test_exponential_interpolation_is_linear_in_the_logarithm():
    assert C([0, 1e-2, 1e-4, 100], 0, 50, interpolation="exp") == pytest.approx(1e-3)
    with pytest.raises(ConfigError, match="positive"):
        C([0, 1.0, 0.0, 100], 0, 50, interpolation="exp")
    with pytest.raises(ConfigError, match="linear"):
        C([0, 1.0, 0.5, 100], 0, 50, interpolation="liner")


def test_a_jump_needs_no_length():
    assert [C([10, 1.0, 2.0, 10], 0, step) for step in (9, 10, 11)] == [1.0, 2.0, 2.0]


def test_the_maximum_is_over_values_not_steps():
    assert C_max([1000, 1.0, 5.0, 2000]) == 5.0
    assert C_max([7.0, 1.0, 2000]) == 7.0
    assert C_max([0, 1.0, 2.0, 100, 9.0, 200, 3.0, 300]) == 9.0


@pytest.mark.parametrize(
    "value", [[1], [1, 2], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7], [0, "a", 1, 10], [0, True, 1, 10]]
)
def test_other_lists_are_refused(value):
    with pytest.raises(ConfigError, match="no schedule"):
        C(value, 0, 0)


@pytest.mark.parametrize("value", ["0.5", None, {"a": 1}, True])
def test_other_types_are_refused(value):
    with pytest.raises(TypeError):
        C(value, 0, 0)


def test_constant_end_is_reached_exactly():
    assert C([0, 0.1, 0.7, 3], 0, 3) == 0.7 and not math.isnan(C([0, 0.1, 0.7, 0], 0, 0))
