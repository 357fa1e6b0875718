"""How well a trained part answers, per band of t, on images it was not trained on."""

from __future__ import annotations

import torch

from ..distillation import NoiseSchedule
from .corrector import Corrector
from .pairs import Pairs

BATCH = 64


@torch.no_grad()
def band_errors(corrector: Corrector, pairs: Pairs, schedule: NoiseSchedule, bands: int = 5) -> list[dict[str, float]]:
    """Mean squared errors against the teacher's one-step estimates, in units of the latents, for equal bands of t.

    Per band `t_from` to `t_to` (inclusive), its number of `pairs`, and the errors of: `corrector`; `image`, which is
    x_0 itself (what SDS uses); `zero`; `untrained`, b_psi with f = 0; `noise`, the part of the estimates that depends
    on the noise, the least that a corrector reading x_0 can have on average.
    """
    device = next(corrector.parameters()).device
    rows: dict[str, list[torch.Tensor]] = {}
    for index in torch.arange(len(pairs)).split(BATCH):
        clean, noisy, t, estimate = (x.to(device) for x in pairs.rows(index))
        alpha_bar = schedule.at(t, clean)
        share, seen = (alpha_bar, clean) if corrector.reads == "clean" else (alpha_bar.sqrt(), noisy)
        answers = {
            "corrector": corrector(clean, noisy, t, alpha_bar),
            "image": clean,
            "zero": torch.zeros_like(clean),
            "untrained": share * seen,
        }
        for name, answer in answers.items():
            rows.setdefault(name, []).append((answer - estimate).square().mean((1, 2, 3)).cpu())
    errors = {name: torch.cat(values) for name, values in rows.items()}
    both = pairs.estimate.float()
    errors["noise"] = (0.5 * (both[:, :, 0] - both[:, :, 1]).square().mean((2, 3, 4))).flatten().repeat_interleave(2)
    return band_table(pairs.t.flatten().repeat_interleave(2), errors, schedule.steps, bands)


def band_table(t: torch.Tensor, errors: dict[str, torch.Tensor], steps: int, bands: int) -> list[dict[str, float]]:
    """Means of the errors [N] by name for t [N] in equal bands of 0 .. steps-1: `t_from`, `t_to`, `pairs`, the names."""
    edges = [round(i * steps / bands) for i in range(bands + 1)]
    table = []
    for low, high in zip(edges, edges[1:]):
        inside = (t >= low) & (t < high)
        row = {"t_from": low, "t_to": high - 1, "pairs": int(inside.sum())}
        if inside.any():
            row |= {name: round(error[inside].mean().item(), 5) for name, error in errors.items()}
        table.append(row)
    return table


def as_text(table: list[dict[str, float]]) -> str:
    """The table with aligned columns."""
    names = list(dict.fromkeys(name for row in table for name in row))
    lines = ["  ".join(f"{name:>9}" for name in names)]
    lines += ["  ".join(f"{row.get(name, '-'):>9}" for name in names) for row in table]
    return "\n".join(lines)
