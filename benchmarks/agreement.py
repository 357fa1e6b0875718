"""Do the optimised and the eager step agree? VDM on Gaussians, the same seed, 50 iterations.

    python benchmarks/agreement.py                  # a miniature; on a CPU all are one path: every difference is 0
    python benchmarks/agreement.py --paper-shapes   # random weights of SD 2.1-base's shapes, CUDA

Compared are the gradients of the first step and the parameters after the last, the Gaussians' and the operator's, with an
eager run in float32. A difference is the norm of the difference over that of the float32 value, for parameters over
the way that they have gone: |a - b| / |b - start|. Half precision rounds the network's answers, and Adam turns a
small gradient of uncertain sign into a whole step; so what the eager half-precision run differs by is the measure, and
`eager again` shows what of it is owed to the order of additions alone. Exit code 1 if the optimised step's gradient is
off by more than the tolerance, or anything by more than 1.5 times what the eager step is off by.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from benchmarks.stepping import COMPILED, EAGER, UNCOMPILED, Run, configuration, own_overrides, random_sd21, tiny_teacher  # noqa: E402
from dreammapping.evaluation.resources import device_name  # noqa: E402
from threestudio.utils.misc import get_device  # noqa: E402

GRADIENT_TOLERANCE = 2e-2
"""On CUDA, from float32: that of the VAE encoder's gradient."""
FACTOR, FLOOR = 1.5, 5e-3
"""How much further from float32 than the eager half-precision step the optimised one may be; differences below FLOOR
pass."""
EXACT = (*EAGER, "system.guidance.half_precision_weights=false")


def record(loss: str, own: list[str], device: torch.device, iterations: int) -> dict[str, dict[str, torch.Tensor]]:
    """`start`, `gradients` and `end` by parameter, on the CPU in float64."""
    run = Run(configuration(loss, "gs", own, False), device)
    gaussians, trained = run.system.geometry.gaussians.params, run.system.guidance.loss

    def values() -> dict[str, torch.Tensor]:
        named = [*gaussians.items(), *((f"psi.{name}", p) for name, p in trained.named_parameters())]
        return {name: p.detach().cpu().double() for name, p in named}

    gradients: dict[str, torch.Tensor] = {}

    @contextmanager
    def look(name: str) -> Iterator[None]:
        if name == "checks" and not gradients:
            found = {name: p.grad for name, p in gaussians.items() if p.grad is not None}
            gradients.update({name: g.detach().cpu().double() for name, g in found.items()})
        yield

    start = values()
    for _ in range(iterations):
        run.advance(look)
    end = values()
    if not all(bool(value.isfinite().all()) for value in end.values()):
        raise ValueError(f"after {iterations} iterations a parameter is infinite or not a number")
    return {"start": start, "gradients": gradients, "end": end}


def differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Of a from b, the gradients' and the parameters', by name; psi's parameters as one."""

    def together(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        psi = [value.flatten() for name, value in values.items() if name.startswith("psi.")]
        own = {name: value for name, value in values.items() if not name.startswith("psi.") and value.numel()}
        return own | ({"psi": torch.cat(psi)} if psi else {})

    found: dict[str, dict[str, float]] = {"gradients": {}, "parameters": {}}
    for name, value in together(b["gradients"]).items():
        found["gradients"][name] = relative(together(a["gradients"])[name] - value, value)
    start, mine, theirs = (together(x) for x in (b["start"], a["end"], b["end"]))
    for name, value in theirs.items():
        found["parameters"][name] = relative(mine[name] - value, value - start[name])
    return found


def relative(difference: torch.Tensor, scale: torch.Tensor) -> float:
    size = float(scale.norm())
    return 0.0 if not bool(difference.any()) else float(difference.norm()) / max(size, 1e-30)


def verdict(report: dict[str, Any], on_cuda: bool) -> list[str]:
    """What is further off than it may be; on a CPU every difference must be zero."""
    above = []
    for kind, by_name in report["optimised"].items():
        for name, found in by_name.items():
            limit = max(FLOOR, FACTOR * report["eager"][kind][name]) if on_cuda else 0.0
            if found > limit or kind == "gradients" and found > GRADIENT_TOLERANCE:
                above.append(f"{kind} {name} {found:.1e}")
    return above


@contextmanager
def no_tf32() -> Iterator[None]:
    """Float32 that is float32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", default="vdm")
    parser.add_argument("--paper-shapes", action="store_true")
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="10 iterations")
    parser.add_argument("--no-compile", action="store_true", help="everything else on: saves the minute of compiling")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/agreement.json"))
    parser.add_argument("overrides", nargs="*", help="key=value of all runs, behind --")
    options = parser.parse_args()
    device = get_device()
    if options.paper_shapes and device.type != "cuda":
        raise SystemExit("--paper-shapes needs a CUDA device; on a CPU one iteration of that size takes minutes.")
    warnings.filterwarnings("ignore", message=".*self.log.*")  # there is no trainer here

    iterations = 10 if options.quick else options.iterations
    on = [*UNCOMPILED, *([COMPILED] if device.type == "cuda" and not options.no_compile else [])]
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "teacher"
        teacher = random_sd21(folder, device) if options.paper_shapes else tiny_teacher(folder)
        own = [*own_overrides(teacher, "gs", not options.paper_shapes), *options.overrides]
        with no_tf32():
            exact = record(options.loss, [*own, *EXACT], device, iterations)
        for name, settings in (("eager", list(EAGER)), ("eager again", list(EAGER)), ("optimised", on)):
            gc.collect()
            runs[name] = record(options.loss, [*own, *settings], device, iterations)
    report: dict[str, Any] = {"device": device_name(device), "torch": torch.__version__, "iterations": iterations}
    report["tolerances"] = {"gradients": GRADIENT_TOLERANCE, "times eager": FACTOR}
    compared = {name: differences(run, exact) for name, run in runs.items()}
    compared["eager again"] = differences(runs["eager again"], runs["eager"])
    report |= compared
    for name, found in compared.items():
        against = "eager" if name == "eager again" else "float32"
        for kind, by_name in found.items():
            print(f"{name:11} from {against:8} {kind:11}" + "  ".join(f"{key} {value:.1e}" for key, value in by_name.items()))
    above = verdict(report, device.type == "cuda")
    report["agrees"] = not above
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print("ABOVE the tolerances: " + ", ".join(above) if above else "within the tolerances")
    print(f"raw numbers: {options.output}")
    sys.exit(0 if report["agrees"] else 1)


if __name__ == "__main__":
    main()
