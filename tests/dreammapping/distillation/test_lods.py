"""LODS where its formulas are known: a closed-form teacher whose distributions an embedding moves."""

from __future__ import annotations

import io
import math

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
from dreammapping.errors import ConfigError
from dreammapping.teachers import ClosedFormTeacher, GaussianMixture

from tests.helpers.score import SHAPE, embeddings, gaussian_teacher, make_draw

T = [20, 300, 900]
F64 = torch.float64
WORDS = (2, 3)
"""L and E of the tests' embeddings."""


def different_distributions(dtype=F64) -> ClosedFormTeacher:
    """Every embedding has a mean and a variance of its own, and its numbers move it."""
    g = torch.Generator().manual_seed(2)
    names = ("cond", "empty", "negative", "cond_no_view", "perp_neg_0", "perp_neg_1")
    means = {n: torch.randn(SHAPE, generator=g, dtype=dtype) for n in names}
    return ClosedFormTeacher(
        {n: GaussianMixture.single(means[n], 0.1 + 0.2 * i) for i, n in enumerate(names)},
        by_text=torch.randn(WORDS[1], *SHAPE, generator=g, dtype=dtype),
    )


def texts(batch=3, dtype=F64):
    g = torch.Generator().manual_seed(4)
    names = ("cond", "empty", "negative", "cond_no_view", "perp_neg_0", "perp_neg_1")
    return {n: torch.randn(batch, *WORDS, generator=g, dtype=dtype) for n in names}


def asked(teacher, scale=8.5, convention=CFGConvention.USUAL, **options):
    return PromptedTeacher(teacher, texts(), guidance_scale=scale, convention=convention, **options)


def build(teacher, seed=0, **options):
    context = LossContext(teacher, SHAPE, torch.Generator().manual_seed(seed))
    return build_loss({"type": "lods", **options}, context)


def distiller(teacher=None, scale=1000.0, seed=0, anchor="empty", **options):
    teacher = teacher or different_distributions(torch.float32)
    loss = build(teacher, seed, **options)
    settings = DistillerSettings(scale, CFGConvention.USUAL, anchor)
    return Distiller(loss, teacher, settings, loss.context.generator)


def latents(batch=3, seed=5):
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def step(made, seed, prompts=None):
    return made(latents(seed=seed), prompts or texts(dtype=torch.float32), step=seed)


def by_hand(teacher, draw, name, text, i):
    """eps_phi of image i for the distribution `name`, moved by text [L,E]; its moments in plain numbers."""
    ab = teacher.schedule.alpha_bar[draw.t[i]].item()
    d = teacher.distributions[name]
    mean = d.means[0] + sum(text[li, e] * teacher.by_text[e] for li in range(WORDS[0]) for e in range(WORDS[1]))
    return math.sqrt(1 - ab) * (draw.noisy[i] - math.sqrt(ab) * mean) / (ab * d.variances[0] + 1 - ab)


@pytest.mark.parametrize(
    ("scale", "convention", "S"),
    [
        (8.5, CFGConvention.USUAL, 8.5),
        (7.5, CFGConvention.SEED, 8.5),
        (1e6, CFGConvention.USUAL, 1e6),
        (math.inf, CFGConvention.USUAL, math.inf),
        (1.0, CFGConvention.USUAL, 1.0),
    ],
)
@pytest.mark.parametrize("variant", ["embedding", "lora"])
@pytest.mark.parametrize("anchor", ["empty", "negative"])
def test_the_residual_is_the_papers(variant, anchor, scale, convention, S):
    teacher = different_distributions()
    draw, prompts = make_draw(teacher, T, dtype=F64), asked(teacher, scale, convention, anchor=anchor)
    loss = build(teacher, variant=variant)
    loss.ask(draw, prompts)  # the first step, in which y_psi is copied
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(0.2)
    got = loss(draw, loss.ask(draw, prompts)).residual
    for i in range(3):
        cond = by_hand(teacher, draw, "cond", prompts.embeddings["cond"][i], i)
        if variant == "embedding":
            learned = by_hand(teacher, draw, anchor, prompts.embeddings[anchor][0] + 0.2, i)
        else:  # a copy of cond whose changes count by half
            ab, start = draw.alpha_bar[i], teacher.distributions["cond"]
            spread = ab * start.variances[0] * math.exp(0.1) + 1 - ab
            learned = (1 - ab).sqrt() * (draw.noisy[i] - ab.sqrt() * (start.means[0] + 0.1)) / spread
        expected = (learned + S * (cond - learned) - draw.noise[i]) / S if S < math.inf else cond - learned
        torch.testing.assert_close(got[i], expected, rtol=1e-6, atol=1e-9)
        if S == 1:
            torch.testing.assert_close(got[i], cond - draw.noise[i])


