"""Encodings against scipy and closed forms; networks in value, shape and gradient."""

from __future__ import annotations

import math
import sys
import types

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from threestudio.errors import ConfigError, UserError
from threestudio.models.networks import (
    ToDTypeWrapper,
    create_network_with_input_encoding,
    get_encoding,
    get_mlp,
)

MLP = {"otype": "VanillaMLP", "n_neurons": 8, "n_hidden_layers": 2}


def directions(count=20):
    return torch.nn.functional.normalize(
        torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=-1
    )


def test_spherical_harmonics_equal_scipys():
    from scipy.special import sph_harm_y

    d = directions()
    ours = get_encoding(3, {"otype": "SphericalHarmonics", "degree": 5})((d + 1) / 2)
    assert ours.shape == (20, 25)
    theta, phi = np.arccos(d[:, 2].numpy()), np.arctan2(d[:, 1].numpy(), d[:, 0].numpy())
    for l in range(5):
        for m in range(-l, l + 1):
            value = sph_harm_y(l, abs(m), theta, phi)
            real = value.real * (math.sqrt(2) if m else 1) if m >= 0 else value.imag * math.sqrt(2)
            assert np.allclose(ours[:, l * l + l + m].numpy(), real, atol=1e-10), (l, m)


def test_spherical_harmonics_have_correct_gradients():
    encoding = get_encoding(3, {"otype": "SphericalHarmonics", "degree": 4})
    x = ((directions(3) + 1) / 2).requires_grad_()
    assert torch.autograd.gradcheck(encoding, (x,))


def test_frequency_by_hand():
    out = get_encoding(2, {"otype": "Frequency", "n_frequencies": 2})(torch.tensor([[0.25, 0.5]]))
    expected = [f(2**k * math.pi * x) for x in (0.25, 0.5) for k in range(2) for f in (math.sin, math.cos)]
    assert torch.allclose(out[0], torch.tensor(expected), atol=1e-6)


