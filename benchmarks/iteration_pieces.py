"""One training iteration taken apart: milliseconds of each piece, eager and optimised, beside a floor.

    python benchmarks/iteration_pieces.py --tiny                            # a miniature, on whatever there is
    python benchmarks/iteration_pieces.py --paper-shapes                    # VDM on Gaussians at the paper's sizes, CUDA
    python benchmarks/iteration_pieces.py --paper-shapes --kind nerf --losses sds --variants optimised
    python benchmarks/iteration_pieces.py --paper-shapes --variants eager compiled-only=system.guidance.cuda_graphs=false

`device ms` is the time between two CUDA events round a piece, gaps included in which the device waited for the host;
`host ms` the time the host spent there. Where the host needs longer, launching is what limits. The floor counts the
products, convolutions and attentions of an eager step and what they read and write, each at the speed that one large
product and one large copy reach in this process. On a CPU both columns are the same.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from benchmarks import pieces  # noqa: E402
from benchmarks.stepping import (  # noqa: E402
    COMPILED,
    EAGER,
    UNCOMPILED,
    Run,
    configuration,
    own_overrides,
    random_sd21,
    synchronize,
    teachers_loaded_once,
    timed,
    tiny_teacher,
)
from dreammapping.evaluation.resources import device_name, peak_gpu_memory_bytes  # noqa: E402
from threestudio.utils.misc import get_device  # noqa: E402


def variants(names: list[str], tiny: bool) -> dict[str, list[str]]:
    """name -> overrides. `optimised`: all that the guidance has, and compiled; `eager`: nothing of it; `graphs`: all but
    compiled; `name=override,override`: optimised, and these."""
    known = {"optimised": [*UNCOMPILED, *([] if tiny else [COMPILED])], "graphs": list(UNCOMPILED), "eager": list(EAGER)}
    found = {}
    for name in names:
        label, _, more = name.partition("=")
        found[label] = [*known.get(label, known["optimised"]), *(more.split(",") if more else [])]
    return found


def measure(run: Run, iterations: int, count: bool) -> dict[str, Any]:
    """Pieces of a step, the whole step, memory, waits; with `count` the floor, for which the run must be eager."""
    device, system = run.device, run.system
    timed(run.advance, device, 4)  # compiles and records
    entry: dict[str, Any] = {"wall_ms": timed(run.advance, device, iterations)}
    entry["peak_gpu_memory_bytes"] = peak_gpu_memory_bytes(device)
    if device.type == "cuda":
        try:
            entry["waits_per_step"] = pieces.waits(run, 3)
        except Exception as problem:  # the times are still worth having
            entry["waits_error"] = f"{type(problem).__name__}: {problem}"
    timeline, recorded = pieces.Timeline(device), system.guidance.distiller.recorded
    pieces.bracket_guidance(run, timeline)
    try:
        steps = []
        for _ in range(iterations):
            run.advance(timeline.piece)
            synchronize(device)
            steps.append(timeline.take())
        entry["device_ms"] = pieces.medians([device_ms for device_ms, _ in steps])
        entry["host_ms"] = pieces.medians([host_ms for _, host_ms in steps])
        entry["outside_ms"] = entry["wall_ms"] - sum(entry["device_ms"].values())
        if count:
            entry |= _counted(run, timeline)
    finally:
        pieces.unbracket(run, recorded)
    return entry


def _counted(run: Run, timeline: pieces.Timeline) -> dict[str, Any]:
    """`floor` of one step, or why there is none."""
    try:
        with pieces.OperationCount(timeline) as operations:
            run.advance(timeline.piece)
        return {"floor": operations.floor(pieces.measured_ceilings(run.device))}
    except Exception as problem:  # the measured times are still worth having
        return {"floor_error": f"{type(problem).__name__}: {problem}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", default=["vdm"])
    parser.add_argument("--kind", choices=("gs", "2d", "nerf"), default="gs")
    parser.add_argument("--paper-shapes", action="store_true", help="random weights of SD 2.1-base's shapes, CUDA")
    parser.add_argument("--tiny", action="store_true", help="a miniature teacher, 32 x 32 pixels (the default)")
    parser.add_argument("--variants", nargs="+", default=["eager", "optimised"])
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="6 iterations")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/iteration_pieces.json"))
    parser.add_argument("overrides", nargs="*", help="key=value, behind --")
    options = parser.parse_args()
    device = get_device()
    if options.paper_shapes and device.type != "cuda":
        raise SystemExit("--paper-shapes needs a CUDA device; on a CPU one iteration of that size takes minutes.")
    warnings.filterwarnings("ignore", message=".*self.log.*")  # there is no trainer here

    tiny, iterations = not options.paper_shapes, 6 if options.quick else options.iterations
    report: dict[str, Any] = {"device": device_name(device), "torch": torch.__version__, "kind": options.kind, "runs": {}}
    run_all(options, device, report, tiny, iterations)
    print(f"raw numbers: {options.output}")


def run_all(options: argparse.Namespace, device: torch.device, report: dict[str, Any], tiny: bool, iterations: int) -> None:
    """Every variant of every loss; `report` is written after each."""
    with tempfile.TemporaryDirectory() as scratch, teachers_loaded_once():
        folder = Path(scratch) / "teacher"
        teacher = tiny_teacher(folder) if tiny else random_sd21(folder, device)
        report["ceilings"] = pieces.measured_ceilings(device)
        print(f"{report['device']}, torch {torch.__version__}, {options.kind}, one product {report['ceilings']['tflops']:.1f} TFLOP/s, "
              f"one copy {report['ceilings']['gb_per_s']:.0f} GB/s", flush=True)  # fmt: skip
        for name, settings in variants(options.variants, tiny).items():
            for loss in options.losses:
                own = [*own_overrides(teacher, options.kind, tiny), *settings, *options.overrides]
                if device.type == "cuda":
                    gc.collect()
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats(device)
                try:
                    entry = measure(Run(configuration(loss, options.kind, own, False), device), iterations, name == "eager")
                    print(f"{loss}, {name}\n{pieces.table(entry)}", flush=True)
                except Exception as problem:  # the others are still worth having
                    entry = {"error": f"{type(problem).__name__}: {problem}"}
                    print(f"{loss}, {name}: {entry['error'][:300]}", flush=True)
                for place, times in entry.get("waits_per_step", {}).items():
                    print(f"    waits {times:.1f} x a step: {place}")
                report["runs"][f"{loss} {name}"] = entry
                options.output.parent.mkdir(parents=True, exist_ok=True)
                options.output.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
