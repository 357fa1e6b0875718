"""omega(t) against its formulas and the published table."""

from __future__ import annotations

import pytest
import torch
from dreammapping.distillation import WEIGHTINGS, NoiseSchedule

AB = 0.27633
TABLE = {
    "sds": 1 - AB,
    "uniform": 1.0,
    "fantasia3d": AB**0.5 * (1 - AB),
    "snr": 1.618,
    "asd": 1.618,
    "sigma": (1 - AB) ** 0.5,
}


@pytest.mark.parametrize("name", WEIGHTINGS.names())
def test_values_at_500(name):
    schedule = NoiseSchedule.scaled_linear()
    alpha_bar = schedule.at(torch.tensor([500, 500]), torch.zeros(2, 4, 8, 8))
    omega = WEIGHTINGS.get(name)(alpha_bar)
    assert omega.shape == (2, 1, 1, 1)
    assert omega[0].item() == pytest.approx(TABLE[name], rel=1e-3)
