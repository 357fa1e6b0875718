"""What there is to measure: the pictures of a run's folder, or a folder of pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError

CARD = "model_card.json"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Asset:
    """One object's pictures, or the pictures of one prompt."""

    folder: Path
    """The run's folder, or that of the pictures."""
    prompt: str
    pictures: tuple[Path, ...]
    """A turntable's frames in their order without the last, which repeats the first; else all there are."""
    turntable: bool
    """Whether the pictures go evenly around the object, from its front."""
    card: dict[str, Any] = field(default_factory=dict)
    """Facts of the run; empty for a folder of pictures."""
    data: dict[str, Any] = field(default_factory=dict)
    """The `data` block of the run's config: its cameras."""

    @property
    def seed(self) -> int:
        """Of the run; 0 where there is none."""
        return int(self.card.get("seed") or 0)

    def chosen(self, views: int) -> list[int]:
        """Indices of at most `views` pictures at even distances."""
        count = len(self.pictures)
        return list(range(count)) if count <= views else [round(i * count / views) for i in range(views)]


def find_assets(path: Path, prompt: str | None = None, turntable: bool = False) -> list[Asset]:
    """Assets of a run's folder (with save/model_card.json): one, or one per prompt of a run in 2D; or of a folder of pictures.

    Args:
        prompt: what a folder of pictures shows; a run knows its own.  turntable: the pictures of a folder go around an object.

    Raises ConfigError for a folder that is neither, or without a prompt.
    """
    run = path.parent if path.name == "save" else path
    if (run / "save" / CARD).is_file():
        return _of_run(run)
    if not path.is_dir():
        raise ConfigError(f"there is no folder {path}; give a run's folder (the one with save/ in it) or a folder of pictures")
    pictures = sorted((f for f in path.iterdir() if f.suffix.lower() in SUFFIXES), key=_natural)
    if not pictures:
        raise ConfigError(f"{path} is neither a run's folder (no save/{CARD}) nor a folder of pictures ({', '.join(SUFFIXES)})")
    if not (prompt or "").strip():
        raise ConfigError(f"{path} is a folder of pictures; say what they show: --prompt TEXT")
    return [Asset(path, prompt.strip(), tuple(pictures), turntable)]


def _of_run(run: Path) -> list[Asset]:
    card, data = _json(run / "save" / CARD), _data_block(run / "configs" / "parsed.yaml")
    sheet = _newest(run / "save", "pictures")
    if card.get("prompts") and sheet is not None:
        files = sorted(sheet.glob("*.png"), key=_natural)
        owner = {f: int(m[1]) for f in files if (m := re.match(r"(\d+)-", f.name))}
        return [Asset(run, p, tuple(f for f in files if owner.get(f) == i), False, card, data) for i, p in enumerate(card["prompts"])]
    frames = _newest(run / "save", "test")
    if frames is None or not card.get("prompt"):
        raise ConfigError(f"{run} has no test views (save/it<step>-test/) or no prompt in its {CARD}; finish it, or test it: launch.py --test resume=CHECKPOINT")
    found = sorted((f for f in frames.glob("*.png") if f.stem.isdigit()), key=lambda f: int(f.stem))
    return [Asset(run, card["prompt"], tuple(found[:-1] if len(found) > 1 else found), True, card, data)]


def read_pictures(files: Sequence[Path], size: int, background: Sequence[float] = (1.0, 1.0, 1.0), width: int | None = None) -> Tensor:
    """[N, size, size, 3] in [0, 1]: transparency over `background`, the middle square, resized with antialiasing (Lanczos).

    `width`: only so many pixels from the left (threestudio's systems write normals and opacity beside the color).
    Raises ConfigError for a file that is no picture.
    """
    from PIL import Image, UnidentifiedImageError

    rows = []
    for file in files:
        try:
            with Image.open(file) as opened:
                picture = opened.convert("RGBA")
        except (OSError, UnidentifiedImageError) as problem:
            raise ConfigError(f"cannot read the picture {file}: {problem}") from problem
        if width is not None and picture.width > width:
            picture = picture.crop((0, 0, width, picture.height))
        under = Image.new("RGBA", picture.size, (*(round(255 * value) for value in background), 255))
        picture = Image.alpha_composite(under, picture).convert("RGB")
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        rows.append(np.asarray(square.resize((size, size), Image.Resampling.LANCZOS), dtype=np.float32))
    return torch.from_numpy(np.stack(rows)) / 255


def _newest(save: Path, kind: str) -> Path | None:
    """The folder it<step>-<kind> of the last step that has files."""
    found = [(int(m[1]), f) for f in save.iterdir() if (m := re.fullmatch(rf"it(\d+)-{kind}", f.name)) and any(f.glob("*.png"))]
    return max(found)[1] if found else None


def _natural(file: Path) -> list[tuple[int, str]]:
    """10 after 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", file.name) if part]


def _json(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise ConfigError(f"cannot read {path}: {problem}") from problem
    if not isinstance(card, dict):
        raise ConfigError(f"{path} holds no facts of a run")
    return card


def _data_block(path: Path) -> dict[str, Any]:
    """Empty where there is no config that can be read: then nothing is known of the cameras."""
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        return dict(config["data"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return {}
