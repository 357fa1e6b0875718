"""Grid encodings against a loop written from the documented semantics; gradients of both orders; the level mask."""

from __future__ import annotations

import copy
import itertools
import math
import sys
import types

import pytest
import torch
from omegaconf import OmegaConf

from threestudio.errors import ConfigError, UserError
from threestudio.models import hash_grid_numba, hash_grid_torch
from threestudio.models.hash_grid import Grid, HashGrid, ProgressiveBandHashGrid
from threestudio.models.hash_grid_layout import make_layout
from threestudio.models.networks import CompositeEncoding, create_network_with_input_encoding, get_encoding

SMALL = {"n_levels": 4, "log2_hashmap_size": 7, "base_resolution": 3, "per_level_scale": 1.6}
MIXED = [  # dense levels first, then hashed ones, in every number of coordinates
    (1, {**SMALL, "otype": "HashGrid", "log2_hashmap_size": 3}),
    (2, {**SMALL, "otype": "HashGrid", "n_features_per_level": 3}),
    (3, {**SMALL, "otype": "HashGrid"}),
    (3, {**SMALL, "otype": "HashGrid", "interpolation": "Smoothstep"}),
    (3, {**SMALL, "otype": "HashGrid", "interpolation": "Nearest"}),
    (4, {**SMALL, "otype": "HashGrid", "n_features_per_level": 1}),
    (2, {**SMALL, "otype": "DenseGrid"}),
    (3, {**SMALL, "otype": "Grid", "type": "Tiled"}),
]


def points(dims, count=12):
    return torch.rand(count, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(dims))


def make_grid(dims, config, seed=0):
    """In float64, with parameters of order one."""
    grid = Grid(dims, config).double()
    with torch.no_grad():
        grid.params.normal_(generator=torch.Generator().manual_seed(seed))
    return grid


def reference_entries(kind, resolution, base, capacity, dims):
    """Number of entries of one level."""
    rounded = math.ceil(resolution**dims / 8) * 8
    return {"Hash": min(rounded, capacity), "Dense": rounded, "Tiled": min(rounded, base**dims)}[kind]


def reference_index(kind, corner, resolution, size):
    """Instant-NGP's index of a grid point, in tiny-cuda-nn's unsigned 32 bit arithmetic."""
    stride, index = 1, 0
    for coordinate in corner:
        if stride > size:
            break
        index += coordinate * stride
        stride *= resolution
    if kind == "Hash" and stride > size:
        index = 0
        for coordinate, prime in zip(corner, (1, 2654435761, 805459861, 3674653429)):
            index ^= (coordinate * prime) % 2**32
    return index % size


def reference(x, params, config):
    """One point, one level, one corner after the other."""
    kind = config.get("type") or {"HashGrid": "Hash", "DenseGrid": "Dense"}[config["otype"]]
    features, mode = config.get("n_features_per_level", 2), config.get("interpolation", "Linear")
    dims, rows = x.shape[1], []
    for point in x:
        row, start = [], 0
        for level in range(config["n_levels"]):
            scale = config["base_resolution"] * config["per_level_scale"] ** level - 1
            resolution = math.ceil(scale) + 1
            capacity = 2 ** config["log2_hashmap_size"]
            size = reference_entries(kind, resolution, config["base_resolution"], capacity, dims)
            position = [value * scale + 0.5 for value in point]
            low = [math.floor(float(value.detach())) for value in position]
            total = torch.zeros(features, dtype=x.dtype)
            for bits in itertools.product((0, 1), repeat=dims):
                weight = 1.0
                for value, below, bit in zip(position, low, bits):
                    f = value - below
                    f = {"Linear": f, "Smoothstep": 3 * f**2 - 2 * f**3, "Nearest": 0.0 * f}[mode]
                    weight = weight * (f if bit else 1 - f)
                index = reference_index(kind, [b + bit for b, bit in zip(low, bits)], resolution, size)
                entry = params[(start + index) * features : (start + index + 1) * features]
                total = total + weight * entry
            row.append(total)
            start += size
        rows.append(torch.cat(row))
    assert len(params) == start * features
    return torch.stack(rows)


