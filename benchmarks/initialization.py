"""How much does the start matter? The embedded preset from a sphere, from Shap-E and from what might help the sphere.

    python benchmarks/initialization.py --workers 12 --minutes 9 --output outputs/benchmarks/initialization
    python benchmarks/initialization.py --report --output outputs/benchmarks/initialization

Every run is one call of launch.py's main in a worker process that lives for many runs, so that a GPU does not wait for imports. Every
--every steps eight views are looked at by the judge (load/embedded-judge), at the end twenty-four. What is left of a run are three
small files in OUTPUT/runs: its facts (.json), what the judge saw (.npz: its unit vectors, of which any question can be asked later)
and the last views (.jpg). Finished runs are kept and not made again, unless their arguments changed; the most important come first;
after --minutes no run is started any more. The report (report.md, report.json, contact_sheet.png) tells what is missing or failed.
Arguments behind `--` go to launch.py. The runner is that of the comparison of losses (custom/dreammapping/comparison/runner.py).
"""
from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom"), str(ROOT / "benchmarks")]

from dreammapping.comparison.runner import Craft, Job, Limits, run_all  # noqa: E402
from dreammapping.evaluation.judge import Judge  # noqa: E402
from dreammapping.files import write_atomic  # noqa: E402
from embedded_quality import PROMPTS  # noqa: E402
from initialization_variants import LOSSES, SIZE, VARIANTS, cells  # noqa: E402

# ---- in the worker processes ----


def begin(judge_folder: str) -> None:
    """Load what every run of this process shares."""
    global _judge
    os.chdir(ROOT)  # where the configs and load/ are
    import launch

    launch.select_gpus(None)  # before the judge asks CUDA
    _judge = Judge(judge_folder, "cuda" if torch.cuda.is_available() else "cpu")


def harvest(job: Job, run: Path, record: Path) -> dict[str, Any]:
    """Show a finished run's pictures to the judge; write `record`.npz and .jpg; further facts.

    The .npz holds steps [S], looks [S, V, D] and final [F, D]: the judge's unit vectors, float16.
    """
    card = json.loads((run / "save" / "model_card.json").read_text(encoding="utf-8"))
    looks: dict[int, dict[int, Path]] = {}
    for path in (run / "save").glob("it*-*.png"):
        if found := re.fullmatch(r"it(\d+)-(\d+)\.png", path.name):
            looks.setdefault(int(found[1]), {})[int(found[2])] = path
    steps = sorted(looks)
    frames = sorted((run / "save").glob("it*-test/*.png"), key=lambda path: int(path.stem))[:-1]  # the last repeats the first
    final = pictures(frames)
    seen = [_judge.embed_images(pictures([looks[step][i] for i in sorted(looks[step])])).cpu() for step in steps]
    buffer = io.BytesIO()
    np.savez(buffer, steps=np.array(steps), looks=_half(torch.stack(seen)), final=_half(_judge.embed_images(final).cpu()))
    write_atomic(Path(f"{record}.npz"), buffer.getvalue())
    strip, buffer = (torch.cat(list(final), dim=1) * 255).round().byte().numpy(), io.BytesIO()
    Image.fromarray(strip).save(buffer, "JPEG", quality=85)
    write_atomic(Path(f"{record}.jpg"), buffer.getvalue())
    return {"training_seconds": card["training_seconds"], "gaussians": card["primitives"], "device": card["device"], "steps": card["steps"]}


def pictures(paths: list[Path]) -> torch.Tensor:
    """[N, SIZE, SIZE, 3] in [0, 1]: the color pictures, which come first in a row of several."""
    opened = [np.asarray(Image.open(path).convert("RGB"))[:, :SIZE] for path in paths]
    return torch.from_numpy(np.stack(opened)).float() / 255


def _half(values: torch.Tensor) -> np.ndarray:
    return values.half().numpy()


# ---- in the main process ----


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--output", type=Path, default=Path("outputs/benchmarks/initialization"))
    result.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME", help="default: all")
    result.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES), metavar="NAME", help="default: vdm sds")
    result.add_argument("--prompts", nargs="+", type=int, choices=range(len(PROMPTS)), default=list(range(len(PROMPTS))), metavar="N")
    result.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    result.add_argument("--every", type=int, default=50, help="steps between two looks")
    result.add_argument("--workers", type=int, default=1, help="runs at once")
    result.add_argument("--minutes", type=float, default=float("inf"), help="start no run after so many minutes")
    result.add_argument("--grace", type=float, default=float("inf"), help="seconds after which runs still going on then are given up")
    result.add_argument("--keep-trials", action="store_true", help="keep the whole folders of the runs")
    result.add_argument("--report", action="store_true", help="only make the report of what is there")
    result.add_argument("--judge", type=Path, default=ROOT / "load/embedded-judge")
    result.add_argument("extra", nargs="*", help="further arguments of launch.py")
    return result


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the workers
    args = parser().parse_args()
    judge = Judge(args.judge)  # a wrong folder is found before anything runs
    wanted = cells(args.variants, args.losses, args.prompts, args.seeds)
    if not args.report:
        jobs = [cell.job(args.every, tuple(args.extra)) for cell in wanted]
        craft = Craft(harvest, partial(begin, str(args.judge.resolve())))
        run_all(jobs, args.output.resolve(), craft, Limits(args.workers, args.minutes, args.grace, args.keep_trials))
    from initialization_report import write_report

    print(write_report(args.output, wanted, judge))


if __name__ == "__main__":
    main()
