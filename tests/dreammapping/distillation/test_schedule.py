"""Numbers that change during the run."""

from __future__ import annotations

import pytest

from dreammapping.distillation import scheduled
from dreammapping.errors import ConfigError
from threestudio.utils.misc import C


@pytest.mark.parametrize("step", [0, 9, 10, 11, 17, 29, 30, 31, 1000])
@pytest.mark.parametrize("value", [[10, -1.0, -0.5, 30], [10, 0.5, -2, 30], [30, 1.0, 2.0, 30], 3, -0.5])
def test_it_equals_threestudios(value, step):
    assert scheduled(value, step) == pytest.approx(C(value, 0, step))


@pytest.mark.parametrize("value", [[0, 1.0, 2.0], [0, 1, 2, 3, 4, 5], [6, 0.0, 1.0, 5], []])
def test_mistakes(value):
    with pytest.raises(ConfigError, match="is no schedule; write a number or \\[start_step, start_value"):
        scheduled(value, 0)