def kinds_of_levels(dims, config):
    return {level.hashed for level in make_layout(dims, config).levels}


@pytest.mark.parametrize("dims, config", MIXED)
def test_values_and_gradients_equal_the_reference(dims, config):
    if config["otype"] == "HashGrid":
        assert kinds_of_levels(dims, config) == {True, False}  # else half of the formula would go untested
    grid, x = make_grid(dims, config), points(dims).requires_grad_()
    g = torch.randn(len(x), grid.n_output_dims, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    out, expected = grid(x), reference(x, grid.params, config)
    assert torch.allclose(out, expected, atol=1e-12)
    ours = torch.autograd.grad((out * g).sum(), [x, grid.params])
    theirs = torch.autograd.grad((expected * g).sum(), [x, grid.params])
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(ours, theirs))
    assert ours[1].abs().sum() > 0 and (config.get("interpolation") == "Nearest" or ours[0].abs().min() > 0)


@pytest.mark.parametrize("dims, config", [MIXED[2], MIXED[3], MIXED[1], MIXED[5]])
def test_first_and_second_derivatives_by_finite_differences(dims, config):
    grid, x = make_grid(dims, {**config, "log2_hashmap_size": 4, "n_levels": 2}), points(dims, 2).requires_grad_()
    params = grid.params.detach().clone().requires_grad_()

    def encode(x, params):
        return torch.func.functional_call(grid, {"params": params}, (x,))

    assert torch.autograd.gradcheck(encode, (x, params))
    assert torch.autograd.gradgradcheck(encode, (x, params), fast_mode=dims == 4)


def test_gradients_of_normals_reach_the_parameters():
    """The loss of a normal needs the mixed derivative in points and parameters, which autograd finds for the loop."""
    dims, config = MIXED[3]
    grid, x = make_grid(dims, config), points(dims, 5).requires_grad_()
    results = []
    for encode in (grid, lambda x: reference(x, grid.params, config)):
        (slope,) = torch.autograd.grad(torch.sin(encode(x)).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(slope.square().sum(), [x, grid.params]))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(*results))


def test_a_normal_does_not_pay_for_the_gradient_of_the_parameters(monkeypatch):
    calls = []
    scatter = hash_grid_numba.scatter
    monkeypatch.setattr(hash_grid_numba, "scatter", lambda *args: calls.append(args[1]) or scatter(*args))
    grid, x = make_grid(3, MIXED[2][1]), points(3).requires_grad_()
    (slope,) = torch.autograd.grad(grid(x).sum(), x, create_graph=True)
    assert not calls
    slope.square().sum().backward()
    assert len(calls) == 1 and calls[0] is not None


@pytest.mark.parametrize("interpolation", ["Linear", "Smoothstep", "Nearest"])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-11), (torch.float32, 2e-4)])
def test_compiled_loops_equal_pytorch(dims, dtype, tolerance, interpolation):
    layout = make_layout(dims, {**SMALL, "otype": "HashGrid", "interpolation": interpolation})
    generator = torch.Generator().manual_seed(1)
    # Some points outside the unit cube: what they get is not specified, but it must not be memory of others.
    x = (torch.rand(200, dims, generator=generator) * 1.4 - 0.2).to(dtype)
    v = torch.randn(200, dims, generator=generator).to(dtype)
    g = torch.randn(200, 4 * layout.features, generator=generator).to(dtype)
    params = torch.randn(layout.entries * layout.features, generator=generator).to(dtype)
    assert hash_grid_numba.supports(x, layout)
    for direction in (None, v):
        for name, tensors in (("gather", (params,)), ("scatter", (g,)), ("contract", (params, g))):
            fast, plain = (getattr(m, name)(x, direction, *tensors, layout) for m in (hash_grid_numba, hash_grid_torch))
            assert fast.dtype == dtype and fast.shape == plain.shape
            assert (fast - plain).norm() <= tolerance * plain.norm(), (name, direction is None)


