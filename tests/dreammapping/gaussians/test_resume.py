"""A run that stops, is saved, and goes on equals one that did not stop: parameters, moments, statistics, random numbers."""

from __future__ import annotations

import io

import pytest
import torch
from dreammapping.gaussians import (
    Densification,
    DensificationSettings,
    GaussianModel,
    LearningRates,
    build_adam,
    parameter_groups,
    update_learning_rates,
)

SETTINGS = {
    "default": dict(refine_start_iter=2, refine_every=4, refine_stop_iter=40, grow_grad2d=1e-3, reset_every=9, cap_max=90),
    "mcmc": dict(type="mcmc", refine_start_iter=2, refine_every=4, refine_stop_iter=40, grow_factor=1.3, cap_max=90, prune_opa=0.2),
}


class Run(torch.nn.Module):
    """The smallest training loop: a fake rasterizer that projects along z, and a loss with every parameter in it."""

    def __init__(self, model: GaussianModel, kind: str) -> None:
        super().__init__()
        self.model = model
        self.densification = Densification(DensificationSettings(**SETTINGS[kind]), model.count, seed=11)
        self.schedules = LearningRates().schedules()
        self.make_optimizer()

    def make_optimizer(self) -> None:
        self.optimizer = build_adam(parameter_groups(self.model, self.schedules))

    def train_steps(self, first: int, last: int) -> list[int]:
        counts = []
        for step in range(first, last):
            update_learning_rates(self.optimizer, self.schedules, step)
            means2d = torch.stack([self.model.get_means[:, :2] * (8 + view) for view in range(3)])
            radii = (self.model.get_scales.detach() * 200).int()[None, :, :2].expand(3, -1, -1)
            info = {"means2d": means2d, "radii": radii, "width": 16, "height": 16}
            self.densification.before_backward(step, info)
            values = [means2d, self.model.get_scales, self.model.get_quats, self.model.get_opacities, self.model.get_sh]
            sum((v - 0.3).square().mean() for v in values).backward()
            self.optimizer.step()
            self.densification.after_step(step, info, self.model, self.optimizer)
            self.optimizer.zero_grad(set_to_none=True)
            counts.append(self.model.count)
        return counts


def stored(payload):
    """Through a file, as weights only."""
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("kind", ["default", "mcmc"])
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(scene, kind):
    make_model, _, _ = scene
    straight = Run(make_model(40), kind)
    counts = straight.train_steps(0, 30)
    assert len(set(counts[:15])) > 1 and len(set(counts[15:])) > 1  # events before and after the interruption
    assert max(counts) <= 90

    first = Run(make_model(40), kind)
    first.train_steps(0, 15)
    saved = stored({"state": first.state_dict(), "optimizer": first.optimizer.state_dict()})
    torch.manual_seed(1234)  # the global generator must not matter
    second = Run(make_model(40, seed=9), kind)
    second.load_state_dict(saved["state"])
    second.optimizer.load_state_dict(saved["optimizer"])
    second.train_steps(15, 30)

    expected, found = straight.state_dict(), second.state_dict()
    assert expected.keys() == found.keys()
    for key in expected:
        if key.endswith("_extra_state"):
            assert all(torch.equal(torch.as_tensor(expected[key][k]), torch.as_tensor(found[key][k])) for k in expected[key])
        else:
            assert torch.equal(expected[key], found[key]), key
    for a, b in zip(straight.model.params.values(), second.model.params.values()):
        for key, moment in straight.optimizer.state[a].items():
            assert torch.equal(moment, second.optimizer.state[b][key])


def test_another_seed_gives_another_run(scene):
    make_model, _, _ = scene
    a, b = Run(make_model(40), "mcmc"), Run(make_model(40), "mcmc")
    b.densification.generator.manual_seed(12)
    a.train_steps(0, 6), b.train_steps(0, 6)
    assert not torch.equal(a.model.params["means"], b.model.params["means"])
