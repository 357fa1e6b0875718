"""Reading the vertices of a PLY file with every property kept."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DreamMappingError

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip

MAX_HEADER_BYTES = 1 << 20


class GaussianFileError(DreamMappingError):
    """A file that cannot be read as Gaussians or points, or that cannot be written."""


@dataclass(frozen=True)
class _Element:
    name: str
    count: int
    properties: list[tuple[str, str]]  # name, numpy type without byte order
    has_list: bool


def read_ply_vertices(path: str | os.PathLike[str]) -> np.ndarray:
    """The `vertex` element of a PLY file (ascii or binary) as a structured array with one field for each property.

    Raises:
        GaussianFileError: missing, no PLY, cut short, or no vertex element of plain numbers at its start.
    """
    data = _read(path)
    encoding, elements, start = _parse_header(data, path)
    for element in elements:
        if element.name == "vertex":
            break
        if element.has_list:
            raise GaussianFileError(f"{path}: the element {element.name!r} before the vertices has lists, which is not supported")
        if encoding == "ascii":
            raise GaussianFileError(f"{path}: an ascii PLY whose first element is {element.name!r} is not supported")
        start += element.count * _dtype(element, encoding).itemsize
    else:
        raise GaussianFileError(f"{path}: this PLY file has no element 'vertex'")
    if element.has_list:
        raise GaussianFileError(f"{path}: its vertices have list properties, which is not supported")
    if encoding == "ascii":
        return _read_ascii(data[start:], element, path)
    dtype = _dtype(element, encoding)
    available = max(0, len(data) - start) // dtype.itemsize
    if available < element.count:
        raise GaussianFileError(
            f"{path}: the header promises {element.count} vertices, the file holds {available}; it was cut short"
        )
    return np.frombuffer(data, dtype, element.count, start)


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        data = Path(path).read_bytes()
    except OSError as problem:
        raise GaussianFileError(f"{path}: cannot be read ({problem.strerror or problem})") from problem
    if not data.startswith((b"ply\n", b"ply\r")):
        raise GaussianFileError(f"{path}: not a PLY file (it does not begin with 'ply')")
    return data


def _parse_header(data: bytes, path: str | os.PathLike[str]) -> tuple[str, list[_Element], int]:
    end = data.find(b"end_header", 0, MAX_HEADER_BYTES)
    line_end = data.find(b"\n", end)
    if end < 0 or line_end < 0:
        raise GaussianFileError(f"{path}: its PLY header has no end_header line")
    encoding, elements = "", []
    try:
        for line in data[:end].decode("ascii", errors="replace").splitlines():
            words = line.split()
            if words[:1] == ["format"]:
                encoding = words[1]
            elif words[:1] == ["element"]:
                elements.append(_Element(words[1], int(words[2]), [], False))
            elif words[:2] == ["property", "list"]:
                last = elements[-1]
                elements[-1] = _Element(last.name, last.count, last.properties, True)
            elif words[:1] == ["property"]:
                elements[-1].properties.append((words[2], _TYPES[words[1]]))
    except (IndexError, ValueError, KeyError) as problem:
        raise GaussianFileError(f"{path}: the PLY header line {line!r} is malformed") from problem
    if encoding not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise GaussianFileError(f"{path}: unknown PLY format {encoding!r}")
    return encoding, elements, line_end + 1


def _dtype(element: _Element, encoding: str) -> np.dtype:
    order = ">" if encoding == "binary_big_endian" else "<"
    return np.dtype([(name, order + kind) for name, kind in element.properties])


def _read_ascii(body: bytes, element: _Element, path: str | os.PathLike[str]) -> np.ndarray:
    lines = body.split(b"\n", element.count)[: element.count]
    rows = np.zeros(element.count, _dtype(element, "ascii"))
    width = len(element.properties)
    for i in range(element.count):
        try:
            values = [float(word) for word in lines[i].split()]
            if len(values) != width:
                raise ValueError
        except (ValueError, IndexError):
            raise GaussianFileError(f"{path}: vertex row {i} is not {width} numbers; the file is damaged or cut short") from None
        rows[i] = tuple(values)
    return rows
