"""The encoder in pieces against diffusers' own: values and gradients, in float64."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from dreammapping.teachers.encoder import FrozenEncoder, Layout, Unsupported, network
from dreammapping.teachers.encoder.pieces import Tape
from torch.utils._python_dispatch import TorchDispatchMode

EMBEDDED = Path(__file__).resolve().parents[4] / "load" / "embedded-teacher"
KINDS = {
    "SD 1, 2, XL": {"block_out_channels": (8, 16, 16), "norm_num_groups": 4, "layers_per_block": 2},
    "SD 3": {"block_out_channels": (8, 16), "norm_num_groups": 8, "latent_channels": 16, "use_quant_conv": False},
    "without attention": {"block_out_channels": (12, 24, 8), "norm_num_groups": 4, "mid_block_add_attention": False},
    "odd numbers of channels": {"block_out_channels": (9, 15), "norm_num_groups": 3, "latent_channels": 3},
}
LAYOUTS = [Layout(*flags) for flags in itertools.product((False, True), repeat=2)]


def make(**shape):
    levels = len(shape["block_out_channels"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        down, up = ("DownEncoderBlock2D",) * levels, ("UpDecoderBlock2D",) * levels
        vae = AutoencoderKL(down_block_types=down, up_block_types=up, **shape)
        for weight in vae.encoder.parameters():
            if weight.ndim == 1:  # as created, biases are small and norms are the identity: mistakes would not show
                weight.data += 0.5 * torch.randn_like(weight)
    return vae.double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vaes():
    found = {name: make(**shape) for name, shape in KINDS.items()}
    embedded = AutoencoderKL.from_pretrained(EMBEDDED, subfolder="vae").double().eval().requires_grad_(False)
    return found | {"the embedded teacher's": embedded}


def pixels(batch=2, height=24, width=32):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def both(encode, images, probe_seed=2):
    """Result, and gradient of a random functional."""
    images = images.clone().requires_grad_()
    result = encode(images)
    probe = torch.randn(result.shape, generator=torch.Generator().manual_seed(probe_seed), dtype=torch.float64)
    return result.detach(), torch.autograd.grad(result, images, probe.to(result.dtype))[0]


def diffusers_encode(vae):
    return lambda images: vae.encode(images).latent_dist.parameters


@pytest.mark.parametrize("kind", [*KINDS, "the embedded teacher's"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_values_and_gradients_equal_diffusers(vaes, kind, layout):
    for size in ((24, 32), (27, 21)):  # odd sizes: the last row has only padding below it
        images = pixels(2, *size)
        known = both(diffusers_encode(vaes[kind]), images)
        for got, expected in zip(both(FrozenEncoder(vaes[kind], layout=layout), images), known):
            torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-9)


def test_the_layout_and_type_of_the_images_do_not_matter(vaes):
    encoder, images = FrozenEncoder(vaes["SD 1, 2, XL"]), pixels()
    known = both(encoder, images)
    for got, expected in zip(both(encoder, images.contiguous(memory_format=torch.channels_last)), known):
        assert torch.equal(got, expected)
    result, gradient = both(encoder, images.float())
    assert result.dtype == torch.float64 and gradient.dtype == torch.float32
    torch.testing.assert_close(result, known[0], atol=1e-4, rtol=1e-4)


def test_in_sixteen_bits_it_is_as_close_as_diffusers(vaes):
    vae = vaes["SD 1, 2, XL"]
    known, half = both(diffusers_encode(vae), pixels()), copy.deepcopy(vae).bfloat16()
    ours = both(FrozenEncoder(half), pixels().float())
    theirs = both(lambda images: diffusers_encode(half)(images.bfloat16()).float(), pixels().float())
    for got, other, expected in zip(ours, theirs, known):
        error, usual = ((v.double() - expected).norm() / expected.norm() for v in (got, other))
        assert 0 < error < max(1.3 * usual, 0.02)
    assert ours[0].dtype == torch.float32


@pytest.mark.parametrize("scale", [1e-12, 1e9])
def test_a_gradient_of_any_size_comes_through_sixteen_bits(vaes, scale):
    encoder = FrozenEncoder(copy.deepcopy(vaes["without attention"]).bfloat16().half())
    images = pixels(1).float().requires_grad_()
    result = encoder(images)
    probe = torch.randn(result.shape, generator=torch.Generator().manual_seed(2))
    (one,) = torch.autograd.grad(result, images, probe, retain_graph=True)
    (other,) = torch.autograd.grad(result, images, probe * scale)
    torch.testing.assert_close(other / scale, one, atol=1e-3 * float(one.abs().max()), rtol=0.01)


def test_no_gradient_is_no_gradient_and_a_broken_one_stays_broken(vaes):
    images = pixels(1).requires_grad_()
    result = FrozenEncoder(vaes["SD 3"])(images)
    (gradient,) = torch.autograd.grad(result, images, torch.zeros_like(result), retain_graph=True)
    assert torch.equal(gradient, torch.zeros_like(gradient))
    for value in (float("nan"), float("inf")):
        (gradient,) = torch.autograd.grad(result, images, torch.full_like(result, value), retain_graph=True)
        assert not gradient.isfinite().any()


def test_a_kept_graph_runs_backwards_twice(vaes):
    images = pixels(1).requires_grad_()
    result = FrozenEncoder(vaes["SD 1, 2, XL"])(images)
    first, second = (torch.autograd.grad(result.sum(), images, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_it_keeps_less_than_half_of_what_diffusers_keeps(vaes):
    vae = vaes["SD 1, 2, XL"]

    def kept(encode):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.update({t.data_ptr(): t.numel()}) or t, lambda t: t):
            encode(pixels(4).requires_grad_())
        return sum(sizes.values()) - sum(w.numel() for w in vae.encoder.parameters() if w.data_ptr() in sizes)

    assert 0 < kept(FrozenEncoder(vae)) < 0.5 * kept(diffusers_encode(vae))


def test_nothing_is_kept_without_a_gradient(vaes, monkeypatch):
    encoder, tapes = FrozenEncoder(vaes["SD 3"]), []
    monkeypatch.setattr(network, "Tape", lambda *args: tapes.append(Tape(*args)) or tapes[-1])
    encoder(pixels(1))
    with torch.no_grad():
        encoder(pixels(1).requires_grad_())
    encoder(pixels(1).requires_grad_())
    assert [len(tape.entries) > 0 for tape in tapes] == [False, False, True]


def test_slicing_is_heeded(vaes):
    vae = copy.deepcopy(vaes["SD 1, 2, XL"])
    known = both(FrozenEncoder(vae), pixels())
    vae.enable_slicing()
    encoder, sizes = FrozenEncoder(vae), []
    run = encoder.run
    encoder.run = lambda images: sizes.append(len(images)) or run(images)
    for got, expected in zip(both(encoder, pixels()), known):
        torch.testing.assert_close(got, expected)
    assert sizes == [1, 1]


BREAKS = {
    "activation ReLU": lambda vae: setattr(vae.encoder, "conv_act", torch.nn.ReLU()),
    "activation GELU": lambda vae: setattr(vae.encoder.mid_block.resnets[1], "nonlinearity", torch.nn.GELU()),
    "output_scale_factor 2": lambda vae: setattr(vae.encoder.down_blocks[0].resnets[0], "output_scale_factor", 2),
    "several heads": lambda vae: setattr(vae.encoder.mid_block.attentions[0], "heads", 2),
    "padding 1": lambda vae: setattr(vae.encoder.down_blocks[0].downsamplers[0], "padding", 1),
    "block Identity": lambda vae: vae.encoder.down_blocks.__setitem__(0, torch.nn.Identity()),
    "normalization Identity": lambda vae: setattr(vae.encoder, "conv_norm_out", torch.nn.Identity()),
    "kernel_size=(5, 5)": lambda vae: setattr(vae.encoder, "conv_in", torch.nn.Conv2d(3, 8, 5, padding=2)),
}


@pytest.mark.parametrize("what", BREAKS)
def test_what_it_does_not_know_it_names(vaes, what):
    vae = copy.deepcopy(vaes["SD 1, 2, XL"])
    BREAKS[what](vae)
    with pytest.raises(Unsupported, match=what.replace("(", r"\(").replace(")", r"\)")):
        FrozenEncoder(vae)


class ConvolutionBackwards(TorchDispatchMode):
    """Remembers the gradients and the inputs that convolutions' backwards are asked with."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution_backward.default:
            self.seen.append(args[:2])
        return function(*args, **(kwargs or {}))


def test_no_gradient_changes_its_layout_on_the_way(vaes):
    """cuDNN's backward takes the layout of an input of which it wants nothing else, and copies the gradient into it."""
    images = pixels().float().requires_grad_()
    result = FrozenEncoder(copy.deepcopy(vaes["SD 1, 2, XL"]).float())(images)
    with ConvolutionBackwards() as backwards:
        torch.autograd.grad(result.sum(), images)
    assert backwards.seen
    for tensors in backwards.seen:
        assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in tensors)
