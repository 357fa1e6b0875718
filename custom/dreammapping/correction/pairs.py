"""Training pairs: an image's latents and the teacher's one-step estimates of them at random t.

    x_t = a x_0 + sig eps        estimate = (x_t - sig eps_phi(x_t, t, caption)) / a

They are made in parts, each a file that depends on the seed and its number alone; a killed run goes on with the parts
that are missing. Every (image, t) has two noises: half their squared difference is what no b_psi(x_0, t) can know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..distillation import draw_noise
from ..files import write_atomic
from ..teachers import Teacher
from .images import Images

HELD_OUT = 8
"""Every eighth image is for validation."""


@dataclass(frozen=True)
class Pairs:
    """N images of latents [C,h,w], each at K times with two noises."""

    clean: Tensor
    """[N,C,h,w] x_0."""
    t: Tensor
    """[N,K]."""
    noisy: Tensor
    """[N,K,2,C,h,w] float16, x_t."""
    estimate: Tensor
    """[N,K,2,C,h,w] float16, the teacher's."""

    def subset(self, held_out: bool) -> Pairs:
        """The images for validation, or the others."""
        chosen = (torch.arange(len(self.clean)) % HELD_OUT == HELD_OUT - 1) == held_out
        return Pairs(self.clean[chosen], self.t[chosen], self.noisy[chosen], self.estimate[chosen])

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(x_0, x_t, t, estimate) of the pairs `index`, numbered 0 .. 2NK-1 through image, time and noise."""
        image = index // (2 * self.t.shape[1])
        times, noisy, estimate = self.t.flatten(), self.noisy.flatten(0, 2), self.estimate.flatten(0, 2)
        return self.clean[image], noisy[index].float(), times[index // 2], estimate[index].float()

    def __len__(self) -> int:
        return 2 * self.t.numel()


def make_pairs(
    teacher: Teacher,
    images: Images,
    embed: Callable[[list[str]], Tensor],
    folder: Path,
    *,
    times: int,
    batch: int,
    seed: int,
    device: torch.device,
    report: Callable[[str], None] = print,
) -> Pairs:
    """Pairs of all images in order, from the parts in `folder` and what is missing there.

    `times` is K, `batch` the images of a part, `embed` gives the captions' embeddings [N,L,E].
    """
    from safetensors.torch import load_file, save

    count = len(images.captions)
    files = [folder / f"part-{number:04d}.safetensors" for number in range(-(-count // batch))]
    missing = {number: range(count)[number * batch :][:batch] for number, f in enumerate(files) if not f.is_file()}
    captions = sorted({images.captions[i] for indices in missing.values() for i in indices})
    texts = dict(zip(captions, embed(captions))) if captions else {}
    for number, indices in missing.items():
        text = torch.stack([texts[images.captions[i]] for i in indices]).to(device)
        # Parts must not depend on one another, so that it does not matter which of them a killed run had made.
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        clean = images.latents(teacher, indices, text, generator, device)
        write_atomic(files[number], save(_part(teacher, clean, text, times, generator)))
        report(f"pairs: part {number + 1} of {len(files)}")
    parts = [load_file(file) for file in files]
    return Pairs(*(torch.cat([part[key] for part in parts]) for key in ("clean", "t", "noisy", "estimate")))


@torch.no_grad()
def _part(teacher: Teacher, clean: Tensor, text: Tensor, times: int, generator: torch.Generator) -> dict[str, Tensor]:
    schedule = teacher.schedule
    t = torch.randint(0, schedule.steps, (len(clean), times), generator=generator)
    noisy = clean.new_zeros(len(clean), times, 2, *clean.shape[1:], dtype=torch.float16, device="cpu")
    estimate = torch.zeros_like(noisy)
    for k in range(times):
        now = t[:, k].to(clean.device)
        for n in range(2):
            x_t = schedule.add_noise(clean, draw_noise(clean, generator), now)
            eps = teacher.predict(x_t, now, {"cond": text})["cond"]
            noisy[:, k, n], estimate[:, k, n] = x_t.half(), schedule.x0_from_eps(x_t, eps, now).half()
    return {"clean": clean.cpu().contiguous(), "t": t, "noisy": noisy, "estimate": estimate}
