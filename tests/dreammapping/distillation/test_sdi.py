"""SDI against its formula, image by image in float64 with the generator's own numbers, and what it costs."""

from __future__ import annotations

import math

import pytest
import torch
from dreammapping.distillation import Distiller, DistillerSettings, LossContext, build_loss, build_timesteps
from dreammapping.errors import ConfigError

from tests.helpers.score import (
    SHAPE,
    TextTeacher,
    assert_batch_equals_images_alone,
    embeddings,
    gaussian_teacher,
    make_draw,
    prompted,
)

F64 = torch.float64
T = [0, 1, 2, 101, 102, 250, 980, 999]
EXACT = {"inversion_eta": 0.0, "overshoot": False}


def build(teacher, seed=0, **options):
    return build_loss({"type": "sdi", **options}, LossContext(teacher, SHAPE, torch.Generator().manual_seed(seed)))


def levels(t, end, spacing=100):
    """The steps of the inversion after the clean image."""
    return [*range(1, t, spacing), end]


def by_hand(teacher, clean, t, past, fresh, scale, inversion_scale, eta):
    """R of one image; `fresh` holds the noise of its jumps."""
    ab = teacher.schedule.alpha_bar.tolist()
    end = min(t + past, 999)

    def eps(x, step, s):
        result = []
        for name in ("cond", "empty"):
            mixture = teacher.distributions[name]
            variance = ab[step] * float(mixture.variances[0]) + 1 - ab[step]
            result.append(math.sqrt(1 - ab[step]) * (x - math.sqrt(ab[step]) * mixture.means[0]) / variance)
        cond, empty = result
        return cond + s * (cond - empty)

    x, now, level = clean, 0, 1.0
    for ahead, z in zip(levels(t, end), fresh):
        e = eps(x, now, inversion_scale)
        x0 = (x - math.sqrt(1 - level) * e) / math.sqrt(level)
        noise = math.sqrt((1 - level) / (1 - ab[ahead]) * (1 - ab[ahead] / level))
        x = math.sqrt(ab[ahead]) * x0 + math.sqrt(1 - ab[ahead]) * e + eta * noise * z
        now, level = ahead, ab[ahead]
    kappa = (x - math.sqrt(ab[end]) * clean) / math.sqrt(1 - ab[end])
    return eps(math.sqrt(ab[t]) * clean + math.sqrt(1 - ab[t]) * kappa, t, scale) - kappa


@pytest.mark.parametrize("eta", [0.0, 0.3])
@pytest.mark.parametrize("overshoot", [True, False])
def test_the_residual_is_the_papers(overshoot, eta):
    teacher = gaussian_teacher(F64)
    draw = make_draw(teacher, T, dtype=F64)
    loss = build(teacher, seed=3, inversion_eta=eta, overshoot=overshoot)
    residual = loss(draw, loss.ask(draw, prompted(teacher, batch=len(T)))).residual

    twin = torch.Generator().manual_seed(3)
    past = torch.randint(100, (len(T),), generator=twin).tolist() if overshoot else [0] * len(T)
    assert not overshoot or max(past) > 50
    jumps = torch.stack([torch.randn(draw.clean.shape, generator=twin).double() for _ in range(11)])
    for i, t in enumerate(T):
        expected = by_hand(teacher, draw.clean[i], t, past[i], jumps[:, i], 7.5, -7.5, eta)
        torch.testing.assert_close(residual[i], expected, rtol=1e-7, atol=1e-7)


def test_small_jumps_find_the_noise_of_the_exact_path():
    """p(x_0 | y) = N(mu, v I), inverted without guidance: (x_t - a mu) / sqrt(a^2 v + sig^2) = (x_0 - mu) / sqrt(v)."""
    teacher = gaussian_teacher(F64)
    mixture, t = teacher.distributions["cond"], [200, 600, 990]
    draw = make_draw(teacher, t, dtype=F64)
    a, sig = teacher.schedule.coefficients(draw.t, draw.clean)
    spread = (a**2 * mixture.variances + sig**2).sqrt() / mixture.variances.sqrt()
    exact = (a * mixture.means + spread * (draw.clean - mixture.means) - a * draw.clean) / sig

    def error(n_steps):
        loss = build(teacher, inversion_guidance_scale=0.0, inversion_n_steps=n_steps, **EXACT)
        return (loss.ask(draw, prompted(teacher, batch=3)).kappa - exact).abs().max().item()

    assert error(1000) < 0.1 and error(1000) < error(100) / 2 < error(10) / 4


