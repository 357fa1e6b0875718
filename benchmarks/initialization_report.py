"""What the runs of benchmarks/initialization.py say: tables, raw numbers, pictures.

All questions are asked here, of the unit vectors in which the judge saw each picture. Differences from the sphere are taken run by run
(same loss, prompt and seed); their 95 % intervals are those of dreammapping.evaluation.intervals.
"""
from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dreammapping.evaluation.intervals import mean_interval
from dreammapping.evaluation.janus import front_azimuths, is_janus, share_of_right_views
from dreammapping.evaluation.judge import Judge
from dreammapping.files import write_atomic
from embedded_quality import PROMPTS, prompt_of
from initialization_variants import FINAL_VIEWS, FIRST, SIZE, Cell
from PIL import Image, ImageDraw

THRESHOLDS = (50.0, 60.0, 65.0)
"""CLIP scores of the embedded judge that a run may reach, besides the sphere's final mean."""
SHARES = ("family", "color", "pattern", "side")
RECOGNIZED = 0.5
"""Share of the last views in which the judge must see the right family for its answers on the front to mean something."""
SHEET_BYTES = 500_000


@dataclass(frozen=True)
class Run:
    """One finished run and what the judge says about it."""

    cell: Cell
    facts: dict[str, Any]
    final: dict[str, float]
    """family, color, pattern: shares of the last views that are right, side: of those that show one side clearly; clip: mean CLIP score."""
    janus: bool | None
    """Whether there are several fronts; None: not recognized."""
    fronts: tuple[float, ...]
    """Azimuths, in degrees, in whose neighborhoods a front was seen."""
    steps: tuple[int, ...]
    clip: tuple[float, ...]
    """Mean CLIP score at each of these steps."""

    @property
    def pair(self) -> tuple[str, int, int]:
        """What runs of different variants must share to be compared."""
        return self.cell.loss, self.cell.prompt, self.cell.seed


# ---- reading ----


def read(folder: Path, wanted: Sequence[Cell], judge: Judge) -> tuple[list[Run], dict[str, str], list[str]]:
    """Finished runs, failures by name, and names of those without a record."""
    runs, failed, missing = [], {}, []
    for cell in wanted:
        try:
            facts = json.loads((folder / f"{cell.name}.json").read_text(encoding="utf-8"))
        except OSError:
            missing.append(cell.name)
            continue
        if "failure" in facts:
            failed[cell.name] = facts["failure"]
        else:
            with np.load(folder / f"{cell.name}.npz") as seen:
                runs.append(judged(cell, facts, {key: seen[key] for key in seen.files}, judge))
    return runs, failed, missing


def judged(cell: Cell, facts: dict[str, Any], seen: dict[str, np.ndarray], judge: Judge) -> Run:
    """`seen`: steps [S], looks [S, V, D], final [F, D]."""
    words = PROMPTS[cell.prompt]
    known = {"family": judge.families, "color": judge.colors, "pattern": judge.patterns}
    truth = {name: names.index(word) for (name, names), word in zip(known.items(), words)}
    final, looks = (torch.from_numpy(seen[key]).float() for key in ("final", "looks"))
    odds = {name: values.cpu() for name, values in judge.odds_of(final, truth["family"]).items()}
    views = (odds["view"], torch.arange(len(final)) * (360.0 / len(final)), judge.views)
    clip = judge.clip_score_of(torch.cat([final, looks.flatten(0, 1)]), prompt_of(*words)).cpu()
    last = {name: (odds[name].argmax(1) == index).float().mean().item() for name, index in truth.items()}
    last |= {"side": share_of_right_views(*views), "clip": clip[: len(final)].mean().item()}
    janus = is_janus(*views) if last["family"] >= RECOGNIZED else None
    curve = clip[len(final) :].reshape(looks.shape[:2]).mean(1)
    return Run(cell, facts, last, janus, tuple(front_azimuths(*views)), tuple(seen["steps"].tolist()), tuple(curve.tolist()))


# ---- numbers ----


def compared(runs: Sequence[Run], base: Sequence[Run], value: Callable[[Run], float | None]) -> tuple[float, float | None, float | None] | None:
    """Mean difference of `value` from `base` and its 95 % interval (None twice for a single pair); None without common pairs that both have a value."""
    other = {run.pair: value(run) for run in base}
    groups: dict[int, list[float]] = {}
    for run in runs:
        mine, theirs = value(run), other.get(run.pair)
        if mine is not None and theirs is not None:
            groups.setdefault(run.cell.prompt, []).append(mine - theirs)
    if not groups:
        return None
    found = mean_interval(list(groups.values()))
    return (found.value, None, None) if np.isnan(found.low) else (found.value, found.low, found.high)


