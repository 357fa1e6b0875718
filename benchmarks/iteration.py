"""What one training iteration costs, loss by loss against SDS, in one process.

    python benchmarks/iteration.py                              # embedded preset, CPU or CUDA: SDS and VDM in turns
    python benchmarks/iteration.py --losses all                 # every loss that has a config
    python benchmarks/iteration.py --losses all --kind 2d       # latents optimized directly: no rendering, no VAE
    python benchmarks/iteration.py --paper-shapes --losses all  # paper's sizes, random weights of SD 2.1-base's shapes, CUDA

Prints a table and writes the raw milliseconds as JSON, with the U-Net evaluations counted per image. The number of
Gaussians is held constant, so that all losses draw the same scene; densification is not part of what is measured.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
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

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom")]

import dreammapping  # noqa: E402, F401  registers its classes
import threestudio  # noqa: E402
from dreammapping.correction import CorrectorCard, build_corrector, save_corrector  # noqa: E402
from dreammapping.distillation import LOSSES  # noqa: E402
from dreammapping.evaluation.resources import device_name, peak_gpu_memory_bytes, peak_memory_bytes  # noqa: E402
from dreammapping.system.guards import check_finite  # noqa: E402
from dreammapping.teachers import DiffusersTeacher  # noqa: E402
from threestudio.utils.config import load_config  # noqa: E402
from threestudio.utils.misc import get_device  # noqa: E402
from threestudio.utils.presets import overlay_files  # noqa: E402

CONFIGS = ROOT / "custom" / "dreammapping" / "configs"
YARDSTICK = "sds"

# stabilityai/stable-diffusion-2-1-base, its unet/config.json and vae/config.json
SD21_UNET = dict(
    sample_size=64,
    in_channels=4,
    out_channels=4,
    block_out_channels=(320, 640, 1280, 1280),
    layers_per_block=2,
    attention_head_dim=(5, 10, 20, 20),
    cross_attention_dim=1024,
    use_linear_projection=True,
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
)
SD21_VAE = dict(
    sample_size=512,
    latent_channels=4,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    norm_num_groups=32,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    scaling_factor=0.18215,
)


class Run:
    """One system with its cameras and its optimizer, stepped by hand."""

    def __init__(self, config: Any, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.system = threestudio.find(config.system_type)(config.system).to(device)
        self.system.train()
        self.optimizer = self.system.configure_optimizers()["optimizer"]
        data = threestudio.find(config.data_type)(config.data)
        data.setup("fit")
        self.batches, self.device = iter(data.train_dataloader()), device
        self.images_per_step = 0

    def step(self) -> float:
        """Milliseconds of one iteration. Drawing the camera is part of it.

        Raises:
            DivergenceError: the loss or a gradient is not finite.
        """
        synchronize(self.device)
        begin = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        batch = {k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in next(self.batches).items()}
        self.system.preprocess_data(batch, "train")
        out = self.system(batch)
        self.images_per_step = len(out["latents"] if "latents" in out else out["comp_rgb"])
        loss = self.system.total_loss(out, batch)
        loss.backward()
        self.optimizer.step()
        synchronize(self.device)
        milliseconds = 1e3 * (time.perf_counter() - begin)
        check_finite(0, loss, self.system.named_parameters())
        return milliseconds

    def unet_work(self, iterations: int) -> dict[str, float]:
        """U-Net forwards and backwards per image, averaged over the iterations since the counter was set to zero."""
        calls, images = self.system.guidance.teacher.calls, iterations * self.images_per_step
        return {"forwards": calls.forwards / images, "backwards": calls.backwards / images}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def losses_with_config(kind: str) -> list[str]:
    """Every registered loss that has a config of this kind ("gs", "2d"); SDS, the yardstick, comes first."""
    found = [name for name in LOSSES.names() if (CONFIGS / f"{name}-{kind}.yaml").exists()]
    return sorted(found, key=lambda name: (name != YARDSTICK, name))


def configuration(loss: str, kind: str, overrides: list[str], embedded: bool) -> Any:
    """The loss's own config, with the embedded preset's overlays if wanted."""
    config = CONFIGS / f"{loss}-{kind}.yaml"
    files = [config, *(overlay_files(config, "embedded") if embedded else [])]
    return load_config(*files, cli_args=["use_timestamp=false", *overrides])


def random_sd21(folder: Path) -> Path:
    """A teacher folder with SD 2.1-base's U-Net and VAE in shape, random in value; the text side is a miniature."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    helper = ROOT / "tests" / "helpers" / "tiny_teacher.py"
    spec = importlib.util.spec_from_file_location("tiny_teacher", helper)
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    tiny.make_tiny_teacher(folder, text_width=SD21_UNET["cross_attention_dim"], text_length=77)
    torch.manual_seed(0)
    for name, cls, shape in (("unet", UNet2DConditionModel, SD21_UNET), ("vae", AutoencoderKL, SD21_VAE)):
        for old in (folder / name).iterdir():
            old.unlink()
        cls(**shape).half().save_pretrained(folder / name)
    return folder


def random_corrector(folder: Path, teacher: Path) -> Path:
    """What lmc-sds needs for that teacher, untrained."""
    model = DiffusersTeacher.load(str(teacher))
    known = {"teacher": str(teacher), "teacher_fingerprint": model.fingerprint}
    card = CorrectorCard(latent_shape=model.latent_shape, steps=model.schedule.steps, **known)
    save_corrector(build_corrector(card.latent_shape, card.reads, card.widths), card, folder)
    return folder


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
        teacher = random_sd21(Path(scratch) / "teacher")
        own = [f"system.prompt_processor.pretrained_model_name_or_path={teacher}", "system.prompt_processor.spawn=false"]
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
    parser.add_argument("--iterations", type=int, default=20, help="of --paper-shapes, after 3 to warm up")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--per-block", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/iteration.json"))
    parser.add_argument("overrides", nargs="*", help="key=value, behind --")
    options = parser.parse_args()

    warnings.filterwarnings("ignore", message=".*self.log.*")  # there is no trainer here
    device, kind = get_device(), options.kind
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
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"{report['what']}, {report['device']}, torch {report['torch']}")
    print("\n".join(line(name, measured) for name in measured))
    print(f"raw numbers: {options.output}")


if __name__ == "__main__":
    main()
