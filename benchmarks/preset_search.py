"""Look for settings of the embedded preset: many short runs, judged from eight sides, the better candidates on more prompts.

    python benchmarks/preset_search.py --minutes 10 --workers 8 --output outputs/benchmarks/preset-search

A candidate is one choice for each key of SPACE, the rest is vdm-gs.yaml with the embedded preset. Candidates are drawn at random or
are neighbours of good ones; each is tried on two prompts, the best third of those on five, the best third of these on all twelve
(asynchronous successive halving, Li et al. 2020). The score of a picture is the probability that the judge gives to the right family,
plus that of the right color, plus half that of the right pattern. None of the prompts is one that embedded_quality.py measures on.
Every result is a line of results.jsonl; pictures of the best are kept. Best on a GPU: a run takes half a minute and several share one.
"""
from __future__ import annotations

import argparse
import json
import logging
import os
import random
import sys
import tempfile
import time
import warnings
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom"), str(ROOT / "benchmarks")]
CONFIGS = ROOT / "custom" / "dreammapping" / "configs"

VIEWS = 8
RUNGS = (2, 5, 12)
"""How many prompts a candidate is tried on before it is compared with the others of its rung."""
PROMOTED, FRESH = 1 / 3, 0.35
"""Share of a rung that goes up; share of the new candidates that are drawn at random instead of changed from a good one."""
PROMPTS: tuple[tuple[str, str, str], ...] = (
    ("snowman", "turquoise", "plain"), ("bottle", "green", "striped"), ("table", "brown", "wooden"),
    ("rocket", "red", "plain"), ("cactus", "green", "plain"), ("cake", "pink", "dotted"),
    ("lamp", "yellow", "plain"), ("fish", "orange", "plain"), ("boat", "blue", "striped"),
    ("donut", "pink", "plain"), ("umbrella", "purple", "checkered"), ("sofa", "gray", "plain"),
)  # fmt: skip
SPACE: dict[str, tuple[Any, ...]] = {
    "system.guidance.timesteps": (
        "{type: percent, min_step_percent: 0.02, max_step_percent: [0, 0.98, 0.5, END]}",
        "{type: uniform}",
        "{type: uniform, min_step: 20, max_step: 750}",
        "{type: percent, min_step_percent: [0, 0.3, 0.02, END], max_step_percent: [0, 0.98, 0.4, END]}",
        "{type: anneal, shared: false, start: 900, end: 150, anneal_steps: END, width: 100}",
    ),
    "system.guidance.weighting_strategy": ("sds", "uniform", "fantasia3d"),
    "system.guidance.guidance_scale": (7.5, 15.0, 30.0),
    "data.batch_size": (4, 2),
    "position": (0.002, 0.001, 0.004),
    "feature": (0.02, 0.01, 0.04),
    "scaling": (0.01, 0.005, 0.02),
    "decay": (0.1, 0.3),
    "system.geometry.opacity_lr": (0.05, 0.02, 0.1),
    "system.geometry.init.num_points": (5000, 2000),
    "system.geometry.init.radius": (0.45, 0.35),
    "system.geometry.init.distribution": ("center", "ball"),
    "system.geometry.densification.grow_grad2d": (0.00075, 0.003),
    "data.elevation_range": ("[-10, 75]", "[-10, 45]"),
}
"""Keys and their choices; the first ones together, which are the first candidate, come close to the preset."""
STEPS = {2: 900, 4: 500}
"""Steps by batch size, so that every candidate costs the same four and a half minutes on two cores."""


def overrides(candidate: dict[str, Any]) -> list[str]:
    """Arguments of launch.py. position, feature and scaling are first learning rates that fall to `decay` of it."""
    steps, rates = STEPS[candidate["data.batch_size"]], ("position", "feature", "scaling")
    plain = [f"{key}={value}".replace("END", str(int(0.8 * steps))) for key, value in candidate.items() if "." in key]
    falling = [f"system.geometry.{n}_lr=[0,{candidate[n]},{candidate[n] * candidate['decay']:.5f},{steps}]" for n in rates]
    return [*plain, *falling, f"trainer.max_steps={steps}", f"system.geometry.densification.refine_stop_iter={int(0.9 * steps)}"]


