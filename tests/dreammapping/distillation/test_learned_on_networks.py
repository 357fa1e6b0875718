"""The losses that train a part of their own, on a miniature Stable Diffusion: what the training reaches, and what not."""

from __future__ import annotations

import copy

import pytest
import torch
from dreammapping.distillation import (
    CFGConvention,
    Distiller,
    DistillerSettings,
    LossContext,
    PromptedTeacher,
    build_loss,
)
from dreammapping.teachers import DiffusersTeacher

from tests.helpers.tiny_teacher import make_tiny_teacher

B = 2
CASES = {
    "vsd": {"type": "vsd", "lora_lr": 0.01},
    "dreamflow": {"type": "dreamflow", "lora_lr": 0.01},
    "asd": {"type": "asd", "lora_lr": 0.01},
    "lods embedding": {"type": "lods", "psi_lr": 0.01},
    "lods lora": {"type": "lods", "variant": "lora", "psi_lr": 0.01},
    "lods embedding table1": {"type": "lods", "mode": "table1", "psi_lr": 0.01},
    "lods lora table1": {"type": "lods", "variant": "lora", "mode": "table1", "psi_lr": 0.01},
}
CALLS = {"vsd": (4, 1), "dreamflow": (4, 1), "asd": (5, 1), "lods embedding": (3, 1), "lods lora": (3, 1)}
CALLS |= {"lods embedding table1": (4, 1), "lods lora table1": (4, 1)}


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def folder(request, tmp_path_factory):
    return make_tiny_teacher(tmp_path_factory.mktemp("teachers") / request.param, prediction_type=request.param)


def build(folder, case, seed=0):
    teacher, generator = DiffusersTeacher.load(str(folder)), torch.Generator().manual_seed(seed)
    loss = build_loss(CASES[case], LossContext(teacher, teacher.latent_shape, generator))
    return Distiller(loss, teacher, DistillerSettings(7.5, CFGConvention.USUAL, "negative"), generator)


def texts():
    g = torch.Generator().manual_seed(0)
    return {name: torch.randn(B, 24, 16, generator=g) for name in ("cond", "negative", "cond_no_view")}


def step(made, number):
    g = torch.Generator().manual_seed(number)
    x = torch.randn(B, *made.teacher.latent_shape, generator=g, requires_grad=True)
    return x, made(x, texts(), step=number, context={"c2w": torch.randn(B, 4, 4, generator=g)})


def frozen(made):
    return {name: p.detach().clone() for name, p in made.teacher.network.named_parameters()}


@pytest.mark.parametrize("case", CASES)
def test_only_the_losss_own_part_is_trained(folder, case):
    made = build(folder, case)
    step(made, 0)  # y_psi is copied from the anchor, and a LoRA's first factor gets a gradient after the second has one
    before, weights = [p.detach().clone() for p in made.loss.parameters()], frozen(made)
    x, out = step(made, 1)
    assert (out.diagnostics["unet_forwards"].item(), out.diagnostics["unet_backwards"].item()) == CALLS[case]
    cost = made.loss.cost(500, 1)
    assert (cost.forwards, cost.backwards) == CALLS[case]
    out.loss.backward()
    assert x.grad.abs().sum() > 0 and all(value.isfinite() for value in out.diagnostics.values())
    moved = [not torch.equal(p, b) for p, b in zip(made.loss.parameters(), before)]
    assert moved and all(moved)
    unet = dict(made.teacher.network.named_parameters())
    assert all(p.grad is None and not p.requires_grad and torch.equal(p, weights[name]) for name, p in unet.items())
    assert not {p.data_ptr() for p in unet.values()} & {p.data_ptr() for p in made.loss.parameters()}
    names = set(made.loss.state_dict())
    assert names == {"embedding"} if case.startswith("lods e") else all(name.startswith("lora.") for name in names)


@pytest.mark.parametrize("case", CASES)
def test_restored_it_takes_the_same_next_steps(folder, case):
    original, restored = build(folder, case), build(folder, case, seed=9)
    for number in range(2):
        step(original, number)
    restored.loss.load_state_dict(copy.deepcopy(original.loss.state_dict()))
    restored.load_state_dict(copy.deepcopy(original.state_dict()))
    for number in (2, 3):
        (_, a), (_, b) = step(original, number), step(restored, number)
        assert torch.equal(a.gradient, b.gradient)
    assert all(torch.equal(p, q) for p, q in zip(original.loss.parameters(), restored.loss.parameters()))


def test_a_lora_at_half_strength_is_half_the_update(folder):
    """And an untrained one is the teacher on the anchor's text."""
    made = build(folder, "lods lora")
    x, t, text = torch.randn(B, *made.teacher.latent_shape), torch.tensor([5, 800]), texts()["negative"]
    plain = made.teacher.predict(x, t, {"negative": text})["negative"]
    torch.testing.assert_close(made.loss.score.eps(x, t, text, None), plain)
    scales = {module.scaling["default"] for module in made.loss.score.copy.network.modules() if hasattr(module, "scaling")}
    assert scales == {0.5}
    assert {
        module.scaling["default"]
        for module in build(folder, "vsd").loss.copy.network.modules()
        if hasattr(module, "scaling")
    } == {1.0}


def test_the_embeddings_gradient_is_that_of_the_network(folder):
    """Against torch on the U-Net itself, for the noise it predicts."""
    made = build(folder, "lods embedding")
    step(made, 0)
    teacher, loss = made.teacher, made.loss
    clean = torch.randn(B, *teacher.latent_shape, generator=torch.Generator().manual_seed(8))
    draw = made.draw(clean, 1, {})
    asked = loss.ask(draw, _prompted(made))
    twin = torch.Generator()
    twin.set_state(made.generator.get_state())
    got = torch.autograd.grad(loss(draw, asked).auxiliary["embedding"], loss.embedding)[0]
    t, noise = torch.randint(0, 1000, (B,), generator=twin), torch.randn(clean.shape, generator=twin)
    ab = teacher.schedule.alpha_bar[t].float().view(-1, 1, 1, 1)
    x, text = ab.sqrt() * clean + (1 - ab).sqrt() * noise, loss.embedding.detach().clone().requires_grad_()
    raw = teacher.network(x, t, text.expand(B, -1, -1)).sample
    eps = raw if teacher.denoiser.prediction_type == "epsilon" else ab.sqrt() * raw + (1 - ab).sqrt() * x
    (expected,) = torch.autograd.grad((eps - noise).square().mean(), text)
    assert expected.abs().max() > 0
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-9)


def _prompted(made):
    return PromptedTeacher(made.teacher, texts(), guidance_scale=7.5, convention=CFGConvention.USUAL, anchor="negative")
