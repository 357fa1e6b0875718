"""Teachers whose noise prediction is known exactly, because the distribution of their images is a Gaussian (mixture).

For p(x_0) = N(mu, v I):   x_t ~ N(a mu, (a^2 v + sig^2) I)   and   eps(x_t, t) = sig (x_t - a mu) / (a^2 v + sig^2).

They make the behavior of a loss computable: tests use them, and so may anyone who wants to see a new loss at work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..distillation.noise_schedule import NoiseSchedule
from ..distillation.teacher import CallCount
from ..distillation.trainable import CAMERA_NUMBERS, AdapterOptions
from ..errors import TeacherError, suggest
from ..processes import Rows


@dataclass(frozen=True)
class GaussianMixture:
    """sum_k weight_k N(mean_k, variance_k I) over latents [C,h,w]; K = 1 is a Gaussian."""

    means: Tensor
    """[K,C,h,w]."""
    variances: Tensor
    """[K], positive."""
    weights: Tensor
    """[K], positive; normalized here."""

    @classmethod
    def single(cls, mean: Tensor, variance: float) -> GaussianMixture:
        """N(mean, variance I) for mean [C,h,w]."""
        return cls(mean[None], mean.new_tensor([variance]), mean.new_ones(1))

    def log_density(self, noisy: Tensor, a: Tensor, sig: Tensor) -> Tensor:
        """log p_t(x_t) [B] up to no constant, for x_t [B,C,h,w] and a, sig [B,1,1,1]."""
        return torch.logsumexp(self._component_log_density(noisy, a, sig), 1)

    def eps(self, noisy: Tensor, a: Tensor, sig: Tensor) -> Tensor:
        """-sig times the score of x_t: E[eps | x_t] [B,C,h,w]."""
        means, variances, _ = self._like(noisy)
        posterior = self._component_log_density(noisy, a, sig).softmax(1)  # [B,K]
        spread = a.flatten(1) ** 2 * variances + sig.flatten(1) ** 2  # [B,K]
        offset = noisy[:, None] - a[:, None] * means  # [B,K,C,h,w]
        return sig * ((posterior / spread)[:, :, None, None, None] * offset).sum(1)

    def _component_log_density(self, noisy: Tensor, a: Tensor, sig: Tensor) -> Tensor:
        means, variances, weights = self._like(noisy)
        spread = a.flatten(1) ** 2 * variances + sig.flatten(1) ** 2
        distance = (noisy[:, None] - a[:, None] * means).square().flatten(2).sum(2)
        size = noisy[0].numel()
        return (weights / weights.sum()).log() - 0.5 * (distance / spread + size * (2 * torch.pi * spread).log())

    def _like(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.means.to(x), self.variances.to(x), self.weights.to(x)


class ClosedFormTeacher:
    """One known distribution per embedding name, e.g. {"cond": ..., "empty": ...}.

    The embeddings themselves are ignored, unless there is `by_text` [E,C,h,w]: then an embedding [.., L, E] moves its
    distribution by the sum over l and e of embedding_le by_text_e, and gradients reach it.

    Images are latents: `encode` and `decode` only map [0,1] to [-1,1] and back. Unlike a network it answers in the
    dtype of its input, so that identities can be checked in float64. Its trainable copies start as the distribution
    called "cond" and answer in the kind `copy_prediction_type` (epsilon, v_prediction or sample).
    """

    name = "closed form"
    fingerprint = ""

    def __init__(
        self,
        distributions: Mapping[str, GaussianMixture],
        schedule: NoiseSchedule | None = None,
        copy_prediction_type: str = "epsilon",
        by_text: Tensor | None = None,
    ) -> None:
        self.distributions = dict(distributions)
        self.schedule = schedule or NoiseSchedule.scaled_linear()
        self.calls = CallCount()
        self.copy_prediction_type = copy_prediction_type
        self.by_text = by_text
        self.latent_shape = tuple(next(iter(self.distributions.values())).means.shape[1:])
        self.image_size = self.latent_shape[1:]

    def predict(
        self, noisy: Tensor, t: Tensor, embeddings: Mapping[str, Tensor], *, differentiable: bool = False
    ) -> dict[str, Tensor]:
        """See distillation.teacher.NoisePredictor."""
        for name in embeddings:
            if name not in self.distributions:
                raise TeacherError(
                    f"this teacher has no distribution called {name!r}; {suggest(name, self.distributions)}"
                )
        a, sig = self.schedule.coefficients(t, noisy)
        images = len(noisy) * len(embeddings)
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            centered = {name: noisy - a * self._moved(text, noisy) for name, text in embeddings.items()}
            # Together, as in a network's call: a gradient that reaches one of them has passed all.
            eps = torch.cat([self.distributions[name].eps(x, a, sig) for name, x in centered.items()])
        self.calls.forwards += images
        self.calls.count_backward(eps, images)
        return dict(zip(embeddings, eps.chunk(len(embeddings))))

    def _moved(self, text: Tensor | None, like: Tensor) -> Tensor | float:
        """By how much an embedding moves its distribution."""
        if self.by_text is None:
            return 0.0
        return torch.einsum("ble,echw->bchw", text.to(like), self.by_text.to(like))

    def trainable_copy(self, options: AdapterOptions, generator: torch.Generator) -> TrainableMixture:
        """See distillation.trainable.Adaptable."""
        if options.model is not None:
            raise TeacherError("a closed-form teacher has no second model; leave the name of the LoRA's model out")
        return TrainableMixture(self, options)

    def encode(self, rgb: Tensor, generator: torch.Generator, rows: Rows | None = None) -> Tensor:
        return rgb * 2 - 1

    def decode(self, latents: Tensor) -> Tensor:
        return ((latents.detach() + 1) / 2).clamp(0, 1)


class TrainableMixture:
    """See distillation.trainable.TrainablePredictor: a mixture with trainable means and variances.

    With a camera c the images are those of the mixture moved by sum_i c_i `by_camera_i`. Embeddings are ignored.
    """

    def __init__(self, teacher: ClosedFormTeacher, options: AdapterOptions) -> None:
        start = teacher.distributions["cond"]
        self.schedule, self.calls, self.prediction_type = teacher.schedule, teacher.calls, teacher.copy_prediction_type
        self.adapter = nn.ParameterDict({"means": start.means.clone(), "log_variances": start.variances.log()})
        if options.camera:
            self.adapter["by_camera"] = start.means.new_zeros(CAMERA_NUMBERS, *start.means.shape[1:])
        self._start, self._scale = start, options.scale

    def predict(
        self, noisy: Tensor, t: Tensor, embedding: Tensor, camera: Tensor | None, *, differentiable: bool = False
    ) -> Tensor:
        """See distillation.trainable.TrainablePredictor."""
        a, sig = self.schedule.coefficients(t, noisy)
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            start, means, log_variances = self._start, self.adapter["means"], self.adapter["log_variances"]
            means = torch.lerp(start.means.to(means), means, self._scale)
            log_variances = torch.lerp(start.variances.log().to(log_variances), log_variances, self._scale)
            mixture = GaussianMixture(means, log_variances.exp(), start.weights)
            moved = 0.0 if camera is None else torch.einsum("bn,nchw->bchw", camera, self.adapter["by_camera"])
            eps = mixture.eps(noisy - a * moved, a, sig)
            output = {
                "epsilon": lambda: eps,
                "v_prediction": lambda: self.schedule.v_from_eps(noisy, eps, t),
                "sample": lambda: self.schedule.x0_from_eps(noisy, eps, t),
            }[self.prediction_type]()
        self.calls.forwards += len(noisy)
        self.calls.count_backward(output, len(noisy))
        return output
