"""Meshes and isosurfaces against spheres, whose area, volume and normals are known."""

from __future__ import annotations

import math
import sys
import types

import numpy as np
import pytest
import torch
import trimesh

from threestudio.errors import ConfigError, UserError
from threestudio.models.geometry.base import (
    BaseExplicitGeometry,
    BaseGeometry,
    BaseImplicitGeometry,
    contract_to_unisphere,
)
from threestudio.models.isosurface import MarchingTetrahedraHelper
from threestudio.models.mesh import Mesh


def tetrahedron(shift=0.0):
    v = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) + shift
    return v, torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])


def as_trimesh(mesh):
    return trimesh.Trimesh(mesh.v_pos.detach().numpy(), mesh.t_pos_idx.numpy(), process=False)


def test_normals_are_area_weighted_and_point_outward():
    ball = trimesh.creation.icosphere(subdivisions=1)
    mesh = Mesh(torch.tensor(ball.vertices), torch.tensor(ball.faces))
    expected = np.zeros((len(ball.vertices), 3))
    for face, normal, area in zip(ball.faces, ball.face_normals, ball.area_faces):
        expected[face] += normal * area
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(mesh.v_nrm.numpy(), expected, atol=1e-9) and (expected * ball.vertices).sum(1).min() > 0.9
    assert len(mesh.edges) == len(ball.edges_unique)
    assert float(mesh.normal_consistency()) == pytest.approx(
        float((1 - (mesh.v_nrm[mesh.edges].prod(1)).sum(-1)).mean())
    )


def test_regularizers_by_hand_and_by_gradcheck():
    v, f = tetrahedron()
    # each vertex of a tetrahedron neighbors the three others: sum of differences = 4 (v - mean)
    assert float(Mesh(v, f).laplacian()) == pytest.approx(float((4 * (v - v.mean(0))).norm(dim=-1).mean()))
    x = v.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: Mesh(p, f).laplacian() + Mesh(p, f).normal_consistency(), (x,))


def test_a_vertex_without_area_gets_a_finite_normal_and_gradient():
    x = torch.zeros(3, 3, requires_grad=True)
    mesh = Mesh(x, torch.tensor([[0, 1, 2]]))
    mesh.v_nrm.sum().backward()
    assert mesh.v_nrm[0].tolist() == [0, 0, 1] and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("threshold, faces", [(5, 8), (4, 12), (0.4, 12), (0.9, 8)])
def test_small_parts_are_removed(threshold, faces):
    (v1, f1), (v2, f2) = tetrahedron(), tetrahedron(5.0)
    v3, f3 = tetrahedron(9.0)
    two = torch.cat([f2, f3[:3] + 4, torch.tensor([[0, 1, 4]])])  # one part of eight faces
    mesh = Mesh(torch.cat([v1, v2, v3]), torch.cat([f1, two + 4]), note="kept")
    mesh.set_vertex_color(torch.arange(36.0).reshape(12, 3))
    small = mesh.remove_outlier(threshold)
    assert len(small.t_pos_idx) == faces and small.extras["note"] == "kept"
    assert torch.equal(small.v_pos[small.t_pos_idx], mesh.v_pos[mesh.t_pos_idx[-faces:]])
    assert torch.equal(small.v_rgb[small.t_pos_idx], mesh.v_rgb[mesh.t_pos_idx[-faces:]])
    mesh.v_pos.requires_grad_()
    assert mesh.remove_outlier(threshold) is mesh


def test_tangents_follow_u():
    mesh = Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), torch.tensor([[0, 1, 2]]))
    mesh._v_tex, mesh._t_tex_idx = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), mesh.t_pos_idx  # u runs along y
    assert torch.allclose(mesh.v_tng, torch.tensor([[0.0, 1.0, 0.0]] * 3))


def test_colors_must_fit_and_unwrapping_names_its_package(monkeypatch):
    mesh = Mesh(*tetrahedron())
    with pytest.raises(UserError, match="3 colors for 4"):
        mesh.set_vertex_color(torch.zeros(3, 3))
    monkeypatch.setitem(sys.modules, "xatlas", None)
    with pytest.raises(UserError, match="pip install xatlas"):
        mesh.v_tex


def test_marching_tetrahedra_makes_a_closed_outward_sphere():
    helper = MarchingTetrahedraHelper(24)
    level = 0.35 - (helper.grid_vertices - 0.5).norm(dim=-1, keepdim=True)
    ball = as_trimesh(helper(level))
    assert ball.is_watertight and ball.is_winding_consistent
    assert ball.volume == pytest.approx(4 / 3 * math.pi * 0.35**3, rel=0.02)  # positive: faces point outward
    assert np.abs(np.linalg.norm(ball.vertices - 0.5, axis=1) - 0.35).max() < 2e-3


