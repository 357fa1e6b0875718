"""Resampling by weights, and the estimator that does it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from threestudio.errors import ConfigError, UserError
from threestudio.models.estimators import ImportanceEstimator
from threestudio.models.estimators.importance import resample


def loop_resample(edges, weights, count):
    """Inverse of the piecewise linear CDF, in float64 by NumPy."""
    out = []
    for row, mass in zip(edges.double().numpy(), weights.double().numpy() + 1e-5):
        cdf = np.concatenate([[0.0], np.cumsum(mass / mass.sum())])
        out.append(np.interp(np.linspace(0.0, 1.0, count + 1), cdf, row))
    return torch.tensor(np.stack(out))


def test_resampling_inverts_the_cdf():
    torch.manual_seed(0)
    edges = torch.rand(6, 9, dtype=torch.float64).sort(dim=-1).values
    weights = torch.rand(6, 8, dtype=torch.float64)
    weights[0, 2:7] = 0.0
    weights[1] = 0.0  # met nothing: as even as the old intervals
    found = resample(edges, weights, 24)
    torch.testing.assert_close(found, loop_resample(edges, weights, 24))
    assert (found.diff(dim=-1) >= 0).all() and torch.equal(resample(edges, weights, 1), edges[:, [0, -1]])


def test_stratified_edges_stay_in_order_and_average_to_the_plain_ones():
    torch.manual_seed(0)
    edges, weights = torch.linspace(0, 1, 5).expand(4000, -1), torch.tensor([0.1, 0.5, 0.0, 0.4]).expand(4000, -1)
    found = resample(edges, weights, 6, stratified=True)
    assert (found.diff(dim=-1) >= 0).all() and (found[:, 0] == 0).all() and (found[:, -1] == 1).all()
    assert found[:, 1:-1].std(dim=0).min() > 0.005
    even = resample(torch.tensor([[0.0, 1.0]]).expand(4000, -1), torch.ones(4000, 1), 6, stratified=True)
    torch.testing.assert_close(even.mean(0), torch.linspace(0, 1, 7), atol=0.005, rtol=0)


def test_fine_intervals_gather_where_density_is():
    estimator = ImportanceEstimator()
    t_starts, t_ends = estimator.sampling(
        [lambda starts, ends: 20.0 * (((starts + ends) / 2 - 2.0).abs() < 0.25)],
        [16], 32, n_rays=3, near_plane=1.0, far_plane=torch.tensor([3.0, 4.0, 5.0]),
    )  # fmt: skip
    assert t_starts.shape == t_ends.shape == (3, 48)
    assert torch.equal(t_starts[:, 1:], t_ends[:, :-1]) and (t_ends >= t_starts).all()
    assert (t_starts[:, 0] == 1.0).all() and t_ends[:, -1].tolist() == [3.0, 4.0, 5.0]
    inside = ((t_starts > 1.6) & (t_ends < 2.4)).sum(-1)
    assert (inside >= 30).all()


def test_lindisp_is_even_in_the_inverse_and_needs_a_near_plane():
    estimator = ImportanceEstimator()
    density = [lambda starts, ends: torch.zeros_like(starts)]
    t_starts, t_ends = estimator.sampling(density, [4], 4, 2, 1.0, 5.0, sampling_type="lindisp")
    widths = 1 / t_starts - 1 / t_ends
    assert torch.allclose(widths.sum(-1), torch.tensor(0.8)) and (t_starts.diff() > 0).all()
    assert (t_ends - t_starts)[:, -1].min() > 2 * (t_ends - t_starts)[:, 0].max()
    with pytest.raises(UserError, match="near_plane"):
        estimator.sampling(density, [4], 4, 2, 0.0, 5.0, sampling_type="lindisp")
    with pytest.raises(ConfigError, match="sampling_type"):
        estimator.sampling(density, [4], 4, 2, 0.0, 5.0, sampling_type="even")
