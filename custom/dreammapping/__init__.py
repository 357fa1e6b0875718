"""DreamMapping: text to 3D by Variational Distribution Mapping, as an extension of threestudio.

Importing it registers its classes. The parts below them (distillation, degradation, rasterization, ...) need no
framework: where threestudio is not installed, they can still be imported.
"""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("threestudio") is not None:
    from . import data, exporter, geometry, guidance, renderer, system  # noqa: F401
