"""Operations against closed forms and torch's own."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from threestudio.errors import ConfigError, UserError
from threestudio.utils import ops
from threestudio.utils.loss import tv_loss


def test_perpendicular_component_is_orthogonal_and_complete():
    x, y = torch.randn(3, 2, 4, 5, dtype=torch.float64), torch.randn(3, 2, 4, 5, dtype=torch.float64)
    rest = ops.perpendicular_component(x, y)
    assert torch.allclose((rest * y).sum((1, 2, 3)), torch.zeros(3).double(), atol=1e-9)
    parallel = x - rest
    assert torch.allclose(
        parallel, parallel.mul(y).sum((1, 2, 3), keepdim=True) / y.square().sum((1, 2, 3), keepdim=True) * y
    )
    assert torch.equal(ops.perpendicular_component(x, torch.zeros_like(y)), x)


def test_binary_cross_entropy_equals_torchs():
    p, t = torch.rand(10).double() * 0.9 + 0.05, torch.rand(10).double()
    assert torch.allclose(ops.binary_cross_entropy(p, t), F.binary_cross_entropy(p, t))


def test_trunc_exp_is_exp_with_a_bounded_gradient():
    x = torch.tensor([-1.0, 2.0, 20.0], dtype=torch.float64, requires_grad=True)
    ops.trunc_exp(x).sum().backward()
    assert torch.allclose(ops.trunc_exp(x), x.exp())
    assert torch.allclose(x.grad, torch.tensor([math.exp(-1), math.exp(2), math.exp(15)]).double())


def test_specify_gradient_hands_back_what_it_was_given():
    x, g = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    loss = ops.SpecifyGradient.apply(x, g)
    (3 * loss).sum().backward()
    assert loss.tolist() == [1.0] and torch.equal(x.grad, 3 * g)


@pytest.mark.parametrize(
    "name, value",
    [
        (None, 0.5), ("none", 0.5), ("exp", math.exp(0.5)), ("shifted_exp", math.exp(-0.5)), ("trunc_exp", math.exp(0.5)),
        ("shifted_trunc_exp", math.exp(-0.5)), ("sigmoid", 1 / (1 + math.exp(-0.5))), ("tanh", math.tanh(0.5)),
        ("shifted_softplus", math.log1p(math.exp(-0.5))), ("scale_-11_01", 0.75), ("relu", 0.5), ("ReLU", 0.5),
        ("lin2srgb", 1.055 * 0.5 ** (1 / 2.4) - 0.055),
    ],
)  # fmt: skip
def test_activations(name, value):
    assert float(ops.get_activation(name)(torch.tensor(0.5))) == pytest.approx(value, abs=1e-6)


def test_an_unknown_activation_is_named():
    with pytest.raises(ConfigError, match="sigmoide"):
        ops.get_activation("sigmoide")


def test_lin2srgb_has_finite_gradients_at_zero():
    x = torch.zeros(1, requires_grad=True)
    ops.get_activation("lin2srgb")(x).backward()
    assert float(x.grad) == pytest.approx(12.92)


@pytest.mark.parametrize("chunk", [0, 1, 3, 7, 100])
def test_chunks_join_to_the_whole(chunk):
    def function(x, scale, shift=None):
        return {"a": x * scale, "b": (x + shift, None), "c": [x.sum(-1)]}

    x, shift = torch.randn(7, 2), torch.randn(7, 2)
    whole, parts = function(x, 2.0, shift=shift), ops.chunk_batch(function, chunk, x, 2.0, shift=shift)
    assert torch.equal(parts["a"], whole["a"]) and torch.equal(parts["b"][0], whole["b"][0]) and parts["b"][1] is None
    assert isinstance(parts["b"], tuple) and torch.equal(parts["c"][0], whole["c"][0])


def test_chunks_of_nothing_and_of_unequal_lengths():
    assert ops.chunk_batch(lambda x: x * 2, 4, torch.zeros(0, 3)).shape == (0, 3)
    with pytest.raises(UserError, match="length"):
        ops.chunk_batch(lambda x, y: x, 2, torch.zeros(3), torch.zeros(4))
    with pytest.raises(UserError, match="str"):
        ops.chunk_batch(lambda x: "no", 2, torch.zeros(3))


def test_chunks_carry_gradients_only_when_they_are_on():
    x = torch.randn(5, requires_grad=True)
    ops.chunk_batch(lambda v: v**2, 2, x).sum().backward()
    assert torch.allclose(x.grad, 2 * x)
    with torch.no_grad():
        assert not ops.chunk_batch(lambda v: v**2, 2, x).requires_grad


def test_scaling_reflection_decay_and_dot():
    assert ops.scale_tensor(torch.tensor([0.0, 2.0]), (0, 2), (-1, 1)).tolist() == [-1.0, 1.0]
    assert ops.scale_tensor(torch.tensor(0.25), None, (0, 4)) == 1.0
    box = torch.tensor([[0.0, -1.0], [2.0, 1.0]])
    assert ops.scale_tensor(torch.tensor([[1.0, 0.0]]), box, None).tolist() == [[0.5, 0.5]]
    n = torch.tensor([[0.0, 0.0, 1.0]])
    assert ops.reflect(torch.tensor([[1.0, 2.0, 3.0]]), n).tolist() == [[-1.0, -2.0, 3.0]]
    assert ops.dot(n, n).shape == (1, 1)
    r = torch.tensor(0.5)
    assert float(ops.shifted_expotional_decay(4, 0.5, -2.426, r)) == pytest.approx(4 * math.exp(-0.25) - 2.426)
    assert float(ops.shifted_cosine_decay(2.0, 1.0, 0.25, r)) == pytest.approx(2 * math.cos(0.75) + 2)


def test_empty_rays_are_replaced_by_one_sample():
    empty = torch.zeros(0, dtype=torch.long), torch.zeros(0), torch.zeros(0)
    indices, start, end = ops.validate_empty_rays(*empty)
    assert indices.tolist() == [0] and indices.dtype == torch.long and start.tolist() == end.tolist() == [0.0]
    full = torch.tensor([2]), torch.ones(1), torch.ones(1)
    assert ops.validate_empty_rays(*full)[0] is full[0]


def test_tet_sdf_diff_counts_only_edges_that_change_sign():
    sdf = torch.tensor([[2.0], [-1.0], [3.0]], dtype=torch.float64)
    value = ops.tet_sdf_diff(sdf, torch.tensor([[0, 1], [0, 2]]))
    assert float(value) == pytest.approx(
        math.log1p(math.exp(2.0)) + math.log1p(math.exp(1.0))
    )  # -log sigmoid(-2), -log(1 - sigmoid(-1))


def test_total_variation_by_hand():
    image = torch.tensor([[[[0.0, 1.0], [3.0, 5.0]]]])
    assert float(tv_loss(image)) == pytest.approx(2 * ((9 + 16) / 2 + (1 + 4) / 2))
    assert float(tv_loss(torch.ones(2, 3, 4, 1))) == 0.0
