"""DreamMapping: text to 3D by Variational Distribution Mapping, as an extension of threestudio.

Importing it registers its classes. The parts below them (distillation, degradation, rasterization, ...) need no framework, so
where there is none they can still be imported.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path

_REGISTERED = ("guidance", "geometry", "renderer", "system", "exporter")

if find_spec("threestudio") is not None:
    for _name in _REGISTERED:
        if (Path(__file__).parent / _name / "__init__.py").exists():
            importlib.import_module(f".{_name}", __name__)
