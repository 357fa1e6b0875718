"""U-Lite's size and shape, how it adapts to small latents, and the other operators."""

from __future__ import annotations

import pytest
import torch
from dreammapping.degradation import OPERATORS, ULite, build_operator, choose_stages
from dreammapping.degradation.ulite import Axial
from dreammapping.errors import ConfigError
from torch.nn import functional as F


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("stages", "parameters"), [(5, 879_252), (4, 227_668), (3, 61_620)])
def test_published_parameter_counts(stages, parameters):
    assert count(ULite(4, stages)) == parameters


def test_parameter_counts_by_part():
    net = ULite(4, 5)
    assert [count(e) for e in net.encoders] == [832, 2688, 9472, 35328, 136192]
    assert [count(d) for d in net.decoders] == [267264, 68096, 17664, 4736, 1344]
    assert (count(net.stem), count(net.bottleneck), count(net.head)) == (3152, 332416, 68)


@pytest.mark.parametrize(
    ("size", "stages"),
    [
        ((64, 64), 5),
        ((128, 128), 5),
        ((32, 32), 4),
        ((16, 16), 3),
        ((8, 8), 2),
        ((4, 4), 1),
        ((24, 24), 3),
        ((16, 64), 3),
        ((6, 8), 1),
    ],
)
def test_depth_follows_the_latents(size, stages):
    assert choose_stages(*size) == stages
    x = torch.randn(1, 4, *size)
    assert build_operator("nonlinear", (4, *size), generator=generator())(x).shape == x.shape


@pytest.mark.parametrize(
    ("size", "stages"), [((5, 5), None), ((2, 2), None), ((24, 24), 4), ((32, 32), 5), ((32, 32), 0)]
)
def test_sides_that_do_not_fit_are_refused(size, stages):
    with pytest.raises(ConfigError, match=f"{size[0]} x {size[1]}"):
        choose_stages(*size, stages)


