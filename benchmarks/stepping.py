"""Training stepped by hand, for benchmarks: one system with its cameras and its optimizer, and teachers of real size."""

from __future__ import annotations

import importlib.util
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom")]

import dreammapping  # noqa: E402, F401  registers its classes
import threestudio  # noqa: E402
from dreammapping.correction import CorrectorCard, build_corrector, save_corrector  # noqa: E402
from dreammapping.system.capabilities import Densifies, OwnLearningRates  # noqa: E402
from dreammapping.system.guards import FiniteGuard, check_finite  # noqa: E402
from dreammapping.teachers import DiffusersTeacher  # noqa: E402
from dreammapping.transfers import to_device  # noqa: E402
from threestudio.utils.base import update_all, update_all_end  # noqa: E402
from threestudio.utils.config import load_config  # noqa: E402
from threestudio.utils.presets import overlay_files  # noqa: E402

CONFIGS = ROOT / "custom" / "dreammapping" / "configs"
Piece = Callable[[str], AbstractContextManager[None]]
COMPILED = "system.guidance.compile_unet=true"
_SWITCHES = ("cuda_graphs", "fuse_projections", "fast_encoder")
UNCOMPILED = tuple(f"system.guidance.{key}=true" for key in _SWITCHES)
"""Overrides that switch every optimization of the step on but the compiler."""
EAGER = tuple(f"system.guidance.{key}=false" for key in ("compile_unet", *_SWITCHES))
"""Overrides that switch every optimization of the step off."""

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
    """One system with its cameras and its optimizer, stepped by hand as DreamMappingSystem steps itself."""

    def __init__(self, config: Any, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.system = threestudio.find(config.system_type)(config.system).to(device)
        self.system.train()
        self.optimizer = self.system.configure_optimizers()["optimizer"]
        data = threestudio.find(config.data_type)(config.data)
        data.setup("fit")
        self.dataset = getattr(data, "train_dataset", None)
        if device.type == "cuda" and hasattr(self.dataset, "rays_later"):
            self.dataset.rays_later = True  # as with a trainer
        self.batches, self.device = iter(data.train_dataloader()), device
        self.images_per_step, self.number, self._finite = 0, 0, FiniteGuard()

    def step(self) -> float:
        """Milliseconds of one iteration, without densification. Drawing the camera is part of it.

        Raises:
            DivergenceError: the loss or a gradient is not finite.
        """
        synchronize(self.device)
        begin = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        batch = self.draw()
        out = self.system(batch)
        self.images_per_step = len(out["latents"] if "latents" in out else out["comp_rgb"])
        loss = self.system.total_loss(out, batch)
        loss.backward()
        self.optimizer.step()
        synchronize(self.device)
        milliseconds = 1e3 * (time.perf_counter() - begin)
        check_finite(0, loss, self.system.named_parameters())
        return milliseconds

    def advance(self, piece: Piece = lambda name: nullcontext(), guide: Callable[..., torch.Tensor] | None = None) -> None:
        """One whole training step, densification included, that waits for nothing. `piece(name)` brackets its parts.

        `guide(rgb [B,H,W,3])` -> scalar takes the place of the guidance and of all other losses.
        """
        geometry, step = self.system.geometry, self.number
        with piece("data"):
            batch = self.draw()
        with piece("schedules"):
            update_all([self.dataset, self.system], 0, step)
        if isinstance(geometry, OwnLearningRates):
            geometry.update_learning_rates(self.optimizer, step)
        with piece("render"):
            out = self.system(batch)
        with piece("losses"):
            loss = self.system.total_loss(out, batch) if guide is None else guide(out["comp_rgb"])
        densifies = isinstance(geometry, Densifies) and "rasterization" in out
        if densifies:
            geometry.before_backward(step, out["rasterization"].info)
        with piece("backward"):
            loss.backward()
        with piece("checks"):
            self._finite.check(step, loss, self.system.named_parameters())
        with piece("optimizer"):
            self.optimizer.step()
        if densifies:
            with piece("densification"):
                geometry.after_optimizer_step(step, out["rasterization"].info, self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        update_all_end([self.dataset, self.system], 0, step)
        self.number += 1

    def draw(self) -> dict[str, Any]:
        """The next batch, on the device."""
        batch = {k: to_device(v, self.device) if isinstance(v, torch.Tensor) else v for k, v in next(self.batches).items()}
        if "c2w" in batch and "rays_o" not in batch and hasattr(self.dataset, "rays"):
            batch |= self.dataset.rays(batch)
        self.system.preprocess_data(batch, "train")
        return batch

    def unet_work(self, iterations: int) -> dict[str, float]:
        """U-Net forwards and backwards per image, averaged over the iterations since the counter was set to zero."""
        calls, images = self.system.guidance.teacher.calls, iterations * self.images_per_step
        return {"forwards": calls.forwards / images, "backwards": calls.backwards / images}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run: Callable[[], None], device: torch.device, iterations: int) -> float:
    """Milliseconds of one call when `iterations` follow each other without a wait in between."""
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(iterations):
        run()
    synchronize(device)
    return 1e3 * (time.perf_counter() - begin) / iterations


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `work` in a process that ends with it, so that its memory is nobody else's."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


@contextmanager
def teachers_loaded_once() -> Iterator[None]:
    """Inside, a teacher of the same name, options and device is loaded once and shared: compiling it takes a minute."""
    original, known = DiffusersTeacher.load.__func__, {}

    def load(cls: type, name: str, options: Any = None, device: Any = "cpu") -> DiffusersTeacher:
        key = (name, repr(options), str(device))
        if key not in known:
            known.clear()  # one at a time: it is gigabytes
            known[key] = original(cls, name, options, device)
        return known[key]

    DiffusersTeacher.load = classmethod(load)
    try:
        yield
    finally:
        DiffusersTeacher.load = classmethod(original)


def configuration(loss: str, kind: str, overrides: list[str], embedded: bool) -> Any:
    """The loss's own config of a kind (gs, 2d, nerf), with the embedded preset's overlays if wanted."""
    config = CONFIGS / f"{loss}-{kind}.yaml"
    if kind == "nerf" and not config.exists():
        config, overrides = CONFIGS / "vdm-nerf.yaml", [f"system.guidance.loss.type={loss}", *overrides]
    files = [config, *(overlay_files(config, "embedded") if embedded else [])]
    return load_config(*files, cli_args=["use_timestamp=false", *overrides])


def tiny_teacher(folder: Path, **options: Any) -> Path:
    """The tests' miniature teacher."""
    helper = ROOT / "tests" / "helpers" / "tiny_teacher.py"
    spec = importlib.util.spec_from_file_location("tiny_teacher", helper)
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    return tiny.make_tiny_teacher(folder, **options)


def random_sd21(folder: Path, device: torch.device | str = "cpu") -> Path:
    """A teacher folder with SD 2.1-base's U-Net and VAE in shape, random in value; the text side is a miniature.

    The numbers are drawn on `device`, which is the faster the larger.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    tiny_teacher(folder, text_width=SD21_UNET["cross_attention_dim"], text_length=77)
    torch.manual_seed(0)
    for name, cls, shape in (("unet", UNet2DConditionModel, SD21_UNET), ("vae", AutoencoderKL, SD21_VAE)):
        for old in (folder / name).iterdir():
            old.unlink()
        with torch.device(device):
            network = cls(**shape).half()
        network.save_pretrained(folder / name)
    return folder


def own_overrides(teacher: Path, kind: str, tiny: bool = False) -> list[str]:
    """What a run on that teacher needs that no other model gives; `tiny`: everything small enough for a CPU."""
    found = [f"system.prompt_processor.pretrained_model_name_or_path={teacher}", "system.prompt_processor.spawn=false"]
    if kind == "gs":
        found.append("system.geometry.init.type=sphere")
    if tiny and kind != "2d":
        found += ["data.height=32", "data.width=32"] + (["data.resolution_milestones=[]", "data.batch_size=1"] if kind == "nerf" else [])
    if tiny and kind == "gs":
        found += ["system.geometry.init.num_points=200"]
    if tiny and kind == "nerf":
        found += ["system.renderer.num_samples_per_ray=32"]
    return found


def random_corrector(folder: Path, teacher: Path) -> Path:
    """What lmc-sds needs for that teacher, untrained."""
    model = DiffusersTeacher.load(str(teacher))
    known = {"teacher": str(teacher), "teacher_fingerprint": model.fingerprint}
    card = CorrectorCard(latent_shape=model.latent_shape, steps=model.schedule.steps, **known)
    save_corrector(build_corrector(card.latent_shape, card.reads, card.widths), card, folder)
    return folder
