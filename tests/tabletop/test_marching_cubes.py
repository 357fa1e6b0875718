"""The triangle table, through the decoder of diffusers that uses it."""
from __future__ import annotations

import math

import pytest
import torch
import trimesh
from diffusers.pipelines.shap_e.renderer import MeshDecoder

from tabletop.shap_e.marching_cubes import CORNERS, EDGES, triangle_table


def surface(field: torch.Tensor) -> trimesh.Trimesh:
    """The mesh diffusers makes of a field, positive inside, over [-1, 1]^3."""
    decoder = MeshDecoder()
    decoder.cases, decoder.masks = triangle_table()
    found = decoder(field, torch.full((3,), -1.0), torch.full((3,), 2.0))
    return trimesh.Trimesh(found.verts.numpy(), found.faces.numpy(), process=False)


def test_a_ball_is_closed_looks_outward_and_has_its_volume():
    axis = torch.linspace(-1, 1, 64)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    mesh = surface(0.7 - (x * x + y * y + z * z).sqrt())
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.7**3, rel=5e-3)


def test_noise_which_has_every_case_leaves_no_crack():
    field = torch.randn(24, 24, 24, generator=torch.Generator().manual_seed(0))
    for axis in range(3):  # closed at the border, as diffusers closes it
        field.index_fill_(axis, torch.tensor([0, 23]), -1.0)
    codes = sum((field[x : 23 + x, y : 23 + y, z : 23 + z] > 0).long() << (x + 2 * y + 4 * z) for x, y, z in CORNERS.tolist())
    assert len(codes.unique()) == 256
    mesh = surface(field)
    edges = torch.as_tensor(mesh.edges)
    forward = torch.unique(edges, dim=0, return_counts=True)
    backward = torch.unique(edges.flip(1), dim=0, return_counts=True)
    assert torch.equal(forward[0], backward[0]) and torch.equal(forward[1], backward[1])  # each edge as often in each direction
    assert mesh.volume > 0


def test_edges_are_numbered_as_diffusers_numbers_them():
    from diffusers.pipelines.shap_e.renderer import _create_flat_edge_indices

    size = (2, 2, 2)
    grid = torch.stack(torch.meshgrid(*[torch.arange(n) for n in size], indexing="ij"), dim=-1).float()
    middles = torch.cat([((a + b) / 2).reshape(-1, 3) for a, b in ((grid[:-1], grid[1:]), (grid[:, :-1], grid[:, 1:]), (grid[:, :, :-1], grid[:, :, 1:]))])
    theirs = middles[_create_flat_edge_indices(torch.zeros(1, 3, dtype=torch.long), size)[0]]
    ours = torch.stack([(CORNERS[a] + CORNERS[b]) / 2 for a, b in EDGES])
    assert torch.equal(theirs, ours)
