"""Kills a run at random moments, resumes it until it is finished, and compares with a run that was left alone.

    python benchmarks/kill_resume.py --runs 5 --kills 3

Every final checkpoint must hold the same tensors bit for bit, and the exported splat the same bytes. Uses a miniature
teacher with random weights; the loop, the densification and the files are the real ones. Prints a table, writes JSON,
and exits with 1 if any run differs.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

import small_run  # noqa: E402
from tiny_teacher import make_tiny_teacher  # noqa: E402


class Trial:
    """One run in its own folder, started again and again until it is finished."""

    def __init__(self, folder: Path, teacher: Path, steps: int, every: int) -> None:
        self.folder = folder / "run" / "small"
        self.arguments = small_run.overrides(teacher, folder, steps, every)

    def start(self) -> subprocess.Popen:
        last = self.folder / "ckpts" / "last.ckpt"
        if last.is_file():
            command = small_run.command("--train", self.folder / "configs" / "parsed.yaml", f"resume={last}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            command = small_run.command("--train", small_run.CONFIG, *self.arguments)
        log = open(self.folder.parent.parent / "log.txt", "ab")
        return subprocess.Popen(command, cwd=ROOT, env=small_run.environment(), stdout=log, stderr=log)

    def finish(self) -> None:
        code = self.start().wait()
        if code != 0:
            raise SystemExit(f"A run that nobody killed ended with {code}; see {self.folder.parent.parent / 'log.txt'}")

    def kill_after(self, seconds: float) -> int | None:
        """Step of the newest checkpoint when the process was killed; None if it had ended before."""
        process = self.start()
        try:
            process.wait(timeout=seconds)
            return None
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
            process.wait()
        names = [path.stem for path in (self.folder / "ckpts").glob("epoch=*.ckpt")]
        return max((int(name.split("step=")[1].split("-")[0]) for name in names), default=0)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "ckpts" / "last.ckpt"

    def splats(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.folder.glob("save/*-export/*")) if path.is_file()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--kills", type=int, default=3, help="per run")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=5, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/kill_resume.json"))
    options = parser.parse_args()
    chance = random.Random(options.seed)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        teacher = make_tiny_teacher(Path(scratch) / "teacher")
        folder = Path(scratch) / "reference"
        folder.mkdir()
        reference = Trial(folder, teacher, options.steps, options.every)
        begin = time.monotonic()
        reference.finish()
        duration = time.monotonic() - begin
        for index in range(options.runs):
            folder = Path(scratch) / f"run-{index}"
            folder.mkdir()
            trial = Trial(folder, teacher, options.steps, options.every)
            killed_at = [trial.kill_after(chance.uniform(0.1, 0.8) * duration) for _ in range(options.kills)]
            trial.finish()
            different = small_run.differences(reference.checkpoint, trial.checkpoint)
            same_files = reference.splats() == trial.splats() != {}
            rows.append({"killed_at": killed_at, "different": different, "same_files": same_files})
            verdict = "identical" if not different and same_files else f"DIFFERENT {different[:5]}, files {same_files}"
            print(f"run {index}: killed with the newest checkpoint at steps {killed_at}: {verdict}", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"reference_seconds": duration, "runs": rows}, indent=1), encoding="utf-8")
    good = sum(not row["different"] and row["same_files"] for row in rows)
    print(f"{good} of {len(rows)} runs end like the one that was left alone")
    sys.exit(good != len(rows))


if __name__ == "__main__":
    main()
