"""What a run of text to 2D leaves behind: one file per picture, a sheet of all, how they came to be, the card."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import threestudio

from .prompts import slug
from .run_report import RunReport, contact_sheet, numbered

SHEET = "pictures.png"
PREVIEWS = r"^it(\d+)\.png$"


class ImageReport(RunReport):
    """As RunReport; instead of an exporter's files and a turntable there are pictures."""

    def check(self) -> None:
        """Pictures need no exporter."""

    def export(self) -> list[str]:
        """Nothing yet: the test that follows writes the pictures, when the teacher is on its device again."""
        return []

    def preview(self, pictures: Sequence[np.ndarray]) -> None:
        """The sheet of all pictures as they are now, it<step>.png."""
        if self._system.trainer.is_global_zero:
            self._system.save_image(f"it{self._system.true_global_step}.png", self._sheet(pictures))

    def write_pictures(self, pictures: Sequence[np.ndarray]) -> list[str]:
        """One file for each picture, named after its number, prompt and particle; paths written."""
        system, folder = self._system, f"it{self._system.true_global_step}-pictures"
        names = picture_names(system.prompts, system.geometry.cfg.particles)
        return [system.save_image(f"{folder}/{name}.png", picture) for name, picture in zip(names, pictures)]

    def conclude(self, pictures: Sequence[np.ndarray]) -> None:
        """The files of all pictures, and the card with all that exists now."""
        if not self._system.trainer.is_global_zero:
            return
        self.write_pictures(pictures)
        self._system.save_image(SHEET, self._sheet(pictures))
        try:
            self._animate()
        finally:  # without ffmpeg there is no video, but the pictures are there
            if self._wanted():
                self._write_card(None)

    def own_facts(self) -> dict[str, Any]:
        """The prompts in place of one, and pictures in place of primitives."""
        prompts, pictures = self._system.prompts, self._system.geometry.pictures
        title = prompts[0] if len(prompts) == 1 else f"{len(prompts)} prompts: {'; '.join(prompts)}"
        return {"prompt": title, "prompts": prompts, "pictures": len(pictures)}

    def _animate(self) -> None:
        """The previews as a video; none where they differ in size, in a folder that another run has used before."""
        system = self._system
        sizes = {imageio.improps(path).shape for path in numbered(Path(system.get_save_dir()), PREVIEWS)}
        if len(sizes) > 1:
            threestudio.warn("The previews differ in size, so there is no video of them.")
        elif sizes:  # a test elsewhere than in the run's folder finds none
            self.video("progress", "", PREVIEWS, "progress")

    def _sheet(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """One row per prompt if there are several with several particles, else nearly a square."""
        particles = self._system.geometry.cfg.particles
        in_rows = 1 < particles < len(pictures)
        return contact_sheet(pictures, particles if in_rows else math.ceil(math.sqrt(len(pictures))))


def picture_names(prompts: Sequence[str], particles: int) -> Iterator[str]:
    """File names without suffix, in the order of the pictures: 03-a_red_striped_mug, with -0, -1, ... for particles."""
    for number, prompt in enumerate(prompts):
        for particle in range(particles):
            yield f"{number:02d}-{slug(prompt)}" + (f"-{particle}" if particles > 1 else "")