@pytest.mark.parametrize("variant", ["embedding", "lora"])
@pytest.mark.parametrize("perp_neg", [False, True])
def test_the_table_adds_guidance_by_the_true_anchor(variant, perp_neg):
    teacher = different_distributions()
    weights = torch.full((3, 2), -0.5, dtype=F64) if perp_neg else None
    draw, prompts = make_draw(teacher, T, dtype=F64), asked(teacher, 7.5, CFGConvention.SEED, perp_neg_weights=weights)
    loss = build(teacher, variant=variant, mode="table1")
    loss.ask(draw, prompts)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(0.2)
    answers = loss.ask(draw, prompts)
    guided = prompts.guided(draw.noisy, draw.t)
    expected = guided.cond - answers.learned + guided.term
    torch.testing.assert_close(loss(draw, answers).residual, expected.detach())
    if not perp_neg:
        torch.testing.assert_close(guided.term, 7.5 * (guided.cond - guided.uncond))
        assert not torch.allclose(guided.uncond, answers.learned, atol=1e-2)


def test_the_code_ignores_perp_neg():
    teacher, (plain, steered) = different_distributions(), (build(different_distributions()) for _ in range(2))
    draw, weights = make_draw(teacher, T, dtype=F64), torch.full((3, 2), -0.5, dtype=F64)
    a = plain(draw, plain.ask(draw, asked(teacher))).residual
    b = steered(draw, steered.ask(draw, asked(teacher, perp_neg_weights=weights))).residual
    assert torch.equal(a, b)


@pytest.mark.parametrize("anchor", ["empty", "negative"])
def test_the_embedding_starts_as_the_anchors_and_leaves_the_prompts_alone(anchor):
    made, prompts = distiller(anchor=anchor), texts(dtype=torch.float32)
    kept = {name: text.clone() for name, text in prompts.items()}
    assert made.loss.embedding.numel() == 0
    answers = made.loss.ask(
        made.draw(latents(), 0, {}),
        PromptedTeacher(made.teacher, prompts, guidance_scale=8.5, convention=CFGConvention.USUAL, anchor=anchor),
    )
    assert torch.equal(made.loss.embedding, prompts[anchor][:1]) and made.loss.embedding.requires_grad
    assert answers.learned.shape == (3, *SHAPE)
    made(latents(), prompts)
    assert not torch.equal(made.loss.embedding, prompts[anchor][:1])
    assert all(torch.equal(text, kept[name]) for name, text in prompts.items())
    prompts[anchor] = prompts[anchor] + 1  # only the first step reads it
    before = made.loss.embedding.detach().clone()
    made(latents(), prompts)
    assert (made.loss.embedding - before).abs().max() < 0.01


