"""Points in the space near a mesh."""

from __future__ import annotations

import torch
from scipy.spatial import cKDTree

from .mesh import ColoredMesh
from .points import ColoredPoints

COLOR_NOISE = 0.2
"""Each channel gets U(0, 0.2) added. GaussianDreamer (Yi et al. 2024), "noisy point growing and color perturbation"."""


def grown_points(mesh: ColoredMesh, count: int, generator: torch.Generator, *, distance: float) -> ColoredPoints:
    """Exactly `count` points, uniform in the space that is nearer than `distance` to a vertex.

    A color is that of the nearest vertex plus noise. GaussianDreamer draws a million points in the bounding box, keeps
    those near a vertex and adds the vertices; here the same space is drawn from directly, until there are enough, so that
    the number is exact, and points outside the box of the vertices may occur.

    Args:
        generator: CPU generator.
        distance: > 0, in the mesh's units.
    """
    vertices = mesh.vertices.double()
    tree = cKDTree(vertices.numpy())
    found, missing = [], count
    while missing > 0:
        drawn = _in_balls(vertices, 2 * missing, generator, distance)
        # A place in n balls is drawn n times as often: keep one in n.
        overlaps = torch.from_numpy(tree.query_ball_point(drawn.numpy(), distance, return_length=True).astype("float64"))
        kept = drawn[torch.rand(len(drawn), generator=generator, dtype=torch.float64) * overlaps.clamp_min(1) < 1][:missing]
        found.append(kept)
        missing -= len(kept)
    points = torch.cat(found)
    nearest = torch.from_numpy(tree.query(points.numpy())[1])
    noise = COLOR_NOISE * torch.rand(count, 3, generator=generator)
    return ColoredPoints(points.float(), (mesh.colors[nearest] + noise).clamp(0.0, 1.0))


def _in_balls(vertices: torch.Tensor, count: int, generator: torch.Generator, radius: float) -> torch.Tensor:
    """[count, 3] points, each uniform in the ball round a random vertex."""
    centers = vertices[torch.randint(len(vertices), (count,), generator=generator)]
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator, dtype=torch.float64), dim=-1)
    return centers + radius * torch.rand(count, 1, generator=generator, dtype=torch.float64) ** (1 / 3) * directions
