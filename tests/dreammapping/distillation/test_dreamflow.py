"""DreamFlow: VSD's numbers, a course of t known beforehand."""

from __future__ import annotations

import pytest
import torch
from dreammapping.distillation import Distiller, DistillerSettings, LossContext, build_loss, build_timesteps
from dreammapping.errors import ConfigError

from tests.helpers.score import SHAPE, cameras, embeddings, gaussian_teacher

COURSE = {"type": "anneal", "start": 980, "end": 20, "anneal_steps": 60, "hold": 3}


def distiller(name, seed=0, **options):
    teacher, generator = gaussian_teacher(), torch.Generator().manual_seed(seed)
    loss = build_loss({"type": name, **options}, LossContext(teacher, SHAPE, generator))
    return Distiller(loss, teacher, DistillerSettings(), generator, build_timesteps(COURSE))


def latents(seed=5):
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def test_it_is_vsd_to_the_bit():
    made = [distiller(name, lora_lr=0.1) for name in ("dreamflow", "vsd")]
    for step in range(4):
        a, b = (d(latents(step), embeddings(2), step=step, context=cameras(2)) for d in made)
        assert torch.equal(a.gradient, b.gradient)
    assert all(torch.equal(a, b) for a, b in zip(*(d.loss.parameters() for d in made)))
    assert made[0].loss.cost(300, 0) == made[1].loss.cost(300, 0)


def test_t_falls_without_chance_and_holds_for_the_inner_updates():
    seen = []
    for seed in (0, 1):
        made = distiller("dreamflow", seed)
        draws = [made.draw(latents(), step, {}) for step in range(63)]
        assert all(len(set(d.t.tolist())) == 1 for d in draws), "all images share it"
        seen.append([d.t[0].item() for d in draws])
    assert seen[0] == seen[1]
    levels = seen[0][::3]
    assert seen[0] == [t for t in levels for _ in range(3)]
    assert levels[0] == 980 and levels[-1] == 20 and levels == sorted(levels, reverse=True) and len(set(levels)) == 21


def test_along_its_course_an_image_arrives_at_the_known_mean():
    made, generator = distiller("dreamflow"), torch.Generator().manual_seed(3)
    mean = made.teacher.distributions["cond"].means
    x = torch.nn.Parameter(3 * torch.randn(2, *SHAPE, generator=generator))
    start, optimizer = (x - mean).norm().item(), torch.optim.Adam([x], lr=0.15)
    for step in range(60):
        optimizer.zero_grad()
        made(x, embeddings(2), step=step, context=cameras(2)).loss.backward()
        optimizer.step()
    assert (x - mean).norm() < 0.35 * start


@pytest.mark.parametrize("wrong", [{"hold": 0}, {"anneal_steps": 0}, {"width": -1}])
def test_impossible_courses_are_told(wrong):
    with pytest.raises(ConfigError, match="hold and anneal_steps must be at least 1"):
        build_timesteps({**COURSE, **wrong})
