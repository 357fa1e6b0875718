"""Exporters: from trained models to files."""

from threestudio.models.exporters import base, mesh_exporter

__all__ = ["base", "mesh_exporter"]