def draw(rng: random.Random, good: list[dict[str, Any]]) -> dict[str, Any]:
    """A random candidate, or one that differs from a good one in one to three keys."""
    if not good or rng.random() < FRESH:
        return {key: rng.choice(choices) for key, choices in SPACE.items()}
    child = dict(rng.choice(good))
    for key in rng.sample(list(SPACE), rng.randint(1, 3)):
        child[key] = rng.choice([choice for choice in SPACE[key] if choice != child[key]])
    return child


@dataclass
class Trial:
    """One candidate and what it has scored so far."""

    candidate: dict[str, Any]
    rung: int = 0
    scores: list[float] = field(default_factory=list)
    judged: list[dict[str, Any]] = field(default_factory=list)
    failed: str = ""

    @property
    def finished(self) -> bool:
        """Whether all prompts of its rung are in."""
        return bool(self.failed) or len(self.scores) >= RUNGS[self.rung]

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores)) if self.scores and not self.failed else -1.0


def promotable(trials: list[Trial]) -> Trial | None:
    """A finished trial among the best third that ever finished its rung."""
    for rung in reversed(range(len(RUNGS) - 1)):
        count = RUNGS[rung]
        done = [t for t in trials if len(t.scores) >= count]
        done.sort(key=lambda t: -float(np.mean(t.scores[:count])))
        for trial in done[: int(len(done) * PROMOTED)]:
            if trial.rung == rung and trial.finished and not trial.failed:
                return trial
    return None


# ---- in the worker processes ----


def begin(judge_folder: str, settings: list[str]) -> None:
    """Load what every run of this process shares."""
    global _judge, _settings
    os.environ.setdefault("TQDM_DISABLE", "1")
    torch.set_num_threads(2)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    import dreammapping  # noqa: F401  registers its classes
    import threestudio
    from dreammapping.evaluation.judge import Judge

    threestudio.logger.setLevel(logging.ERROR)
    _judge, _settings = Judge(judge_folder), settings


def run(candidate: dict[str, Any], prompt: tuple[str, str, str], picture: str) -> dict[str, Any]:
    """Train one asset, write its eight views to `picture`, and return what the judge makes of them."""
    import pytorch_lightning as pl
    import threestudio
    from embedded_quality import prompt_of
    from threestudio.utils.config import load_config
    from threestudio.utils.presets import overlay_files
    from threestudio.utils.misc import get_device

    arguments = [
        f"system.prompt_processor.prompt={prompt_of(*prompt)}", "use_timestamp=false", "data.n_test_views=9",
        "data.eval_height=128", "data.eval_width=128", *overrides(candidate), *_settings,
    ]  # fmt: skip
    overlays = overlay_files(CONFIGS / "vdm-gs.yaml", "embedded")
    config = load_config(CONFIGS / "vdm-gs.yaml", *overlays, cli_args=arguments)
    pl.seed_everything(config.seed, verbose=False)
    data = threestudio.find(config.data_type)(config.data)
    system = threestudio.find(config.system_type)({**config.system, "report": False}, resumed=False)
    system.set_save_dir(tempfile.gettempdir())  # nothing is written there: the report is off
    trainer = pl.Trainer(
        max_steps=config.trainer.max_steps, accelerator="auto", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, inference_mode=False,
    )  # fmt: skip
    started = time.monotonic()
    trainer.fit(system, datamodule=data)
    seconds, device = time.monotonic() - started, get_device()
    system.to(device).eval()
    data.setup("test")
    views = []
    with torch.no_grad():
        for batch in list(data.test_dataloader())[:VIEWS]:
            batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            views.append(system(batch)["comp_rgb"][0].float().cpu())
    result = {"seconds": seconds, "gaussians": system.geometry.count, **opinion(torch.stack(views), *prompt)}
    row = (torch.cat(views, dim=1) * 255).round().byte().numpy()
    Image.fromarray(row).resize((96 * VIEWS, 96), Image.Resampling.BOX).save(picture, quality=85)
    return result


def opinion(views: torch.Tensor, family: str, color: str, pattern: str) -> dict[str, Any]:
    """Mean probability of the right answer and share of right answers for each attribute, and the score."""
    truth = {"family": _judge.families.index(family), "color": _judge.colors.index(color), "pattern": _judge.patterns.index(pattern)}
    odds, result = _judge.odds(views, truth["family"]), {}
    for name, index in truth.items():
        result |= {name: odds[name][:, index].mean().item(), f"{name}_right": (odds[name].argmax(1) == index).float().mean().item()}
    return {**result, "score": result["family"] + result["color"] + 0.5 * result["pattern"]}