@pytest.mark.parametrize(("kernel", "dilation"), [(7, 1), (3, 1), (3, 2), (3, 3)])
def test_axial_block_is_the_sum_of_its_branches(kernel, dilation):
    block = Axial(3, kernel, dilation).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    pad = dilation * (kernel // 2)
    reference = x + F.conv2d(
        F.pad(x, (0, 0, pad, pad)), block.vertical.weight, block.vertical.bias, dilation=dilation, groups=3
    )
    reference = reference + F.conv2d(
        F.pad(x, (pad, pad, 0, 0)), block.horizontal.weight, block.horizontal.bias, dilation=dilation, groups=3
    )
    torch.testing.assert_close(block(x), reference)
    probe = torch.randn_like(reference)
    inputs = [x, *block.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad((block(x) * probe).sum(), inputs), torch.autograd.grad((reference * probe).sum(), inputs)
    ):
        torch.testing.assert_close(ours, theirs)


def test_group_norm_makes_images_independent_and_batch_norm_does_not():
    x = torch.randn(3, 4, 16, 16)
    for norm, independent in (("group", True), ("batch", False)):
        operator = build_operator("nonlinear", (4, 16, 16), generator=generator(), norm=norm)
        with torch.no_grad():
            assert torch.allclose(operator(x)[:1], operator(x[:1]), atol=1e-5) == independent


@pytest.mark.parametrize("name", OPERATORS.names())
def test_operators_start_from_the_generator_and_keep_the_shape(name):
    a, b, c = (build_operator(name, (4, 8, 8), generator=generator(seed), linear_init="normal") for seed in (0, 0, 1))
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    assert torch.equal(a(x, t), b(x, t)) and not torch.equal(a(x, t), c(x, t))
    assert a(x, t).shape == x.shape


def test_linear_is_the_identity_at_first_and_shared_by_the_batch():
    operator = build_operator("linear", (4, 8, 8), generator=generator())
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(operator(x), x)
    assert [tuple(p.shape) for p in operator.parameters()] == [(1, 4, 8, 8)]


def test_learnable_noise_starts_at_zero_and_is_added():
    plain = build_operator("nonlinear", (4, 8, 8), generator=generator())
    noisy = build_operator("nonlinear_noise", (4, 8, 8), generator=generator())
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(noisy(x), plain(x))
    torch.nn.init.ones_(noisy.noise)
    torch.testing.assert_close(noisy(x), plain(x) + 1)
    assert count(noisy) == count(plain) + 4 * 8 * 8


def test_ulite_learns_the_identity():
    """What it must be at large t, where the prediction is close to the noise."""
    operator = build_operator("nonlinear", (4, 8, 8), generator=generator())
    optimizer = torch.optim.Adam(operator.parameters(), lr=0.01)
    g = generator(1)
    for _ in range(120):
        x = torch.randn(4, 4, 8, 8, generator=g)
        loss = (operator(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2


@pytest.mark.parametrize("channels", [3, 4, 8, 32])
def test_its_width_is_the_published_one_or_what_is_asked_for(channels):
    assert ULite(channels, 1).stem.out_channels == 16
    assert ULite(channels, 1, width=40).stem.out_channels == 40


def test_ulite_passes_many_channels_only_if_it_is_twice_as_wide():
    errors = {}
    for width in (64, 16):
        operator = build_operator("nonlinear", (32, 4, 4), generator=generator(), width=width)
        optimizer = torch.optim.Adam(operator.parameters(), lr=0.01)
        g = generator(1)
        for _ in range(200):
            x = torch.randn(8, 32, 4, 4, generator=g)
            loss = (operator(x) - x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        errors[width] = loss.item()
    assert errors[64] < 0.2 and errors[16] > 0.45, errors


@pytest.mark.parametrize("width", [0, -8, 12])
def test_a_width_that_does_not_fit_is_told(width):
    with pytest.raises(ConfigError, match=f"loss.width is {width}; it must be a positive multiple of 8"):
        build_operator("nonlinear", (4, 8, 8), generator=generator(), width=width)


@pytest.mark.parametrize("side", [4, 8, 16, 32, 64, 96])
def test_batch_statistics_exist_for_a_single_image(side):
    """Text to 2D trains one picture at a time; whatever its size, the innermost map must have more than one value."""
    operator = build_operator("nonlinear", (4, side, side), generator=generator()).train()
    operator(torch.randn(1, 4, side, side)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in operator.parameters())


@pytest.mark.parametrize("side", [2, 5])
def test_too_small_or_odd_latents_are_told(side):
    with pytest.raises(ConfigError, match=f"even sides of at least 4 pixels, got {side} x {side}; use operator linear"):
        build_operator("nonlinear", (4, side, side), generator=generator())


def test_with_t_the_size_of_the_answer_depends_on_it_even_where_a_batch_shares_t():
    """Batch normalization takes a common factor of its input out; the factor behind it stays."""
    operator = build_operator("nonlinear", (4, 8, 8), generator=generator(), time_steps=1000)
    x = torch.randn(4, 4, 8, 8, generator=generator(1))
    plain, shared = operator(x, torch.full((4,), 30)), torch.full((4,), 700)
    assert torch.equal(plain, operator(x, shared)), "no effect at first"
    torch.nn.init.zeros_(operator.network[-1].weight)
    with torch.no_grad():
        operator.network[-1].bias.copy_(torch.tensor([0.0] * 8 + [1.0, 2, 3, 4] + [0.5] * 4))
    factor = torch.tensor([2.0, 3, 4, 5]).view(1, 4, 1, 1)
    torch.testing.assert_close(operator(x, shared), factor * plain + 0.5)


def test_with_t_its_input_is_scaled_and_moved():
    operator = build_operator("linear", (4, 8, 8), generator=generator(), time_steps=1000)
    with torch.no_grad():
        operator.network[-1].bias.copy_(torch.tensor([1.0] * 4 + [0.5] * 4 + [0.0] * 8))
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(operator(x, torch.tensor([3, 900])), 2 * x + 0.5)


@pytest.mark.parametrize(("device", "layout"), [("cpu", torch.channels_last), ("meta", torch.contiguous_format)])
@pytest.mark.parametrize("given", [torch.channels_last, torch.contiguous_format])
def test_depthwise_convolutions_get_the_layout_that_is_quick_there(device, layout, given):
    """Whatever the U-Net's answer comes in: cuDNN is slow at channels-last ones, CPUs at the others."""
    net, seen = build_operator("nonlinear", (4, 32, 32), generator=generator()).to(device), []
    for module in net.modules():
        if isinstance(module, Axial):
            module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net(torch.randn(2, 4, 32, 32, device=device).contiguous(memory_format=given))
    assert len(seen) == 4 + 3 + 4
    assert all(x.is_contiguous(memory_format=layout) for x in seen)
