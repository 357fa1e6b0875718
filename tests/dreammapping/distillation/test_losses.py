"""What every registered loss must do. A new loss is picked up by its name."""

from __future__ import annotations

import pytest
import torch
from dreammapping.distillation import LOSSES, Distiller, DistillerSettings, LossContext, build_loss, build_timesteps

from tests.helpers.score import SHAPE, cameras, embeddings, gaussian_teacher


def distance(x, teacher):
    return (x - teacher.distributions["cond"].means).square().mean().sqrt().item()


@pytest.mark.parametrize(("name", "scale"), [*((name, 7.5) for name in LOSSES.names()), ("sds", 0.0)])
def test_every_loss_moves_an_image_to_the_known_mean(name, scale):
    teacher = gaussian_teacher()
    generator = torch.Generator().manual_seed(0)
    loss = build_loss({"type": name}, LossContext(teacher, SHAPE, generator))
    distiller = Distiller(loss, teacher, DistillerSettings(guidance_scale=scale), generator)
    x = torch.nn.Parameter(3 * torch.randn(2, *SHAPE, generator=generator))
    start = distance(x, teacher)
    optimizer = torch.optim.Adam([x], lr=0.1)
    for step in range(150):
        optimizer.zero_grad()
        distiller(x, embeddings(2), step=step, context=cameras(2)).loss.backward()
        optimizer.step()
    assert distance(x, teacher) < 0.35 * start


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
