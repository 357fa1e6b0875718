"""What one training iteration costs, loss by loss against SDS, in one process.

    python benchmarks/iteration.py                              # embedded preset, CPU or CUDA: SDS and VDM in turns
    python benchmarks/iteration.py --losses all                 # every loss that has a config
    python benchmarks/iteration.py --losses all --kind 2d       # latents optimized directly: no rendering, no VAE
    python benchmarks/iteration.py --paper-shapes --losses all  # paper's sizes, random weights of SD 2.1-base's shapes, CUDA
    python benchmarks/iteration.py --paper-shapes --side-by-side # ours, ours eager, threestudio's way with and without decode
    python benchmarks/iteration.py --tiny --side-by-side         # the same on a miniature, for a look at the script itself

Prints a table and writes the raw milliseconds as JSON, with the U-Net evaluations counted per image. The number of
Gaussians is held constant, so that all losses draw the same scene; densification is not part of what is measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from benchmarks.plain_step import PlainStep  # noqa: E402
from benchmarks.stepping import (  # noqa: E402
    CONFIGS,
    COMPILED,
    EAGER,
    UNCOMPILED,
    Run,
    configuration,
    own_overrides,
    random_corrector,
    random_sd21,
    teachers_loaded_once,
    timed,
    tiny_teacher,
)
from dreammapping.distillation import LOSSES  # noqa: E402
from dreammapping.evaluation.resources import device_name, peak_gpu_memory_bytes, peak_memory_bytes  # noqa: E402
from threestudio.utils.misc import get_device  # noqa: E402

YARDSTICK = "sds"

def losses_with_config(kind: str) -> list[str]:
    """Every registered loss that has a config of this kind ("gs", "2d"); SDS, the yardstick, comes first."""
    found = [name for name in LOSSES.names() if (CONFIGS / f"{name}-{kind}.yaml").exists()]
    return sorted(found, key=lambda name: (name != YARDSTICK, name))


def compare(runs: dict[str, Run], warmup: int, blocks: int, per_block: int) -> dict[str, dict[str, Any]]:
    """Milliseconds and U-Net work per iteration; the runs take turns, so that a slow moment hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(warmup):
            run.step()
        run.system.guidance.teacher.calls.forwards = run.system.guidance.teacher.calls.backwards = 0
    for _ in range(blocks):
        for name, run in runs.items():
            times[name] += [run.step() for _ in range(per_block)]
    return {name: {"milliseconds": times[name], **run.unet_work(blocks * per_block)} for name, run in runs.items()}


def paper_shapes(device: torch.device, losses: list[str], kind: str, iterations: int, overrides: list[str]) -> dict[str, Any]:
    """The paper preset's iterations, one loss after the other so that each peak memory is its own."""
    if device.type != "cuda":
        raise SystemExit("--paper-shapes needs a CUDA device; on a CPU one iteration of that size takes minutes.")
    report: dict[str, Any] = {}
    torch.cuda.init()  # peak memory cannot be reset before
    with tempfile.TemporaryDirectory() as scratch:
        teacher = random_sd21(Path(scratch) / "teacher", device)
        own = own_overrides(teacher, kind)
        corrector = random_corrector(Path(scratch) / "corrector", teacher) if "lmc-sds" in losses else None
        for loss in losses:
            needed = [f"system.guidance.loss.corrector={corrector}"] if loss == "lmc-sds" else []
            torch.cuda.reset_peak_memory_stats(device)
            run = Run(configuration(loss, kind, [*own, *needed, *overrides], False), device)
            report[loss] = compare({loss: run}, warmup=3, blocks=1, per_block=iterations)[loss]
            report[loss]["peak_gpu_memory_bytes"] = peak_gpu_memory_bytes(device)
            print(line(loss, report), flush=True)
            del run
            gc.collect()
            torch.cuda.empty_cache()
    return report


def embedded(losses: list[str], kind: str, device: torch.device, blocks: int, per_block: int, overrides: list[str]) -> dict[str, Any]:
    runs = {loss: Run(configuration(loss, kind, overrides, True), device) for loss in losses}
    return compare(runs, warmup=3, blocks=blocks, per_block=per_block)


def side_by_side(device: torch.device, tiny: bool, iterations: int, overrides: list[str], output: Path) -> dict[str, Any]:
    """VDM + DCA and SDS, ours (everything on, then everything off), and the plain step of threestudio, in one process.

    `ms` is per iteration, of `iterations` that follow each other without a wait. Written after each row.
    """
    report: dict[str, Any] = {"device": device_name(device), "torch": torch.__version__, "rows": {}}
    with tempfile.TemporaryDirectory() as scratch, teachers_loaded_once():
        folder = Path(scratch) / "teacher"
        teacher = tiny_teacher(folder) if tiny else random_sd21(folder, device)
        own = own_overrides(teacher, "gs", tiny)
        on = [*UNCOMPILED, *([] if tiny else [COMPILED])]
        plain = {f"plain{' with decode' if decode else ''}": decode for decode in (False, True)}
        for loss, settings, name in (
            ("vdm", on, "VDM+DCA"), ("sds", on, "SDS"), ("vdm", EAGER, "VDM+DCA eager"), ("sds", EAGER, "SDS eager"),
            *(("sds", EAGER, name) for name in plain),
        ):  # fmt: skip
            config = configuration(loss, "gs", [*own, *settings, *overrides], False)
            try:
                report["rows"][name] = _row(config, device, iterations, teacher, plain.get(name))
            except Exception as problem:  # the other rows are still worth having
                report["rows"][name] = {"error": f"{type(problem).__name__}: {problem}"}
            print(f"  {name:20}{_told(report['rows'][name])}", flush=True)
            write_report(output, report)
    return report


