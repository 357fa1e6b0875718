"""Bridge-SDS: its two stages written out, and that the second one moves an image too."""

from __future__ import annotations

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

from tests.helpers.score import SHAPE, embeddings, eps_by_hand, gaussian_teacher, make_draw

T = [20, 500, 900]


def build(teacher, **options):
    return build_loss({"type": "bridge-sds", **options}, LossContext(teacher, SHAPE, torch.Generator()))


def run(step, scale=40.0, convention=CFGConvention.USUAL, **options):
    teacher = gaussian_teacher(torch.float64)
    draw = make_draw(teacher, T, dtype=torch.float64, step=step)
    asked = PromptedTeacher(teacher, embeddings(len(T)), guidance_scale=scale, convention=convention)
    loss = build(teacher, switch_step=10, **options)
    return loss(draw, loss.ask(draw, asked)).residual, teacher, draw


def test_the_first_stage_is_sds():
    residual, teacher, draw = run(9)
    for i in range(len(T)):
        cond, empty = eps_by_hand(teacher, draw, "cond", i), eps_by_hand(teacher, draw, "empty", i)
        torch.testing.assert_close(residual[i], empty + 40.0 * (cond - empty) - draw.noise[i])


@pytest.mark.parametrize(
    ("convention", "options", "scale"),
    [
        (CFGConvention.USUAL, {}, 40.0),
        (CFGConvention.SEED, {}, 41.0),
        (CFGConvention.SEED, {"stage2_scale": 1.0}, 1.0),
    ],
)
def test_the_second_stage_by_hand(convention, options, scale):
    residual, teacher, draw = run(10, convention=convention, **options)
    for i in range(len(T)):
        target, source = eps_by_hand(teacher, draw, "target", i), eps_by_hand(teacher, draw, "source", i)
        torch.testing.assert_close(residual[i], scale * (target - source))


def test_the_second_stage_does_not_ask_for_the_prompt():
    teacher = gaussian_teacher()
    for name in ("cond", "empty", "negative"):
        del teacher.distributions[name]
    draw = make_draw(teacher, T, step=10)
    loss = build(teacher, switch_step=10)
    asked = PromptedTeacher(teacher, embeddings(len(T)), guidance_scale=1.0, convention=CFGConvention.USUAL)
    loss.ask(draw, asked)
    assert teacher.calls.forwards == loss.cost(500, 10).forwards * len(T) == 2 * len(T)
    assert loss.cost(500, 9, guided=4).forwards == 4 and loss.cost(500, 10, guided=4).forwards == 2


def test_the_second_stage_moves_an_image_to_the_target():
    teacher = gaussian_teacher()
    generator = torch.Generator().manual_seed(0)
    distiller = Distiller(build(teacher, switch_step=0), teacher, DistillerSettings(), generator)
    x = torch.nn.Parameter(3 * torch.randn(2, *SHAPE, generator=generator))
    mean = teacher.distributions["target"].means

    def distance():
        return (x.detach() - mean).square().mean().sqrt().item()

    start, optimizer = distance(), torch.optim.Adam([x], lr=0.1)
    for step in range(150):
        optimizer.zero_grad()
        distiller(x, embeddings(2), step=step).loss.backward()
        optimizer.step()
    assert distance() < 0.35 * start


def test_its_texts_are_what_the_config_says():
    loss = build(gaussian_teacher(), target="{prompt}, sharp", source="blurry")
    assert loss.texts == {"target": "{prompt}, sharp", "source": "blurry"}
    assert all("{prompt}, " in text for text in build(gaussian_teacher()).texts.values())


def test_mistakes():
    with pytest.raises(ConfigError, match="switch_step is -1; it must not be negative"):
        build(gaussian_teacher(), switch_step=-1)