def test_the_result_does_not_depend_on_the_number_of_threads():
    layout = make_layout(3, {**SMALL, "otype": "HashGrid"})
    generator = torch.Generator().manual_seed(2)
    x, g = torch.rand(7000, 3, generator=generator), torch.randn(7000, 8, generator=generator)
    params = torch.randn(layout.entries * 2, generator=generator)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            kernels = hash_grid_numba
            results.append(
                (
                    kernels.gather(x, None, params, layout),
                    kernels.scatter(x, None, g, layout),
                    kernels.contract(x, None, params, g, layout),
                )
            )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*results))


def test_the_default_layout_is_tiny_cuda_nns():
    config = {"otype": "HashGrid", "n_levels": 16, "per_level_scale": 1.447269237440378}
    layout = make_layout(3, config)
    assert [level.resolution for level in layout.levels[:6]] == [16, 24, 34, 49, 71, 102]
    assert [level.size for level in layout.levels[:6]] == [4096, 13824, 39304, 117656, 357912, 2**19]
    assert [level.hashed for level in layout.levels] == [False] * 5 + [True] * 11
    assert math.isclose(layout.levels[-1].scale, 4095, rel_tol=1e-6)
    assert layout.entries * 2 == 2 * (4096 + 13824 + 39304 + 117656 + 357912 + 11 * 2**19)


def test_starts_small_even_and_as_float32():
    torch.manual_seed(0)
    params = HashGrid(3, {"otype": "HashGrid", "n_levels": 4}).encoding.params.detach()
    assert params.dtype == torch.float32 and params.abs().max() <= 1e-4 and params.abs().max() > 0.99e-4
    assert abs(float(params.std()) - 1e-4 / math.sqrt(3)) < 1e-6 and abs(float(params.mean())) < 1e-6


