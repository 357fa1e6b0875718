"""The VAE encoder with its gradient to the image, taken apart: SD 2.1-base's shapes, random weights.

    python benchmarks/encoder.py                       # CUDA: 4 x 512 x 512, every variant, a table and encoder.json
    python benchmarks/encoder.py --tune                # and how the normalization's kernels are best cut up
    python benchmarks/encoder.py --quick               # few repeats, and not the compiled variant; on a CPU a miniature VAE

First the Triton kernels are compared with float64. Then each variant: milliseconds of the forward pass and of forward and
backward (medians), peak memory above what was held before, and relative errors against float32. What fails is reported
and the rest goes on; the JSON is written after every step. At the end where our variant's time goes, and a floor: its
arithmetic at the rate of a large matrix product, plus the bytes that its normalizations must move at a copy's rate.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom"), str(ROOT / "benchmarks")]

from dreammapping.teachers.encoder import FrozenEncoder, Layout, recording
from encoder_parts import floor, kernel_errors, split, top_kernels, tune
from stepping import SD21_VAE

MINIATURE = SD21_VAE | {"block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
Encode = Callable[[Tensor], Tensor]


class Bench:
    """What all variants share: weights, an image, a gradient, and the float32 answer."""

    def __init__(self, shape: dict[str, Any], views: int, size: int, device: torch.device, repeats: int) -> None:
        from diffusers import AutoencoderKL

        torch.manual_seed(0)
        self.device, self.repeats = device, repeats
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        self.vae = AutoencoderKL(**shape).eval().requires_grad_(False).to(device, self.dtype)
        self.pixels = torch.rand(views, 3, size, size, device=device) * 2 - 1
        reference = diffusers_encode(copy.deepcopy(self.vae).float(), plain=True)
        self.expected = reference(self.pixels)
        self.probe = torch.randn_like(self.expected)
        self.expected_gradient = self.gradient(reference)
        del reference

    def gradient(self, encode: Encode) -> Tensor:
        pixels = self.pixels.clone().requires_grad_()
        return torch.autograd.grad(encode(pixels), pixels, self.probe)[0]

    def report(self, encode: Encode) -> dict[str, Any]:
        """All numbers of one variant."""
        pixels = self.pixels.clone().requires_grad_()
        begin = time.perf_counter()
        for _ in range(5):  # compiles, chooses algorithms, records
            output = encode(pixels)
            probe = self.probe[:, : output.shape[1]]
            gradient = torch.autograd.grad(output, pixels, probe)[0]
        self.synchronize()
        result = {"first_calls_s": time.perf_counter() - begin}
        same = output.shape == self.expected.shape  # TAESD is another function, and has no variance
        result["forward_error"] = relative(output.detach(), self.expected) if same else None
        result["gradient_error"] = relative(gradient, self.expected_gradient) if same else None
        del output, gradient
        result["forward_ms"] = self.milliseconds(lambda: encode(pixels))
        result["both_ms"] = self.milliseconds(lambda: torch.autograd.grad(encode(pixels), pixels, probe))
        result["peak_mib"] = self.peak(lambda: torch.autograd.grad(encode(pixels), pixels, probe))
        return result

    def milliseconds(self, call: Callable[[], Any]) -> float:
        """Median time of a call on the device, the host's delays included."""
        call()
        if self.device.type != "cuda":
            times = []
            for _ in range(self.repeats):
                begin = time.perf_counter()
                call()
                times.append(1e3 * (time.perf_counter() - begin))
            return statistics.median(times)
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(self.repeats)]
        for begin, end in events:
            begin.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(begin.elapsed_time(end) for begin, end in events)

    def peak(self, call: Callable[[], Any]) -> float | None:
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def diffusers_encode(vae: Any, *, plain: bool, compiled: bool = False) -> Encode:
    """diffusers' own encoder, contiguous, with attention by plain products or by torch's fused kernels."""
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    vae.set_attn_processor(AttnProcessor() if plain else AttnProcessor2_0())
    run = torch.compile(vae._encode) if compiled else vae._encode
    return lambda pixels: run(pixels.to(vae.dtype).contiguous()).float()


def ours(bench: Bench, *, launch: Any = None, **layout: bool) -> Encode:
    return FrozenEncoder(bench.vae, arithmetic(bench.device, launch), Layout(**layout))


def arithmetic(device: torch.device, launch: Any = None) -> Any:
    if device.type != "cuda":
        from dreammapping.teachers.encoder.arithmetic import TorchArithmetic

        return TorchArithmetic()
    from dreammapping.teachers.encoder.triton_arithmetic import Launch, TritonArithmetic

    return TritonArithmetic(launch or Launch())


def searching(encode: Encode) -> Encode:
    """With cuDNN's search for the fastest algorithms, which then stay."""

    def run(pixels: Tensor) -> Tensor:
        with torch.backends.cudnn.flags(benchmark=True):
            return encode(pixels)

    return run


