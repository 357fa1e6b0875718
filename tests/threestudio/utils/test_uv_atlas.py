from __future__ import annotations

import numpy as np
import pytest
import trimesh

from threestudio.errors import ConfigError
from threestudio.utils.uv_atlas import unwrap

pytest.importorskip("xatlas")
BALL = trimesh.creation.icosphere(subdivisions=2)


def areas(corners):
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    return np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) / 2


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e3])
def test_faces_keep_their_order_and_their_share_of_the_area_at_any_scale(scale):
    uv, faces = unwrap(BALL.vertices * scale, BALL.faces, pack_options={"resolution": 512, "padding": 2})
    assert uv.dtype == np.float32 and uv.min() >= 0 and uv.max() <= 1 and faces.shape == BALL.faces.shape
    share = areas(uv[faces].astype(float)) / areas(uv[faces].astype(float)).sum()
    ratio = share / (BALL.area_faces / BALL.area)
    assert 0.6 < ratio.min() and ratio.max() < 1.6
    owner = np.full(len(uv), -1)  # each texture vertex belongs to one position
    owner[faces] = BALL.faces
    assert np.array_equal(owner[faces], BALL.faces)


def test_a_face_without_area_takes_a_corner_of_its_neighbor():
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0.5, 0, 0]])
    uv, faces = unwrap(corners, np.array([[0, 1, 2], [0, 3, 1]]))
    assert len(set(faces[1])) == 1 and faces[1, 0] in faces[0]


def test_lengths_in_options_are_the_meshs():
    def chart_count(scale, limit):
        faces = unwrap(BALL.vertices * scale, BALL.faces, {"max_chart_area": limit * scale**2})[1]
        joined = trimesh.graph.connected_components(
            np.concatenate([faces[:, :2], faces[:, 1:]]), nodes=np.unique(faces)
        )
        return len(joined)

    few, many = chart_count(1.0, 3.0), chart_count(1.0, 0.3)
    assert many > 2 * few and chart_count(0.01, 0.3) == many


@pytest.mark.parametrize(
    "options, message",
    [
        (({"max_costs": 1.0}, None), r"xatlas_chart_options.max_costs.*max_cost"),
        ((None, {"paddings": 1}), r"xatlas_pack_options.paddings.*padding"),
        (({"max_cost": "high"}, None), r"max_cost is 'high'; xatlas expects float"),
        (({"max_chart_area": "high"}, None), r"max_chart_area is 'high'; xatlas expects float"),
        ((None, {"resolution": 32, "texels_per_unit": 64.0}), "one can be written"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(ConfigError, match=message):
        unwrap(BALL.vertices, BALL.faces, *options)
