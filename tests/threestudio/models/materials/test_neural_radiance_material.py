"""Color from features and view direction."""

from __future__ import annotations

import pytest
import torch

from threestudio import find
from threestudio.errors import ConfigError

MLP = {"otype": "VanillaMLP", "activation": "ReLU", "n_neurons": 16, "n_hidden_layers": 2}


def build(**config):
    torch.manual_seed(0)
    return find("neural-radiance-material")({"mlp_network_config": MLP, **config})


def test_color_depends_on_features_and_direction():
    material = build()
    features, dirs = torch.randn(2, 6, 8), torch.nn.functional.normalize(torch.randn(2, 6, 3), dim=-1)
    color = material(features=features, viewdirs=dirs, positions=None, light_positions=None)
    assert color.shape == (2, 6, 3) and color.min() > 0 and color.max() < 1
    assert not torch.allclose(color, material(features=features, viewdirs=-dirs), atol=1e-4)
    assert not torch.allclose(color, material(features=-features, viewdirs=dirs), atol=1e-4)
    # The network sees the features first, then the directions' spherical harmonics of degree 3.
    encoded = material.encoding((dirs.reshape(-1, 3) + 1) / 2)
    expected = torch.sigmoid(material.network(torch.cat([features.reshape(-1, 8), encoded], dim=-1)))
    torch.testing.assert_close(color, expected.view(2, 6, 3))
    assert encoded.shape[-1] == 9


def test_everything_learns():
    material, features = build(input_feature_dims=4), torch.randn(20, 4, requires_grad=True)
    dirs = torch.nn.functional.normalize(torch.randn(20, 3), dim=-1)
    material(features=features, viewdirs=dirs).square().sum().backward()
    assert features.grad.abs().sum() > 0 and all(p.grad.abs().sum() > 0 for p in material.parameters())


def test_facts_and_errors():
    material = build(color_activation="none")
    assert not material.requires_normal and material.export(features=torch.zeros(1, 8)) == {}
    assert material(torch.randn(500, 8), torch.randn(500, 3)).min() < 0
    with pytest.raises(ConfigError, match="input_feature_dims is 8"):
        material(features=torch.zeros(1, 3), viewdirs=torch.zeros(1, 3))
