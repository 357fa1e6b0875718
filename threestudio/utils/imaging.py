"""From arrays to 8-bit pictures: value ranges, color maps, grids. Pure functions of numpy arrays, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from threestudio.errors import ConfigError, UserError

_COLORMAPS = {"jet": "jet", "magma": "magma", "spectral": "Spectral"}


def to_uint8(img: np.ndarray, data_range: tuple[float, float]) -> np.ndarray:
    """Map `data_range` to 0..255 with rounding; outside values are clipped, NaN becomes the lower end."""
    low, high = data_range
    scaled = (np.nan_to_num(img.astype(np.float64), nan=low) - low) / (high - low)
    return (scaled.clip(0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def _channels_last(img: np.ndarray, data_format: str, where: str) -> np.ndarray:
    if img.ndim != 3:
        raise UserError(f"{where}: an image has three axes; this one has the shape {img.shape}.")
    if data_format not in ("HWC", "CHW"):
        raise ConfigError(f"{where}: data_format is {data_format!r}; it must be 'HWC' or 'CHW'.")
    return img if data_format == "HWC" else img.transpose(1, 2, 0)


def rgb_image(img: np.ndarray, data_format: str = "HWC", data_range: tuple[float, float] = (0, 1)) -> np.ndarray:
    """[H, W, C] (or CHW) -> [H, W * ceil(C / 3), 3] uint8: channels in groups of three side by side, the last padded
    with 0."""
    img = _channels_last(img, data_format, "rgb image")
    if img.dtype != np.uint8:
        img = to_uint8(img, data_range)
    missing = -img.shape[-1] % 3
    img = np.pad(img, ((0, 0), (0, 0), (0, missing)))
    return np.concatenate(np.split(img, img.shape[-1] // 3, axis=-1), axis=1)


def uv_image(
    img: np.ndarray,
    data_format: str = "HWC",
    data_range: tuple[float, float] = (0, 1),
    cmap: str = "checkerboard",
) -> np.ndarray:
    """Texture coordinates [H, W, 2] -> [H, W, 3] uint8, as a checkerboard of 64 x 64 fields or as red and green."""
    img = _channels_last(img, data_format, "uv image")
    low, high = data_range
    unit = np.nan_to_num((img.astype(np.float64) - low) / (high - low)).clip(0.0, 1.0)
    if cmap == "checkerboard":
        odd = np.floor(unit * 64).astype(np.int64).sum(-1) % 2 == 1
        return np.where(odd[..., None], np.uint8(30), np.array([255, 0, 255], dtype=np.uint8))
    if cmap == "color":
        return to_uint8(np.concatenate([unit, np.zeros_like(unit[..., :1])], axis=-1), (0, 1))
    raise ConfigError(f"uv image: cmap is {cmap!r}; it must be 'checkerboard' or 'color'.")


def grayscale_image(
    img: np.ndarray, data_range: tuple[float, float] | None = None, cmap: str | None = "jet"
) -> np.ndarray:
    """One value per pixel [H, W] -> [H, W, 3] uint8.

    Args:
        data_range: values at the two ends of the color map; None takes the image's own minimum and maximum.
        cmap: None (gray), "jet", "magma" or "spectral".
    """
    if img.ndim != 2:
        raise UserError(f"grayscale image: the shape must be [H, W]; it is {img.shape}.")
    img = np.nan_to_num(img.astype(np.float64))
    if data_range is None:
        data_range = (float(img.min()), float(img.max()))
    low, high = data_range
    unit = ((img - low) / (high - low if high != low else 1.0)).clip(0.0, 1.0)
    if cmap is None:
        return np.repeat(to_uint8(unit, (0, 1))[..., None], 3, axis=-1)
    if cmap not in _COLORMAPS:
        raise ConfigError(f"grayscale image: cmap is {cmap!r}; known: None, {', '.join(_COLORMAPS)}.")
    from matplotlib import colormaps  # slow to import and needed only here

    return to_uint8(colormaps[_COLORMAPS[cmap]](unit)[..., :3], (0, 1))


_CELLS = {"rgb": rgb_image, "uv": uv_image, "grayscale": grayscale_image}


def _resized(img: np.ndarray, height: int, width: int) -> np.ndarray:
    if img.shape[:2] == (height, width):
        return img
    return np.asarray(Image.fromarray(img).resize((width, height), Image.Resampling.BILINEAR))


def _cell_size(cells: list[np.ndarray], align: Any) -> tuple[int, int]:
    heights, widths = [cell.shape[0] for cell in cells], [cell.shape[1] for cell in cells]
    if align in ("max", "min"):
        choose = max if align == "max" else min
        return choose(heights), choose(widths)
    if isinstance(align, int):
        return align, align
    if isinstance(align, Sequence) and not isinstance(align, str) and len(align) == 2:
        return int(align[0]), int(align[1])
    raise ConfigError(f"image grid: align is {align!r}; it must be 'max', 'min', a number or a pair (height, width).")


def image_grid(imgs: Sequence[Any], align: Any = "max") -> np.ndarray:
    """Pictures in rows and columns as one [H, W, 3] uint8.

    Args:
        imgs: a list of cells (one row) or a list of such lists. A cell is `{"type": "rgb" | "uv" | "grayscale",
            "img": array, "kwargs": {...}}`, the kwargs being those of the function of that name.
        align: size of every cell of a row: the row's largest or smallest, a number, or (height, width).

    Rows narrower than the widest are filled with black on the right.
    """
    if not len(imgs):
        raise UserError("image grid: there are no images.")
    rows = []
    for row in imgs if isinstance(imgs[0], (list, tuple)) else [imgs]:
        cells = [_render_cell(cell) for cell in row]
        height, width = _cell_size(cells, align)
        rows.append(np.concatenate([_resized(cell, height, width) for cell in cells], axis=1))
    widest = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, widest - row.shape[1]), (0, 0))) for row in rows], axis=0)


def _render_cell(cell: Mapping[str, Any]) -> np.ndarray:
    kind = cell.get("type")
    if kind not in _CELLS:
        raise ConfigError(f"image grid: a cell has the type {kind!r}; known: {', '.join(_CELLS)}.")
    return _CELLS[kind](cell["img"], **cell.get("kwargs", {}))


def with_texts(img: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Write one line per entry, evenly from top to bottom, white on a black shadow."""
    picture = Image.fromarray(img)
    draw = ImageDraw.Draw(picture)
    for i, text in enumerate(texts):
        y = picture.height // len(texts) * i
        draw.text((3, y + 2), str(text), fill=(0, 0, 0))
        draw.text((2, y + 1), str(text), fill=(255, 255, 255))
    return np.asarray(picture)


def cubemap_image(img: np.ndarray, data_range: tuple[float, float], rgba: bool = False) -> np.ndarray:
    """Six faces [6, S, S, C] in the order +x -x +y -y +z -z -> a cross [3 S, 4 S, 3 or 4] uint8.

    +y above and -y below the front face +z; the middle row is -x, +z, +x, -z. With `rgba`, the empty corners are
    transparent.
    """
    if img.ndim != 4 or img.shape[0] != 6 or img.shape[1] != img.shape[2]:
        raise UserError(f"cubemap: the shape must be [6, S, S, C]; it is {img.shape}.")
    channels, side = (4 if rgba else 3), img.shape[1]
    faces = img if img.dtype == np.uint8 else to_uint8(img, data_range)
    if rgba and faces.shape[-1] == 3:
        faces = np.concatenate([faces, np.full_like(faces[..., :1], 255)], axis=-1)
    cross = np.zeros((3 * side, 4 * side, channels), dtype=np.uint8)
    for face, (row, column) in enumerate(((1, 2), (1, 0), (0, 1), (2, 1), (1, 1), (1, 3))):
        cross[row * side : (row + 1) * side, column * side : (column + 1) * side] = faces[face, ..., :channels]
    return cross
