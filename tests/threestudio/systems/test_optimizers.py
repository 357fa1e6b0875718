from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from threestudio.errors import ConfigError
from threestudio.systems.optimizers import Adan
from threestudio.systems.utils import parse_optimizer, parse_scheduler, parse_scheduler_to_instance


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.geometry = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        self.scale = nn.Parameter(torch.ones(()))
        self.guidance = object()


def optimizer(**config):
    return parse_optimizer(OmegaConf.create(config), Model())


def contains_config_nodes(value):
    if isinstance(value, dict):
        return any(map(contains_config_nodes, value.values()))
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return any(map(contains_config_nodes, value))
    return OmegaConf.is_config(value)


def test_all_parameters_in_one_group_with_plain_values():
    built = optimizer(name="AdamW", args={"lr": 0.01, "betas": [0.9, 0.95]})
    assert isinstance(built, torch.optim.AdamW) and len(built.param_groups) == 1
    assert len(built.param_groups[0]["params"]) == 5
    assert built.param_groups[0]["betas"] == (0.9, 0.95) and not contains_config_nodes(built.state_dict())


def test_listed_parameters_get_named_groups():
    built = optimizer(
        name="Adam",
        args={"lr": 0.01},
        params={"geometry.0": {"lr": 0.1, "betas": [0.5, 0.6]}, "scale": None, "guidance": {"lr": 1.0}},
    )
    described = [(group["name"], group["lr"], len(group["params"])) for group in built.param_groups]
    assert described == [("geometry.0", 0.1, 2), ("scale", 0.01, 1), ("guidance", 1.0, 0)]
    assert not contains_config_nodes(built.state_dict())


@pytest.mark.parametrize(
    "config, message",
    [
        ({"name": "Adma"}, "no optimizer 'Adma'. Did you mean Adam"),
        ({"args": {}}, "needs a name"),
        ({"name": "Adam", "args": {"learning_rate": 1}}, "args.learning_rate is unknown to Adam"),
        ({"name": "Adam", "params": {"geometry.0": {"lrr": 1}}}, "geometry.0.lrr is unknown to Adam. Did you mean lr"),
        ({"name": "Adam", "params": {"geomtry.0": {}}}, "no 'geomtry'. Did you mean geometry"),
        ({"name": "FusedAdam"}, "apex"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(ConfigError, match=message):
        optimizer(**config)


def rates(config, steps):
    built = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = parse_scheduler(OmegaConf.create(config), built)["scheduler"]
    values = []
    for _ in range(steps):
        values.append(built.param_groups[0]["lr"])
        built.step()
        scheduler.step()
    return values


def test_a_plain_scheduler_and_its_interval():
    config = {"name": "ExponentialLR", "args": {"gamma": 0.5}, "warmup_steps": 3}
    assert rates(config, 3) == [1.0, 0.5, 0.25]
    built = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    assert parse_scheduler(config, built)["interval"] == "epoch"
    assert parse_scheduler({**config, "interval": "step"}, built)["interval"] == "step"


@pytest.mark.parametrize("name", ["SequentialLR", "Sequential"])
def test_sequential(name):
    parts = [
        {"name": "ConstantLR", "args": {"factor": 0.5, "total_iters": 2}},
        {"name": "ExponentialLR", "args": {"gamma": 0.1}},
    ]
    assert rates({"name": name, "schedulers": parts, "milestones": [2]}, 4) == pytest.approx([0.5, 0.5, 1.0, 0.1])
    with pytest.raises(ConfigError, match="needs 1 milestones"):
        rates({"name": name, "schedulers": parts, "milestones": [2, 3]}, 1)


def test_chained():
    part = {"name": "ExponentialLR", "args": {"gamma": 0.5}}
    assert rates({"name": "ChainedScheduler", "schedulers": [part, part]}, 3) == [1.0, 0.25, 0.0625]


def test_scheduler_mistakes():
    built = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    for config, message in (
        ({"name": "ExponentalLR"}, "Did you mean ExponentialLR"),
        ({"name": "ExponentialLR", "args": {"gama": 1}}, "args.gama is unknown.*gamma"),
        ({"name": "ChainedScheduler"}, "list of configs"),
        ({"name": "ExponentialLR", "args": {"gamma": 0.5}, "interval": "steps"}, "'epoch' or 'step'"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_scheduler(config, built)
    assert parse_scheduler_to_instance({"name": "StepLR", "args": {"step_size": 3}}, built).step_size == 3


def test_adan_first_steps_by_hand():
    """With one parameter, betas (b1, b2, b3) and gradients g1, g2 the first two updates in closed form."""
    parameter = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    built = Adan([parameter], lr=0.1, betas=(0.9, 0.8, 0.7), eps=0.0, weight_decay=0.5)
    parameter.grad = torch.tensor([2.0], dtype=torch.float64)
    built.step()
    # the corrected averages of a first gradient g are g, 0 and g^2, so the direction is the sign of g
    first = (1.0 - 0.1 * 1.0) / (1 + 0.1 * 0.5)
    assert parameter.item() == pytest.approx(first)
    parameter.grad = torch.tensor([-1.0], dtype=torch.float64)
    built.step()
    m = (0.9 * 0.1 * 2.0 + 0.1 * -1.0) / (1 - 0.9**2)
    v = (0.2 * -3.0) / (1 - 0.8**2)
    n = (0.7 * 0.3 * 4.0 + 0.3 * (-1.0 + 0.8 * -3.0) ** 2) / (1 - 0.7**2)
    second = (first - 0.1 * (m + 0.8 * v) / n**0.5) / (1 + 0.1 * 0.5)
    assert parameter.item() == pytest.approx(second)


@pytest.mark.parametrize("no_prox", [False, True])
def test_adan_finds_a_minimum_and_resumes(no_prox):
    def run(steps, state=None):
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.tensor([3.0, -2.0]) if state is None else state[0].clone())
        built = Adan([parameter], lr=0.05, max_grad_norm=5.0, no_prox=no_prox)
        if state is not None:
            built.load_state_dict(state[1])
        for _ in range(steps):
            built.zero_grad()
            ((parameter - torch.tensor([1.0, 1.0])) ** 2).sum().backward()
            built.step()
        return parameter.detach(), built.state_dict()

    end, _ = run(400)
    assert torch.allclose(end, torch.ones(2), atol=0.1)
    assert torch.equal(run(10)[0], run(5, run(5))[0])