def test_marching_tetrahedra_passes_gradients_to_level_and_grid():
    torch.manual_seed(0)
    helper = MarchingTetrahedraHelper(4).double()
    level = (0.3 - (helper.grid_vertices - 0.5).norm(dim=-1, keepdim=True)).double().requires_grad_()
    offsets = (torch.randn(64, 3).double() * 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda l, d: helper(l, d).v_pos, (level, offsets))
    edges = helper(level).extras["tet_edges"]
    assert ((level[edges] > 0).sum(1) == 1).all()


def test_no_surface_is_an_error_that_says_so():
    with pytest.raises(UserError, match="isosurface_threshold"):
        MarchingTetrahedraHelper(4)(torch.ones(64, 1))


class Ball(BaseImplicitGeometry):
    """Density 2 at the center falling to zero, shifted off the middle."""

    def forward_field(self, points):
        return 2.0 - (points - torch.tensor([0.5, 0.0, 0.0])).norm(dim=-1, keepdim=True) * 4, None

    def forward_level(self, field, threshold):
        return threshold - field


@pytest.mark.parametrize("chunk", [0, 1000])
def test_isosurface_of_a_field_in_world_units(chunk):
    ball = Ball({"radius": 2.0, "isosurface_resolution": 20, "isosurface_threshold": 1, "isosurface_chunk": chunk})
    mesh = ball.isosurface()
    assert as_trimesh(mesh).volume == pytest.approx(4 / 3 * math.pi * 0.25**3, rel=0.05)
    assert torch.allclose(mesh.v_pos.mean(0), torch.tensor([0.5, 0.0, 0.0]), atol=0.02)
    low, high = mesh.extras["bbox"]
    assert torch.all(high - low < 1.0)  # the second pass looked only where the first found something
    assert "isosurface" not in " ".join(ball.state_dict())


def test_isosurface_settings():
    auto = Ball({"isosurface_resolution": 8, "isosurface_threshold": "auto"})
    assert auto._threshold(torch.tensor([0.0, 1.0, 3.0])) == 2.0
    for settings, named in [
        ({"isosurface": False}, "isosurface"),
        ({"isosurface_method": "dc"}, "isosurface_method"),
        ({"isosurface_threshold": "x"}, "isosurface_threshold"),
    ]:
        with pytest.raises(ConfigError, match=named):
            Ball({"isosurface_resolution": 8, **settings}).isosurface()


def test_marching_cubes_uses_what_is_installed(monkeypatch):
    geometry = Ball(
        {"isosurface_resolution": 16, "isosurface_threshold": 1.0, "isosurface_method": "mc-cpu", "radius": 1.0}
    )
    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    monkeypatch.setitem(sys.modules, "mcubes", None)
    with pytest.raises(UserError, match="pip install scikit-image"):
        geometry.isosurface()
    corner = (np.array([[0.0, 0, 0], [15, 0, 0], [0, 15, 0]]), np.array([[0, 1, 2]]))
    monkeypatch.setitem(sys.modules, "mcubes", types.SimpleNamespace(marching_cubes=lambda values, level: corner))
    geometry.cfg.isosurface_coarse_to_fine = False
    assert geometry.isosurface().v_pos.tolist() == [[-1, -1, -1], [1, -1, -1], [-1, 1, -1]]


def test_contraction():
    box = torch.tensor([[-2.0] * 3, [2.0] * 3])
    assert contract_to_unisphere(torch.tensor([[0.0, 2.0, -2.0]]), box).tolist() == [[0.5, 1.0, 0.0]]
    far = contract_to_unisphere(torch.tensor([[2e6, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), box, unbounded=True)
    assert torch.allclose(far[:, 0], torch.tensor([1.0, 0.75, 0.5]))


def test_bases_say_what_is_missing():
    with pytest.raises(TypeError, match="geometry_convert_from"):
        BaseGeometry.create_from(BaseExplicitGeometry({}))
    assert BaseGeometry({}).export() == {}
    assert BaseExplicitGeometry({"radius": 2}).bbox.tolist() == [[-2.0] * 3, [2.0] * 3]
    with pytest.raises(TypeError, match="forward_field"):
        BaseImplicitGeometry({"isosurface_resolution": 4}).isosurface()
