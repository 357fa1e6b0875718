"""GPU memory of the paper's setting, estimated and measured, with the options for smaller cards.

    python benchmarks/memory.py             # CUDA: 4 views of 512 x 512, random weights of SD 2.1-base's shapes
    python benchmarks/memory.py --quick     # fewer iterations and variants, none of them compiled
    python benchmarks/memory.py --tiny      # any device: a miniature teacher, to see that everything runs

Each variant has a process of its own, from loading the teacher to steps after all recordings (CUDA graphs) are made; one
that fails is reported with its error. Measured are the peak that torch's allocator had reserved, the memory of recordings
included, and with it the process's peak: what the driver counts beside the allocator is added (of other programs on the
GPU, too).
What is allocated leaves out what recordings keep. The variants for cards of 12 to 5 GB run under a limit, so that they
show that they fit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom")]

from benchmarks.stepping import COMPILED, EAGER, Run, alone, random_sd21, timed, tiny_teacher  # noqa: E402
from dreammapping.evaluation.resources import device_name  # noqa: E402
from dreammapping.system.memory_estimate import CONTEXT_BYTES, GIB, estimate  # noqa: E402
from dreammapping.system.memory_report import operator_of, setup_of  # noqa: E402
from dreammapping.teachers.diffusers_teacher import weights_dtype  # noqa: E402
from threestudio.utils.config import load_config  # noqa: E402
from threestudio.utils.misc import get_device  # noqa: E402

CONFIG = ROOT / "custom" / "dreammapping" / "configs" / "vdm-gs.yaml"

HALF, SINGLE = ["system.guidance.encode_slice=2"], ["system.guidance.encode_slice=1"]
SMALLER = [*SINGLE, "system.guidance.unet_slice=4"]
UNRECORDED = "system.guidance.cuda_graphs=false"
MANY = ["system.geometry.init.num_points=500000"]
VARIANTS: dict[str, tuple[float, list[str]]] = {
    "default": (0, []),
    "everything off": (0, [*EAGER]),
    "no recordings": (0, [UNRECORDED]),
    "encode_slice 2": (0, HALF),
    "encode_slice 1": (0, SINGLE),
    "12 GB: default": (12, []),
    "8 GB": (8, HALF),
    "8 GB: 500k Gaussians": (8, [*HALF, *MANY]),
    "6 GB": (6, SINGLE),
    "6 GB: 500k Gaussians": (6, [*SINGLE, *MANY]),
    "5 GB": (5, [*SMALLER, UNRECORDED]),
    "offload": (0, [*SMALLER, "system.guidance.enable_sequential_cpu_offload=true"]),
    "compiled U-Net": (0, [COMPILED]),
}
"""Name -> GB of the card it is for (0: no limit) and overrides. What is not said is as it is by default."""

QUICK = ("default", "everything off", "no recordings", "8 GB", "6 GB")
WARM_UP = 4
"""Steps until the recordings are made and have been used."""
RESERVED_BY_THE_DRIVER = 0.06
"""Share of a card's memory that programs do not get."""


def variant(name: str, teacher: Path, iterations: int, tiny: bool) -> dict[str, Any]:
    """Estimated and measured bytes, and the milliseconds of an iteration; or the error."""
    warnings.filterwarnings("ignore", message=".*self.log.*")  # there is no trainer here
    device, (gigabytes, own) = get_device(), VARIANTS[name]
    own = [o for o in own if not (tiny and "num_points" in o)]
    limit(device, gigabytes)
    try:
        config = load_config(CONFIG, cli_args=[*overrides(teacher, tiny), *own])
        return measured(Run(config, device), device, iterations)
    except Exception as problem:  # noqa: BLE001  the other variants are still of interest
        return {"error": f"{type(problem).__name__}: {problem}"}


def measured(run: Run, device: torch.device, iterations: int) -> dict[str, Any]:
    setup = setup_of(run.system, run.dataset)
    guessed = estimate(
        run.system.guidance.teacher, operator_of(run.system), setup,
        weights_dtype(device, run.system.guidance.teacher.options),
    )  # fmt: skip
    for _ in range(WARM_UP):
        run.advance()
    milliseconds = timed(run.advance, device, iterations)
    return {
        "estimate": guessed.peak,
        "parts": guessed.parts,
        "device": device_name(device),
        **measured_bytes(device),
        "ms": milliseconds,
        "gaussians": run.system.geometry.count,
    }


def measured_bytes(device: torch.device) -> dict[str, int | None]:
    """Peaks of torch's allocator, and of all that the device has given away; None without CUDA."""
    if device.type != "cuda":
        return {"allocated": None, "reserved": None, "process": None}
    free, total = torch.cuda.mem_get_info(device)
    beside = total - free - torch.cuda.memory_reserved(device)  # context and libraries, which stay
    reserved = torch.cuda.max_memory_reserved(device)
    allocated = torch.cuda.max_memory_allocated(device)
    return {"allocated": allocated, "reserved": reserved, "process": reserved + beside}


def limit(device: torch.device, gigabytes: float) -> None:
    """Let torch reserve what a card of that size leaves it beside the CUDA context; 0: no limit."""
    if device.type != "cuda":
        return
    total = torch.cuda.mem_get_info(device)[1]
    wanted = gigabytes * GIB * (1 - RESERVED_BY_THE_DRIVER) - CONTEXT_BYTES if gigabytes else total
    torch.cuda.set_per_process_memory_fraction(min(wanted / total, 1.0), device)


def overrides(teacher: Path, tiny: bool) -> list[str]:
    """What all variants share: that teacher, Gaussians in a sphere and nothing but training."""
    small = ["data.height=32", "data.width=32", "system.geometry.init.num_points=200"] if tiny else []
    return [
        "use_timestamp=false",
        f"system.prompt_processor.pretrained_model_name_or_path={teacher}",
        "system.prompt_processor.spawn=false",
        "system.geometry.init.type=sphere",
        "system.geometry.densification.type=none",
        *small,
    ]


def line(name: str, entry: dict[str, Any]) -> str:
    if "error" in entry:
        return f"  {name:22} {entry['error'][:150]}"
    sizes = [entry["estimate"], entry["process"], entry["reserved"], entry["allocated"]]
    cells = ["      -" if size is None else f"{size / GIB:7.2f}" for size in sizes]
    off = "      -" if entry["process"] is None else f"{100 * (entry['estimate'] / entry['process'] - 1):+6.1f}%"
    return f"  {name:22} {cells[0]} {cells[1]} {off} {cells[2]} {cells[3]} {entry['ms']:9.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help=f"some of: {', '.join(VARIANTS)}")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/memory.json"))
    options = parser.parse_args()
    if get_device().type != "cuda" and not options.tiny:
        raise SystemExit("the paper's setting needs a CUDA device; --tiny runs anywhere")
    names = options.only or (QUICK if options.quick else VARIANTS)
    iterations = 3 if options.quick or options.tiny else options.iterations
    report: dict[str, Any] = {"torch": torch.__version__, "variants": {}}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    print(f"variants: {', '.join(names)}")
    print(f"  {'GiB':22} estim. process    off  reserved alloc.      ms", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "teacher"
        teacher = alone(tiny_teacher, folder) if options.tiny else alone(random_sd21, folder, get_device())
        for name in names:
            found = report["variants"][name] = alone(variant, name, teacher, iterations, options.tiny)
            print(line(name, found), flush=True)
            options.output.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"raw numbers: {options.output}")


if __name__ == "__main__":
    main()
