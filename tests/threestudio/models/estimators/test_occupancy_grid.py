"""The occupancy grid: updates by their rule, what sampling drops, and its life in a state dict."""

from __future__ import annotations

import torch

from threestudio.models.estimators import OccGridEstimator

BOX = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0])


def ball(points):
    return (points.norm(dim=-1, keepdim=True) < 0.5) * 0.4


def centers(resolution):
    line = (torch.arange(resolution) + 0.5) / resolution * 2 - 1
    return torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1)


def test_updates_follow_the_rule():
    torch.manual_seed(0)
    grid = OccGridEstimator(BOX, resolution=8)
    assert not grid.binaries.any() and grid.binaries.shape == (1, 8, 8, 8) and grid.aabbs.shape == (1, 6)
    grid.update_every_n_steps(1, ball)
    assert not grid.occs.any()  # only every sixteenth step
    grid.update_every_n_steps(16, ball)
    corner = 0.25 / 2 * 3**0.5  # half a cell's diagonal
    distance = centers(8).norm(dim=-1)
    occs = grid.occs.view(8, 8, 8)
    torch.testing.assert_close(occs[distance < 0.5 - corner], torch.full_like(occs[distance < 0.5 - corner], 0.4))
    assert not occs[distance > 0.5 + corner].any() and torch.equal(grid.binaries[0], occs > 0.01)
    before = grid.occs.clone()
    grid.update_every_n_steps(32, lambda points: torch.zeros(len(points)))
    torch.testing.assert_close(grid.occs, before * 0.95)


def test_points_lie_in_their_cells():
    torch.manual_seed(0)
    grid = OccGridEstimator(torch.tensor([-1.0, 0.0, 2.0, 1.0, 4.0, 3.0]), resolution=4)
    low, size = torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([2.0, 4.0, 1.0])
    for _ in range(3):
        points = grid._points_in(torch.arange(64))
        cells = ((points - low) / size * 4).floor().long()
        assert (cells @ torch.tensor([16, 4, 1])).tolist() == list(range(64))


def test_after_warm_up_occupied_cells_and_a_quarter_are_looked_at():
    torch.manual_seed(0)
    grid = OccGridEstimator(BOX, resolution=8)
    grid.update_every_n_steps(0, ball)
    before, occupied, asked = grid.occs.clone(), grid.binaries.flatten().clone(), []
    grid.update_every_n_steps(256, lambda points: asked.append(len(points)) or points[:, :1] * 0)
    assert asked == [128 + int(occupied.sum())] and occupied.sum() < 128
    torch.testing.assert_close(grid.occs[occupied], before[occupied] * 0.95)
    # A field that appears where there was nothing is found, though only some cells are looked at.
    grid.update_every_n_steps(272, lambda points: torch.ones(len(points)))
    assert 0.15 < (grid.occs == 1.0).float().mean() < 0.5


def test_a_mean_below_the_threshold_is_the_threshold():
    torch.manual_seed(0)
    grid = OccGridEstimator(BOX, resolution=8)
    grid.update_every_n_steps(0, lambda points: 1e-4 * ball(points))
    assert 0.02 < grid.binaries.float().mean() < 0.3


def rays(count=50):
    origins = torch.nn.functional.normalize(torch.randn(count, 3), dim=-1) * 2
    return origins, torch.nn.functional.normalize(torch.randn(count, 3) * 0.3 - origins, dim=-1)


def test_jitter_is_random_reproducible_and_less_than_a_step():
    grid = OccGridEstimator(BOX, resolution=8)
    grid.fill()
    origins, directions = rays()
    plain = grid.sampling(origins, directions, render_step_size=0.1)
    torch.testing.assert_close(plain.t_starts / 0.1, (plain.t_starts / 0.1).round(), atol=1e-3, rtol=0)
    torch.manual_seed(1)
    first = grid.sampling(origins, directions, render_step_size=0.1, stratified=True)
    torch.manual_seed(1)
    assert all(torch.equal(one, other) for one, other in zip(
        first, grid.sampling(origins, directions, render_step_size=0.1, stratified=True)
    ))  # fmt: skip
    shift = [float((first.t_starts[first.ray_indices == ray][0] / 0.1) % 1) for ray in first.ray_indices.unique()]
    assert len({round(value, 4) for value in shift}) > 0.9 * len(shift) and torch.tensor(shift).std() > 0.2
    limited = grid.sampling(origins, directions, near_plane=1.5, far_plane=2.0, render_step_size=0.1)
    assert limited.t_starts.min() >= 1.5 and (limited.t_starts + limited.t_ends).max() / 2 < 2.0


def test_hidden_and_transparent_samples_are_dropped():
    grid = OccGridEstimator(BOX, resolution=8)
    grid.fill()
    origins, directions = torch.tensor([[-2.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])

    def sigma(t_starts, t_ends, ray_indices):  # a wall at 2 to 2.2, with mist before it
        middle = (t_starts + t_ends) / 2
        return torch.where(middle < 2.0, 0.05, torch.where(middle < 2.2, 100.0, 1.0))

    kept = grid.sampling(origins, directions, sigma, render_step_size=0.1, alpha_thre=0.01)
    torch.testing.assert_close(kept.t_starts, torch.tensor([2.0]), atol=1e-4, rtol=0)  # e^-10 gets through
    grid.occs.fill_(1e-3)  # a young field: the threshold is its mean
    kept = grid.sampling(origins, directions, sigma, render_step_size=0.1, alpha_thre=0.01)
    assert len(kept.t_starts) == 11


def test_state_survives_a_state_dict():
    torch.manual_seed(0)
    grid, other = OccGridEstimator(BOX, resolution=8), OccGridEstimator(BOX * 2, resolution=8)
    grid.update_every_n_steps(0, ball)
    assert set(grid.state_dict()) == {"resolution", "aabbs", "occs", "binaries"}
    other.load_state_dict(grid.state_dict())
    origins, directions = rays()
    one, two = (each.sampling(origins, directions, render_step_size=0.05) for each in (grid, other))
    assert len(one.t_starts) and all(torch.equal(a, b) for a, b in zip(one, two))
