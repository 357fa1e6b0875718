"""The volume renderer over time: randomness, its grid and its networks, resuming, and bad configs."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.fields import ESTIMATORS, PROPOSAL, build, views
from threestudio import find
from threestudio.errors import ConfigError


@pytest.mark.parametrize("config", ESTIMATORS, ids=["occgrid", "importance", "proposal"])
def test_randomness_is_for_training_and_follows_the_seed(config):
    renderer = build(config)
    renderer.update_step(0, 0)
    batch = views()

    def image(seed):
        torch.manual_seed(seed)
        return renderer(**batch)["comp_rgb"]

    assert torch.equal(image(1), image(1)) and not torch.equal(image(1), image(2))
    renderer.eval()
    assert torch.equal(image(1), image(2))


@pytest.mark.parametrize("config", ESTIMATORS, ids=["occgrid", "importance", "proposal"])
def test_resumed_training_equals_uninterrupted(config):
    """Stop after six steps, load the state into a fresh renderer, go on: the same images and the same networks."""

    def train(renderer, steps):
        for step in steps:
            renderer.update_step(0, step)
            image = renderer(**views(count=1))["comp_rgb"]
            renderer.update_step_end(0, step + 1)
        return image

    whole, half, resumed = build(config), build(config), build(config)
    torch.manual_seed(5)
    expected = train(whole, range(0, 40, 4))
    torch.manual_seed(5)
    train(half, range(0, 20, 4))
    resumed.load_state_dict(half.state_dict())
    assert torch.equal(train(resumed, range(20, 40, 4)), expected)
    for (name, one), (_, other) in zip(whole.named_parameters(), resumed.named_parameters()):
        assert torch.equal(one, other), name
    assert config.get("estimator") != "proposal" or not torch.equal(
        next(whole.prop_net.parameters()), next(build(config).prop_net.parameters())
    )


def test_grid_is_updated_only_in_training_and_is_part_of_the_state():
    renderer = build()
    renderer.update_step(0, 0, on_load_weights=True)
    renderer.eval().update_step(0, 0)
    assert not renderer.estimator.binaries.any()
    renderer.train().update_step(0, 0)
    assert renderer.estimator.binaries.any()
    assert set(renderer.state_dict()) == {
        "bbox", "estimator.resolution", "estimator.aabbs", "estimator.occs", "estimator.binaries"
    }  # fmt: skip
    whole = build({"grid_prune": False})
    assert whole.estimator.binaries.all()
    whole.load_state_dict(renderer.state_dict())  # of a run that did prune
    whole.update_step(0, 0)
    assert whole.estimator.binaries.all()


def test_an_empty_field_gives_the_background():
    renderer = build({}, {"peak": 0.0})
    renderer.update_step(0, 0)
    out = renderer(**views())
    assert len(out["weights"]) == 1 and torch.equal(out["comp_rgb"], out["comp_rgb_bg"])
    out["comp_rgb"].sum().backward()


@pytest.mark.parametrize(
    "config, message",
    [
        ({"estimator": "occupancy"}, "there is no estimator 'occupancy'"),
        ({"estimator": "proposal"}, "proposal_network_config"),
        ({"num_samples_per_ray": 0}, "at least 1"),
        ({**PROPOSAL, "proposal_network_config": {"n_input_dims": 3}}, "proposal_network_config does not fit"),
        ({"num_samples": 3}, "num_samples"),
    ],
)
def test_bad_configs(config, message):
    with pytest.raises(ConfigError, match=message):
        build(config)


def test_a_geometry_without_density_is_refused():
    with pytest.raises(ConfigError, match="forward_density"):
        find("nerf-volume-renderer")({}, geometry=torch.nn.Linear(1, 1), material=None, background=None)
