"""Consistent3D against its authors' form of the step (in sigma = sig / a), in float64, and its fixed noise."""

from __future__ import annotations

import io
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
T = [20, 300, 700, 999]
EARLIER = torch.tensor([0, 120, 620, 700])


def build(teacher, seed=0, **options):
    return build_loss(
        {"type": "consistent3d", **options}, LossContext(teacher, SHAPE, torch.Generator().manual_seed(seed))
    )


def paired_draw(teacher, earlier=EARLIER):
    draw = make_draw(teacher, T, dtype=F64)
    object.__setattr__(draw, "t_earlier", earlier)
    return draw


def by_hand(teacher, clean, noise, t1, t2, scale, guided_target):
    """R of one image: an Euler step of z = x / a in sigma, as the authors write it."""
    ab = teacher.schedule.alpha_bar.tolist()

    def predictions(z, t):
        x, result = z * math.sqrt(ab[t]), []
        for name in ("cond", "empty"):
            mixture = teacher.distributions[name]
            variance = ab[t] * float(mixture.variances[0]) + 1 - ab[t]
            result.append(math.sqrt(1 - ab[t]) * (x - math.sqrt(ab[t]) * mixture.means[0]) / variance)
        cond, empty = result
        return cond, cond + scale * (cond - empty)

    sigma1, sigma2 = (math.sqrt((1 - ab[t]) / ab[t]) for t in (t1, t2))
    z = clean + sigma1 * noise
    _, first = predictions(z, t1)
    cond, second = predictions(z + (sigma2 - sigma1) * first, t2)
    return first - (second if guided_target else cond)


@pytest.mark.parametrize("mode", ["code", "table1"])
def test_the_residual_is_the_authors(mode):
    teacher = gaussian_teacher(F64)
    loss, draw = build(teacher, mode=mode), paired_draw(teacher)
    answers = loss.ask(draw, prompted(teacher, scale=50.0, batch=len(T)))
    residual = loss(draw, answers).residual
    for i, (t1, t2) in enumerate(zip(T, EARLIER.tolist())):
        expected = by_hand(teacher, draw.clean[i], loss.noise[0].double(), t1, t2, 50.0, mode == "code")
        torch.testing.assert_close(residual[i], expected, rtol=1e-8, atol=1e-8)
    if mode == "table1":  # DreamMapping's eq. 10: the unconditional term and s C
        term = 50.0 * (answers.guided.cond - answers.guided.uncond)
        torch.testing.assert_close(residual, answers.guided.cond - answers.target + term)


def test_the_modes_differ_by_the_guidance_at_the_earlier_step_alone():
    teacher = gaussian_teacher(F64)
    draw = paired_draw(teacher)
    asked = prompted(teacher, scale=0.0, batch=len(T))
    code, table1 = (
        loss(draw, loss.ask(draw, asked)).residual for loss in (build(teacher), build(teacher, mode="table1"))
    )
    torch.testing.assert_close(code, table1)


def test_the_residual_of_an_exact_teacher_vanishes_with_the_gap():
    teacher = gaussian_teacher(F64)
    sizes = []
    for gap in (100, 10, 1, 0):
        loss, draw = build(teacher, gap=gap), make_draw(teacher, [300, 700, 999], dtype=F64)
        sizes.append(loss(draw, loss.ask(draw, prompted(teacher, scale=0.0, batch=3))).residual.abs().max().item())
    assert sizes[0] > 5 * sizes[1] > 25 * sizes[2] > 0 and sizes[3] < 1e-12, sizes


@pytest.mark.parametrize("mode", ["code", "table1"])
@pytest.mark.parametrize("perp_neg", [False, True])
def test_a_batch_is_its_images_alone(perp_neg, mode):
    loss = build(TextTeacher(), mode=mode)
    assert_batch_equals_images_alone(loss, T, perp_neg=perp_neg, t_earlier=EARLIER)
    assert_batch_equals_images_alone(loss, T, perp_neg=perp_neg)  # pairs by `gap`


def test_pairs_come_from_the_timesteps_and_else_from_the_gap():
    teacher = TextTeacher()
    loss = build(teacher, gap=150)
    for config, step, expected in (
        ({"type": "consistency", "anneal_steps": 100}, 25, lambda t: torch.full_like(t, 400)),
        ({"type": "uniform", "min_step": 100}, 25, lambda t: (t - 150).clamp(min=0)),
    ):
        distiller = Distiller(
            loss, teacher, DistillerSettings(), torch.Generator().manual_seed(1), build_timesteps(config)
        )
        teacher.asked.clear()
        t = distiller(torch.randn(6, *SHAPE), embeddings(6), step=step).draw.t
        assert torch.equal(teacher.asked[0], t) and torch.equal(teacher.asked[1], expected(t)), config


def test_one_noise_for_all_images_and_steps():
    teacher = gaussian_teacher(F64)
    loss, draw = build(teacher), make_draw(teacher, [300, 300], dtype=F64)
    draw.clean[1] = draw.clean[0]
    first = loss(draw, loss.ask(draw, prompted(teacher))).residual
    assert torch.equal(first[0], first[1])
    assert torch.equal(first, loss(draw, loss.ask(draw, prompted(teacher))).residual)
    fresh = build(teacher, share_noise=False)
    assert "noise" not in fresh.state_dict()
    residual = fresh(draw, fresh.ask(draw, prompted(teacher))).residual
    expected = [by_hand(teacher, draw.clean[i], draw.noise[i], 300, 100, 7.5, True) for i in range(2)]
    torch.testing.assert_close(residual, torch.stack(expected), rtol=1e-8, atol=1e-8)


def test_a_resumed_run_keeps_its_noise():
    def start(seed):
        teacher = gaussian_teacher()
        loss = build(teacher, seed)
        return Distiller(
            loss, teacher, DistillerSettings(), loss.context.generator, build_timesteps({"type": "consistency"})
        )

    def steps(distiller, numbers):
        x = torch.ones(2, *SHAPE)
        return [distiller(x, embeddings(2), step=n).gradient for n in numbers]

    straight, other = start(0), start(1)
    steps(straight, range(3))
    saved = io.BytesIO()
    torch.save({"loss": straight.loss.state_dict(), "distiller": straight.state_dict()}, saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    other.loss.load_state_dict(state["loss"])
    other.load_state_dict(state["distiller"])
    for a, b in zip(steps(straight, range(3, 6)), steps(other, range(3, 6))):
        assert torch.equal(a, b)


def test_mistakes():
    with pytest.raises(ConfigError, match="must not lie above t_1"):
        build(TextTeacher(), gap=-1)