# ---- in the main process ----


def search(args: argparse.Namespace) -> list[Trial]:
    """Run until the time is up; all trials."""
    rng, deadline = random.Random(args.seed), time.monotonic() + 60 * args.minutes
    trials: list[Trial] = []
    pending: dict[Future, tuple[Trial, int]] = {}
    queue: list[tuple[Trial, int]] = []
    starts = [{key: choices[0] for key, choices in SPACE.items()}]
    starts += [{**starts[0], **json.loads(line)} for line in (args.start.read_text().splitlines() if args.start else ())]
    context = get_context("spawn")
    with ProcessPoolExecutor(args.workers, context, begin, (str(args.judge), args.extra)) as pool:
        while time.monotonic() < deadline or pending:
            while len(pending) < args.workers and time.monotonic() < deadline:
                if not queue:
                    queue += next_jobs(trials, starts, rng)
                trial, index = queue.pop(0)
                if not trial.failed:
                    picture = args.output / f"{trials.index(trial):03d}-{index:02d}.jpg"
                    pending[pool.submit(run, trial.candidate, PROMPTS[index], str(picture))] = trial, index
            done, _ = wait(pending, timeout=max(1.0, deadline + args.grace - time.monotonic()), return_when=FIRST_COMPLETED)
            if not done and time.monotonic() > deadline:
                break
            for future in done:
                note(future, *pending.pop(future), trials, args.output)
        for process in list((pool._processes or {}).values()) if pending else ():
            process.terminate()
    return trials


def next_jobs(trials: list[Trial], starts: list[dict[str, Any]], rng: random.Random) -> list[tuple[Trial, int]]:
    """The prompts of a promoted or of a new trial."""
    if (trial := promotable(trials)) is not None:
        trial.rung += 1
    else:
        ranked = sorted((t for t in trials if t.scores), key=lambda t: (-t.rung, -t.mean))
        trial = Trial(starts.pop(0) if starts else draw(rng, [t.candidate for t in ranked[:4]]))
        trials.append(trial)
    return [(trial, index) for index in range(RUNGS[trial.rung - 1] if trial.rung else 0, RUNGS[trial.rung])]


def note(future: Future, trial: Trial, index: int, trials: list[Trial], folder: Path) -> None:
    """Write one result down."""
    record: dict[str, Any] = {"trial": trials.index(trial), "prompt": " ".join(PROMPTS[index])}
    try:
        record |= future.result()
        trial.scores.append(record["score"])
        trial.judged.append(record)
    except Exception as problem:  # a candidate that fails is a result, too
        trial.failed = record["failed"] = f"{type(problem).__name__}: {problem}"[:300]
    with open(folder / "results.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({**record, "candidate": trial.candidate}) + "\n")


def report(trials: list[Trial], folder: Path) -> None:
    """The best, by rung and mean, as a table and as JSON; the pictures of others are removed."""
    ranked = sorted(trials, key=lambda t: (-min(len(t.scores), RUNGS[-1]), -t.mean))
    rows = []
    for trial in ranked[:12]:
        means = {k: float(np.mean([j[k] for j in trial.judged])) if trial.judged else 0.0 for k in
                 ("family_right", "color_right", "pattern_right", "seconds", "gaussians")}  # fmt: skip
        rows.append({"trial": trials.index(trial), "prompts": len(trial.scores), "score": trial.mean, **means, "candidate": trial.candidate})
        print(f"{rows[-1]['trial']:4d} {len(trial.scores):3d} prompts  score {trial.mean:.3f}  " +
              "  ".join(f"{k} {v:.3g}" for k, v in means.items()) + f"  {trial.failed[:120]}")
    print(json.dumps(rows[:3]))
    (folder / "best.json").write_text(json.dumps(rows, indent=1))
    kept = {row["trial"] for row in rows}
    for picture in folder.glob("*-*.jpg"):
        if int(picture.stem.split("-")[0]) not in kept:
            picture.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--grace", type=float, default=60.0, help="seconds after which runs still going on are given up")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/preset-search"))
    parser.add_argument("--judge", type=Path, default=ROOT / "load/embedded-judge")
    parser.add_argument("--start", type=Path, help="file with candidates to try first, one JSON object of changed keys a line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("extra", nargs="*", help="further arguments of launch.py for every run")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    report(search(args), args.output)


if __name__ == "__main__":
    main()
