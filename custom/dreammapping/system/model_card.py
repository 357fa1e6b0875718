"""Facts about one run, for machines (JSON) and people (Markdown)."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import threestudio
import torch

from ..evaluation.resources import device_name, peak_gpu_memory_bytes, peak_memory_bytes
from ..evaluation.scores import flat
from ..settings import to_plain

PACKAGES = ("torch", "pytorch-lightning", "diffusers", "transformers", "gsplat", "numba", "numpy", "omegaconf")


def collect(system: Any, teacher: dict[str, Any], status: str) -> dict[str, Any]:
    """Everything needed to judge and repeat the run; plain JSON values. Absent facts are null, never guessed.

    `training_seconds` is left to whoever keeps the clock.
    """
    device = system.trainer.strategy.root_device  # after training the weights themselves are back on the CPU
    return {
        "prompt": system.cfg.prompt_processor.get("prompt"),
        "negative_prompt": system.cfg.prompt_processor.get("negative_prompt", ""),
        "status": status,
        "steps": system.true_global_step,
        "max_steps": system.trainer.max_steps,
        "seed": torch.initial_seed(),
        "preset": _preset(system),
        "teacher": teacher,
        "primitives": getattr(system.geometry, "count", None),
        "training_seconds": None,
        **_unet_work(system),
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_gpu_memory_bytes": peak_gpu_memory_bytes(device),
        "device": device_name(device),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {"threestudio": threestudio.__version__, **_versions()},
        "files": _files(system),
        "system": to_plain(system.cfg),
    }


def as_markdown(facts: dict[str, Any]) -> str:
    """The same, to be read."""
    system, teacher = facts["system"], facts["teacher"]
    rows = {
        "Prompt": facts["prompt"],
        "Negative prompt": facts["negative_prompt"] or "none",
        "Status": f"{facts['status']}, step {facts['steps']} of {facts['max_steps']}",
        "Teacher": teacher["name"],
        "Teacher's source": teacher.get("source"),
        "Teacher's revision": teacher.get("revision"),
        "Teacher's fingerprint (SHA-256)": teacher.get("fingerprint"),
        "Preset": facts["preset"],
        "Geometry": system["geometry_type"] + (f", {facts['primitives']} primitives" if facts["primitives"] else ""),
        "Pictures": facts.get("pictures"),
        "Guidance": f"{system['guidance_type']}, scale {system['guidance'].get('guidance_scale', 'default')}",
        "Loss": to_line(system["guidance"].get("loss")),
        "Seed": facts["seed"],
        "Training time": _duration(facts["training_seconds"]),
        "U-Net evaluations": _work(facts),
        "Peak memory": _gibibytes(facts["peak_memory_bytes"]),
        "Peak GPU memory": _gibibytes(facts["peak_gpu_memory_bytes"]),
        "Device": facts["device"],
        "Platform": f"{facts['platform']}, Python {facts['python']}",
        "Versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    }
    lines = [f"# {facts['prompt']}", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in rows.items() if value is not None]
    for protocol, scores in (facts.get("scores") or {}).items():
        lines += ["", f"## Scores by the protocol {protocol}", "", *_scores(scores)]
    if facts["files"]:
        lines += ["", "## Files", "", *(f"- `{name}`" for name in facts["files"])]
    lines += ["", "The complete configuration is in `../configs/parsed.yaml`, these facts in `model_card.json`.", ""]
    return "\n".join(lines)


def _scores(scores: list[dict[str, Any]]) -> list[str]:
    """A table of each asset's scores, those that evaluation has written into the card."""
    lines = []
    for one in scores:
        lines += [f"{one['prompt']}, {one['pictures']} pictures:", "", "| | |", "| --- | --- |"]
        lines += [f"| {name} | {_cell(value)} |" for name, value in flat(one).items()]
        lines += [f"| not as the protocol says | {_cell(text)} |" for text in one["deviations"]]
        lines += [""]
    return lines[:-1]


def to_line(value: Any) -> str | None:
    """A config block in one line."""
    return None if value is None else json.dumps(value, ensure_ascii=False)


def _preset(system: Any) -> str | None:
    """The preset that launch.py recorded beside the config; None under launchers that know no presets."""
    record = _trial_dir(system) / "configs" / "preset.json"
    try:
        stored = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stored.get("taken") if isinstance(stored, dict) else None


def teacher(system: Any) -> dict[str, Any]:
    """Which weights the guidance uses: name, source, revision, fingerprint. May read the weights once to hash them."""
    name = system.cfg.guidance.get("pretrained_model_name_or_path")
    known = {"name": name, "source": None, "revision": None, "fingerprint": None}
    if not name:
        return known
    try:
        from threestudio.utils.pretrained import resolve_pretrained
    except ImportError:  # the original threestudio; the guidance hashed a local folder itself
        fingerprint = getattr(getattr(system.guidance, "teacher", None), "fingerprint", None)
        return {**known, "fingerprint": fingerprint or None}
    found = resolve_pretrained(name, allow_download=False)
    return {**known, **{key: _plain(getattr(found, key)) for key in ("name", "source", "revision", "fingerprint")}}


def _unet_work(system: Any) -> dict[str, int | None]:
    """Evaluations of the U-Net by this process, in images; None with guidance that does not count them."""
    calls = getattr(getattr(system.guidance, "teacher", None), "calls", None)
    return {f"unet_{kind}": getattr(calls, kind, None) for kind in ("forwards", "backwards")}


def _files(system: Any) -> list[str]:
    """Pictures, videos and asset files in the save folder, without single frames, relative to it."""
    folder = Path(system.get_save_dir())
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    shown = [f for f in files if not f.parent.name.endswith("-test") and not f.name.startswith("model_card")]
    return sorted(file.as_posix() for file in shown)


def _trial_dir(system: Any) -> Path:
    return Path(system.get_save_dir()).parent


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _work(facts: dict[str, Any]) -> str | None:
    forwards, backwards = facts.get("unet_forwards"), facts.get("unet_backwards")
    return None if forwards is None else f"{forwards:,} forward, {backwards:,} backward"


def _gibibytes(count: int | None) -> str | None:
    return None if count is None else f"{count / 2**30:.2f} GiB"