def steps_to(curve: Sequence[float], steps: Sequence[int], threshold: float) -> float | None:
    """Step at which a curve first reaches `threshold`, interpolated between two looks; None: never."""
    for i, value in enumerate(curve):
        if value >= threshold:
            if i == 0:
                return float(steps[0])
            share = (threshold - curve[i - 1]) / (value - curve[i - 1])
            return steps[i - 1] + share * (steps[i] - steps[i - 1])
    return None


def mean_curve(runs: Sequence[Run]) -> tuple[list[int], list[float]]:
    """Mean CLIP score of all runs at the steps that all of them looked at."""
    common = sorted(set.intersection(*(set(run.steps) for run in runs)))
    return common, [float(np.mean([run.clip[run.steps.index(step)] for run in runs])) for step in common]


def summarize(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Figures of each variant, by loss and variant."""
    result: dict[str, dict[str, Any]] = {}
    for loss in dict.fromkeys(run.cell.loss for run in runs):
        of_loss = [run for run in runs if run.cell.loss == loss]
        sphere = [run for run in of_loss if run.cell.variant == FIRST[0]]
        goals = {f"{goal:g}": goal for goal in THRESHOLDS}
        if sphere:
            goals = {"sphere's last": mean_curve(sphere)[1][-1], **goals}
        result[loss] = {
            variant: figures([run for run in of_loss if run.cell.variant == variant], sphere, goals)
            for variant in dict.fromkeys(run.cell.variant for run in of_loss)
        }
    return result


def figures(runs: Sequence[Run], sphere: Sequence[Run], goals: dict[str, float]) -> dict[str, Any]:
    """Means, differences from the sphere and steps to the goals of one variant's runs."""
    steps, curve = mean_curve(runs)
    recognized = [run for run in runs if run.janus is not None]
    reached = {}
    for name, goal in goals.items():
        own = [steps_to(run.clip, run.steps, goal) for run in runs]
        there = [step for step in own if step is not None]
        reached[name] = {
            "score": goal, "mean_curve": steps_to(curve, steps, goal), "share": len(there) / len(runs),
            "median": float(np.median(there)) if len(there) * 2 > len(runs) else None,
        }  # fmt: skip
    return {
        "runs": len(runs),
        **{key: float(np.mean([run.final[key] for run in runs])) for key in (*SHARES, "clip")},
        **{f"{key}_difference": compared(runs, sphere, lambda run, key=key: run.final[key]) for key in (*SHARES, "clip")},
        "recognized": len(recognized), "janus": float(np.mean([run.janus for run in recognized])) if recognized else None,
        "janus_difference": compared(runs, sphere, lambda run: None if run.janus is None else float(run.janus)),
        "training_seconds": float(np.median([run.facts["training_seconds"] for run in runs])),
        "seconds": float(np.median([run.facts["seconds"] for run in runs])),
        "gaussians": float(np.mean([run.facts["gaussians"] for run in runs])),
        "curve": {"steps": steps, "clip": curve}, "reached": reached,
    }  # fmt: skip


# ---- words ----

EXPLAINED = (
    f"Judged from {FINAL_VIEWS} sides: the share of them in which family, color and pattern are right; of those that show one side "
    "clearly, the share in which that side is seen. Janus rate: the share of recognized objects (their number in brackets) with several "
    "fronts. Further in brackets: the difference from the sphere and its 95 % interval."
)


def markdown(summary: dict[str, dict[str, Any]], failed: dict[str, str], missing: Sequence[str], wanted: int) -> str:
    """The report's tables."""
    lines = ["# The start of the Gaussians", "", f"{wanted - len(failed) - len(missing)} of {wanted} runs."]
    for loss, variants in summary.items():
        lines += ["", f"## {loss}", "", EXPLAINED, ""]
        lines += table(
            ["start", "runs", "family", "color", "pattern", "side", "CLIP score", "Janus rate (of)", "Gaussians", "training / all, s"],
            [quality_row(name, f) for name, f in variants.items()],
        )
        goals = next(iter(variants.values()))["reached"]
        lines += ["", "Steps until the CLIP score is reached: by the mean of all runs / by the median run (share of the runs that reach it).", ""]
        heads = [f"{f['score']:.1f}{' (sphere at its end)' if name not in map('{:g}'.format, THRESHOLDS) else ''}" for name, f in goals.items()]
        lines += table(["start", "at step 0", *heads], [speed_row(name, f) for name, f in variants.items()])
    if failed:
        lines += ["", f"## Failed: {len(failed)}", "", *(f"- {name}: {why}" for name, why in failed.items())]
    if missing:
        groups = Counter(".".join(name.split(".")[:2]) for name in missing)
        lines += ["", f"## Not run: {len(missing)}", "", ", ".join(f"{name} ({count})" for name, count in groups.items())]
    return "\n".join([*lines, ""])


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def quality_row(name: str, f: dict[str, Any]) -> list[str]:
    shares = [with_interval(f"{100 * f[key]:.1f} %", f[f"{key}_difference"], 100, name) for key in SHARES]
    clip = with_interval(f"{f['clip']:.1f}", f["clip_difference"], 1, name)
    rate = "" if f["janus"] is None else f"{100 * f['janus']:.0f} % "
    janus = with_interval(f"{rate}({f['recognized']})", f["janus_difference"], 100, name)
    return [name, str(f["runs"]), *shares, clip, janus, f"{f['gaussians']:.0f}", f"{f['training_seconds']:.0f} / {f['seconds']:.0f}"]


def with_interval(text: str, difference: tuple[float, float | None, float | None] | None, scale: float, name: str) -> str:
    if difference is None or name == FIRST[0]:
        return text
    if difference[1] is None:
        return f"{text} ({scale * difference[0]:+.1f})"
    return f"{text} ({scale * difference[0]:+.1f} [{scale * difference[1]:+.1f}, {scale * difference[2]:+.1f}])"


def speed_row(name: str, f: dict[str, Any]) -> list[str]:
    def step(value: float | None) -> str:
        return "never" if value is None else f"{value:.0f}"

    reached = [f"{step(r['mean_curve'])} / {step(r['median'])} ({100 * r['share']:.0f} %)" for r in f["reached"].values()]
    return [name, f"{f['curve']['clip'][0]:.1f}", *reached]


# ---- pictures ----


def contact_sheet(folder: Path, runs: Sequence[Run], largest: int = 96) -> bytes:
    """A PNG below SHEET_BYTES: a row for each prompt, a column for each variant, front and back of the run with the lowest seed."""
    variants = list(dict.fromkeys(run.cell.variant for run in runs))
    prompts = sorted({run.cell.prompt for run in runs})
    chosen = {(run.cell.prompt, run.cell.variant): run for run in sorted(runs, key=lambda run: -run.cell.seed)}
    side, head = largest, 14
    while True:
        sheet = Image.new("RGB", (len(variants) * (2 * side + 2), head + len(prompts) * (side + 2)), "white")
        for column, variant in enumerate(variants):
            left = column * (2 * side + 2)
            ImageDraw.Draw(sheet).text((left + 2, 1), variant, fill="black")
            for row, prompt in enumerate(prompts):
                if (run := chosen.get((prompt, variant))) is not None:
                    sheet.paste(front_and_back(folder / f"{run.cell.name}.jpg", side), (left, head + row * (side + 2)))
        data = _png(sheet)
        if len(data) <= SHEET_BYTES or side <= 24:
            return data
        side -= 8


def front_and_back(strip: Path, side: int) -> Image.Image:
    """The first and the middle one of a strip's views, side by side."""
    views = Image.open(strip)
    pair = Image.new("RGB", (2 * SIZE, SIZE))
    for place, index in enumerate((0, views.width // SIZE // 2)):
        pair.paste(views.crop((index * SIZE, 0, (index + 1) * SIZE, SIZE)), (place * SIZE, 0))
    return pair.resize((2 * side, side), Image.Resampling.BOX if SIZE % side == 0 else Image.Resampling.LANCZOS)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.quantize(256).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


# ---- all of it ----


def raw(run: Run) -> dict[str, Any]:
    """Everything about one run, without the folder it was in."""
    arguments = [a for a in run.facts.get("arguments", ()) if not a.startswith("exp_root_dir=")]
    looks = {"steps": run.steps, "clip": run.clip}
    return {**run.facts, "arguments": arguments, "final": run.final, "janus": run.janus, "fronts": run.fronts, "looks": looks}


def as_json(summary: dict[str, Any], runs: Sequence[Run], **others: Any) -> str:
    """Numbers to four places, each run in a line of its own."""
    rounded = json.loads(json.dumps([summary, [raw(run) for run in runs]]), parse_float=lambda text: round(float(text), 4))
    lines = ",\n".join(f"  {json.dumps(run)}" for run in rounded[1])
    return json.dumps({**others, "summary": rounded[0], "runs": []}, indent=1).replace('"runs": []', f'"runs": [\n{lines}\n ]')


def write_report(output: Path, wanted: Sequence[Cell], judge: Judge) -> str:
    """Write report.json, report.md and a contact sheet for each loss; the Markdown."""
    runs, failed, missing = read(output / "runs", wanted, judge)
    summary = summarize(runs)
    text = markdown(summary, failed, missing, len(wanted))
    others = {"views": FINAL_VIEWS, "failed": failed, "missing": missing}
    write_atomic(output / "report.json", as_json(summary, runs, **others).encode())
    write_atomic(output / "report.md", text.encode())
    for loss in summary:
        write_atomic(output / f"contact_sheet_{loss}.png", contact_sheet(output / "runs", [r for r in runs if r.cell.loss == loss]))
    return text
