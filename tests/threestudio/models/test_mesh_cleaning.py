"""Balls with faults put in come out as the balls they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from threestudio.errors import UserError
from threestudio.models.mesh import Mesh
from threestudio.models.mesh_cleaning import clean_mesh

BALL = trimesh.creation.icosphere(subdivisions=2)


def mesh_of(vertices, faces):
    return Mesh(torch.tensor(np.array(vertices), dtype=torch.float32), torch.tensor(np.array(faces)))


def cleaned(vertices, faces):
    mesh = clean_mesh(mesh_of(vertices, faces))
    return trimesh.Trimesh(mesh.v_pos.numpy(), mesh.t_pos_idx.numpy(), process=False)


def assert_is_the_ball(mesh, volume=BALL.volume):
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(volume, rel=1e-4) and mesh.faces.shape == BALL.faces.shape
    assert len(mesh.vertices) == len(BALL.vertices)


def test_a_clean_mesh_stays_and_keeps_its_belongings():
    mesh = mesh_of(BALL.vertices, BALL.faces)
    mesh.set_vertex_color(torch.rand(len(BALL.vertices), 3))
    mesh.add_extra("note", 1)
    mesh.v_pos.requires_grad_()
    new = clean_mesh(mesh)
    assert torch.equal(new.v_pos, mesh.v_pos) and torch.equal(new.t_pos_idx, mesh.t_pos_idx)
    assert torch.equal(new.v_rgb, mesh.v_rgb) and new.extras == {"note": 1} and not new.v_pos.requires_grad


def test_coinciding_vertices_and_collapsed_faces_go():
    soup = BALL.vertices[BALL.faces].reshape(-1, 3) * 1e-3  # small in the world: the tolerance must go with the size
    soup = soup + np.random.default_rng(0).uniform(-1e-10, 1e-10, soup.shape)
    faces = np.arange(len(soup)).reshape(-1, 3)
    collapsed = [[faces[0, 0], faces[0, 0], faces[5, 1]], [7, 7, 7]]
    assert_is_the_ball(cleaned(soup, np.concatenate([faces, collapsed])), volume=BALL.volume * 1e-9)


def test_bodies_that_touch_along_an_edge_stay_two_closed_bodies():
    corners = np.array([[0.0, 0, 1], [0, 0, -1], [1, 1, 0], [1, -1, 0]])
    faces = np.array([[0, 2, 3], [1, 3, 2], [0, 3, 1], [0, 1, 2]])
    other = corners * [-1, 1, 1] + [1e-7, 0, 0]
    both = cleaned(np.concatenate([corners, other]), np.concatenate([faces, faces[:, ::-1] + 4]))
    assert both.is_watertight and both.is_winding_consistent and len(both.faces) == 8
    assert both.volume == pytest.approx(2 * abs(trimesh.Trimesh(corners, faces, process=False).volume), rel=1e-4)


def test_unused_vertices_go():
    assert_is_the_ball(cleaned(np.concatenate([[[9.0, 9, 9]], BALL.vertices]), BALL.faces + 1))


def test_repeated_faces_are_kept_once_and_back_to_back_faces_cancel():
    number = len(BALL.vertices)
    fin = [[0, 1, number], [number, 1, 0]]  # two sides of nothing
    faces = np.concatenate([BALL.faces, BALL.faces[:9, [1, 2, 0]], fin])
    assert_is_the_ball(cleaned(np.concatenate([BALL.vertices, [[3.0, 0, 0]]]), faces))


@pytest.mark.parametrize("turned", [7, 200, 320])
def test_faces_turned_over_are_turned_back(turned):
    faces = BALL.faces.copy()
    some = np.random.default_rng(1).permutation(len(faces))[:turned]
    faces[some] = faces[some, ::-1]
    assert_is_the_ball(cleaned(BALL.vertices, faces))


def test_a_cavity_keeps_facing_inward():
    vertices = np.concatenate([BALL.vertices, BALL.vertices * 0.5])
    faces = np.concatenate([BALL.faces, BALL.faces[:, ::-1] + len(BALL.vertices)])
    faces[3] = faces[3, ::-1]
    hollow = cleaned(vertices, faces)
    assert hollow.is_winding_consistent and hollow.volume == pytest.approx(BALL.volume * (1 - 1 / 8), rel=1e-4)


def test_a_one_sided_surface_is_left_alone():
    angle = np.linspace(0, np.pi, 20, endpoint=False)  # a strip with half a twist
    ring = np.stack([np.cos(2 * angle), np.sin(2 * angle), 0 * angle], -1)
    across = np.stack([np.cos(angle) * np.cos(2 * angle), np.cos(angle) * np.sin(2 * angle), np.sin(angle)], -1) * 0.3
    faces = []
    for k in range(20):
        a, b = (2 * k, 2 * k + 1), (2 * k + 2, 2 * k + 3) if k < 19 else (1, 0)
        faces += [[a[0], b[0], a[1]], [b[0], b[1], a[1]]]
    strip = np.stack([ring - across, ring + across], 1).reshape(-1, 3)
    assert len(cleaned(strip, faces).faces) == 40


def test_nothing_left_and_not_a_number_are_explained():
    with pytest.raises(UserError, match="isosurface_threshold"):
        cleaned(BALL.vertices, [[0, 0, 1]])
    with pytest.raises(UserError, match="isosurface_threshold"):
        clean_mesh(Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long)))
    broken = BALL.vertices.copy()
    broken[3] = np.nan
    with pytest.raises(UserError, match="1 of the mesh's 162 vertices .* earlier checkpoint"):
        cleaned(broken, BALL.faces)
