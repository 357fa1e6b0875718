"""Train b_psi of LMC-SDS for a teacher, once:

    python -m custom.dreammapping.correction.train --teacher load/embedded-teacher --output build/corrector

from pictures the teacher draws for prompts, or from a folder of pictures. The same command, given again, goes on where
it was killed. The same seed, machine and number of threads give the same weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError
from ..files import write_atomic
from ..teachers import DiffusersTeacher
from .card import READS, WIDTHS, CorrectorCard
from .corrector import build_corrector, save_corrector
from .fit import FitOptions, fit
from .images import Folder, Images, Samples, read_prompts
from .measure import as_text, band_errors
from .pairs import HELD_OUT, make_pairs

PROMPTS = (
    "a mug, a chair, a house, a tree, a car, a boat, a dog, a cat, a bird, a fish, a flower, a lamp, a teapot, a guitar, "
    "a robot, a cake, a hamburger, a castle, a mountain lake, a portrait of an old man, a city street, a bowl of fruit"
).split(", ")
"""What is drawn if no prompts are given."""


def main(arguments: list[str] | None = None) -> None:
    """The command line. Mistakes end it with one message and exit code 1."""
    args = _parser().parse_args(arguments)
    try:
        run(args)
    except Exception as problem:
        if not getattr(problem, "is_user_error", False):
            raise
        sys.exit(f"Error: {problem}")


def run(args: argparse.Namespace) -> None:
    """Make pairs, fit, measure, write weights and card."""
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    work = args.work or args.output / "work"
    teacher = DiffusersTeacher.load(args.teacher, device=device)
    images = _images(args, teacher)
    if len(images.captions) < HELD_OUT:
        raise ConfigError(f"{len(images.captions)} images are too few: at least {HELD_OUT}, of which one is held out")
    job = _job(args, teacher, images)
    _check_job(work / "job.json", job)
    clock, processor = time.monotonic(), time.process_time()
    pairs = make_pairs(
        teacher,
        images,
        teacher.embed,
        work / "pairs",
        times=args.times,
        batch=args.image_batch,
        seed=args.seed,
        device=device,
        report=_say,
    )
    corrector = build_corrector(teacher.latent_shape, args.reads, args.widths, args.seed).to(device)
    options = FitOptions(args.steps, args.batch, args.lr, seed=args.seed, save_every=args.save_every)
    fit(corrector, pairs.subset(held_out=False), teacher.schedule, options, work, _say)
    table = band_errors(corrector, pairs.subset(held_out=True), teacher.schedule)
    _say(as_text(table))
    _say(f"this run: {time.monotonic() - clock:.0f} s, {time.process_time() - processor:.0f} s of processor time")
    card = CorrectorCard(
        tuple(teacher.latent_shape),
        teacher.schedule.steps,
        args.teacher,
        teacher.fingerprint,
        args.reads,
        tuple(args.widths),
        {**job, "command": _command(args), "pairs": len(pairs), "validation": table},
    )
    save_corrector(corrector, card, args.output)
    _say(f"wrote {args.output}; {work} may be deleted. Use it: system.guidance.loss.corrector={args.output}")


def _images(args: argparse.Namespace, teacher: DiffusersTeacher) -> Images:
    if args.images is not None:
        return Folder(args.images, args.count)
    if args.prompts is None:
        captions = [PROMPTS[i % len(PROMPTS)] for i in range(args.count)]
    else:
        captions = read_prompts(args.prompts, args.count)
    return Samples(captions, teacher.embed([""]), args.sample_scale, args.sample_steps)


def _job(args: argparse.Namespace, teacher: DiffusersTeacher, images: Images) -> dict[str, Any]:
    """All that the result depends on."""
    keys = ("reads", "times", "image_batch", "steps", "batch", "lr", "seed", "save_every")
    job = {key: getattr(args, key) for key in keys} | {"widths": list(args.widths)}
    captions = hashlib.sha256("\n".join(images.captions).encode()).hexdigest()[:16]
    job |= {"teacher": args.teacher, "fingerprint": teacher.fingerprint}
    job |= {"images": len(images.captions), "captions": captions}
    if args.images is not None:
        return job | {"source": str(args.images)}
    return job | {"source": f"samples, {args.sample_steps} steps, scale {args.sample_scale}"}


def _check_job(path: Path, job: dict[str, Any]) -> None:
    """Refuse to go on with a work folder of other settings; begin one if there is none."""
    if not path.is_file():
        write_atomic(path, (json.dumps(job, indent=1) + "\n").encode())
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    other = [key for key in job if before.get(key) != job[key]]
    if other:
        changes = ", ".join(f"{key} was {before.get(key)!r}, is {job[key]!r}" for key in other)
        raise ConfigError(
            f"{path.parent} holds a run with other settings ({changes}); give another --work or delete it"
        )


def _command(args: argparse.Namespace) -> str:
    """The command line again, without where its results and intermediate files go on this machine."""
    words = ["python", "-m", "custom.dreammapping.correction.train"]
    for key, value in vars(args).items():
        if value is None or key in ("output", "work", "device"):
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        words += [f"--{key.replace('_', '-')}", *(str(v) for v in values)]
    return shlex.join(words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="folder or hub name of the diffusion model")
    parser.add_argument("--output", type=Path, required=True, help="folder for the corrector and its card")
    parser.add_argument("--work", type=Path, help="folder for pairs and checkpoints; OUTPUT/work")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--images", type=Path, help="folder of pictures, captions in .txt files beside them")
    source.add_argument("--prompts", type=Path, help="text file, one prompt a line, for pictures the teacher draws")
    parser.add_argument("--count", type=int, default=500, help="number of pictures (at most, with --images)")
    parser.add_argument("--sample-steps", type=int, default=20, help="steps of DPM-Solver++")
    parser.add_argument("--sample-scale", type=float, default=7.5, help="guidance scale of the pictures")
    parser.add_argument("--times", type=int, default=8, help="times t per picture, each with two noises")
    parser.add_argument("--image-batch", type=int, default=16)
    parser.add_argument("--reads", choices=READS, default="clean", help="b(x_0, t) or b(x_t, t)")
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS), help="channels of the U-Net's levels")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--device", help="cuda if there is one, else cpu")
    return parser


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
