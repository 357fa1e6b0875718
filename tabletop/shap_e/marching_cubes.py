"""The table that diffusers' `MeshDecoder` looks triangles up in.

In diffusers it is a pair of buffers that come with the weights, and zero without them: a renderer that is made anew has to be given one. It is
worked out here from the cube's geometry: on every face of the cube each connected run of inside corners is cut off by one segment, and the
segments of the six faces join into closed polygons. As a face is cut the same way from both of its cubes, the surface has no cracks.
"""
from __future__ import annotations

import torch
from torch import Tensor

MAX_TRIANGLES = 5

# Corner number: x + 2 y + 4 z.
CORNERS = torch.tensor([[c & 1, c >> 1 & 1, c >> 2 & 1] for c in range(8)])
# Edges in diffusers' order: along x at (y, z), along y at (x, z), along z at (x, y), the pairs running (0,0), (1,0), (0,1), (1,1).
EDGES: tuple[tuple[int, int], ...] = (
    (0, 1), (2, 3), (4, 5), (6, 7),
    (0, 2), (1, 3), (4, 6), (5, 7),
    (0, 4), (1, 5), (2, 6), (3, 7),
)  # fmt: skip
# The corners of each face in turn, counterclockwise seen from outside the cube.
FACES: tuple[tuple[int, int, int, int], ...] = ((0, 4, 6, 2), (1, 3, 7, 5), (0, 1, 5, 4), (2, 6, 7, 3), (0, 2, 3, 1), (4, 5, 7, 6))
_EDGE_NUMBER = {frozenset(edge): number for number, edge in enumerate(EDGES)}


def _segments(code: int) -> dict[int, int]:
    """On the faces of a cube with inside corners `code` (bit c: corner c): the edge each segment starts at, and the one it ends at.

    Walked counterclockwise round a face, a run of inside corners is entered at one edge and left at another. Going from the entrance to the exit
    makes the finished polygon counterclockwise seen from outside.
    """
    ends = {}
    for face in FACES:
        inside = [code >> corner & 1 for corner in face]
        crossed = [_EDGE_NUMBER[frozenset((face[i], face[(i + 1) % 4]))] for i in range(4)]
        for i in range(4):
            if inside[i] and not inside[(i + 1) % 4]:  # the exit of a run; its entrance lies before its first corner
                first = i
                while inside[(first - 1) % 4]:
                    first -= 1
                ends[crossed[(first - 1) % 4]] = crossed[i]
    return ends


def _polygons(code: int) -> list[list[int]]:
    ends, polygons = _segments(code), []
    while ends:
        polygon = [min(ends)]
        while (following := ends.pop(polygon[-1])) != polygon[0]:
            polygon.append(following)
        polygons.append(polygon)
    return polygons


def triangle_table() -> tuple[Tensor, Tensor]:
    """(cases, masks): edge numbers [256, 5, 3] int64 of the triangles for each pattern of inside corners, and which of them exist [256, 5].

    Triangles run counterclockwise seen from outside, where the field is negative.
    """
    cases = torch.zeros(256, MAX_TRIANGLES, 3, dtype=torch.long)
    masks = torch.zeros(256, MAX_TRIANGLES, dtype=torch.bool)
    for code in range(256):
        fans = [(polygon[0], polygon[i], polygon[i + 1]) for polygon in _polygons(code) for i in range(1, len(polygon) - 1)]
        for number, triangle in enumerate(fans):
            cases[code, number] = torch.tensor(triangle)
            masks[code, number] = True
    return cases, masks
