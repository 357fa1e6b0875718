from __future__ import annotations

import io

import numpy as np
import pytest
import trimesh

from threestudio.utils.glbfile import glb_bytes, to_gltf_axes

CORNERS = np.array([[0.0, 0, 0], [2, 0, 0], [2, 3, 0], [0, 3, 5]])
FACES = np.array([[0, 1, 2], [0, 2, 3]])


def load(data):
    (mesh,) = trimesh.load(io.BytesIO(data), file_type="glb", process=False).geometry.values()
    return mesh


def test_the_axes_turn_without_a_mirror():
    front, left, up = np.eye(3)
    assert to_gltf_axes(np.stack([front, up])).tolist() == [[0, 0, 1], [0, 1, 0]]
    assert np.linalg.det(to_gltf_axes(np.eye(3))) == pytest.approx(1.0)
    normals = np.tile(up, (4, 1))
    mesh = load(glb_bytes(CORNERS, FACES, v_nrm=normals))
    assert np.array_equal(mesh.vertices, to_gltf_axes(CORNERS)) and np.array_equal(mesh.faces, FACES)
    assert np.allclose(mesh.vertex_normals, [0, 1, 0])


def test_corners_split_where_the_texture_is_cut():
    v_tex = np.array([[0.0, 0], [1, 0], [1, 1], [0, 0.5], [0.25, 1], [0.75, 0.125]])
    t_tex = np.array([[0, 1, 2], [3, 4, 5]])
    texture = np.zeros((4, 8, 3))
    texture[0, 7] = [1.0, 0.5, 0.0]
    mesh = load(glb_bytes(CORNERS, FACES, v_tex=v_tex, t_tex_idx=t_tex, maps={"map_Kd": texture}))
    assert np.allclose(mesh.vertices[mesh.faces], to_gltf_axes(CORNERS)[FACES])
    uv = mesh.visual.uv[mesh.faces]  # trimesh counts v from the bottom
    assert np.allclose(np.stack([uv[..., 0], 1 - uv[..., 1]], -1), v_tex[t_tex])
    image = mesh.visual.material.baseColorTexture
    assert image.size == (8, 4) and image.convert("RGB").getpixel((7, 0)) == (255, 128, 0)
    assert mesh.visual.material.metallicFactor == 0 and mesh.visual.material.roughnessFactor == 1


def test_metallic_and_roughness_share_a_picture():
    uv = {"v_tex": np.zeros((4, 2)), "t_tex_idx": FACES}
    metallic, roughness = np.full((2, 2), 0.2), np.full((2, 2), 0.6)
    both = load(glb_bytes(CORNERS, FACES, **uv, maps={"map_Pm": metallic, "map_Pr": roughness})).visual.material
    assert both.metallicRoughnessTexture.convert("RGB").getpixel((0, 0)) == (0, 153, 51)
    assert both.metallicFactor == 1 and both.roughnessFactor == 1
    rough = load(glb_bytes(CORNERS, FACES, **uv, maps={"map_Pr": roughness})).visual.material
    assert rough.metallicRoughnessTexture.convert("RGB").getpixel((0, 0)) == (0, 153, 0) and rough.metallicFactor == 0


def test_vertex_colors_are_linear_and_the_material_matte():
    mesh = load(glb_bytes(CORNERS, FACES, v_rgb=np.array([[0.0, 0.5, 1.0]] * 4)))
    color = np.asarray(mesh.visual.vertex_attributes["color"])[0]
    assert color.tolist() == [0, 55, 255, 255]  # 0.5 in sRGB is 0.214 in linear light
    assert mesh.visual.material.metallicFactor == 0


def test_equal_meshes_give_equal_bytes():
    texture = {"v_tex": np.zeros((4, 2)), "t_tex_idx": FACES, "maps": {"map_Kd": np.ones((2, 2, 3))}}
    assert glb_bytes(CORNERS, FACES, **texture) == glb_bytes(CORNERS, FACES, **texture)
