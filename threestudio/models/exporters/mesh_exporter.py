"""From a geometry's surface and a material to a textured mesh."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio import register
from threestudio.errors import ConfigError
from threestudio.models.exporters.base import Exporter, ExporterOutput
from threestudio.models.exporters.texture_baking import bake_textures, vertex_properties
from threestudio.models.mesh import Mesh
from threestudio.models.mesh_cleaning import clean_mesh
from threestudio.registry import modules

FORMATS = ("obj-mtl", "obj", "glb")
TEXTURE_FORMATS = ("jpg", "jpeg", "png")
MAPS = {"albedo": "map_Kd", "metallic": "map_Pm", "roughness": "map_Pr", "bump": "map_Bump"}
"""What a material may export, and the textures' names in .mtl files."""
CHART_GAP = 2
"""Texels between charts, so that bilinear lookups in neighbors never share one."""


@register("mesh-exporter")
class MeshExporter(Exporter):
    """Writes the isosurface as a mesh with textures, or with vertex colors where no texture is asked for.

    The surface is cleaned (`clean_mesh`), unwrapped by xatlas and baked: each texel's surface point goes through
    `geometry.export(points=...)` and `material.export(points=..., **geometry_output)`. How fine the surface is and
    which loose parts are dropped is the geometry's own config (`isosurface_*`).

    .obj files keep world coordinates (z up, front +x), .glb files have glTF's (y up, front +z).
    """

    @dataclass
    class Config(Exporter.Config):
        fmt: str = "obj-mtl"
        """obj-mtl (with .mtl and pictures beside it), obj (one file, vertex colors) or glb (one file)."""
        save_name: str = "model"
        """File name without suffix."""
        save_normal: bool = False
        save_uv: bool = True
        save_texture: bool = True
        """Textures in obj-mtl and glb; without, the vertices carry the color. Needs save_uv."""
        texture_size: int = 1024
        """Height and width, texels."""
        texture_format: str = "jpg"
        """jpg or png, for obj-mtl. A .glb holds PNG."""
        xatlas_chart_options: dict = field(default_factory=dict)
        """Attributes of xatlas.ChartOptions; not given: max_chart_area 200 squares of the mesh's mean edge."""
        xatlas_pack_options: dict = field(default_factory=dict)
        """Attributes of xatlas.PackOptions; not given: resolution texture_size, padding 2."""
        context_type: str = "gl"
        """Accepted for upstream's configs; this exporter needs no graphics context."""

    cfg: Config

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        super().configure(geometry, material, background)
        self._check_config()
        if not callable(getattr(geometry, "isosurface", None)):
            known = ", ".join(sorted(name for name in modules if name.endswith("exporter") and name != "mesh-exporter"))
            raise ConfigError(
                f"mesh-exporter needs a geometry with a surface, but {type(geometry).__name__} has no isosurface(). "
                f"Set system.exporter_type to the exporter made for this geometry (known: {known}), or train a "
                "geometry that has a surface, such as implicit-volume."
            )

    def _check_config(self) -> None:
        where, cfg = "system.exporter", self.cfg
        for key, known in (("fmt", FORMATS), ("texture_format", TEXTURE_FORMATS)):
            if cfg[key] not in known:
                raise ConfigError(f"{where}.{key} is {cfg[key]!r}; it must be one of {', '.join(known)}.")
        if cfg.save_texture and not cfg.save_uv and cfg.fmt != "obj":
            raise ConfigError(
                f"{where}.save_texture needs texture coordinates: set {where}.save_uv=true, or save_texture=false for "
                "vertex colors."
            )
        if cfg.texture_size < 16:
            raise ConfigError(f"{where}.texture_size is {cfg.texture_size}; it must be at least 16 texels.")
        if not cfg.save_name:
            raise ConfigError(f"{where}.save_name is empty; it must be the file's name without suffix.")

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> list[ExporterOutput]:
        """Make mesh and textures.

        Returns:
            One output: type `obj` for the two .obj formats, `glb` for a .glb file.

        Raises:
            EmptySurfaceError: the geometry has no surface at its threshold.
        """
        cfg = self.cfg
        mesh = clean_mesh(self.geometry.isosurface())
        threestudio.info(f"The surface has {len(mesh.v_pos)} vertices and {len(mesh.t_pos_idx)} faces.")
        params: dict[str, Any] = {"mesh": mesh, "save_normal": cfg.save_normal, "save_uv": cfg.save_uv}
        if cfg.save_uv:
            pack = {"resolution": cfg.texture_size, "padding": CHART_GAP, **cfg.xatlas_pack_options}
            mesh.unwrap_uv(cfg.xatlas_chart_options, pack)
        textured = cfg.save_texture and cfg.fmt != "obj"
        params.update(self._textures(mesh) if textured else self._vertex_colors(mesh))
        if cfg.fmt == "glb":
            return [ExporterOutput(save_name=f"{cfg.save_name}.glb", save_type="glb", params=params)]
        if cfg.fmt == "obj-mtl":
            params.update(save_mat=True, map_format=cfg.texture_format)
        return [ExporterOutput(save_name=f"{cfg.save_name}.obj", save_type="obj", params=params)]

    def _properties(self, points: Tensor) -> dict[str, Tensor]:
        """World points [N, 3] -> what the material exports about them that a file can hold, [N, C] by name."""
        exported = self.material.export(points=points, **self.geometry.export(points=points))
        return {name: exported[name] for name in MAPS if exported.get(name) is not None}

    def _textures(self, mesh: Mesh) -> dict[str, Any]:
        maps = bake_textures(mesh, self._properties, self.cfg.texture_size)
        if "albedo" not in maps:
            self._warn_colorless()
        return {MAPS[name]: image for name, image in maps.items()}

    def _vertex_colors(self, mesh: Mesh) -> dict[str, Any]:
        albedo = vertex_properties(mesh, self._properties).get("albedo")
        if albedo is None:
            self._warn_colorless()
            return {}
        mesh.set_vertex_color(albedo.float().clamp(0.0, 1.0))
        return {"save_vertex_color": True}

    def _warn_colorless(self) -> None:
        threestudio.warn(
            f"{type(self.material).__name__} exports no albedo (its colors may depend on the view), so the mesh has no "
            "color."
        )
