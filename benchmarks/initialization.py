"""How much does the start matter? The embedded preset from a sphere, from Shap-E and from what might help the sphere.

    python benchmarks/initialization.py --workers 12 --minutes 9 --output outputs/benchmarks/initialization
    python benchmarks/initialization.py --report --output outputs/benchmarks/initialization

Every run is one call of launch.py's main in a worker process that lives for many runs, so that a GPU does not wait for imports. Every
--every steps eight views are looked at by the judge (load/embedded-judge), at the end twenty-four. What is left of a run are three
small files in OUTPUT/runs: its facts (.json), what the judge saw (.npz: its unit vectors, of which any question can be asked later)
and the last views (.jpg). Finished runs are kept and not made again, unless their arguments changed; the most important come first;
after --minutes no run is started any more. The report (report.md, report.json, contact_sheet.png) tells what is missing or failed.
Arguments behind `--` go to launch.py.
"""
from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import re
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom"), str(ROOT / "benchmarks")]

from dreammapping.evaluation.judge import Judge  # noqa: E402
from dreammapping.files import write_atomic  # noqa: E402
from embedded_quality import PROMPTS  # noqa: E402
from initialization_variants import LOSSES, SIZE, VARIANTS, Cell, cells  # noqa: E402

TRIES = 2
"""How often a run is tried whose worker process died."""

# ---- in the worker processes ----


def begin(judge_folder: str) -> None:
    """Load what every run of this process shares."""
    global _judge
    torch.set_num_threads(1)
    os.chdir(ROOT)  # where the configs and load/ are
    import launch

    launch.select_gpus(None)  # before the judge asks CUDA
    _judge = Judge(judge_folder, "cuda" if torch.cuda.is_available() else "cpu")


def work(cell: Cell, arguments: list[str], output: Path, keep: bool) -> dict[str, Any]:
    """Train one asset, let the judge look at it, write the files of its record; the facts."""
    trial, log = output / "trials" / cell.name, output / "trials" / f"{cell.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(trial, ignore_errors=True)  # of an interrupted run
    started = time.monotonic()
    with output_to(log):
        failure = launch_here(arguments)
    facts = {**cell.__dict__, "arguments": arguments, "seconds": round(time.monotonic() - started, 1)}
    if failure is None:
        facts |= harvest(trial / "run", output / "runs" / cell.name)
    else:
        facts["failure"] = failure
    write_atomic(output / "runs" / f"{cell.name}.json", json.dumps(facts, indent=1).encode())
    if failure is None and not keep:
        shutil.rmtree(trial)
        log.unlink()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()  # so that the next card tells of its own run
    return facts


def launch_here(arguments: list[str]) -> str | None:
    """Run launch.py's main in this process; what went wrong, or None."""
    import launch

    given, sys.argv = sys.argv, ["launch.py", *arguments]  # which the trial folder records
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            code = launch.main(arguments)
    except SystemExit as wrong:  # argparse
        code = wrong.code
    except Exception as problem:  # a run that fails is a result, too
        import traceback

        traceback.print_exc()
        return f"{type(problem).__name__}: {problem}"[:500]
    finally:
        sys.argv = given
        print(said.getvalue(), file=sys.stderr)
    if code:
        return (said.getvalue().strip().splitlines() or [f"exit code {code}"])[-1].removeprefix("error: ")[:500]
    return None


@contextlib.contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Everything this process prints goes to a file: through sys.stdout and sys.stderr, and through loggers that hold earlier ones."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with open(path, "w", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, original in enumerate(kept, start=1):
                os.dup2(original, number)
                os.close(original)


def harvest(run: Path, record: Path) -> dict[str, Any]:
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
    write_atomic(record.with_name(f"{record.name}.npz"), buffer.getvalue())
    strip, buffer = (torch.cat(list(final), dim=1) * 255).round().byte().numpy(), io.BytesIO()
    Image.fromarray(strip).save(buffer, "JPEG", quality=85)
    write_atomic(record.with_name(f"{record.name}.jpg"), buffer.getvalue())
    return {"training_seconds": card["training_seconds"], "gaussians": card["primitives"], "device": card["device"], "steps": card["steps"]}


