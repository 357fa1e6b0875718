"""The builder with which a family is written down: primitives with batched dimensions, packed into rows of numbers.

Every primitive is one formula (see sdf.py): a rounded box in (x, y, z) or in the revolved plane (radius - ring, z), with an
optional taper along z and a scale. Ball, capsule, box, cylinder, cone, torus, arc and curved label are settings of it, so a
scene needs no branching over types.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Sequence, Union

import torch
from torch import Tensor

Number = Union[float, Tensor]  # a float, or [n]: one value per scene
Vector = Sequence[Number]

MAX_PRIMITIVES = 20
BODY, CUT, EXTRA = 0, 1, 2  # extras are joined after the cuts were taken from the body

# Layout of one packed primitive. Local coordinates are u = matrix @ p + offset, in units of the primitive's scale.
MATRIX, OFFSET, INVERSE_SCALE = 0, 9, 12
SMALLEST_SCALE, IS_BALL, HALF, ROUND = 15, 16, 17, 20
REVOLVED, RING, ARC_SIN, ARC_COS, TAPER, GROUP = 21, 22, 23, 24, 25, 26
ROW = 27

MAIN = "main"  # the colour slot the label names

_DIRECTIONS = 64  # support directions for the bounding sphere


@dataclass
class Primitives:
    """n scenes of the same family. All float32."""

    rows: Tensor  # [n, ROW, P]
    colors: Tensor  # [n, P, 3] in [0, 1]; meaningless where is_main
    is_main: Tensor  # [n, P] 1 where the labelled colour and the pattern apply
    radius: Tensor  # [n] radius of a sphere around the origin that holds the object


def _cos_sin(degrees: Number) -> tuple[Number, Number]:
    if isinstance(degrees, Tensor):
        angle = torch.deg2rad(degrees)
        return torch.cos(angle), torch.sin(angle)
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


def _product(a: list[list[Number]], b: list[list[Number]]) -> list[list[Number]]:
    return [[sum(a[i][k] * b[k][j] for k in range(3)) for j in range(3)] for i in range(3)]


def rotation_matrix(rot: Vector, spin: Number = 0.0) -> list[list[Number]]:
    """Local to object axes: Rz(rot[2]) Ry(rot[1]) Rx(rot[0]) Rz(spin), degrees."""
    (cx, sx), (cy, sy), (cz, sz), (cs, ss) = (_cos_sin(a) for a in (*rot, spin))
    about_x = [[1.0, 0.0, 0.0], [0.0, cx, -sx], [0.0, sx, cx]]
    about_y = [[cy, 0.0, sy], [0.0, 1.0, 0.0], [-sy, 0.0, cy]]
    about_z = [[cz, -sz, 0.0], [sz, cz, 0.0], [0.0, 0.0, 1.0]]
    about_own_z = [[cs, -ss, 0.0], [ss, cs, 0.0], [0.0, 0.0, 1.0]]
    return _product(_product(_product(about_z, about_y), about_x), about_own_z)


class Kit:
    """Collects the primitives of n scenes of one family.

    Object axes: +x is the front, +y the object's left, +z up. Lengths are free: `finish` centres and scales the object.
    Dimensions are floats or tensors [n] (one proportion per scene, from `vary`).
    """

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count = count
        self.generator = generator
        self._used = 0
        n, p = count, MAX_PRIMITIVES
        self._center = torch.zeros(n, 3, p)
        self._matrix = torch.eye(3)[None, :, :, None].repeat(n, 1, 1, p)  # local to object
        self._scale = torch.ones(n, 3, p)
        self._half = torch.zeros(n, 3, p)
        self._round = torch.full((n, p), -100.0)  # unused primitives are far away from everything
        self._flags = torch.zeros(n, 6, p)  # revolved, ring, arc sin, arc cos, taper, group
        self._colors = torch.zeros(n, p, 3)
        self._is_main = torch.zeros(n, p)

    def vary(self, low: float, high: float) -> Tensor:
        """One uniform number in [low, high] per scene: [n]."""
        return low + (high - low) * torch.rand(self.count, generator=self.generator)

    def _add(self, at: Vector, matrix: list[list[Number]], color: str | Vector, group: int, *, scale: Vector = (1.0, 1.0, 1.0),
             half: Vector = (0.0, 0.0, 0.0), rounding: Number = 0.0, revolved: bool = False, ring: Number = 0.0,
             arc: float = 180.0, taper: Number = 0.0) -> None:
        p = self._used
        if p >= MAX_PRIMITIVES:
            raise ValueError(f"a family has more than {MAX_PRIMITIVES} primitives; drop one or raise MAX_PRIMITIVES")
        self._used += 1
        for i in range(3):
            self._center[:, i, p], self._scale[:, i, p], self._half[:, i, p] = at[i], scale[i], half[i]
            for j in range(3):
                self._matrix[:, i, j, p] = matrix[i][j]
        self._round[:, p] = rounding
        angle = math.radians(arc)
        # A full turn must never test as "outside the arc", so its cosine goes below every reachable value.
        cos, sin = (-2.0, 0.0) if arc >= 180.0 else (math.cos(angle), math.sin(angle))
        for i, value in enumerate((float(revolved), ring, sin, cos, taper, float(group))):
            self._flags[:, i, p] = value
        if color == MAIN:
            self._is_main[:, p] = 1.0
        else:
            for i in range(3):
                self._colors[:, p, i] = color[i]

    def ball(self, at: Vector, size: Number | Vector, color: str | Vector = MAIN, rot: Vector = (0.0, 0.0, 0.0), group: int = BODY) -> None:
        """Sphere (one radius) or ellipsoid (three)."""
        scale = size if isinstance(size, (tuple, list)) else (size, size, size)
        self._add(at, rotation_matrix(rot), color, group, scale=scale, rounding=1.0)

    def box(self, at: Vector, half: Vector, color: str | Vector = MAIN, rot: Vector = (0.0, 0.0, 0.0), rounding: Number = 0.01,
            group: int = BODY, taper: Number = 0.0) -> None:
        """Rounded box with half sizes `half`. taper: growth of the x and y half sizes per unit of z (negative: roof)."""
        self._add(at, rotation_matrix(rot), color, group, half=[h - rounding for h in half], rounding=rounding, taper=taper)

    def cylinder(self, at: Vector, radius: Number, half: Number, color: str | Vector = MAIN, rot: Vector = (0.0, 0.0, 0.0),
                 rounding: Number = 0.01, top: Number | None = None, group: int = BODY) -> None:
        """Cylinder along local z with half height `half`; with `top` a frustum from `radius` below to `top` above."""
        upper = radius if top is None else top
        inner = half - rounding
        mean = 0.5 * (radius + upper) - rounding
        self._add(at, rotation_matrix(rot), color, group, half=(mean, 0.0, inner), rounding=rounding, revolved=True,
                  taper=0.0 if top is None else 0.5 * (upper - radius) / inner)

    def ring(self, at: Vector, radius: Number, thickness: Number, color: str | Vector = MAIN, rot: Vector = (0.0, 0.0, 0.0),
             spin: Number = 0.0, arc: float = 180.0, band: Number = 0.0, group: int = BODY) -> None:
        """Torus about local z; `arc` is the half angle kept, centred on local +y (turned by `spin`); `band` makes it a
        strip of that half height along z, as for a label around a bottle."""
        self._add(at, rotation_matrix(rot, spin), color, group, half=(0.0, 0.0, band), rounding=thickness, revolved=True,
                  ring=radius, arc=arc)

    def rod(self, start: Vector, end: Vector, radius: Number, color: str | Vector = MAIN, group: int = BODY) -> None:
        """Capsule between two points."""
        ends = [torch.stack([torch.as_tensor(v, dtype=torch.float32).expand(self.count) for v in point], -1) for point in (start, end)]
        axis = ends[1] - ends[0]  # [n, 3]
        length = axis.norm(dim=-1, keepdim=True)
        axis = axis / length
        helper = torch.where(axis[:, 2:].abs() > 0.9, axis.new_tensor([1.0, 0.0, 0.0]), axis.new_tensor([0.0, 0.0, 1.0]))
        side = torch.linalg.cross(helper, axis, dim=-1)
        side = side / side.norm(dim=-1, keepdim=True)
        columns = (side, torch.linalg.cross(axis, side, dim=-1), axis)
        matrix = [[column[:, i] for column in columns] for i in range(3)]
        middle = 0.5 * (ends[0] + ends[1])
        self._add([middle[:, i] for i in range(3)], matrix, color, group, half=(0.0, 0.0, 0.5 * length[:, 0]), rounding=radius)

    def _support(self, directions: Tensor) -> Tensor:
        """Largest extent of the uncut object along unit directions [D, 3]: [n, D]. Exact but for tapers and arcs (too large)."""
        local = torch.einsum("dk,nkjp->ndjp", directions, self._matrix)
        revolved, ring, taper = (self._flags[:, i, None] for i in (0, 1, 4))
        half = self._half[:, None]
        widen = taper.abs() * half[:, :, 2]
        x, y, z = local.unbind(2)  # written out: norm over a strided dimension is slow on a CPU
        across = (x * x + y * y).sqrt()
        boxed = x.abs() * (half[:, :, 0] + widen) + y.abs() * (half[:, :, 1] + widen)
        flat = torch.where(revolved > 0, across * (ring + half[:, :, 0] + widen), boxed)
        stretched = [(axis * self._scale[:, None, i]).square() for i, axis in enumerate((x, y, z))]
        extent = flat + z.abs() * half[:, :, 2] + self._round[:, None] * sum(stretched).sqrt()
        extent = extent + torch.einsum("dk,nkp->ndp", directions, self._center)
        keep = (self._flags[:, 5] != CUT) & (self._round > -50.0)
        return extent.masked_fill(~keep[:, None], -1e9).amax(-1)

    def finish(self, radius: Tensor) -> Primitives:
        """Centre the object's bounding box, scale it to the bounding `radius` [n], pack."""
        axes = torch.cat([torch.eye(3), -torch.eye(3)])
        extent = self._support(axes)
        middle = 0.5 * (extent[:, :3] - extent[:, 3:])  # [n, 3]
        center = self._center - middle[:, :, None]
        golden = torch.arange(_DIRECTIONS) + 0.5
        z = 1 - 2 * golden / _DIRECTIONS
        angle = math.pi * (1 + 5**0.5) * golden
        flat = (1 - z * z).sqrt()
        directions = torch.cat([torch.stack([flat * angle.cos(), flat * angle.sin(), z], -1), axes])
        reach = (self._support(directions) - middle @ directions.T).amax(-1)
        factor = (radius / reach)[:, None, None]
        scale = self._scale * factor
        inverse = self._matrix.transpose(1, 2) / scale[:, :, None]  # [n, 3 local, 3 object, P]
        offset = -torch.einsum("nijp,njp->nip", inverse, center * factor)
        rows = self._round.new_zeros(self.count, ROW, MAX_PRIMITIVES)
        rows[:, MATRIX:OFFSET] = inverse.reshape(self.count, 9, -1)
        rows[:, OFFSET:INVERSE_SCALE] = offset
        rows[:, INVERSE_SCALE:SMALLEST_SCALE] = 1 / scale
        rows[:, SMALLEST_SCALE] = scale.amin(1)
        rows[:, IS_BALL] = ((self._half.abs().sum(1) == 0) & (self._flags[:, 0] == 0)).float()
        rows[:, HALF:ROUND] = self._half
        rows[:, ROUND] = self._round
        rows[:, REVOLVED:ROW] = self._flags
        return Primitives(rows, self._colors, self._is_main, radius * 1.03)
