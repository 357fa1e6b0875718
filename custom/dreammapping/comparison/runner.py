"""Many runs of launch.py at once, in worker processes that live for many of them, so that a GPU does not wait for imports.

What a finished run leaves is its record: OUTPUT/runs/NAME.json, written last, and whatever files the caller's `harvest` writes beside it. A run
with a record of the same arguments is not made again; everything may be killed at any moment and started again. A run that fails leaves its
reason and is tried again only after all others; one whose process dies is tried `TRIES` times.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import shutil
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

import torch

from ..files import write_atomic

TRIES = 2
"""How often a run is tried whose worker process died."""
DIED = "the process died; was the memory full?"


@dataclass(frozen=True)
class Job:
    """One run."""

    name: str
    """Of its files: OUTPUT/runs/NAME.json, and OUTPUT/trials/NAME/run while it lasts."""
    arguments: tuple[str, ...]
    """Of launch.py, without those that say where the run's folder is."""
    about: dict[str, Any] = field(default_factory=dict, hash=False)
    """What else its record says."""


def nothing() -> None:
    """A worker that needs no preparation."""


@dataclass(frozen=True)
class Craft:
    """How runs are made: functions of a module, because other processes call them."""

    harvest: Callable[[Job, Path, Path], dict[str, Any]]
    """Run, its folder, path of its record without suffix -> further facts. Writes files beside the record."""
    begin: Callable[[], None] = nothing
    """Prepares a worker process."""
    train: Callable[[list[str]], str | None] | None = None
    """Arguments -> what went wrong, or None; None: `launch_here`."""
    start: str = "spawn"
    """How multiprocessing starts workers. CUDA wants spawn; fork is quick, for work without it."""


@dataclass(frozen=True)
class Limits:
    """What a command may take."""

    workers: int = 1
    """Runs at once."""
    minutes: float = float("inf")
    """After so many no run is started any more."""
    grace: float = float("inf")
    """Seconds after which runs that still go on then are given up."""
    keep_trials: bool = False
    """Keep the whole folders of the runs."""


# ---- records ----


def record_of(output: Path, job: Job) -> Path:
    return output / "runs" / f"{job.name}.json"