def test_under_snr_the_gradient_leads_to_the_one_step_denoised_image():
    """The authors' loss |x_0 - x_0_hat|^2 / 2."""
    teacher = gaussian_teacher(F64)
    loss = build(teacher)
    settings = DistillerSettings(weighting_strategy="snr")
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=F64)
    result = Distiller(loss, teacher, settings, loss.context.generator)(x, embeddings(4))
    draw, answers = result.draw, result.answers
    noisy = teacher.schedule.add_noise(x, answers.kappa, draw.t)
    denoised = teacher.schedule.x0_from_eps(noisy, answers.guided.guided, draw.t)
    torch.testing.assert_close(result.gradient, x - denoised)


@pytest.mark.parametrize("perp_neg", [False, True])
def test_a_batch_is_its_images_alone(perp_neg):
    assert_batch_equals_images_alone(build(TextTeacher(), **EXACT), T, perp_neg=perp_neg)


def test_images_do_not_feel_each_others_random_numbers():
    """Each image's noise and overshoot are its own rows of what is drawn for the batch."""
    teacher = gaussian_teacher(F64)
    draw = make_draw(teacher, [150, 700], dtype=F64)
    first = build(teacher).ask(draw, prompted(teacher)).kappa
    draw.clean[1] += 1
    second = build(teacher).ask(draw, prompted(teacher)).kappa
    assert torch.equal(first[0], second[0]) and not torch.allclose(first[1], second[1])


def test_the_network_is_asked_within_the_schedule_and_at_t_in_the_end():
    teacher = TextTeacher()
    loss = build(teacher)
    steps = build_timesteps({"type": "uniform", "min_step": 950})
    distiller = Distiller(loss, teacher, DistillerSettings(), loss.context.generator, steps)
    t = distiller(torch.randn(20, *SHAPE), embeddings(20)).draw.t
    assert [int(a.max()) for a in teacher.asked[:-1]] == [0, *range(1, 950, 100)]
    assert torch.equal(teacher.asked[-1], t)


@pytest.mark.parametrize(
    ("t", "forwards"),
    [(0, 4), (1, 4), (2, 6), (101, 6), (102, 8), (201, 8), (202, 10), (250, 10), (980, 24), (999, 24)],
)
def test_what_it_costs(t, forwards):
    """2 (ceil((t - 1) / 100) + 1) for the inversion and 2 at x_t."""
    loss = build(TextTeacher())
    assert loss.cost(t, 0).forwards == forwards and loss.cost(t, 0, 4).forwards == 2 * forwards


def test_the_average_cost_of_the_authors_run():
    steps = build_timesteps({"type": "anneal", "start": 980, "end": 250, "anneal_steps": 10000})
    loss = build(TextTeacher())
    costs = [loss.cost(steps.bounds(step, 1000)[0], step).forwards for step in range(0, 10000, 20)]
    assert sum(costs) / len(costs) == pytest.approx(17.3, abs=0.3)


def test_a_resumed_run_draws_the_same():
    def start():
        teacher = gaussian_teacher()
        loss = build(teacher)
        return Distiller(loss, teacher, DistillerSettings(), loss.context.generator)

    straight, other = start(), start()
    x = torch.ones(2, *SHAPE)
    straight(x, embeddings(2))
    other.load_state_dict(straight.state_dict())
    for _ in range(2):
        assert torch.equal(straight(x, embeddings(2)).gradient, other(x, embeddings(2)).gradient)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inversion_n_steps": 0}, "inversion_n_steps must be at least 1"),
        ({"inversion_eta": -0.1}, "inversion_eta at least 0"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ConfigError, match=message):
        build(TextTeacher(), **options)