def test_empty_and_half_precision_points():
    grid = HashGrid(3, {**SMALL, "otype": "HashGrid"})
    assert grid(torch.rand(0, 3)).shape == (0, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert grid(torch.rand(4, 3).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("device", ["meta", *(["cuda"] if torch.cuda.is_available() else [])])
def test_the_device_is_that_of_the_data(device):
    """On the device `meta` every operation checks its tensors' devices and computes nothing."""
    grid, x = make_grid(3, MIXED[3][1]).to(device), points(3).to(device).requires_grad_()
    (slope,) = torch.autograd.grad(grid(x).sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert grid.params.grad.device.type == x.grad.device.type == slope.device.type == device
    if device == "cuda":
        cpu = make_grid(3, MIXED[3][1])
        assert torch.allclose(grid(x).cpu(), cpu(x.cpu()), atol=1e-11)


@pytest.mark.parametrize("otype", ["HashGrid", "ProgressiveBandHashGrid"])
def test_state_dict_round_trip_under_the_names_of_threestudio(otype):
    config = OmegaConf.create({**SMALL, "otype": otype, "start_level": 2, "start_step": 0, "update_steps": 5})
    torch.manual_seed(0)
    first, second = get_encoding(3, config), get_encoding(3, config)
    assert isinstance(first, CompositeEncoding) and list(first.state_dict()) == ["encoding.encoding.params"]
    x = torch.rand(5, 3)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(first(x), second(x))


def test_levels_appear_by_the_schedule():
    config = {**SMALL, "otype": "ProgressiveBandHashGrid", "start_level": 1, "start_step": 100, "update_steps": 10}
    network = create_network_with_input_encoding(3, 1, config, {"otype": "VanillaMLP", "n_neurons": 4})
    grid, x = network.encoding.encoding, torch.rand(3, 3)
    assert isinstance(grid, ProgressiveBandHashGrid) and grid.current_level == 1
    for step, levels in [(0, 1), (109, 1), (110, 2), (129, 3), (130, 4), (131, 4), (10**6, 4), (5, 1)]:
        network.do_update_step(0, step)  # reaches the encoding through the wrappers, and may go back
        out = grid(x)
        assert grid.current_level == levels
        assert (out[:, : 2 * levels] != 0).all() and (out[:, 2 * levels :] == 0).all()
        assert torch.equal(out[:, : 2 * levels], grid.encoding(x)[:, : 2 * levels])
    grid(x).sum().backward()
    hidden = grid.encoding.layout.levels[1].offset * 2
    assert grid.encoding.params.grad[:hidden].abs().sum() > 0 and grid.encoding.params.grad[hidden:].abs().sum() == 0


def test_a_grid_learns_a_picture():
    torch.manual_seed(0)
    grid = HashGrid(2, {**SMALL, "otype": "HashGrid", "n_levels": 5, "n_features_per_level": 1, "log2_hashmap_size": 9})
    x = torch.rand(500, 2)
    target = torch.sin(9 * x[:, 0]) * torch.cos(7 * x[:, 1])
    optimizer = torch.optim.Adam(grid.parameters(), lr=0.05)
    for _ in range(100):
        loss = (grid(x).sum(-1) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02 * target.square().mean()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"n_levels": 0}, "n_levels is 0"),
        ({"per_level_scale": "big"}, "per_level_scale.*must be a number"),
        ({"interpolation": "Cubic"}, "interpolation is 'Cubic'.*Linear"),
        ({"type": "Hush"}, "type is 'Hush'. Did you mean Hash"),
        ({"stochastic_interpolation": True}, "stochastic_interpolation.*tcnn"),
        ({"backend": "cuda"}, "backend is 'cuda'"),
        ({"otype": "ProgressiveBandHashGrid"}, "needs start_level, start_step, update_steps"),
        (
            {"otype": "ProgressiveBandHashGrid", "start_level": 1, "start_step": 0, "update_steps": 0},
            "update_steps is 0",
        ),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        get_encoding(3, {"otype": "HashGrid", **change})
    with pytest.raises(ConfigError, match="coordinates, not 5"):
        get_encoding(5, {"otype": "HashGrid"})


def test_the_backend_follows_the_config_and_the_machine(monkeypatch):
    class Encoding(torch.nn.Module):
        def __init__(self, n_input_dims, config, dtype):
            super().__init__()
            self.config, self.n_output_dims = config, 8
            self.params = torch.nn.Parameter(torch.zeros(4))

        def forward(self, x):
            return x.new_ones(len(x), 8)

    config = {**SMALL, "otype": "HashGrid"}
    assert isinstance(get_encoding(3, config).encoding.encoding, Grid)  # no GPU here, or not installed
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="HashGrid.*CUDA GPU.*backend: torch"):
        get_encoding(3, {**config, "backend": "tcnn"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("threestudio.models.tcnn.get_device", lambda: torch.device("cuda", 0))
    monkeypatch.setitem(sys.modules, "tinycudann", types.SimpleNamespace(Encoding=Encoding))
    theirs = get_encoding(3, {**config, "backend": "auto"}).encoding
    assert isinstance(theirs.encoding, Encoding) and theirs.encoding.config == config
    progressive = {**config, "otype": "ProgressiveBandHashGrid", "start_level": 1, "start_step": 0, "update_steps": 1}
    hidden = get_encoding(3, progressive)
    assert hidden(torch.rand(1, 3)).tolist() == [[1.0] * 2 + [0.0] * 6]
    assert isinstance(get_encoding(3, {**config, "backend": "torch"}).encoding.encoding, Grid)
    monkeypatch.setattr("threestudio.models.tcnn.get_device", lambda: torch.device("cpu"))  # the run is on the CPU
    assert isinstance(get_encoding(3, config).encoding.encoding, Grid)
