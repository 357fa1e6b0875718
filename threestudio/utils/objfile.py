"""Wavefront .obj and .mtl as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

MATERIAL = "default"


def _lines(tag: str, rows: np.ndarray) -> Iterable[str]:
    return (f"{tag} " + " ".join(f"{value:.6g}" for value in row) for row in rows)


def obj_text(
    v_pos: np.ndarray,
    t_pos_idx: np.ndarray,
    v_nrm: np.ndarray | None = None,
    v_tex: np.ndarray | None = None,
    t_tex_idx: np.ndarray | None = None,
    v_rgb: np.ndarray | None = None,
    mtl_name: str | None = None,
) -> str:
    """A mesh as .obj text.

    Args:
        v_pos: [Nv, 3].  t_pos_idx: [Nf, 3], from 0.
        v_nrm: [Nv, 3] normals, indexed as positions.
        v_tex, t_tex_idx: [Nt, 2] texture coordinates with row 0 of the image at v = 0, and their [Nf, 3] indices.
        v_rgb: [Nv, 3] in [0, 1], appended to the vertex lines (a common extension of the format).
        mtl_name: name of the .mtl file to refer to.
    """
    lines = [] if mtl_name is None else [f"mtllib {mtl_name}", "g object", f"usemtl {MATERIAL}"]
    lines += _lines("v", v_pos if v_rgb is None else np.concatenate([v_pos, v_rgb], axis=1))
    if v_tex is not None:
        # Images count rows from the top, .obj from the bottom.
        lines += _lines("vt", np.stack([v_tex[:, 0], 1.0 - v_tex[:, 1]], axis=1))
    if v_nrm is not None:
        lines += _lines("vn", v_nrm)
    lines += _face_lines(t_pos_idx, t_tex_idx if v_tex is not None else None, v_nrm is not None)
    return "\n".join(lines) + "\n"


def _face_lines(faces: np.ndarray, uv_faces: np.ndarray | None, normals: bool) -> Iterable[str]:
    for i, face in enumerate(faces):
        corners = []
        for j, vertex in enumerate(face):
            texture = "" if uv_faces is None else str(int(uv_faces[i, j]) + 1)
            corner = str(int(vertex) + 1)
            if normals:
                corner += f"/{texture}/{int(vertex) + 1}"
            elif texture:
                corner += f"/{texture}"
            corners.append(corner)
        yield "f " + " ".join(corners)


def mtl_text(maps: Mapping[str, str]) -> str:
    """A material as .mtl text; `maps` gives file names under the format's keys (map_Kd, map_Ks, map_Bump, map_Pm,
    map_Pr)."""
    lines = [f"newmtl {MATERIAL}", "Ka 0 0 0"]
    lines.append(f"map_Kd {maps['map_Kd']}" if "map_Kd" in maps else "Kd 1 1 1")
    lines.append(f"map_Ks {maps['map_Ks']}" if "map_Ks" in maps else "Ks 0 0 0")
    lines += [f"{key} {maps[key]}" for key in ("map_Bump", "map_Pm", "map_Pr") if key in maps]
    return "\n".join(lines) + "\n"
