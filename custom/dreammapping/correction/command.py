"""What the commands that train a part on a teacher's answers share: where pictures come from, the pairs, the job's record.

`correction/train.py` trains b_psi of LMC-SDS, `degradation/train.py` VDM's operator.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, mistakes_end_the_program
from ..files import write_atomic
from ..teachers import DiffusersTeacher
from .fit import FitOptions
from .images import Folder, Images, Samples, read_prompts
from .pairs import HELD_OUT, Pairs, make_pairs

PROMPTS = (
    "a mug, a chair, a house, a tree, a car, a boat, a dog, a cat, a bird, a fish, a flower, a lamp, a teapot, a guitar, "
    "a robot, a cake, a hamburger, a castle, a mountain lake, a portrait of an old man, a city street, a bowl of fruit"
).split(", ")
"""What is drawn if no prompts are given."""
COMMON = ("times", "image_batch", "steps", "batch", "lr", "seed", "save_every")


def main(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None], arguments: list[str] | None) -> None:
    """A command line whose mistakes end it with one message and exit code 1."""
    args = parser.parse_args(arguments)
    with mistakes_end_the_program():
        run(args)


def parser_for(description: str | None) -> argparse.ArgumentParser:
    """With the arguments that all such commands take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="folder or hub name of the diffusion model")
    parser.add_argument("--output", type=Path, required=True, help="folder for the weights and their card")
    parser.add_argument("--work", type=Path, help="folder for pairs and checkpoints; OUTPUT/work")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--images", type=Path, help="folder of pictures, captions in .txt files beside them")
    source.add_argument("--prompts", type=Path, help="text file, one prompt a line, for pictures the teacher draws")
    parser.add_argument("--count", type=int, default=500, help="number of pictures (at most, with --images)")
    parser.add_argument("--sample-steps", type=int, default=20, help="steps of DPM-Solver++")
    parser.add_argument("--sample-scale", type=float, default=7.5, help="guidance scale of the pictures")
    parser.add_argument("--times", type=int, default=8, help="times t per picture, each with two noises")
    parser.add_argument("--image-batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--device", help="cuda if there is one, else cpu")
    return parser


def device_of(args: argparse.Namespace) -> torch.device:
    return torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def work_folder(args: argparse.Namespace) -> Path:
    return args.work or args.output / "work"


def fit_options(args: argparse.Namespace) -> FitOptions:
    return FitOptions(args.steps, args.batch, args.lr, seed=args.seed, save_every=args.save_every)


def training_pairs(
    args: argparse.Namespace, teacher: DiffusersTeacher, own: Sequence[str], say: Callable[[str], None]
) -> tuple[Pairs, dict[str, Any]]:
    """The pairs, made or gone on with, and all that the result depends on; `own` are arguments of this command alone.

    Raises ConfigError for too few pictures and for a work folder of other settings.
    """
    images, work = images_from(args, teacher), work_folder(args)
    if len(images.captions) < HELD_OUT:
        raise ConfigError(f"{len(images.captions)} images are too few: at least {HELD_OUT}, of which one is held out")
    job = _job(args, teacher, images, own)
    _check_job(work / "job.json", job)
    pairs = make_pairs(
        teacher,
        images,
        teacher.embed,
        work / "pairs",
        times=args.times,
        batch=args.image_batch,
        seed=args.seed,
        device=device_of(args),
        report=say,
    )
    return pairs, job


def images_from(args: argparse.Namespace, teacher: DiffusersTeacher) -> Images:
    """Pictures of a folder, or what the teacher draws for the prompts."""
    if args.images is not None:
        return Folder(args.images, args.count)
    if args.prompts is None:
        captions = [PROMPTS[i % len(PROMPTS)] for i in range(args.count)]
    else:
        captions = read_prompts(args.prompts, args.count)
    return Samples(captions, teacher.embed([""]), args.sample_scale, args.sample_steps)


def command_line(module: str, args: argparse.Namespace) -> str:
    """The command again, without where its results and intermediate files go on this machine."""
    words = ["python", "-m", module]
    for key, value in vars(args).items():
        if value is None or value is False or key in ("output", "work", "device"):
            continue
        values = [] if value is True else value if isinstance(value, (list, tuple)) else [value]
        words += [f"--{key.replace('_', '-')}", *(str(v) for v in values)]
    return shlex.join(words)


def say(line: str) -> None:
    print(line, flush=True)


def _job(args: argparse.Namespace, teacher: DiffusersTeacher, images: Images, own: Sequence[str]) -> dict[str, Any]:
    job = {key: getattr(args, key) for key in (*own, *COMMON)}
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
