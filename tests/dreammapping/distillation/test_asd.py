"""ASD: VSD with another lesson for the copy."""

from __future__ import annotations

import copy

import pytest
import torch
from dreammapping.distillation import CFGConvention, Distiller, DistillerSettings, LossContext, build_loss
from dreammapping.errors import ConfigError
from dreammapping.teachers import ClosedFormTeacher, GaussianMixture

from tests.helpers.score import SHAPE, cameras, embeddings, gaussian_teacher, make_draw, prompted

T = [20, 300, 900]
F64 = torch.float64


def build(teacher, type="asd", seed=0, **options):
    context = LossContext(teacher, SHAPE, torch.Generator().manual_seed(seed))
    return build_loss({"type": type, **options}, context)


def distiller(teacher=None, **options):
    teacher = teacher or gaussian_teacher()
    loss = build(teacher, **options)
    return Distiller(loss, teacher, DistillerSettings(7.5, CFGConvention.USUAL), loss.context.generator)


def latents(batch=3, seed=5):
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def different_distributions(perp_neg: bool = False) -> ClosedFormTeacher:
    """Every embedding has a mean and a variance of its own, and a text moves it."""
    names = ["cond", "cond_no_view", "empty", "negative", *(["perp_neg_0", "perp_neg_1"] if perp_neg else [])]
    g = torch.Generator().manual_seed(2)
    return ClosedFormTeacher(
        {
            n: GaussianMixture.single(torch.randn(SHAPE, generator=g, dtype=F64), 0.1 + 0.2 * i)
            for i, n in enumerate(names)
        },
        by_text=torch.randn(1, *SHAPE, generator=g, dtype=F64),
    )


def steps(made, count=3, start=0):
    return [made(latents(seed=s), embeddings(3), step=s, context=cameras(3)) for s in range(start, start + count)]


def test_without_the_teachers_answer_it_is_vsd_to_the_bit():
    ours, theirs = distiller(gamma=0.0), distiller(type="vsd")
    for a, b in zip(steps(ours), steps(theirs)):
        assert torch.equal(a.gradient, b.gradient)
        assert all(torch.equal(value, b.diagnostics[name]) for name, value in a.diagnostics.items())
    assert all(torch.equal(a, b) for a, b in zip(ours.loss.parameters(), theirs.loss.parameters()))
    assert torch.equal(ours.generator.get_state(), theirs.generator.get_state())
    assert ours.loss.cost(300, 0) == theirs.loss.cost(300, 0)


def test_the_residual_is_that_of_vsd_until_the_copies_part():
    ours, theirs = steps(distiller(lora_lr=0.1)), steps(distiller(type="vsd", lora_lr=0.1))
    # In the first lesson the copy still says what the teacher says, so the second step is equal too.
    assert [torch.equal(a.gradient, b.gradient) for a, b in zip(ours, theirs)] == [True, True, False]


@pytest.mark.parametrize("gamma", [-0.75, -1.0, 0.5])
@pytest.mark.parametrize("perp_neg", [False, True])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_copys_loss_and_gradient_equal_those_by_hand(kind, perp_neg, gamma):
    teacher = different_distributions(perp_neg)
    teacher.copy_prediction_type = kind
    draw = make_draw(teacher, T, dtype=F64)
    asked = prompted(teacher, batch=3)
    words = torch.tensor([-1.0, 0.5, 2.0], dtype=F64)  # one per image: rows must not be mixed up
    names = ["cond", *(["perp_neg_0", "perp_neg_1"] if perp_neg else [])]
    asked.embeddings.update({name: words.view(3, 1, 1) for name in names})
    weights = torch.tensor([[-0.5, 0.0], [-1.0, -0.3], [0.0, -2.0]], dtype=F64) if perp_neg else None
    asked.perp_neg_weights = weights
    loss = build(teacher, gamma=gamma, camera_condition="none", lora_timesteps=2)
    with torch.no_grad():
        loss.lora["means"].add_(0.3)
    answers = loss.ask(draw, asked)
    twin = torch.Generator()
    twin.set_state(loss.context.generator.get_state())
    got = loss(draw, answers).auxiliary["lora"]

    t = torch.randint(0, 1000, (6,), generator=twin)
    noise = torch.randn(6, *SHAPE, generator=twin).double()
    mean = loss.lora["means"].detach()[0].requires_grad_()
    expected = torch.zeros((), dtype=F64)
    for i in range(6):
        ab, n, x0 = teacher.schedule.alpha_bar[t[i]], noise[i], draw.clean[i % 3]
        a, sig = ab.sqrt(), (1 - ab).sqrt()
        x = a * x0 + sig * n

        def answer(name, i=i, x=x, a=a, sig=sig):
            d = teacher.distributions[name]
            center = d.means[0] + words[i % 3] * teacher.by_text[0]
            return sig * (x - a * center) / (a**2 * d.variances[0] + sig**2)

        p = sig * (x - a * mean) / (a**2 * 0.1 + sig**2)
        q = answer("cond")
        if perp_neg:
            others = [answer("perp_neg_0"), answer("perp_neg_1")]
            q = q + sum(w * (o - (o * q).sum() / (q * q).sum() * q) for w, o in zip(weights[i % 3], others))
        if kind == "epsilon":
            terms = (p - n, p - q)
        elif kind == "v_prediction":
            v = (p - sig * x) / a
            terms = (v - (a * n - sig * x0), v - (a * q - sig * x0))
        else:
            terms = ((x - sig * p) / a - x0, (x - sig * p) / a - (x - sig * q) / a)
        expected = expected + (terms[0].square().mean() + gamma * terms[1].square().mean()) / 6
    torch.testing.assert_close(got, expected)
    (gradient,) = torch.autograd.grad(got, loss.lora["means"])
    torch.testing.assert_close(gradient[0], torch.autograd.grad(expected, mean)[0])