def _row(config: Any, device: torch.device, iterations: int, teacher: Path, decode: bool | None) -> dict[str, Any]:
    """`decode` None: our own step; else the plain one."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    begin = time.perf_counter()
    run = Run(config, device)
    guide = None if decode is None else PlainStep(teacher, run.system.prompt_utils, device, decode=decode)

    def step() -> None:
        run.advance(guide=guide)

    step()
    first = time.perf_counter() - begin
    timed(step, device, 5)
    found = sorted(timed(step, device, max(iterations // 3, 1)) for _ in range(3))
    peak = peak_gpu_memory_bytes(device)
    return {"ms": found[1], "ms_least": found[0], "ms_most": found[2], "first_step_s": first, "peak_gpu_memory_bytes": peak}


def _told(row: dict[str, Any]) -> str:
    if "error" in row:
        return row["error"][:200]
    memory = f"   {row['peak_gpu_memory_bytes'] / 2**30:.1f} GiB" if row["peak_gpu_memory_bytes"] else ""
    spread = f"({row['ms_least']:.1f} to {row['ms_most']:.1f})"
    return f"{row['ms']:9.1f} ms {spread:20} first step after {row['first_step_s']:.0f} s{memory}"


def write_report(output: Path, report: dict[str, Any]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1), encoding="utf-8")


def over_yardstick(loss: str, report: dict[str, Any]) -> float:
    """Mean milliseconds over SDS's: the number of U-Net calls of some losses varies from step to step."""
    mean = {name: statistics.fmean(report[name]["milliseconds"]) for name in (loss, YARDSTICK)}
    return mean[loss] / mean[YARDSTICK]


def line(loss: str, report: dict[str, Any]) -> str:
    entry = report[loss]
    peak = entry.get("peak_gpu_memory_bytes")
    return (
        f"  {loss:14}{statistics.median(entry['milliseconds']):9.1f} ms median{statistics.fmean(entry['milliseconds']):9.1f} mean"
        f"{over_yardstick(loss, report):8.3f} x {YARDSTICK}   F {entry['forwards']:5.2f}  Bk {entry['backwards']:4.2f}"
        + (f"   {peak / 2**30:.1f} GiB" if peak else "")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", default=["sds", "vdm"], help="names, or all; SDS is always measured")
    parser.add_argument("--kind", choices=("gs", "2d"), default="gs", help="Gaussians, or latents optimized directly")
    parser.add_argument("--paper-shapes", action="store_true", help="the paper's sizes, random weights, CUDA")
    parser.add_argument("--side-by-side", action="store_true", help="against eager and against threestudio's plain step")
    parser.add_argument("--tiny", action="store_true", help="--side-by-side on a miniature")
    parser.add_argument("--quick", action="store_true", help="--side-by-side with 6 iterations")
    parser.add_argument("--iterations", type=int, default=20, help="of --paper-shapes, after 3 to warm up")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--per-block", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/iteration.json"))
    parser.add_argument("overrides", nargs="*", help="key=value, behind --")
    options = parser.parse_args()

    warnings.filterwarnings("ignore", message=".*self.log.*")  # there is no trainer here
    device, kind = get_device(), options.kind
    if options.side_by_side:
        iterations = 6 if options.quick else options.iterations
        side_by_side(device, options.tiny or not options.paper_shapes, iterations, options.overrides, options.output)
        print(f"raw numbers: {options.output}")
        return
    losses = losses_with_config(kind) if options.losses == ["all"] else [YARDSTICK, *(n for n in options.losses if n != YARDSTICK)]
    if options.paper_shapes:
        measured = paper_shapes(device, losses, kind, options.iterations, options.overrides)
    else:
        measured = embedded(losses, kind, device, options.blocks, options.per_block, options.overrides)
    report = {
        "what": f"{'paper shapes, random weights' if options.paper_shapes else 'embedded preset'}, {kind}",
        "device": device_name(device),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "losses": measured,
        "median_ms": {name: statistics.median(entry["milliseconds"]) for name, entry in measured.items()},
        "mean_over_sds": {name: over_yardstick(name, measured) for name in measured},
        "peak_memory_bytes": peak_memory_bytes(),
    }
    write_report(options.output, report)
    print(f"{report['what']}, {report['device']}, torch {report['torch']}")
    print("\n".join(line(name, measured) for name in measured))
    print(f"raw numbers: {options.output}")


if __name__ == "__main__":
    main()
