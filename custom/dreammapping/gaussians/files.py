"""Gaussians on disk.

| format | suffix | what reads it | what is lost |
| --- | --- | --- | --- |
| ply | .ply | nearly every splat viewer, `load_gaussians` | nothing |
| ply_compressed | .compressed.ply | SuperSplat, PlayCanvas | 11-bit chunks; Gaussians below opacity 1/255 |
| splat | .splat | antimatter15's viewer and its kin, `load_gaussians` | 8-bit colors and rotations; view dependence |

gsplat's exporter makes the bytes (on any device; the same Gaussians give the same bytes). A file is written beside its
target and then renamed, so a crash or a full disk leaves the old file or the new one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import suggest
from ..files import write_atomic
from .model import GaussianModel
from .ply import GaussianFileError, read_ply_vertices
from .splat_file import read_splat

FILE_FORMATS = {"ply": ".ply", "ply_compressed": ".compressed.ply", "splat": ".splat"}
"""gsplat's format names and the suffixes files get."""


def save_gaussians(model: GaussianModel, path: str | os.PathLike[str], file_format: str | None = None) -> Path:
    """Write the Gaussians to `path`, whole or not at all. The folder is made if it is missing.

    Args:
        file_format: one of FILE_FORMATS; none: by the suffix.

    Raises:
        GaussianFileError: unknown format, no Gaussians, values that are not finite, or a failed write (full disk, no
            permission); an older file at `path` is then still there.
    """
    target = Path(path)
    name = file_format or _format_of(target)
    if name not in FILE_FORMATS:
        raise GaussianFileError(f"unknown splat format {name!r}; {suggest(name, FILE_FORMATS)}")
    _write(target, gaussian_bytes(model, name))
    return target


def gaussian_bytes(model: GaussianModel, file_format: str) -> bytes:
    """The content of a file of this format."""
    if model.count == 0:
        raise GaussianFileError("there are no Gaussians to save")
    finite = model.finite_rows()
    if not bool(finite.all()):
        # gsplat's exporter drops such rows without a word, and every row if one opacity is not a number.
        bad = (~finite).nonzero()[:, 0].tolist()
        raise GaussianFileError(f"{len(bad)} of {model.count} Gaussians have values that are not finite ({_rows(bad)})")
    from gsplat.exporter import export_splats  # takes a while to import, and only files need it

    with torch.no_grad():
        tensors = {key: value.detach().cpu().float() for key, value in model.params.items()}
        return export_splats(**tensors, format=file_format)


def load_gaussians(path: str | os.PathLike[str], sh_degree: int | None = None) -> GaussianModel:
    """Read a splat PLY (the layout of 3D Gaussian Splatting, which `save_gaussians` writes as `ply`) or a .splat file.

    Args:
        sh_degree: of the model, 0..4; none: the file's. Coefficients the file lacks are zero, surplus ones are dropped.

    Raises:
        GaussianFileError: missing, damaged, another kind of file, or rows with values that are not finite.
    """
    if str(path).lower().endswith(FILE_FORMATS["splat"]):
        model = read_splat(path)
    else:
        model = _read_ply(path)
    bad = (~model.finite_rows()).nonzero()[:, 0].tolist()
    if bad:
        raise GaussianFileError(f"{path}: {len(bad)} of {model.count} Gaussians have values that are not finite ({_rows(bad)})")
    return model if sh_degree is None else model.with_sh_degree(sh_degree)


def is_splat_ply(properties: tuple[str, ...] | list[str]) -> bool:
    """Whether a PLY's vertices with these properties are Gaussians."""
    return {"f_dc_0", "opacity", "scale_0", "rot_0"} <= set(properties)


# ---------------------------------------------------------------------- inside


def _read_ply(path: str | os.PathLike[str]) -> GaussianModel:
    rows = read_ply_vertices(path)
    _require_splat_properties(rows, path)
    rest_names = sorted((n for n in rows.dtype.names if re.fullmatch(r"f_rest_\d+", n)), key=lambda n: int(n[7:]))
    coefficients, remainder = divmod(len(rest_names), 3)
    saved_degree = round((coefficients + 1) ** 0.5) - 1
    if remainder or (saved_degree + 1) ** 2 != coefficients + 1 or saved_degree > 4:
        raise GaussianFileError(f"{path}: {len(rest_names)} f_rest properties fit no SH degree from 0 to 4")
    values = {
        "means": _columns(rows, ["x", "y", "z"]),
        "scales": _columns(rows, ["scale_0", "scale_1", "scale_2"]),
        "quats": _columns(rows, ["rot_0", "rot_1", "rot_2", "rot_3"]),
        "opacities": _columns(rows, ["opacity"])[:, 0],
        "sh0": _columns(rows, ["f_dc_0", "f_dc_1", "f_dc_2"])[:, None],
        # The file has all coefficients of red, then of green, then of blue.
        "shN": _columns(rows, rest_names).reshape(len(rows), 3, coefficients).transpose(1, 2),
    }
    model = GaussianModel(saved_degree, len(rows))
    with torch.no_grad():
        for name, parameter in model.params.items():
            parameter.copy_(values[name])
    return model


def _format_of(path: Path) -> str:
    # The longest suffix first: .compressed.ply also ends in .ply.
    for name, suffix in sorted(FILE_FORMATS.items(), key=lambda item: -len(item[1])):
        if path.name.lower().endswith(suffix):
            return name
    raise GaussianFileError(f"{path}: the suffix names no splat format; known: {', '.join(FILE_FORMATS.values())}")


def _require_splat_properties(rows: np.ndarray, path: str | os.PathLike[str]) -> None:
    names = rows.dtype.names or ()
    if "packed_position" in names:
        raise GaussianFileError(f"{path}: a compressed splat PLY; only uncompressed ones can be read back")
    needed = ["x", "y", "z", "opacity"]
    needed += [f"{p}_{i}" for p, n in (("scale", 3), ("rot", 4), ("f_dc", 3)) for i in range(n)]
    missing = [n for n in needed if n not in names]
    if missing:
        raise GaussianFileError(
            f"{path}: no splat PLY, its vertices lack {', '.join(missing)}. A plain point cloud is read by init type 'points'."
        )
    if len(rows) == 0:
        raise GaussianFileError(f"{path}: contains no Gaussians")


def _columns(rows: np.ndarray, names: list[str]) -> Tensor:
    if not names:
        return torch.zeros(len(rows), 0)
    return torch.from_numpy(np.stack([rows[n].astype(np.float32) for n in names], axis=1))


def _rows(indices: list[int]) -> str:
    shown = ", ".join(str(i) for i in indices[:5])
    return f"row{'s' if len(indices) > 1 else ''} {shown}{', ...' if len(indices) > 5 else ''}"


def _write(target: Path, data: bytes) -> None:
    try:
        write_atomic(target, data)
    except OSError as problem:
        raise GaussianFileError(f"{target}: could not be written ({problem.strerror or problem})") from problem
