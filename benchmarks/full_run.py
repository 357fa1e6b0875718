"""A whole run of the paper's setting, from starting the program to finished files: the first start, and the next one.

    python benchmarks/full_run.py                       # a CUDA GPU: 5,000 steps, random weights of SD 2.1-base's shapes
    python benchmarks/full_run.py --tiny --steps 20     # any machine: a miniature, to see that everything runs

`launch.py` runs in a process of its own with everything on, the compiler included. The first start finds no compiled code;
the second finds the first one's. The seconds are the clock's; the training's are also in the model card. What random
weights make is noise, and densification goes on to its upper limit, so that a run on real weights has fewer Gaussians.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom")]

from benchmarks.stepping import COMPILED, alone, own_overrides, random_sd21, tiny_teacher  # noqa: E402

CONFIG = "custom/dreammapping/configs/vdm-gs.yaml"
MARKS = {"set-up": "Images of validation", "training": "`Trainer.fit` stopped", "test views and export": "Test results"}
"""What a part of the run ends with in the program's output; the rest is its end."""
KEPT = ("steps", "primitives", "training_seconds", "peak_gpu_memory_bytes", "peak_memory_bytes", "device", "versions", "files")


def start(folder: Path, name: str, steps: int, tiny: bool) -> dict[str, Any]:
    """Run to the end; seconds by part, facts of the model card, and the output's tail if it failed."""
    caches = {"XDG_CACHE_HOME": "cache", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    environment = {**os.environ, **{key: str(folder / value) for key, value in caches.items()}, "PYTHONUNBUFFERED": "1"}
    # The prompt is embedded in a process of its own, as it is by default.
    overrides = [o for o in own_overrides(folder / "teacher", "gs", tiny) if "spawn" not in o]
    command = [
        sys.executable, "launch.py", "--config", CONFIG, "--train", "system.prompt_processor.prompt=a red striped mug",
        f"trainer.max_steps={steps}", f"exp_root_dir={folder / name}", "use_timestamp=false", "trainer.enable_progress_bar=false",
        *overrides, *([] if tiny else [COMPILED]),
    ]  # fmt: skip
    begin, marks, lines = time.perf_counter(), {}, []
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        for line in process.stdout:
            lines.append(line)
            for part, text in MARKS.items():
                if text in line:
                    marks.setdefault(part, time.perf_counter() - begin)
    seconds = time.perf_counter() - begin
    if process.returncode:
        return {"error": f"exit {process.returncode}: {''.join(lines[-30:])}"}
    (card,) = (folder / name).rglob("model_card.json")
    facts = json.loads(card.read_text(encoding="utf-8"))
    ends = [0.0, *marks.values(), seconds]
    parts = {part: end - before for part, before, end in zip([*marks, "end"], ends, ends[1:])}
    return {"seconds": seconds, "parts": parts, **{key: facts.get(key) for key in KEPT}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/full_run.json"))
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder, report = Path(scratch), {}
        make, *where = (tiny_teacher,) if options.tiny else (random_sd21, "cuda")
        alone(make, folder / "teacher", *where)
        for number in range(1, options.starts + 1):
            found = report[f"start {number}"] = start(folder, f"start{number}", options.steps, options.tiny)
            options.output.write_text(json.dumps(report, indent=1), encoding="utf-8")
            print(f"start {number}:", found.get("error") or summary(found), flush=True)
    print(f"raw numbers: {options.output}")


def summary(found: dict[str, Any]) -> str:
    parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in found["parts"].items())
    return f"{found['seconds']:.1f} s ({parts}); {found['primitives']:,} Gaussians"


if __name__ == "__main__":
    main()
