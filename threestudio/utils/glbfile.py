"""Binary glTF (.glb): a mesh with its textures in one file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from threestudio.utils.imaging import to_uint8


def to_gltf_axes(vectors: np.ndarray) -> np.ndarray:
    """World coordinates [N, 3], z up and front +x, -> glTF's, y up and front +z. A rotation."""
    return vectors[:, [1, 2, 0]]


def glb_bytes(
    v_pos: np.ndarray,
    t_pos_idx: np.ndarray,
    v_nrm: np.ndarray | None = None,
    v_tex: np.ndarray | None = None,
    t_tex_idx: np.ndarray | None = None,
    v_rgb: np.ndarray | None = None,
    maps: Mapping[str, np.ndarray] | None = None,
) -> bytes:
    """A mesh as the bytes of a .glb file, in glTF's axes; the same input gives the same bytes.

    Args:
        v_pos: [Nv, 3], world coordinates.  t_pos_idx: [Nf, 3], from 0.
        v_nrm: [Nv, 3] normals, indexed as positions.
        v_tex, t_tex_idx: [Nt, 2] texture coordinates with row 0 of the image at v = 0, and their [Nf, 3] indices.
        v_rgb: [Nv, 3] in [0, 1], display values (sRGB); written in linear light, as glTF wants vertex colors.
        maps: textures [H, W, 3] (map_Kd, map_Bump) or [H, W] (map_Pm, map_Pr), in [0, 1]; embedded as PNG.
    """
    import trimesh
    from trimesh.visual import TextureVisuals

    position, texture, faces = _shared_corners(t_pos_idx, t_tex_idx)
    # trimesh counts rows of a texture from the bottom and turns them round for glTF.
    uv = None if texture is None else np.stack([v_tex[texture, 0], 1.0 - v_tex[texture, 1]], axis=1)
    visual = TextureVisuals(uv=uv, material=_material(maps or {}))
    if v_rgb is not None:
        linear = to_uint8(_linear_light(v_rgb[position]), (0, 1))
        visual.vertex_attributes["color"] = np.pad(linear, ((0, 0), (0, 1)), constant_values=255)
    mesh = trimesh.Trimesh(
        to_gltf_axes(v_pos)[position],
        faces,
        vertex_normals=None if v_nrm is None else to_gltf_axes(v_nrm)[position],
        visual=visual,
        process=False,
    )
    return mesh.export(file_type="glb", include_normals=v_nrm is not None)


def _shared_corners(
    t_pos_idx: np.ndarray, t_tex_idx: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """glTF has one index per corner: position and texture index of each pair that occurs, and faces over the pairs."""
    if t_tex_idx is None:
        return np.arange(int(t_pos_idx.max()) + 1), None, t_pos_idx
    keys = t_tex_idx.astype(np.int64) * (int(t_pos_idx.max()) + 1) + t_pos_idx
    pairs, faces = np.unique(keys, return_inverse=True)
    texture, position = np.divmod(pairs, int(t_pos_idx.max()) + 1)
    return position, texture, faces.reshape(t_pos_idx.shape)


def _linear_light(srgb: np.ndarray) -> np.ndarray:
    """Inverse of the sRGB curve (IEC 61966-2-1)."""
    x = srgb.astype(np.float64).clip(0.0, 1.0)
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def _material(maps: Mapping[str, np.ndarray]) -> Any:
    """glTF's metallic-roughness material; matte and not metallic where no texture says otherwise."""
    from trimesh.visual.material import PBRMaterial

    def picture(name: str) -> Image.Image | None:
        return Image.fromarray(to_uint8(maps[name], (0, 1))) if name in maps else None

    metallic, roughness = maps.get("map_Pm"), maps.get("map_Pr")
    packed = None
    if metallic is not None or roughness is not None:
        given = metallic if roughness is None else roughness
        blue = np.zeros_like(given) if metallic is None else metallic
        green = np.ones_like(given) if roughness is None else roughness
        packed = Image.fromarray(to_uint8(np.stack([np.zeros_like(given), green, blue], axis=-1), (0, 1)))
    return PBRMaterial(
        name="default",
        baseColorTexture=picture("map_Kd"),
        normalTexture=picture("map_Bump"),
        metallicRoughnessTexture=packed,
        metallicFactor=0.0 if metallic is None else 1.0,
        roughnessFactor=1.0,
    )