def tiny(bench: Bench) -> Encode:
    from diffusers import AutoencoderTiny

    down = 2 ** (len(bench.vae.config.block_out_channels) - 1)
    levels = down.bit_length()
    widths, blocks = (64,) * levels, (1, *(3,) * (levels - 1))
    model = AutoencoderTiny(encoder_block_out_channels=widths, num_encoder_blocks=blocks).eval().requires_grad_(False)
    model.to(bench.device, bench.dtype)
    return lambda pixels: model.encode(pixels.to(bench.dtype)).latents.float()


def variants(bench: Bench, quick: bool) -> dict[str, Callable[[], Encode]]:
    def fresh(**options: bool) -> Encode:
        return diffusers_encode(copy.deepcopy(bench.vae), **options)

    transposed, widened = {"flipped_gradients": False}, {"widened_downsampling": True}
    found: dict[str, Callable[[], Encode]] = {
        "diffusers, eager": lambda: fresh(plain=False),
        "diffusers, eager, plain attention": lambda: fresh(plain=True),
        "ours": lambda: ours(bench),
        "ours, recorded": lambda: recording(ours(bench)),
        "ours, recorded, widened": lambda: recording(ours(bench, **widened)),
        "ours, recorded, transposed": lambda: recording(ours(bench, **transposed)),
        "ours, recorded, transposed, widened": lambda: recording(ours(bench, **transposed, **widened)),
        "ours, recorded, cudnn.benchmark": lambda: recording(searching(ours(bench))),
        "ours, recorded, widened, cudnn.benchmark": lambda: recording(searching(ours(bench, **widened))),
        "TAESD": lambda: tiny(bench),
    }
    if not quick:
        found["diffusers, compiled, plain attention"] = lambda: fresh(plain=True, compiled=True)
    return found


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.float() - expected).norm() / expected.norm())


def attempt(call: Callable[[], Any]) -> Any:
    """What it answers, or the error: one variant that does not run must not hide the others."""
    try:
        return call()
    except Exception as problem:  # noqa: BLE001
        return {"error": f"{type(problem).__name__}: {str(problem).strip()[:600]}"}


def line(name: str, result: dict[str, Any]) -> str:
    if "error" in result:
        return f"{name:42s} {result['error'].splitlines()[0][:120]}"
    errors = [result["forward_error"], result["gradient_error"]]
    shown = [f"{1e2 * e:8.3f} %" if e is not None else "       -  " for e in errors]
    memory = f"{result['peak_mib']:7.0f}" if result["peak_mib"] is not None else "      -"
    return f"{name:42s} {result['forward_ms']:8.2f} {result['both_ms']:8.2f} {memory} {shown[0]} {shown[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--size", type=int, help="of the square images; 512, or 32 for a CPU's miniature")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help="a part of the variants' names")
    parser.add_argument("--tune", action="store_true", help="try cuts of the kernels' work, about a minute")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("encoder.json"))
    args = parser.parse_args()
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # of the float32 answer
    args.output.parent.mkdir(parents=True, exist_ok=True)
    shape, size = (SD21_VAE, args.size or 512) if on_gpu else (MINIATURE, args.size or 32)
    repeats = args.repeats or ((10 if args.quick else 20) if on_gpu else 2)
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    report: dict[str, Any] = {"device": name, "torch": torch.__version__, "views": args.views, "size": size}
    with torch.cuda.device(device) if on_gpu else nullcontext():
        run(args, report, Bench(shape, args.views, size, device, repeats))


def run(args: argparse.Namespace, report: dict[str, Any], bench: Bench) -> None:
    results: dict[str, Any] = report.setdefault("variants", {})
    on_gpu = bench.device.type == "cuda"

    def keep(where: dict[str, Any], name: str, call: Callable[[], Any]) -> Any:
        where[name] = attempt(call)
        args.output.write_text(json.dumps(report, indent=1))
        return where[name]

    def measure(name: str, build: Callable[[], Encode]) -> None:
        print(line(name, keep(results, name, lambda: bench.report(build()))), flush=True)
        if on_gpu:
            torch.cuda.empty_cache()

    print("kernels against float64:", keep(report, "kernel_errors", lambda: kernel_errors(arithmetic(bench.device), bench.device)))
    print(f"{'variant':42s} {'fwd ms':>8s} {'both ms':>8s} {'MiB':>7s} {'fwd error':>10s} {'grad error':>10s}", flush=True)
    for name, build in variants(bench, args.quick).items():
        if args.only is None or args.only in name:
            measure(name, build)
    print("our time, ms:", json.dumps(keep(report, "split_ms", lambda: split(bench, ours(bench)))), flush=True)
    print("floor:", json.dumps(keep(report, "floor", lambda: floor(bench))), flush=True)
    if on_gpu:
        print("kernels:", json.dumps(keep(report, "top_kernels", lambda: top_kernels(bench, ours(bench))), indent=1), flush=True)
    if args.tune:
        tuned = keep(report, "tune", lambda: tune(bench))
        print("tuned:", json.dumps(tuned.get("best", tuned)), flush=True)
        if "best" in tuned:
            from dreammapping.teachers.encoder.triton_arithmetic import Launch

            measure("ours, recorded, tuned", lambda: recording(ours(bench, launch=Launch(**tuned["best"]))))
    print(f"written: {args.output}")


if __name__ == "__main__":
    main()
