"""Shap-E: a colored mesh from a text, to start from."""

from __future__ import annotations

from .generate import shap_e_mesh
from .settings import ShapESettings

__all__ = ["ShapESettings", "shap_e_mesh"]
