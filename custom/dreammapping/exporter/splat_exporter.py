"""Splat files of the Gaussians, for viewers."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, List

import threestudio
from threestudio.models.exporters.base import Exporter, ExporterOutput

from ..errors import ConfigError, suggest
from ..gaussians import FILE_FORMATS, save_gaussians


@threestudio.register("dreammapping-splat-exporter")
class SplatExporter(Exporter):
    """Writes the Gaussians in one or more splat formats.

    The files are made in a temporary folder, which lives as long as the exporter; the system copies them (`save_file`).
    """

    @dataclass
    class Config(Exporter.Config):
        formats: List[str] = field(default_factory=lambda: list(FILE_FORMATS))
        """Of ply (everything, for nearly all viewers), ply_compressed (SuperSplat), splat (antimatter15 and kin)."""
        save_name: str = "gaussians"
        """File name without suffix."""

    cfg: Config

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        super().configure(geometry, material, background)
        for name in self.cfg.formats:
            if name not in FILE_FORMATS:
                raise ConfigError(f"system.exporter.formats contains {name!r}; {suggest(name, FILE_FORMATS)}")
        if not hasattr(geometry, "gaussians"):
            raise ConfigError(
                f"dreammapping-splat-exporter writes Gaussians; the geometry is {type(geometry).__name__}. Choose "
                "system.geometry_type=dreammapping-gaussians, or the exporter that fits the geometry."
            )

    def __call__(self, *args: Any, **kwargs: Any) -> list[ExporterOutput]:
        """Make the files.

        Returns:
            One output of type `file` for each format, named by `save_name` and the format's suffix.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="dreammapping-", ignore_cleanup_errors=True)
        outputs = []
        for name in self.cfg.formats:
            file_name = self.cfg.save_name + FILE_FORMATS[name]
            source = save_gaussians(self.geometry.gaussians, Path(self._folder.name) / file_name, name)
            outputs.append(ExporterOutput(save_name=file_name, save_type="file", params={"src_path": str(source)}))
        return outputs