def read_record(output: Path, job: Job) -> dict[str, Any] | None:
    """The facts of a run; None if there are none, or they are of a run with other arguments."""
    try:
        facts = json.loads(record_of(output, job).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and facts.get("arguments") == list(job.arguments) else None


def finished(output: Path, job: Job) -> bool:
    """Whether its record is there and tells of no failure."""
    facts = read_record(output, job)
    return facts is not None and "failure" not in facts


def write_record(output: Path, job: Job, facts: dict[str, Any]) -> dict[str, Any]:
    """Write and return what a record says."""
    facts = {**job.about, "arguments": list(job.arguments), **facts}
    write_atomic(record_of(output, job), json.dumps(facts, indent=1).encode())
    return facts


# ---- in the worker processes ----


def start_worker(begin: Callable[[], None], gpu: str | None = None) -> None:
    """Prepare this process, which sees one GPU; it ends when the one that started it does, even if that was killed."""
    threading.Thread(target=_follow_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before anything asks CUDA
    torch.set_num_threads(1)
    extension = __name__.removesuffix(".comparison.runner")  # launch.py knows it as dreammapping; its classes must not be there twice
    sys.modules.setdefault("dreammapping", sys.modules[extension])
    begin()


def _follow_parent() -> None:
    if (parent := parent_process()) is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def work(job: Job, output: Path, craft: Craft, limits: Limits) -> dict[str, Any]:
    """Make one run and its record; the facts."""
    trial, log = output / "trials" / job.name, output / "trials" / f"{job.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(trial, ignore_errors=True)  # of an interrupted run
    where = [f"exp_root_dir={output / 'trials'}", f"name={job.name}", "tag=run", "use_timestamp=false"]
    started, facts = time.monotonic(), {}
    with output_to(log):
        failure = explained(lambda: (craft.train or launch_here)([*job.arguments, *where]))
        seconds = round(time.monotonic() - started, 1)
        if failure is None:
            failure = explained(lambda: facts.update(craft.harvest(job, trial / "run", record_of(output, job).with_suffix(""))))
    facts = {"seconds": seconds, "workers": limits.workers, **(facts if failure is None else {"failure": failure})}
    facts = write_record(output, job, facts)
    if failure is None and not limits.keep_trials:
        shutil.rmtree(trial, ignore_errors=True)
        log.unlink()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()  # so that the next card tells of its own run
    return facts


def explained(do: Callable[[], str | None]) -> str | None:
    """What `do` says went wrong, or what it raised; None if nothing did. A run that fails is a result, too."""
    try:
        return do()
    except Exception as problem:
        import traceback

        traceback.print_exc()
        return f"{type(problem).__name__}: {problem}"[:500]


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


# ---- in the main process ----


def visible_gpus() -> list[str]:
    """Names of the GPUs that workers share, as CUDA_VISIBLE_DEVICES has them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(i) for i in range(torch.cuda.device_count())] if given is None else [name.strip() for name in given.split(",") if name.strip()]


def run_all(jobs: Sequence[Job], output: Path, craft: Craft, limits: Limits = Limits()) -> None:
    """Make the runs that are not finished, in their order and `limits.workers` at once, on all visible GPUs in turn.

    Ends when all are done, or when the time is up and then `limits.grace` seconds have passed or nothing is running any more.
    """
    todo = [job for job in jobs if not finished(output, job)]
    failed = [job for job in todo if read_record(output, job)]
    fresh = [job for job in todo if not read_record(output, job)]
    print(f"{len(jobs)} runs, {len(todo)} to do" + (f", {len(failed)} of them again after a failure" * bool(failed)), flush=True)
    waiting = deque(fresh + failed)
    deadline = time.monotonic() + 60 * limits.minutes
    gpus = visible_gpus() or [None]
    workers = [_Worker(craft, gpus[i % len(gpus)]) for i in range(min(limits.workers, len(waiting)))]
    try:
        _work_off(waiting, workers, output, limits, deadline)
    finally:
        for worker in workers:
            worker.stop()


def _work_off(waiting: deque[Job], workers: list[_Worker], output: Path, limits: Limits, deadline: float) -> None:
    died: Counter[str] = Counter()
    flying: dict[Future, tuple[_Worker, Job]] = {}
    while True:
        for worker in workers:
            if waiting and time.monotonic() < deadline and all(worker is not other for other, _ in flying.values()):
                job = waiting.popleft()
                flying[worker.submit(job, output, limits)] = worker, job
        if not flying:
            return
        patience = min(max(1.0, deadline + limits.grace - time.monotonic()), 3600.0)  # the system's clock ends somewhere
        done, _ = wait(flying, timeout=patience, return_when=FIRST_COMPLETED)
        if not done and time.monotonic() > deadline + limits.grace:
            return
        for future in done:
            worker, job = flying.pop(future)
            try:
                facts = future.result()
            except BrokenProcessPool:
                worker.stop()
                died[job.name] += 1
                if died[job.name] < TRIES and not finished(output, job):
                    waiting.appendleft(job)
                    continue
                facts = read_record(output, job) if finished(output, job) else write_record(output, job, {"failure": DIED})
            print(_line(job, facts), flush=True)


class _Worker:
    """One process that makes one run after the other; a new one takes the place of one that died."""

    def __init__(self, craft: Craft, gpu: str | None) -> None:
        self._craft, self._gpu = craft, gpu
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, job: Job, output: Path, limits: Limits) -> Future:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, get_context(self._craft.start), start_worker, (self._craft.begin, self._gpu))
        try:
            return self._pool.submit(work, job, output, self._craft, limits)
        except BrokenProcessPool as problem:  # it died between two runs
            future: Future = Future()
            future.set_exception(problem)
            return future

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._pool is None:
            return
        processes = list((self._pool._processes or {}).values())
        for process in processes:
            process.kill()  # Lightning answers a termination by ending the run as if it were whole
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None


def _line(job: Job, facts: dict[str, Any]) -> str:
    return f"{job.name:64s} {facts.get('failure') or '{seconds:6.1f} s'.format(**facts)}"
