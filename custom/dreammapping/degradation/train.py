"""Train VDM's operator M_psi for a teacher before any generation, once:

    python -m custom.dreammapping.degradation.train --teacher load/embedded-teacher --output build/operator

on eq. 17, L_op = |M(e_c) - eps|^2, from noised pictures that the teacher draws for any prompts, or of a folder. A run
starts from it with `system.guidance.loss.psi_start=build/operator` and goes on training it on its own renderings, which
the paper's last section names as future work. The same command, given again, goes on where it was killed.

Such pictures are of the teacher's own distribution. There e_c is E[eps | x_t] already, and the best M is close to the
identity; what M has to learn of a run is how its renderings differ. So the gain to expect is that the first steps of a
run are not spent with a random M, not a better M at its end.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

from ..correction import command
from ..correction.command import say as _say
from ..correction.fit import fit
from ..correction.measure import as_text, band_table
from ..correction.pairs import Pairs
from ..distillation import NoiseSchedule
from ..teachers import DiffusersTeacher
from .operators import OPERATORS, build_operator
from .pretrained import OperatorCard, save_operator

MODULE = "custom.dreammapping.degradation.train"
BATCH = 32
"""Pairs at once, where errors are measured."""


def operator_rows(pairs: Pairs, index: Tensor, schedule: NoiseSchedule, device: torch.device) -> tuple[Tensor, ...]:
    """(e_c, eps, t) of the pairs `index`, from x_0, x_t and the teacher's estimate of x_0.

    x_t and the estimate are stored in float16, which leaves an error of one or two hundredths in e_c and eps at t = 0.
    """
    clean, noisy, t, estimate = (x.to(device) for x in pairs.rows(index))
    return schedule.eps_from_x0(noisy, estimate, t), schedule.eps_from_x0(noisy, clean, t), t


def operator_loss(operator: nn.Module, pairs: Pairs, index: Tensor, schedule: NoiseSchedule) -> Tensor:
    """L_op (eq. 17) of the pairs `index`, a scalar."""
    cond, eps, t = operator_rows(pairs, index, schedule, next(operator.parameters()).device)
    return (operator(cond, t) - eps).square().mean()


@torch.no_grad()
def operator_errors(operator: nn.Module, pairs: Pairs, schedule: NoiseSchedule, bands: int = 5) -> list[dict[str, float]]:
    """E|. - eps|^2 per band of t for the `operator` (with its running statistics), `e_c` itself, and `zero`."""
    errors: dict[str, list[Tensor]] = {}
    operator.eval()
    for index in torch.arange(len(pairs)).split(BATCH):
        cond, eps, t = operator_rows(pairs, index, schedule, next(operator.parameters()).device)
        for name, answer in {"operator": operator(cond, t), "e_c": cond, "zero": torch.zeros_like(eps)}.items():
            errors.setdefault(name, []).append((answer - eps).square().mean((1, 2, 3)).cpu())
    together = {name: torch.cat(values) for name, values in errors.items()}
    return band_table(pairs.t.flatten().repeat_interleave(2), together, schedule.steps, bands)


def main(arguments: list[str] | None = None) -> None:
    """The command line. Mistakes end it with one message and exit code 1."""
    command.main(_parser(), run, arguments)


def run(args: argparse.Namespace) -> None:
    """Make pairs, fit, measure, write weights and card."""
    device, work = command.device_of(args), command.work_folder(args)
    teacher = DiffusersTeacher.load(args.teacher, device=device)
    schedule, shape = teacher.schedule, tuple(teacher.latent_shape)
    operator = build_operator(
        args.operator,
        shape,
        generator=torch.Generator().manual_seed(args.seed),
        stages=args.stages,
        norm=args.norm,
        time_steps=schedule.steps if args.time_cond else None,
        width=args.width,
    ).to(device)
    clock, processor = time.monotonic(), time.process_time()
    pairs, job = command.training_pairs(args, teacher, ("operator", "stages", "norm", "time_cond", "width"), _say)
    shown = pairs.subset(held_out=False)

    def loss(index):
        return operator_loss(operator, shown, index, schedule)

    fit(operator, loss, len(shown), command.fit_options(args), work, _say)
    table = operator_errors(operator, pairs.subset(held_out=True), schedule)
    _say(as_text(table))
    _say(f"this run: {time.monotonic() - clock:.0f} s, {time.process_time() - processor:.0f} s of processor time")
    card = OperatorCard(
        latent_shape=shape,
        steps=schedule.steps,
        teacher=args.teacher,
        teacher_fingerprint=teacher.fingerprint,
        training={**job, "command": command.command_line(MODULE, args), "pairs": len(pairs), "validation": table},
        operator=args.operator,
        stages=args.stages,
        norm=args.norm,
        time_cond=args.time_cond,
        width=args.width,
    )
    save_operator(operator, card, args.output)
    _say(f"wrote {args.output}; {work} may be deleted. Use it: system.guidance.loss.psi_start={args.output}")


def _parser() -> argparse.ArgumentParser:
    parser = command.parser_for(__doc__)
    parser.add_argument("--operator", choices=OPERATORS.names(), default="nonlinear")
    parser.add_argument("--stages", type=int, help="U-Lite's halvings; chosen by the latents")
    parser.add_argument("--width", type=int, help="U-Lite's channels at full resolution; the published 16")
    parser.add_argument("--norm", choices=("batch", "group"), default="batch", help="group: loss.bn_mode groupnorm")
    parser.add_argument("--time-cond", action="store_true", help="let M know t (loss.m_time_cond)")
    return parser


if __name__ == "__main__":
    main()
