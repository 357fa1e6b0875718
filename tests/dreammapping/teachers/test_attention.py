"""Fused projections of a U-Net's attention: the network's own answers, from shared weights."""

from __future__ import annotations

import copy

import pytest
import torch
from dreammapping.teachers import DiffusersTeacher, TeacherOptions
from dreammapping.teachers.attention import CrossAttention, fuse_projections

from tests.helpers.tiny_pipelines import make_tiny


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def folder(request, tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp(request.param), request.param)


def teacher_of(folder, **options):
    teacher = DiffusersTeacher.load(str(folder), TeacherOptions(**options))
    teacher.network.double()  # so that rounding hides nothing
    teacher.dtype = torch.float64
    return teacher


def ask(teacher, **options):
    g = torch.Generator().manual_seed(3)
    shape = teacher.denoiser.text
    rows = 5 + -(-shape.pooled // shape.width)
    text = {"cond": torch.randn(2, rows, shape.width, generator=g, dtype=torch.float64).requires_grad_()}
    text["empty"] = torch.randn(1, rows, shape.width, generator=g, dtype=torch.float64).requires_grad_()
    x = torch.randn(2, *teacher.latent_shape, generator=g).requires_grad_()
    eps = teacher.predict(x, torch.tensor([10, 700]), text, **options)
    return x, text, eps


def test_answers_and_gradients_are_the_networks_own(folder):
    plain, fused = teacher_of(folder), teacher_of(folder)
    fused.denoiser.fuse_projections()
    assert fused.denoiser.project is not None
    found = []
    for teacher in (plain, fused):
        x, text, eps = ask(teacher, differentiable=True)
        wanted = torch.autograd.grad(sum(e.square().sum() for e in eps.values()), [x, *text.values()])
        found.append([*eps.values(), *wanted])
    for mine, theirs in zip(*found):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)  # the answers themselves are rounded to float32


def test_a_network_that_has_been_moved_is_fused_again(folder):
    """The fused weights do not move by themselves; a change of type is a move that a CPU knows."""
    teacher = DiffusersTeacher.load(str(folder), TeacherOptions())
    teacher.denoiser.fuse_projections()
    before = ask(teacher)[2]["cond"]
    teacher.options.bfloat16_on_cpu = True
    after = ask(teacher.to("cpu"))[2]["cond"]
    assert teacher.network.dtype == torch.bfloat16
    assert 0 < (after - before).norm() < 0.1 * before.norm()


def test_weights_are_shared(folder):
    teacher = teacher_of(folder)
    teacher.denoiser.fuse_projections()
    layer = next(m for m in teacher.network.modules() if hasattr(m, "to_q") and not m.is_cross_attention)
    before = ask(teacher)[2]["cond"]
    assert layer.to_q.weight.untyped_storage().data_ptr() == layer.processor.weight.untyped_storage().data_ptr()
    layer.to_v.weight.data.mul_(3)
    assert not torch.equal(ask(teacher)[2]["cond"], before)


def test_a_copy_computes_with_its_own_projections(folder):
    teacher = teacher_of(folder)
    expected = ask(teacher)[2]["cond"]
    teacher.denoiser.fuse_projections()
    teacher.denoiser = teacher.denoiser.with_network(copy.deepcopy(teacher.network))
    torch.testing.assert_close(ask(teacher)[2]["cond"], expected)
    layer = next(m for m in teacher.denoiser.network.modules() if hasattr(m, "to_q"))
    layer.to_k.weight.data.zero_()
    assert not torch.allclose(ask(teacher)[2]["cond"], expected)


def test_fusing_again_after_a_move_takes_the_moved_weights(folder):
    teacher = teacher_of(folder)
    teacher.denoiser.fuse_projections()
    expected = ask(teacher)[2]["cond"]
    for parameter in teacher.network.parameters():
        parameter.data = parameter.data.clone()
    teacher.denoiser.fuse_projections()
    torch.testing.assert_close(ask(teacher)[2]["cond"], expected)
    layer = next(m for m in teacher.network.modules() if hasattr(m, "to_q") and not m.is_cross_attention)
    assert layer.to_q.weight.untyped_storage().data_ptr() == layer.processor.weight.untyped_storage().data_ptr()


def test_other_kinds_of_attention_are_left_alone(tmp_path):
    teacher = DiffusersTeacher.load(str(make_tiny(tmp_path, "sd3")))
    assert fuse_projections(teacher.network) is None
    sliced = DiffusersTeacher.load(str(make_tiny(tmp_path / "sd", "sd")), TeacherOptions(attention_slicing=True))
    assert fuse_projections(sliced.network) is None
    assert not any(isinstance(p, CrossAttention) for p in sliced.network.attn_processors.values())


def test_the_fused_network_compiles_as_one_graph(folder):
    fused = teacher_of(folder)
    fused.denoiser.fuse_projections()
    expected = ask(fused)[2]["cond"]
    fused.denoiser.run = torch.compile(fused.network, backend="eager", fullgraph=True)
    torch.testing.assert_close(ask(fused)[2]["cond"], expected)