def pictures(paths: list[Path]) -> torch.Tensor:
    """[N, SIZE, SIZE, 3] in [0, 1]: the color pictures, which come first in a row of several."""
    opened = [np.asarray(Image.open(path).convert("RGB"))[:, :SIZE] for path in paths]
    return torch.from_numpy(np.stack(opened)).float() / 255


def _half(values: torch.Tensor) -> np.ndarray:
    return values.half().numpy()


# ---- in the main process ----


def run_all(todo: list[Cell], args: argparse.Namespace) -> None:
    """Run until all is done or the time is up; then wait --grace seconds for what is still running."""
    deadline, waiting = time.monotonic() + 60 * args.minutes, deque(todo)
    died: Counter[Cell] = Counter()
    while waiting and time.monotonic() < deadline:
        lost = run_pool(waiting, args, deadline)
        died.update(lost)
        for cell in reversed(lost):  # first of all, in their order
            if died[cell] < TRIES:
                waiting.appendleft(cell)
            else:
                note_death(cell, args)


def run_pool(waiting: deque[Cell], args: argparse.Namespace, deadline: float) -> list[Cell]:
    """Work off `waiting` with one pool of processes; the runs that were lost because one of the processes died."""
    flying: dict[Future, Cell] = {}
    workers = min(args.workers, len(waiting))
    with ProcessPoolExecutor(workers, get_context("spawn"), begin, (str(args.judge),)) as pool:
        try:
            while flying or (waiting and time.monotonic() < deadline):
                while waiting and len(flying) < workers and time.monotonic() < deadline:
                    flying[pool.submit(work, waiting[0], arguments_of(waiting[0], args), args.output, args.keep_trials)] = waiting[0]
                    waiting.popleft()
                patience = min(max(1.0, deadline + args.grace - time.monotonic()), 3600.0)  # the system's clock ends somewhere
                done, _ = wait(flying, timeout=patience, return_when=FIRST_COMPLETED)
                if not done and time.monotonic() > deadline + args.grace:
                    break
                for future in done:
                    print(line(flying[future], future.result()), flush=True)
                    del flying[future]
        except BrokenProcessPool:
            return list(flying.values()) or [waiting.popleft()]
        for process in list((pool._processes or {}).values()) if flying else ():
            process.terminate()
    return []


def note_death(cell: Cell, args: argparse.Namespace) -> None:
    """The record of a run whose process died."""
    facts = {**cell.__dict__, "arguments": arguments_of(cell, args), "failure": "the process died; was the memory full?"}
    write_atomic(args.output / "runs" / f"{cell.name}.json", json.dumps(facts, indent=1).encode())
    print(line(cell, facts), flush=True)


def line(cell: Cell, facts: dict[str, Any]) -> str:
    return f"{cell.name:64s} {facts.get('failure') or '{seconds:6.1f} s'.format(**facts)}"


def arguments_of(cell: Cell, args: argparse.Namespace) -> list[str]:
    return cell.arguments(args.output / "trials", args.every, tuple(args.extra))


def finished(cell: Cell, args: argparse.Namespace) -> bool:
    """Whether its record is there, of a run with the same overrides (its folder may have moved)."""
    try:
        facts = json.loads((args.output / "runs" / f"{cell.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if "failure" in facts:
        return False
    ours, theirs = ([a for a in row if not a.startswith("exp_root_dir=")] for row in (arguments_of(cell, args), facts["arguments"]))
    return ours == theirs


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
    args.output = args.output.resolve()
    judge = Judge(args.judge)  # a wrong folder is found before anything runs
    wanted = cells(args.variants, args.losses, args.prompts, args.seeds)
    if not args.report:
        todo = [cell for cell in wanted if not finished(cell, args)]
        print(f"{len(wanted)} runs, {len(todo)} to do", flush=True)
        run_all(todo, args)
    from initialization_report import write_report

    print(write_report(args.output, wanted, judge))


if __name__ == "__main__":
    main()
