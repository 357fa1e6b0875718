"""Train b_psi of LMC-SDS for a teacher, once:

    python -m custom.dreammapping.correction.train --teacher load/embedded-teacher --output build/corrector

from pictures the teacher draws for prompts, or from a folder of pictures. The same command, given again, goes on where
it was killed. The same seed, machine and number of threads give the same weights.
"""

from __future__ import annotations

import argparse
import time

from ..teachers import DiffusersTeacher
from . import command
from .card import READS, WIDTHS, CorrectorCard
from .command import say as _say
from .corrector import build_corrector, save_corrector
from .fit import corrector_loss, fit
from .measure import as_text, band_errors

MODULE = "custom.dreammapping.correction.train"


def main(arguments: list[str] | None = None) -> None:
    """The command line. Mistakes end it with one message and exit code 1."""
    command.main(_parser(), run, arguments)


def run(args: argparse.Namespace) -> None:
    """Make pairs, fit, measure, write weights and card."""
    device, work = command.device_of(args), command.work_folder(args)
    teacher = DiffusersTeacher.load(args.teacher, device=device)
    clock, processor = time.monotonic(), time.process_time()
    pairs, job = command.training_pairs(args, teacher, ("reads", "widths"), _say)
    shown, held_out = pairs.subset(held_out=False), pairs.subset(held_out=True)
    corrector = build_corrector(teacher.latent_shape, args.reads, args.widths, args.seed).to(device)

    def loss(index):
        return corrector_loss(corrector, shown, index, teacher.schedule)

    fit(corrector.network, loss, len(shown), command.fit_options(args), work, _say)
    table = band_errors(corrector, held_out, teacher.schedule)
    _say(as_text(table))
    _say(f"this run: {time.monotonic() - clock:.0f} s, {time.process_time() - processor:.0f} s of processor time")
    card = CorrectorCard(
        latent_shape=tuple(teacher.latent_shape),
        steps=teacher.schedule.steps,
        teacher=args.teacher,
        teacher_fingerprint=teacher.fingerprint,
        training={**job, "command": command.command_line(MODULE, args), "pairs": len(pairs), "validation": table},
        reads=args.reads,
        widths=tuple(args.widths),
    )
    save_corrector(corrector, card, args.output)
    _say(f"wrote {args.output}; {work} may be deleted. Use it: system.guidance.loss.corrector={args.output}")


def _parser() -> argparse.ArgumentParser:
    parser = command.parser_for(__doc__)
    parser.add_argument("--reads", choices=READS, default="clean", help="b(x_0, t) or b(x_t, t)")
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS), help="channels of the U-Net's levels")
    return parser


if __name__ == "__main__":
    main()
