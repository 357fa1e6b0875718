"""Closed-form teachers and hand-made draws for tests of the losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

import torch
from dreammapping.distillation import CallCount, CFGConvention, NoiseSchedule, NoisyDraw, PromptedTeacher
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


class TextTeacher:
    """Smooth in x and t, and different for each embedding's numbers; remembers the steps it was asked at."""

    def __init__(self) -> None:
        self.schedule, self.calls = NoiseSchedule.scaled_linear(), CallCount()
        self.asked: list[torch.Tensor] = []

    def predict(
        self, noisy: torch.Tensor, t: torch.Tensor, embeddings: Mapping[str, torch.Tensor], **_: object
    ) -> dict[str, torch.Tensor]:
        self.calls.forwards += len(noisy) * len(embeddings)
        self.asked.append(t.clone())
        phase = t.to(noisy).view(-1, 1, 1, 1) / 300
        return {
            name: torch.sin(noisy * (1 + e.sum((1, 2)).view(-1, 1, 1, 1)) + phase) for name, e in embeddings.items()
        }


def random_texts(batch: int, perp_neg: bool = False) -> dict[str, torch.Tensor]:
    """Embeddings of their own for every name and image; the empty prompt's is shared."""
    generator = torch.Generator().manual_seed(4)
    names = ["cond", "negative", "cond_no_view", *(f"perp_neg_{i}" for i in range(2) if perp_neg)]
    texts = {name: torch.randn(batch, 2, 3, generator=generator, dtype=torch.float64) / 4 for name in names}
    return texts | {"empty": torch.full((1, 2, 3), 0.1, dtype=torch.float64)}


def image_of(draw: NoisyDraw, i: int) -> NoisyDraw:
    """The draw's image i as a batch of one."""
    tensors = {f.name: getattr(draw, f.name) for f in fields(draw)}
    return replace(draw, **{k: v[i : i + 1] for k, v in tensors.items() if isinstance(v, torch.Tensor)})


def assert_batch_equals_images_alone(loss, t: list[int], *, perp_neg: bool = False, step: int = 0, **extra) -> None:
    """Residuals and U-Net calls of a batch with different steps and texts are those of its images one by one.

    `extra` are further fields of the draw, [B] each. The loss must not draw random numbers when it asks.
    """
    teacher, guided = TextTeacher(), 4 if perp_neg else 2
    weights = torch.linspace(-1, 0, 2 * len(t), dtype=torch.float64).view(-1, 2) if perp_neg else None
    asked = PromptedTeacher(
        teacher,
        random_texts(len(t), perp_neg),
        guidance_scale=3.0,
        convention=CFGConvention.SEED,
        anchor="negative",
        perp_neg_weights=weights,
    )
    draw = replace(make_draw(teacher, t, dtype=torch.float64, step=step), **extra)
    together = loss(draw, loss.ask(draw, asked)).residual
    assert teacher.calls.forwards == sum(loss.cost(one, step, guided).forwards for one in t)
    for i, one in enumerate(t):
        before, part = teacher.calls.forwards, image_of(draw, i)
        alone = loss(part, loss.ask(part, asked.rows(torch.tensor([i])))).residual
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-12)
        assert teacher.calls.forwards - before == loss.cost(one, step, guided).forwards
