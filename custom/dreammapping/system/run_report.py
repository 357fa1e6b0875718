"""What a run leaves behind for people: turntable, contact sheet, splat files, model card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import threestudio
from threestudio.utils.misc import barrier

from ..evaluation.resources import Stopwatch
from . import model_card

CARD = "model_card"
SHEET = "contact_sheet.png"
SHEET_VIEWS = 8
COUNTED = ("unet_forwards", "unet_backwards")
"""What a card adds up over all processes that trained a run."""


class RunReport:
    """Writes into the save folder of `system` and keeps the clock. Lives as long as the system; holds no tensors."""

    def __init__(self, system: Any) -> None:
        self._system = system
        self._watch = Stopwatch()
        self._teacher: dict[str, Any] | None = None
        self._counted: dict[str, int] | None = None

    def start(self) -> None:
        """Training begins or goes on: seconds that a card in the folder reports were spent on this run before.

        A mistake in the settings of what follows the training is found now.
        """
        if self._wanted():
            self.check()
        path = Path(self._system.get_save_path(f"{CARD}.json"))
        if not self._system.resumed and self._system.trainer.is_global_zero:
            path.unlink(missing_ok=True)  # of another run in the same folder
        earlier = _read_card(path)
        self._watch = Stopwatch(already=float(earlier.get("training_seconds") or 0.0))
        self._counted = {key: earlier.get(key) or 0 for key in COUNTED}
        self._watch.start()

    def check(self) -> None:
        """Raises what would otherwise be raised after the training."""
        self._build_exporter()

    def progress(self) -> None:
        """A checkpoint is being written; note how far the run came, in case it is killed."""
        if not self._wanted():
            return
        try:
            self._write_card("training")
        except OSError as problem:  # a full disk, say: the checkpoint matters more, and reports its own failure
            threestudio.warn(f"The model card could not be written: {problem}")

    def finish(self) -> None:
        """Training is over: the asset's files and the card. Writes the same files when called again."""
        self._watch.stop()
        if not self._wanted():
            return
        try:
            self.export()
        except (ValueError, ImportError) as problem:  # no surface yet, a package missing: the turntable still follows
            threestudio.warn(f"Nothing was exported: {problem}")
        self._write_card("trained")

    def export(self) -> list[str]:
        """Runs the configured exporter on the trained parts; paths written."""
        system = self._system
        paths: list[str] = []
        exporter = self._build_exporter()  # files may live as long as it does
        for item in exporter():
            save = getattr(system, f"save_{item.save_type}")
            written = save(f"it{system.true_global_step}-export/{item.save_name}", **item.params)
            paths += written if isinstance(written, list) else [written]
        return paths

    def _build_exporter(self) -> Any:
        system = self._system
        return threestudio.find(system.cfg.exporter_type)(
            system.cfg.exporter, geometry=system.geometry, material=system.material, background=system.background
        )

    def turntable(self) -> None:
        """The test frames as one picture and as a video; then the card with all that exists now."""
        system, folder = self._system, f"it{self._system.true_global_step}-test"
        barrier()  # each process has rendered some of the frames
        if not system.trainer.is_global_zero:
            return
        frames = _evenly_chosen(numbered(Path(system.get_save_dir(), folder)), SHEET_VIEWS)
        system.save_image(SHEET, contact_sheet([imageio.imread(path) for path in frames]))
        try:
            self.video(folder, folder, r"(\d+)\.png", "test")
        finally:  # without ffmpeg there is no video, but the frames and the sheet are there
            if self._wanted():
                self._write_card(None)

    def video(self, file: str, folder: str, matcher: str, name: str) -> None:
        """Frames of `folder` as file.mp4, unless no video is wanted; arguments as for `save_img_sequence`."""
        fps, step = self._system.cfg.video_fps, self._system.true_global_step
        if fps is not None:
            self._system.save_img_sequence(file, folder, matcher, save_format="mp4", fps=fps, name=name, step=step)

    def own_facts(self) -> dict[str, Any]:
        """What else, or instead, the card says."""
        return {}

    def _wanted(self) -> bool:
        return self._system.cfg.report and self._system.trainer.is_global_zero

    def _write_card(self, status: str | None) -> None:
        """`status` None keeps what the last card says (a test looks at a run; it does not change it)."""
        path = Path(self._system.get_save_path(f"{CARD}.json"))
        earlier = _read_card(path)
        if self._teacher is None:
            self._teacher = model_card.teacher(self._system)
        facts = model_card.collect(self._system, self._teacher, status or earlier.get("status", "evaluated"))
        facts |= self.own_facts()
        facts["training_seconds"] = round(self._watch.seconds, 1) or earlier.get("training_seconds")
        for key in COUNTED:
            if self._counted is None:  # this process has not trained
                facts[key] = earlier.get(key)
            elif facts[key] is not None:
                facts[key] += self._counted[key]
        for key in ("peak_memory_bytes", "peak_gpu_memory_bytes"):
            facts[key] = _greatest(facts[key], earlier.get(key))  # over all processes that worked on this run
        self._system.save_json(f"{CARD}.json", facts)
        Path(self._system.get_save_path(f"{CARD}.md")).write_text(model_card.as_markdown(facts), encoding="utf-8")


def image_row(out: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for `save_image_grid`, of the first view: color and, where they are there, normal, opacity, depth."""
    row = [{"type": "rgb", "img": out["comp_rgb"][0], "kwargs": {}}]
    if "comp_normal" in out:
        row.append({"type": "rgb", "img": out["comp_normal"][0], "kwargs": {}})
    if "opacity" in out:
        as_is = {"cmap": None, "data_range": (0, 1)}
        row.append({"type": "grayscale", "img": out["opacity"][0, :, :, 0], "kwargs": as_is})
    if "depth" in out:
        row.append({"type": "grayscale", "img": out["depth"][0, :, :, 0], "kwargs": {}})
    return row


def contact_sheet(images: Sequence[np.ndarray], columns: int = 4, gap: int = 4) -> np.ndarray:
    """Images [H, W, 3] uint8 of one size on a white sheet [H', W', 3], row by row, `gap` white pixels between them."""
    height, width = images[0].shape[:2]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image[..., :3]
    return sheet


def numbered(folder: Path, pattern: str = r"(\d+)\.png") -> list[Path]:
    """Files such as 12.png, by the number that the pattern catches."""
    frames = [(int(m[1]), path) for path in folder.iterdir() if (m := re.fullmatch(pattern, path.name))]
    return [path for _, path in sorted(frames)]


def _evenly_chosen(items: Sequence[Path], count: int) -> list[Path]:
    """`count` items at even distances; the last one is left out, because a turntable ends where it begins."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / count)] for i in range(count)]


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or cut off by a power failure: the clock starts anew
        return {}
    return card if isinstance(card, dict) else {}


def _greatest(*values: int | None) -> int | None:
    return max((v for v in values if v is not None), default=None)