@pytest.mark.parametrize("gamma", [-0.5, 0.5])
def test_the_copy_settles_on_the_other_side_of_the_images(gamma):
    """Images of mean 0, teacher's mean mu, equal variances: the best copy has the mean gamma mu / (1 + gamma)."""
    teacher = gaussian_teacher()
    mean = teacher.distributions["cond"].means[0]
    made = distiller(teacher, gamma=gamma, camera_condition="none", lora_lr=0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(150):
        made(0.05**0.5 * torch.randn(8, *SHAPE, generator=generator), embeddings(8))
    expected = gamma / (1 + gamma) * mean
    assert (made.loss.lora["means"][0] - expected).square().mean().sqrt() < 0.3 * mean.square().mean().sqrt()


@pytest.mark.parametrize(
    ("options", "perp_neg", "expected"),
    [
        ({}, False, (5, 1)),
        ({"lora_guidance_scale": 2.0}, False, (6, 1)),  # the public code's count
        ({"lora_guidance_scale": 2.0}, True, (10, 1)),  # teacher 4, copy 2, q 3, lesson 1
        ({"lora_timesteps": 3}, True, (17, 3)),
        ({"lora_timesteps": 2, "lora_steps": 2}, False, (11, 4)),
        ({"gamma": 0.0}, True, (6, 1)),
    ],
)
def test_calls_are_counted_and_stated(options, perp_neg, expected):
    made = distiller(gaussian_teacher(perp_neg=perp_neg), **options)
    texts, weights = embeddings(3), None
    if perp_neg:
        texts |= {f"perp_neg_{i}": texts["negative"] for i in range(2)}
        weights = torch.full((3, 2), -0.5)
    found = made(latents(), texts, context=cameras(3), perp_neg_weights=weights).diagnostics
    cost = made.loss.cost(300, 0, 4 if perp_neg else 2)
    assert (found["unet_forwards"].item(), found["unet_backwards"].item()) == expected
    assert (cost.forwards, cost.backwards) == expected


def test_gradients_stay_where_they_belong():
    teacher = gaussian_teacher(F64)
    draw = make_draw(teacher, T, dtype=F64)
    draw.context.update(cameras(3))
    asked = prompted(teacher, batch=3)
    asked.embeddings["cond"].requires_grad_()
    loss = build(teacher, lora_opt=None)
    result = loss(draw, loss.ask(draw, asked))
    assert not result.residual.requires_grad
    result.auxiliary["lora"].backward()
    assert all(p.grad.abs().sum() > 0 for p in loss.parameters())
    assert asked.embeddings["cond"].grad is None


def test_a_restored_distiller_takes_the_same_next_steps():
    original, restored = distiller(lora_lr=0.1), distiller(seed=99, lora_lr=0.1)
    steps(original)
    restored.loss.load_state_dict(original.loss.state_dict())
    restored.load_state_dict(copy.deepcopy(original.state_dict()))  # as a file would: nothing shared
    for a, b in zip(steps(original, start=3), steps(restored, start=3)):
        assert torch.equal(a.gradient, b.gradient)
    assert all(torch.equal(a, b) for a, b in zip(original.loss.parameters(), restored.loss.parameters()))


@pytest.mark.parametrize("gamma", [-1.5, float("nan")])
def test_a_loss_without_any_bound_is_refused(gamma):
    with pytest.raises(ConfigError, match="gamma is .* at least -1"):
        build(gaussian_teacher(), gamma=gamma)
