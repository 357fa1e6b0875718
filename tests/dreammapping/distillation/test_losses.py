"""What every registered loss must do. A new loss is picked up by its name."""

from __future__ import annotations

import pytest
import torch
from dreammapping.distillation import LOSSES, Distiller, DistillerSettings, LossContext, build_loss, build_timesteps

from tests.helpers.corrector import loss_config
from tests.helpers.score import SHAPE, cameras, embeddings, gaussian_teacher


def distance(x, teacher):
    return (x - teacher.distributions["cond"].means).square().mean().sqrt().item()


@pytest.mark.parametrize(("name", "scale"), [*((name, 7.5) for name in LOSSES.names()), ("sds", 0.0)])
def test_every_loss_moves_an_image_to_the_known_mean(name, scale):
    teacher = gaussian_teacher()
    generator = torch.Generator().manual_seed(0)
    loss = build_loss(loss_config(name), LossContext(teacher, SHAPE, generator))
    distiller = Distiller(loss, teacher, DistillerSettings(guidance_scale=scale), generator)
    x = torch.nn.Parameter(3 * torch.randn(2, *SHAPE, generator=generator))
    start = distance(x, teacher)
    optimizer = torch.optim.Adam([x], lr=0.1)
    for step in range(150):
        optimizer.zero_grad()
        distiller(x, embeddings(2), step=step, context=cameras(2)).loss.backward()
        optimizer.step()
    assert distance(x, teacher) < 0.35 * start


@pytest.mark.parametrize("t", [10, 150, 310, 985])
@pytest.mark.parametrize("perp_neg", [False, True])
@pytest.mark.parametrize("name", LOSSES.names())
def test_every_loss_calls_the_networks_as_often_as_it_says(name, perp_neg, t):
    teacher = gaussian_teacher(perp_neg=perp_neg)
    generator = torch.Generator().manual_seed(0)
    loss = build_loss(loss_config(name), LossContext(teacher, SHAPE, generator))
    steps = build_timesteps({"type": "uniform", "min_step": t, "max_step": t})
    distiller = Distiller(loss, teacher, DistillerSettings(), generator, steps)
    texts, weights, guided = embeddings(3), None, 2
    if perp_neg:
        texts |= {f"perp_neg_{i}": texts["negative"] for i in range(2)}
        weights, guided = torch.full((3, 2), -0.5), 4
    for step in range(2):  # a first step may do more, such as taking a copy
        before = (teacher.calls.forwards, teacher.calls.backwards)
        distiller(torch.randn(3, *SHAPE), texts, step=step, perp_neg_weights=weights, context=cameras(3))
        expected = loss.cost(t, step, guided)
        counted = (teacher.calls.forwards - before[0], teacher.calls.backwards - before[1])
        assert counted == (3 * expected.forwards, 3 * expected.backwards)


def test_vdm_without_guidance_seeks_the_mode_at_small_t_and_rests_at_large_t():
    """Paper section 4.3: below the cut-off R tends to e_c; above it a well-fitted operator cancels e_c."""
    moved = {}
    for name, low, high in (("small", 20, 300), ("large", 600, 900)):
        teacher = gaussian_teacher()
        generator = torch.Generator().manual_seed(0)
        config = {"type": "vdm", "cfg_place": "none", "operator": "nonlinear"}
        loss = build_loss(config, LossContext(teacher, SHAPE, generator))
        steps = build_timesteps({"type": "uniform", "min_step": low, "max_step": high})
        distiller = Distiller(loss, teacher, DistillerSettings(weighting_strategy="uniform"), generator, steps)
        x = 3 * torch.randn(2, *SHAPE, generator=generator)
        start = distance(x, teacher)
        for step in range(160):  # let the operator fit first, then move
            gradient = distiller(x, embeddings(2), step=step).gradient
            if step >= 80:
                x = x - 0.1 * gradient
        moved[name] = distance(x, teacher) / start
    assert moved["small"] < 0.7 and moved["small"] < moved["large"] - 0.1
