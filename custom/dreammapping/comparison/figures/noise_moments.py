"""How a prediction of noise depends on the noise, at one t: variance, correlation, and the best linear coefficients.

Everything is over all elements of all pictures and noises together, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from ...distillation import NoisyDraw, PromptedTeacher, draw_noise

KINDS = ("conditional", "guided")
"""e_c and e_cfg."""


@dataclass(frozen=True)
class NoiseStatistics:
    """Of one kind of prediction e at one t."""

    variance: float
    """Var e over everything."""
    variance_over_noise: float
    """Mean over pictures and elements of Var e over the noises: what of the variance the drawn noise makes."""
    correlation: float
    """Pearson's, of e and eps."""
    correlation_error: float
    """Standard error of `correlation`, from its spread between pictures."""
    mse: float
    """E|e - eps|^2 per element."""
    noise_on_prediction: float
    """E<e, eps> / E<e, e>: the lam that minimizes E|eps - lam e|^2."""
    prediction_on_noise: float
    """E<e, eps> / E<eps, eps>: the lam for which e - lam eps is uncorrelated with eps. To compare: 1 - alpha_bar."""

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass
class NoiseMoments:
    """Collects predictions; every round brings the same N pictures with other noise."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    """Per picture [N], means over its elements."""
    first: Tensor | float = 0.0
    second: Tensor | float = 0.0
    """Sums over the noises of e and e^2, [N,C,h,w]."""
    rounds: int = 0

    def add_round(self, predictions: Tensor, noise: Tensor) -> None:
        """Predictions and noise [N,C,h,w]."""
        e, n = predictions.double(), noise.double()
        products = {"e": e, "n": n, "ee": e * e, "nn": n * n, "en": e * n}
        for name, values in products.items():
            self.sums[name] = self.sums.get(name, 0) + values.flatten(1).mean(1)
        self.first, self.second = self.first + e, self.second + e * e
        self.rounds += 1

    def statistics(self) -> NoiseStatistics:
        """Needs at least two rounds."""
        per_picture = {name: total / self.rounds for name, total in self.sums.items()}
        e, n, ee, nn, en = (per_picture[name].mean() for name in ("e", "n", "ee", "nn", "en"))
        each = _pearson(*(per_picture[name] for name in ("e", "n", "ee", "nn", "en")))
        over_noise = (self.second - self.first**2 / self.rounds) / (self.rounds - 1)
        return NoiseStatistics(
            variance=(ee - e * e).item(),
            variance_over_noise=over_noise.mean().item(),
            correlation=_pearson(e, n, ee, nn, en).item(),
            correlation_error=(each.std() / math.sqrt(len(each))).item() if len(each) > 1 else math.nan,
            mse=(ee - 2 * en + nn).item(),
            noise_on_prediction=(en / ee).item(),
            prediction_on_noise=(en / nn).item(),
        )


def _pearson(e: Tensor, n: Tensor, ee: Tensor, nn: Tensor, en: Tensor) -> Tensor:
    return (en - e * n) / ((ee - e * e) * (nn - n * n)).clamp(min=1e-30).sqrt()


@torch.no_grad()
def measure(
    clean: Tensor, teacher: PromptedTeacher, t: int, noises: int, generator: torch.Generator, batch: int
) -> dict[str, NoiseStatistics]:
    """Statistics by kind (`KINDS`) for pictures x_0 = `clean` [N,C,h,w], whose embeddings `teacher` has, at step t.

    Each picture is noised `noises` times (at least 2); `batch` pictures are asked about at once.
    """
    moments = {kind: NoiseMoments() for kind in KINDS}
    for _ in range(noises):
        noise = draw_noise(clean, generator)
        draw = NoisyDraw.noised(clean, noise, torch.full((len(clean),), t), teacher.schedule)
        answers = [_ask(draw, teacher, rows) for rows in torch.arange(len(clean), device=clean.device).split(batch)]
        for kind, parts in zip(KINDS, zip(*answers)):
            moments[kind].add_round(torch.cat(parts), noise)
    return {kind: collected.statistics() for kind, collected in moments.items()}


def _ask(draw: NoisyDraw, teacher: PromptedTeacher, rows: Tensor) -> Sequence[Tensor]:
    answers = teacher.rows(rows).guided(draw.noisy[rows], draw.t[rows])
    return answers.cond, answers.guided
