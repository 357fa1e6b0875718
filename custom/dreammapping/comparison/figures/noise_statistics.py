"""Figure 11 for any teacher: the variance of eps_phi(x_t, t, y) and its linear correlation with eps over t.

    python -m custom.dreammapping.comparison.figures.noise_statistics --teacher load/embedded-teacher --output outputs/figure-11

The paper says neither of which pictures x_0 its figure is, nor whether it is guided. So there are three kinds of
pictures: samples that the teacher draws for the prompts, noise N(0, I) in their place (what a run from noise starts
with), and a folder of renderings (`--images`, captions in .txt files of the same name). Each is measured for the plain
conditional prediction and the guided one, together with the mean squared error and the two best linear coefficients
between eps_phi and eps, one of which is what the annealing coefficient stands for (distillation/dca.py). Writes
noise_statistics.json and noise_statistics.png.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...correction import command
from ...correction.images import Folder, Samples, read_prompts
from ...distillation import CFGConvention, CutOff, NoiseSchedule, PromptedTeacher, draw_noise
from ...errors import ConfigError
from ...files import write_atomic
from ...teachers import DiffusersTeacher
from .noise_moments import KINDS, measure

FILES = ("noise_statistics.json", "noise_statistics.png")
SOURCES = ("samples", "noise", "pictures")
PANELS = {
    "variance": "variance of the prediction",
    "correlation": "correlation with the noise",
    "prediction_on_noise": "coefficient of the prediction on the noise",
    "mse": "mean squared error against the noise",
    "noise_on_prediction": "coefficient of the noise on the prediction",
    "variance_over_noise": "variance over the noises of one picture",
}


def main(arguments: list[str] | None = None) -> None:
    """The command line. Mistakes end it with one message and exit code 1."""
    command.main(_parser(), run, arguments)


def run(args: argparse.Namespace) -> None:
    """Measure, and write both files."""
    _check(args)
    device = command.device_of(args)
    teacher = DiffusersTeacher.load(args.teacher, device=device)
    times = torch.linspace(0, teacher.schedule.steps - 1, args.times).round().long().tolist()
    rows = []
    for source in SOURCES if args.images else SOURCES[:2]:
        generator = torch.Generator().manual_seed(args.seed)
        clean, text = _latents(source, args, teacher, generator, device)
        prompted = PromptedTeacher(
            teacher,
            {"cond": text, "empty": teacher.embed([""]).to(device)},
            guidance_scale=args.scale,
            convention=CFGConvention.SEED,
        )
        for t in times:
            found = measure(clean, prompted, t, args.noises, generator, args.batch)
            rows += [{"source": source, "kind": kind, "t": t, **found[kind].as_dict()} for kind in KINDS]
        command.say(f"{source}: {len(clean)} pictures, {len(times)} times t, {args.noises} noises each")
    record = {**_settings(args, teacher), "alpha_bar": [teacher.schedule.alpha_bar[t].item() for t in times], "rows": rows}
    write_atomic(args.output / FILES[0], (json.dumps(record, indent=1) + "\n").encode())
    write_atomic(args.output / FILES[1], plot(record, teacher.schedule))
    command.say(f"wrote {' and '.join(str(args.output / name) for name in FILES)}")


def _check(args: argparse.Namespace) -> None:
    for name, least in {"count": 1, "times": 2, "noises": 2, "batch": 1}.items():
        if getattr(args, name) < least:
            raise ConfigError(f"--{name} is {getattr(args, name)}; it must be at least {least}")
    if args.images:
        Folder(args.images)  # now, and not after the other sources have been measured


def _settings(args: argparse.Namespace, teacher: DiffusersTeacher) -> dict[str, Any]:
    keys = ("count", "noises", "scale", "seed", "sample_steps", "sample_scale")
    return {"teacher": teacher.name, "fingerprint": teacher.fingerprint, **{key: getattr(args, key) for key in keys}}


def _latents(
    source: str, args: argparse.Namespace, teacher: DiffusersTeacher, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """x_0 [N,C,h,w] and the embeddings [N,L,E] of their captions."""
    if source == "pictures":
        images = Folder(args.images, args.count)
        captions = images.captions
    else:
        captions = read_prompts(args.prompts, args.count) if args.prompts else _default_prompts(args.count)
        images = Samples(captions, teacher.embed([""]), args.sample_scale, args.sample_steps)
    text = teacher.embed(captions).to(device)
    if source == "noise":
        return draw_noise(torch.empty(len(captions), *teacher.latent_shape, device=device), generator), text
    parts = torch.arange(len(captions)).split(args.batch)
    clean = [images.latents(teacher, part.tolist(), text[part.to(device)], generator, device) for part in parts]
    return torch.cat(clean), text


def _default_prompts(count: int) -> list[str]:
    return [command.PROMPTS[i % len(command.PROMPTS)] for i in range(count)]


def plot(record: dict[str, Any], schedule: NoiseSchedule) -> bytes:
    """A PNG with one panel per statistic: a color per kind of picture, guided predictions dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8.5), layout="constrained")
    panels = dict(zip(PANELS, figure.subplots(2, 3).flat))
    steps = torch.arange(schedule.steps)
    for name, axes in panels.items():
        axes.set_title(PANELS[name])
        axes.set_xlabel("t")
        axes.grid(alpha=0.3)
        for color, source in zip(("tab:blue", "tab:gray", "tab:red"), SOURCES):
            for style, kind in zip(("-", "--"), KINDS):
                rows = [row for row in record["rows"] if (row["source"], row["kind"]) == (source, kind)]
                if rows:
                    axes.plot([r["t"] for r in rows], [r[name] for r in rows], style, color=color, label=f"{source}, {kind}")
    for name in ("variance", "mse", "variance_over_noise"):
        panels[name].set_yscale("log")
    coefficient = panels["prediction_on_noise"]
    coefficient.plot(steps, CutOff().lam(steps, schedule.alpha_bar), color="black", linewidth=1, label="DCA, cut-off 300")
    coefficient.plot(steps, 1 - schedule.alpha_bar, ":", color="black", linewidth=1, label="1 - alpha_bar")
    coefficient.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="folder or hub name of the diffusion model")
    parser.add_argument("--output", type=Path, default=Path("outputs/figure-11"))
    parser.add_argument("--images", type=Path, help="folder of renderings, captions in .txt files beside them")
    parser.add_argument("--prompts", type=Path, help="text file, one prompt a line")
    parser.add_argument("--count", type=int, default=48, help="pictures of each kind (at most, with --images)")
    parser.add_argument("--times", type=int, default=21, help="number of t, from the first to the last step")
    parser.add_argument("--noises", type=int, default=4, help="noises per picture and t")
    parser.add_argument("--scale", type=float, default=7.5, help="guidance scale s: e_c + s (e_c - e_u)")
    parser.add_argument("--sample-steps", type=int, default=50, help="of DPM-Solver++, for the teacher's samples")
    parser.add_argument("--sample-scale", type=float, default=7.5, help="their guidance, S: e_u + S (e_c - e_u)")
    parser.add_argument("--batch", type=int, default=16, help="pictures at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cuda if there is one, else cpu")
    return parser


if __name__ == "__main__":
    main()