def test_the_embeddings_loss_and_gradient_equal_those_by_hand():
    teacher = different_distributions()
    draw, prompts = make_draw(teacher, T, dtype=F64), asked(teacher)
    loss = build(teacher)
    answers = loss.ask(draw, prompts)
    twin = torch.Generator()
    twin.set_state(loss.context.generator.get_state())
    result = loss(draw, answers)
    assert list(result.auxiliary) == ["embedding"]
    t = torch.randint(0, 1000, (3,), generator=twin)
    noise = torch.randn(3, *SHAPE, generator=twin).double()
    text = prompts.embeddings["empty"][0].clone().requires_grad_()
    pair = make_draw(teacher, t.tolist(), dtype=F64)
    object.__setattr__(pair, "noisy", teacher.schedule.add_noise(draw.clean, noise, t))
    expected = sum((by_hand(teacher, pair, "empty", text, i) - noise[i]).square().mean() for i in range(3)) / 3
    torch.testing.assert_close(result.auxiliary["embedding"], expected, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(result.auxiliary["embedding"], loss.embedding)
    torch.testing.assert_close(gradient[0], torch.autograd.grad(expected, text)[0], rtol=1e-5, atol=1e-9)


def test_the_lora_reads_the_anchor_and_no_camera_and_counts_half(monkeypatch):
    teacher = different_distributions()
    draw, prompts = make_draw(teacher, T, dtype=F64), asked(teacher, anchor="negative")
    loss = build(teacher, variant="lora")
    assert sorted(loss.state_dict()) == ["lora.log_variances", "lora.means"]
    seen = []
    predict = loss.score.copy.predict
    monkeypatch.setattr(
        loss.score.copy,
        "predict",
        lambda x, t, text, camera, **k: seen.append((text, camera, x)) or predict(x, t, text, camera, **k),
    )
    twin = torch.Generator()
    twin.set_state(loss.context.generator.get_state())
    result = loss(draw, loss.ask(draw, prompts))
    assert len(seen) == 2 and all(torch.equal(s[0], prompts.embeddings["negative"]) and s[1] is None for s in seen)
    t = torch.randint(0, 1000, (3,), generator=twin)
    noise = torch.randn(3, *SHAPE, generator=twin).double()
    torch.testing.assert_close(seen[1][2], teacher.schedule.add_noise(draw.clean, noise, t))
    mean, ab = loss.lora["means"].detach()[0].requires_grad_(), teacher.schedule.at(t, noise)
    start = teacher.distributions["cond"]
    moved = start.means[0] + 0.5 * (mean - start.means[0])
    eps = (1 - ab).sqrt() * (seen[1][2] - ab.sqrt() * moved) / (ab * start.variances[0] + 1 - ab)
    expected = (eps - noise).square().mean()
    torch.testing.assert_close(result.auxiliary["lora"], expected)
    (gradient,) = torch.autograd.grad(result.auxiliary["lora"], loss.lora["means"])
    torch.testing.assert_close(gradient[0], torch.autograd.grad(expected, mean)[0])


def test_the_embedding_learns_the_images_and_the_residual_then_vanishes():
    """The anchor's distribution, moved by y_psi, can become that of the images: e_alpha = e_c if they are the prompt's."""
    mean = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    size = mean.numel()
    distributions = {"cond": mean, "empty": torch.zeros(SHAPE)}
    teacher = ClosedFormTeacher(
        {name: GaussianMixture.single(m, 0.05) for name, m in distributions.items()},
        by_text=torch.eye(size).view(size, *SHAPE),
    )
    prompts = {name: torch.zeros(1, 1, size) for name in distributions}
    made, generator = distiller(teacher, math.inf, psi_lr=0.05), torch.Generator().manual_seed(1)
    norms = []
    for _ in range(120):
        x = mean + 0.05**0.5 * torch.randn(8, *SHAPE, generator=generator)
        norms.append(made(x, prompts).diagnostics["residual_norm"].item())
    assert (made.loss.embedding.view(SHAPE) - mean).square().mean().sqrt() < 0.2
    assert sum(norms[-5:]) < 0.2 * sum(norms[:5])


@pytest.mark.parametrize(
    ("options", "forwards", "backwards"),
    [
        ({}, 3, 1),
        ({"variant": "lora"}, 3, 1),
        ({"mode": "table1"}, 4, 1),
        ({"variant": "lora", "mode": "table1"}, 4, 1),
        ({"psi_steps": 2}, 4, 2),
        ({"psi_steps": 0}, 3, 0),
    ],
)
def test_calls_are_those_of_the_cost_table(options, forwards, backwards):
    made = distiller(**options)
    for seed in range(2):
        found = step(made, seed).diagnostics
        assert (found["unet_forwards"].item(), found["unet_backwards"].item()) == (forwards, backwards)
    cost = made.loss.cost(300, 0)
    assert (cost.forwards, cost.backwards) == (forwards, backwards)


@pytest.mark.parametrize("variant", ["embedding", "lora"])
def test_gradients_stay_where_they_belong(variant):
    teacher = different_distributions()
    draw, prompts = make_draw(teacher, T, dtype=F64), asked(teacher)
    for text in prompts.embeddings.values():
        text.requires_grad_()
    loss = build(teacher, variant=variant)
    result = loss(draw, loss.ask(draw, prompts))
    assert not result.residual.requires_grad and not any(d.requires_grad for d in result.diagnostics.values())
    result.auxiliary[variant].backward()
    assert all(p.grad.abs().sum() > 0 for p in loss.parameters()) and list(loss.parameters())
    assert all(text.grad is None for text in prompts.embeddings.values())


def test_psi_learns_also_where_the_caller_measures_without_gradients():
    made = distiller(psi_steps=2)
    with torch.no_grad():
        step(made, 0)
    assert not torch.equal(made.loss.embedding, texts(dtype=torch.float32)["empty"][:1])


def test_the_residual_uses_psi_from_before_the_update():
    slow, fast = distiller(psi_lr=1e-9), distiller(psi_lr=0.5)
    assert torch.equal(step(slow, 0).gradient, step(fast, 0).gradient)
    assert not torch.allclose(step(slow, 1).gradient, step(fast, 1).gradient, atol=1e-3)


@pytest.mark.parametrize("variant", ["embedding", "lora"])
@pytest.mark.parametrize("done", [0, 3])
def test_a_restored_distiller_takes_the_same_next_steps(variant, done):
    original = distiller(variant=variant, psi_lr=0.05)
    for seed in range(done):
        step(original, seed)
    file = io.BytesIO()
    torch.save({"loss": original.loss.state_dict(), "distiller": original.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    restored = distiller(variant=variant, psi_lr=0.05, seed=99)
    restored.loss.load_state_dict(saved["loss"])
    restored.load_state_dict(saved["distiller"])
    other = texts(dtype=torch.float32)
    other["empty"] = other["empty"] + done  # a restored y_psi must not be copied anew
    for seed in range(done, done + 3):
        a, b = step(original, seed), step(restored, seed, other)
        assert torch.equal(a.gradient, b.gradient)
        assert all(torch.equal(x, y) for x, y in zip(original.loss.parameters(), restored.loss.parameters()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "text"}, "must be one of 'embedding', 'lora'"),
        ({"mode": "paper"}, "must be one of 'code', 'table1'"),
        ({"psi_steps": -1}, "psi_steps at least 0"),
        ({"lora_rank": 0}, "lora_rank must be at least 1"),
        ({"lora_lr": 1.0}, "loss.lora_lr is not a known key"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ConfigError, match=message):
        build(gaussian_teacher(), **options)


@pytest.mark.parametrize("scale", [0.0, -3.0, float("nan")])
def test_a_scale_it_cannot_divide_by_is_told(scale):
    with pytest.raises(ConfigError, match="divides by the guidance scale.*positive"):
        distiller(gaussian_teacher(), scale)(latents(), embeddings(3))
