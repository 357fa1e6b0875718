"""Slices give the whole batch's numbers: latents, gradient, predictions and the state of the generator."""

from __future__ import annotations

import pytest
import torch
from dreammapping.errors import ConfigError
from dreammapping.processes import Rows
from dreammapping.teachers import DiffusersTeacher, TeacherOptions
from dreammapping.teachers.encoder.network import FrozenEncoder
from dreammapping.teachers.slices import check_slice, encode_in_slices, in_slices

from tests.helpers.tiny_teacher import make_tiny_teacher

BATCH = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_teacher(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture(scope="module")
def teacher(folder):
    """In float64."""
    teacher = DiffusersTeacher.load(str(folder))
    teacher.vae.double()
    teacher.vae_dtype = torch.float64
    return teacher


def images():
    return torch.rand(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def encoded(encode, size):
    """Latents, gradient of a function that is not linear in them, and what the generator draws next."""
    generator = torch.Generator().manual_seed(11)
    rgb = images().requires_grad_()
    latents = encode_in_slices(encode, rgb, generator, size)
    weight = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gradient = torch.autograd.grad((latents.square() * weight).sum(), rgb)[0]
    return latents.detach(), gradient, torch.rand(4, generator=generator)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_gradient_is_that_of_the_whole_batch(teacher, size):
    whole, sliced = encoded(teacher.encode, 0), encoded(teacher.encode, size)
    for one, two in zip(whole, sliced):
        torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-13)
    assert torch.equal(whole[2], sliced[2])


@pytest.mark.parametrize("size", [1, 2])
def test_the_fast_encoder_in_slices_gives_the_gradient_of_the_whole_batch(teacher, size, monkeypatch):
    whole = encoded(teacher.encode, 0)
    monkeypatch.setattr(teacher, "_fast_encoder", FrozenEncoder(teacher.vae))
    for one, two in zip(whole, encoded(teacher.encode, size)):
        torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [0, BATCH, 9])
def test_a_single_slice_is_the_plain_call(teacher, size):
    plain = teacher.encode(images(), torch.Generator().manual_seed(11))
    assert torch.equal(encoded(teacher.encode, size)[0], plain)


def test_noise_of_some_rows_is_the_whole_batchs(teacher):
    whole = teacher.encode(images(), torch.Generator().manual_seed(4))
    part = teacher.encode(images()[1:3], torch.Generator().manual_seed(4), Rows(1, 2, BATCH))
    torch.testing.assert_close(part, whole[1:3], rtol=1e-12, atol=1e-13)


def test_only_one_slice_has_a_graph_at_a_time(teacher):
    """The bytes kept for the backward, after the forward: a batch of five against one image."""

    def kept(count, size):
        seen = {}

        def pack(tensor):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        own = {p.untyped_storage().data_ptr() for p in teacher.vae.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            latents = encode_in_slices(teacher.encode, images()[:count].requires_grad_(), torch.Generator(), size)
        assert latents.requires_grad
        return sum(size for pointer, size in seen.items() if pointer not in own)

    whole, single, sliced = kept(BATCH, 0), kept(1, 0), kept(BATCH, 1)
    assert whole > 4 * single and sliced < 1.1 * single + images().numel() * 8


def test_network_slices_give_the_same_predictions(folder):
    t = torch.tensor([3, 640])
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    texts = {"cond": torch.randn(2, 24, 16, generator=torch.Generator().manual_seed(0)), "empty": torch.zeros(1, 24, 16)}
    whole = DiffusersTeacher.load(str(folder)).predict(noisy, t, texts)
    rows = []
    for size in (1, 3):
        teacher = DiffusersTeacher.load(str(folder), TeacherOptions(unet_slice=size))
        teacher.network.register_forward_pre_hook(lambda module, args, kwargs: rows.append(len(args[0])), with_kwargs=True)
        sliced = teacher.predict(noisy, t, texts)
        for name, eps in whole.items():
            torch.testing.assert_close(sliced[name], eps, rtol=1e-5, atol=1e-5)
    assert rows == [1, 1, 1, 1, 3, 1]


def test_mistakes_and_trivial_sizes():
    with pytest.raises(ConfigError, match="system.guidance.encode_slice is -1"):
        check_slice(-1, "system.guidance.encode_slice")
    assert check_slice(2, "x") == 2
    assert torch.equal(in_slices(torch.add, 2, torch.arange(5), torch.ones(5)), torch.arange(5) + 1.0)
