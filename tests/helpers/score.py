"""Closed-form teachers and hand-made draws for tests of the losses."""

from __future__ import annotations

import torch
from dreammapping.distillation import CFGConvention, NoisyDraw, PromptedTeacher
from dreammapping.teachers import ClosedFormTeacher, GaussianMixture

SHAPE = (4, 8, 8)


def gaussian_teacher(dtype: torch.dtype = torch.float32, seed: int = 0, perp_neg: bool = False) -> ClosedFormTeacher:
    """cond N(mu, 0.05 I), empty N(mu, I), negative N(-mu, I): guidance and mode seeking both pull to mu =
    distribution mean of cond. Of a bridge's ends, target is like cond and source like empty, wider. `perp_neg` adds the
    two negatives of Perp-Neg, as the negative prompt's.

    An embedding's one number moves its distribution along a fixed direction; those of `embeddings` do not move it."""
    mean = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    distributions = {
        "cond": GaussianMixture.single(mean, 0.05),
        "cond_no_view": GaussianMixture.single(mean, 0.05),
        "empty": GaussianMixture.single(mean, 1.0),
        "negative": GaussianMixture.single(-mean, 1.0),
        "target": GaussianMixture.single(mean, 0.05),
        "source": GaussianMixture.single(mean, 2.0),
    }
    if perp_neg:
        distributions |= {f"perp_neg_{i}": distributions["negative"] for i in range(2)}
    return ClosedFormTeacher(distributions, by_text=mean.flip(1)[None])


def embeddings(batch: int = 2) -> dict[str, torch.Tensor]:
    """Zeros: the teacher above goes by the name alone then."""
    names = ("cond", "empty", "negative", "cond_no_view", "target", "source")
    return {name: torch.zeros(batch, 1, 1) for name in names}


def cameras(batch: int = 2) -> dict[str, torch.Tensor]:
    """A draw's context: one camera for all images."""
    return {"c2w": torch.eye(4).expand(batch, 4, 4)}


def prompted(teacher: ClosedFormTeacher, *, scale: float = 7.5, batch: int = 2, **options: object) -> PromptedTeacher:
    return PromptedTeacher(teacher, embeddings(batch), guidance_scale=scale, convention=CFGConvention.SEED, **options)


def make_draw(
    teacher: ClosedFormTeacher, t: list[int], *, dtype: torch.dtype = torch.float32, step: int = 0
) -> NoisyDraw:
    """A draw at the given steps, with seeded latents and noise."""
    generator = torch.Generator().manual_seed(1)
    clean = torch.randn(len(t), *SHAPE, generator=generator, dtype=dtype)
    noise = torch.randn(len(t), *SHAPE, generator=generator, dtype=dtype)
    steps = torch.tensor(t)
    noisy = teacher.schedule.add_noise(clean, noise, steps)
    return NoisyDraw(clean, noise, noisy, steps, steps, teacher.schedule.at(steps, clean), step)


def eps_by_hand(teacher: ClosedFormTeacher, draw: NoisyDraw, name: str, image: int) -> torch.Tensor:
    """E[eps | x_t] [C,h,w] of one image, from the formula for a Gaussian and Stable Diffusion's betas alone."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = float((1 - betas[: int(draw.t[image]) + 1]).prod())
    mixture = teacher.distributions[name]
    mean, variance = mixture.means[0].double(), float(mixture.variances[0])
    x = draw.noisy[image].double()
    return (1 - alpha_bar) ** 0.5 * (x - alpha_bar**0.5 * mean) / (alpha_bar * variance + 1 - alpha_bar)
