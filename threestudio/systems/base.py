"""The two base classes of systems, under the module name extensions import them from."""

from __future__ import annotations

from threestudio.systems.lift3d import BaseLift3DSystem
from threestudio.systems.system import BaseSystem

__all__ = ["BaseLift3DSystem", "BaseSystem"]
