"""The proposal estimator: its bound by brute force, that it learns, and that it resumes."""

from __future__ import annotations

import torch

from threestudio.models.estimators import PropNetEstimator
from threestudio.models.estimators.proposal import outer_bound_loss
from threestudio.utils.volume_rendering import render_weight_from_density


def loop_loss(edges, weights, prop_edges, prop_weights):
    total = 0.0
    for e, w, pe, pw in zip(edges.tolist(), weights.tolist(), prop_edges.tolist(), prop_weights.tolist()):
        for left, right, weight in zip(e[:-1], e[1:], w):
            bound = sum(p for a, b, p in zip(pe[:-1], pe[1:], pw) if a < right and b > left)
            total += max(0.0, weight - bound) ** 2 / (weight + 1e-7)
    return total / weights.numel()


def histogram(rays, count):
    inner = torch.rand(rays, count - 1, dtype=torch.float64).sort(dim=-1).values
    edges = torch.cat([torch.zeros(rays, 1), inner, torch.ones(rays, 1)], dim=-1)
    return edges, torch.rand(rays, count, dtype=torch.float64) / count


def test_loss_equals_a_loop_and_its_gradient():
    torch.manual_seed(0)
    (edges, weights), (prop_edges, prop_weights) = histogram(3, 12), histogram(3, 7)
    edges[0, 3:6] = prop_edges[0, 2:5]  # shared edges touch nothing beyond themselves
    edges = edges.sort(dim=-1).values
    prop_weights = prop_weights * 0.3
    loss = outer_bound_loss(edges, weights, prop_edges, prop_weights)
    assert abs(float(loss) - loop_loss(edges, weights, prop_edges, prop_weights)) < 1e-9 and loss > 0
    prop_weights.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: outer_bound_loss(edges, weights, prop_edges, p), prop_weights)
    assert float(outer_bound_loss(edges, weights, edges, weights)) < 1e-12  # a histogram explains itself


def make(seed=0):
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1), torch.nn.Softplus())
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    return net, PropNetEstimator(optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999))


def field(starts, ends):
    return 10.0 * torch.exp(-(((starts + ends) / 2 - 0.7) ** 2) / 0.005)


def density_of(net):
    return lambda starts, ends: net(((starts + ends) / 2)[..., None])[..., 0]


def run(net, estimator, steps):
    """Train steps (a range) and return their losses."""
    losses = []
    for step in steps:
        learn = estimator.wants_gradient(step)
        starts, ends = estimator.sampling([density_of(net)], [16], 24, 4, 0.0, 1.0, requires_grad=learn)
        estimator.remember(render_weight_from_density(starts, ends, field(starts, ends)).weights)
        losses.append(estimator.update_every_n_steps(step, learn))
    return losses


def test_it_learns_where_weight_is():
    net, estimator = make()

    def share_of_intervals_there():
        starts, ends = estimator.sampling([density_of(net)], [16], 24, 1, 0.0, 1.0)
        return float(((starts > 0.55) & (ends < 0.85)).float().mean())

    before = share_of_intervals_there()
    losses = [loss for loss in run(net, estimator, range(120)) if loss > 0]
    assert losses[-1] < 0.3 * losses[0] and share_of_intervals_there() > 1.4 * before


def test_pauses_grow_and_asking_changes_nothing():
    _, estimator = make()
    learned = []
    for step in range(1100):
        assert estimator.wants_gradient(step) == estimator.wants_gradient(step)
        if estimator.wants_gradient(step):
            learned.append(step)
            estimator._last_update = step
    assert learned[:4] == [0, 1, 2, 3] and {b - a for a, b in zip(learned[-10:], learned[-9:])} == {6}


def test_without_gradient_nothing_is_kept_or_learned():
    net, estimator = make()
    before = [p.clone() for p in net.parameters()]
    estimator.sampling([field], [8], 12, 4, 0.0, 1.0)
    estimator.remember(torch.zeros(4, 12))
    assert float(estimator.compute_loss()) == 0.0 and estimator.update_every_n_steps(0) == 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    net, estimator = make()
    run(net, estimator, range(30))
    torch.save({"net": net.state_dict(), "estimator": estimator.state_dict()}, tmp_path / "state.pt")
    whole = run(net, estimator, range(30, 60))
    other, resumed = make(seed=1)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["estimator"])
    assert run(other, resumed, range(30, 60)) == whole and any(whole)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters()))
