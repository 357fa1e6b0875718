"""Base class of exporters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from threestudio import register
from threestudio.models.parts import HasParts, SubModules
from threestudio.utils.base import BaseObject


@dataclass
class ExporterOutput:
    """One file to write: the system calls `save_<save_type>(<folder>/<save_name>, **params)`."""

    save_name: str
    save_type: str
    params: dict[str, Any]


class Exporter(HasParts, BaseObject):
    """Turns trained parts into files. Calling it returns what to write; the system does the writing."""

    @dataclass
    class Config(BaseObject.Config):
        save_video: bool = False
        """Also render the test views and join them to a video."""

    cfg: Config

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        self.sub_modules = SubModules(geometry, material, background)

    def __call__(self, *args: Any, **kwargs: Any) -> list[ExporterOutput]:
        """The files to write."""
        raise TypeError(f"{type(self).__name__} does not define __call__(), which every exporter must.")


@register("dummy-exporter")
class DummyExporter(Exporter):
    """Writes nothing."""

    def __call__(self, *args: Any, **kwargs: Any) -> list[ExporterOutput]:
        return []
