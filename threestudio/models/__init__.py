"""Models of the core. Importing this package registers every built-in class."""

from threestudio.models import (
    background,
    exporters,
    geometry,
    guidance,
    materials,
    prompt_processors,
    renderers,
)

__all__ = ["background", "exporters", "geometry", "guidance", "materials", "prompt_processors", "renderers"]
