"""Pictures that a teacher draws for prompts, as references: what score distillation could at best look like.

Plain diffusers, so that anyone can repeat them: the teacher's own pipeline with DPM-Solver++ (2M, Lu et al. 2022) in place of its scheduler.
Every picture has its own seed, so it depends neither on the batch nor on how many are asked for. Pictures are kept as PNG files with
their inputs inside; a second call, or one after a kill, draws only what is missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, TeacherError
from ..files import write_atomic
from ..teachers.loading import Source, locate, only_variant

FORMAT = 1
"""To be raised when the same inputs give other pictures."""
FOLDER = Path(".threestudio_cache") / "reference_samples"
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of a pipeline that are not needed here, and are not fetched with a teacher."""
_LOG = logging.getLogger("pytorch_lightning")  # threestudio's, under its own name


@dataclass(frozen=True)
class SampleSettings:
    """How the references are drawn."""

    teacher: str
    """Folder or hub name."""
    guidance_scale: float = 7.5
    """In the usual convention: 1 is no guidance. Not stated in the paper; 7.5 is what Stable Diffusion is shown with."""
    steps: int = 50
    """Of DPM-Solver++ (paper, section 5)."""
    per_prompt: int = 24
    """Pictures of each prompt."""
    negative_prompt: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.per_prompt < 1:
            raise ConfigError(f"steps ({self.steps}) and per_prompt ({self.per_prompt}) must be at least 1")
        if not self.guidance_scale >= 1:
            raise ConfigError(f"guidance_scale is {self.guidance_scale}; in the usual convention it is at least 1, which is no guidance")


def reference_samples(
    prompts: Sequence[str],
    settings: SampleSettings,
    device: torch.device | str = "cpu",
    *,
    cache_dir: str | Path | None = None,
    batch: int = 8,
    report: Callable[[str], None] | None = None,
) -> dict[str, list[Path]]:
    """Files of `settings.per_prompt` pictures for each prompt, drawn if they are not there. float16 on CUDA, else float32.

    Args:
        cache_dir: default `FOLDER`.  batch: pictures at once.  report: gets a line after each prompt that had to be drawn.

    Raises `TeacherError` (or the framework's own) for a teacher that cannot be used, ConfigError for a folder that cannot be written.
    """
    device = torch.device(device)
    source = locate(settings.teacher)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    root = (Path(cache_dir).expanduser() if cache_dir else FOLDER) / (source.fingerprint[:12] or hashlib.sha256(source.name.encode()).hexdigest()[:12])
    wanted = {prompt: [_Sample(prompt, number, settings, source, dtype, root) for number in range(settings.per_prompt)] for prompt in prompts}
    pipeline = None
    for prompt, samples in wanted.items():
        missing = [sample for sample in samples if not sample.there()]
        if missing and pipeline is None:
            pipeline = _load(source, device, dtype)
        for start in range(0, len(missing), batch):
            _draw(pipeline, missing[start : start + batch], settings)
        if missing and report:
            report(f"drew {len(missing)} references of {prompt!r}")
    return {prompt: [sample.file for sample in samples] for prompt, samples in wanted.items()}


class _Sample:
    """One picture and its place on disk."""

    def __init__(self, prompt: str, number: int, settings: SampleSettings, source: Source, dtype: torch.dtype, root: Path) -> None:
        facts = {key: value for key, value in asdict(settings).items() if key not in ("teacher", "per_prompt")}
        facts |= {"prompt": prompt, "number": number, "teacher": source.fingerprint or source.name, "dtype": str(dtype), "format": FORMAT}
        self.inputs = json.dumps(facts, sort_keys=True, ensure_ascii=False)
        self.prompt = prompt
        key = hashlib.sha256(self.inputs.encode()).hexdigest()
        self.file = root / f"{key[:32]}.png"
        drawn = hashlib.sha256(f"{settings.seed} {number} {prompt}".encode()).digest()
        self.seed = int.from_bytes(drawn[:7], "little")

    def there(self) -> bool:
        """Whether the file holds this picture, whole."""
        from PIL import Image

        if not self.file.is_file():
            return False
        try:
            with Image.open(self.file) as picture:
                picture.load()
                if picture.info.get("inputs") != self.inputs:
                    raise ValueError("it belongs to other inputs")
        except (OSError, ValueError, SyntaxError) as problem:  # Pillow raises SyntaxError for broken PNG chunks
            _LOG.warning(f"The reference picture {self.file} is damaged ({problem}) and is drawn again.")
            return False
        return True

    def write(self, picture: Any) -> None:
        """`picture`: of Pillow."""
        from PIL.PngImagePlugin import PngInfo

        inside, buffer = PngInfo(), BytesIO()
        inside.add_itxt("inputs", self.inputs)
        picture.convert("RGB").save(buffer, "PNG", pnginfo=inside)
        try:
            write_atomic(self.file, buffer.getvalue())
        except OSError as problem:
            raise ConfigError(f"cannot keep the reference pictures in {self.file.parent}: {problem}; give another folder") from problem


def _load(source: Source, device: torch.device, dtype: torch.dtype) -> Any:
    """The teacher's pipeline with DPM-Solver++ on `device`."""
    from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler

    folder = Path(source.location)
    options: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": True}
    for part in ("unet", "transformer"):
        if (folder / part).is_dir():
            options["variant"] = only_variant(folder / part)
    try:
        known = DiffusionPipeline.load_config(source.location)
        pipeline = DiffusionPipeline.from_pretrained(source.location, **options, **{part: None for part in _UNUSED if part in known})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as problem:
        reason = (str(problem).strip().splitlines() or ["no message"])[0]
        raise TeacherError(f"cannot load the pipeline of {source.name} from {source.location}: {type(problem).__name__}: {reason}") from problem
    config = pipeline.scheduler.config
    if "Flow" in type(pipeline.scheduler).__name__:
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": config.get("shift", 1.0)}
        pipeline.scheduler = DPMSolverMultistepScheduler(num_train_timesteps=config.num_train_timesteps, **flow)
    else:
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++", solver_order=2)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _draw(pipeline: Any, samples: Sequence[_Sample], settings: SampleSettings) -> None:
    """Draw and write some pictures of one prompt. Noise comes from the CPU, so that every device starts from the same."""
    generators = [torch.Generator().manual_seed(sample.seed) for sample in samples]
    drawn = pipeline(
        [sample.prompt for sample in samples],
        negative_prompt=[settings.negative_prompt] * len(samples),
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        generator=generators,
    )
    for sample, picture in zip(samples, drawn.images):
        sample.write(picture)