def test_progressive_bands_open_with_the_step():
    network = create_network_with_input_encoding(
        1, 1, {"otype": "ProgressiveBandFrequency", "n_frequencies": 2, "n_masking_step": 100}, MLP
    )
    x = torch.tensor([[0.3]])
    bands = [math.sin(0.3), math.cos(0.3), math.sin(0.6), math.cos(0.6)]
    for step, mask in [(0, (0, 0)), (25, (0.5, 0)), (50, (1, 0)), (75, (1, 0.5)), (500, (1, 1))]:
        network.do_update_step(0, step)  # reaches the encoding through the wrappers
        expected = [band * mask[i // 2] for i, band in enumerate(bands)]
        assert torch.allclose(network.encoding(x)[0], torch.tensor(expected), atol=1e-6)
    always = get_encoding(1, {"otype": "ProgressiveBandFrequency", "n_frequencies": 2})
    assert torch.allclose(always(x)[0], torch.tensor(bands))


def test_include_xyz_puts_raw_coordinates_in_front():
    encoding = get_encoding(3, OmegaConf.create({"otype": "Frequency", "n_frequencies": 1, "include_xyz": True}))
    x = torch.rand(4, 3)
    assert encoding.n_output_dims == 9 and encoding(x).shape == (4, 9) and torch.allclose(encoding(x)[:, :3], 2 * x - 1)


def test_vanilla_mlp_is_what_its_layers_say_and_learns():
    torch.manual_seed(0)
    network = get_mlp(3, 2, {**MLP, "output_activation": "sigmoid"})
    x = torch.randn(5, 3)
    w = [network.state_dict()[f"layers.{k}.weight"] for k in (0, 2, 4)]
    assert torch.allclose(network(x), torch.sigmoid(torch.relu(torch.relu(x @ w[0].T) @ w[1].T) @ w[2].T), atol=1e-6)
    assert len(network.state_dict()) == 3
    network(x).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(x.bfloat16()).dtype == torch.float32


def test_network_gradients_reach_the_input():
    torch.manual_seed(1)
    network = create_network_with_input_encoding(
        3, 1, {"otype": "Frequency", "n_frequencies": 2}, {**MLP, "activation": "softplus"}
    ).double()
    assert torch.autograd.gradcheck(network, (torch.rand(2, 3, dtype=torch.float64, requires_grad=True),))


@pytest.mark.parametrize("inside_out", [False, True])
def test_sphere_initialization_starts_as_a_sphere(inside_out):
    torch.manual_seed(0)
    config = {
        "otype": "SphereInitVanillaMLP",
        "n_neurons": 256,
        "n_hidden_layers": 2,
        "sphere_init_radius": 0.5,
        "inside_out": inside_out,
    }
    encoding = {"otype": "Frequency", "n_frequencies": 3, "include_xyz": True}
    field = create_network_with_input_encoding(3, 1, encoding, config)
    d = directions(200).float()
    values = [field((d * radius + 1) / 2).mean() for radius in (0.1, 0.5, 0.9)]
    sign = -1 if inside_out else 1
    assert sign * values[0] < -0.2 and abs(values[1]) < 0.15 and sign * values[2] > 0.2


def test_wrapper_converts_the_result():
    assert ToDTypeWrapper(torch.nn.Identity(), torch.float64)(torch.ones(1)).dtype == torch.float64


@pytest.mark.parametrize("make, what", [(get_encoding, "OneBlob"), (lambda n, c: get_mlp(n, 1, c), "CutlassResNet")])
def test_uncovered_names_say_what_is_needed_and_what_is_covered(make, what, monkeypatch):
    with pytest.raises(UserError, match=f"{what}.*CUDA.*(SphericalHarmonics|VanillaMLP)"):
        make(3, {"otype": what})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    with pytest.raises(UserError, match="pip install 'git"):
        make(3, {"otype": what})


def test_tiny_cuda_nn_is_used_where_it_is(monkeypatch):
    class Encoding(torch.nn.Module):
        def __init__(self, n_input_dims, config, dtype):
            super().__init__()
            self.n_output_dims, self.params = 32, torch.nn.Parameter(torch.zeros(4))

        def forward(self, x):
            return x.new_zeros(len(x), 32)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "tinycudann", types.SimpleNamespace(Encoding=Encoding))
    encoding = get_encoding(3, {"otype": "OneBlob"})
    assert encoding.n_output_dims == 32 and "encoding.encoding.params" in encoding.state_dict()


@pytest.mark.parametrize("otype", ["FullyFusedMLP", "CutlassMLP"])
def test_networks_of_tiny_cuda_nn_have_a_stand_in(otype, monkeypatch):
    torch.manual_seed(0)
    config = {"otype": otype, "activation": "Squareplus", "output_activation": "Exponential", "n_neurons": 16}
    network = get_mlp(3, 2, {**config, "n_hidden_layers": 1, "backend": "torch"})
    x, (w, u) = torch.randn(5, 3), network.parameters()
    hidden = x @ w.T
    assert torch.allclose(network(x), torch.exp(0.5 * (hidden + (hidden**2 + 4).sqrt()) @ u.T), atol=1e-5)
    assert [tuple(p.shape) for p in get_mlp(3, 2, {"otype": otype, "output_activation": "None"}).parameters()] == [
        (128, 3), *[(128, 128)] * 4, (2, 128)
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="backend is 'cpu'"):
        get_mlp(3, 2, {"otype": otype, "backend": "cpu"})
    built = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("threestudio.models.tcnn.get_device", lambda: torch.device("cuda", 0))
    fake = types.SimpleNamespace(Network=lambda *args: built.append(args) or torch.nn.Linear(3, 2))
    monkeypatch.setitem(sys.modules, "tinycudann", fake)
    get_mlp(3, 2, config)
    assert built == [(3, 2, config)]


@pytest.mark.parametrize("config", [{}, None, {"n_neurons": 3}])
def test_a_config_without_otype_is_named(config):
    with pytest.raises(ConfigError, match="otype"):
        get_mlp(3, 1, config)


def test_impossible_sizes_are_named():
    with pytest.raises(ConfigError, match="degree"):
        get_encoding(3, {"otype": "SphericalHarmonics", "degree": 0})
    with pytest.raises(ConfigError, match="3 inputs"):
        get_encoding(2, {"otype": "SphericalHarmonics"})
    with pytest.raises(ConfigError, match="n_neurons"):
        get_mlp(3, 1, {"otype": "VanillaMLP", "n_neurons": 0})
