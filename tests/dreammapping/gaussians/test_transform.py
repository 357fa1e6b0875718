"""Gaussians that are moved together with the camera look the same; files of the .splat kind come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dreammapping.gaussians import GaussianFileError, GaussianModel, load_gaussians, save_gaussians
from dreammapping.gaussians.transform import sh_rotation, transform_gaussians
from dreammapping.rasterization import rasterize
from dreammapping.rasterization.spherical_harmonics import sh_basis
from scipy.spatial.transform import Rotation

TURN = torch.tensor(Rotation.from_euler("xyz", [0.7, -1.1, 2.3]).as_matrix())


def picture(model: GaussianModel, viewmat: torch.Tensor) -> torch.Tensor:
    """By the readable rasterizer, in float64."""
    inputs = {key: value.double() if torch.is_tensor(value) else value for key, value in model.rasterizer_inputs().items()}
    intrinsics = torch.tensor([[[30.0, 0, 12], [0, 30, 12], [0, 0, 1]]], dtype=torch.float64)
    with torch.no_grad():
        return rasterize(viewmats=viewmat[None], Ks=intrinsics, width=24, height=24, backend="reference", **inputs).rgb


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
def test_the_picture_stays_when_gaussians_and_camera_move_together(scene, degree):
    make_model, _, _ = scene
    model = make_model(40, sh_degree=degree)
    with torch.no_grad():
        model.params["means"].mul_(0.5)
        model.params["scales"].add_(2.0)
    center, factor = torch.tensor([0.3, -0.2, 0.1]), 0.4
    moved = transform_gaussians(model, TURN, center=center, factor=factor)
    view = torch.eye(4, dtype=torch.float64)
    view[2, 3] = 4.0
    # x' = factor (R x - center), so x = R^T (x' / factor + center); depths shrink by the factor, which no picture shows.
    other = torch.eye(4, dtype=torch.float64)
    other[:3, :3] = view[:3, :3] @ TURN.T
    other[:3, 3] = factor * (view[:3, :3] @ TURN.T @ center.double() + view[:3, 3])
    before, after = picture(model, view), picture(moved, other)
    assert before.std() > 0.1
    torch.testing.assert_close(after, before, rtol=0, atol=2e-4)
    assert torch.equal(model.params["opacities"], moved.params["opacities"]) and moved.sh_degree == degree


def test_harmonics_turn_with_the_object():
    matrix = sh_rotation(TURN, 4)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(25, dtype=torch.float64), rtol=0, atol=1e-10)
    directions = torch.nn.functional.normalize(torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), dim=-1)
    values = torch.randn(25, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    seen = sh_basis(directions @ TURN.T, 4) @ (matrix @ values)
    torch.testing.assert_close(seen, sh_basis(directions, 4) @ values)


def test_nothing_done_changes_nothing(scene):
    make_model, _, _ = scene
    model = make_model(10, sh_degree=2)
    same = transform_gaussians(model, torch.eye(3), center=torch.zeros(3), factor=1.0)
    for name, value in model.params.items():
        torch.testing.assert_close(same.params[name], value)
        assert same.params[name] is not value


def test_a_splat_file_comes_back_to_its_eight_bits(scene, tmp_path):
    make_model, _, _ = scene
    model = make_model(60, sh_degree=0)
    with torch.no_grad():
        model.params["opacities"][:2] = torch.tensor([30.0, -30.0])
    back = load_gaussians(save_gaussians(model, tmp_path / "a.SPLAT".lower()))
    order = torch.cdist(model.get_means, back.get_means).argmin(1)  # rows come in spatial order
    assert sorted(order.tolist()) == list(range(60)) and back.sh_degree == 0
    with torch.no_grad():
        torch.testing.assert_close(back.get_means[order], model.get_means)
        torch.testing.assert_close(back.get_scales[order], model.get_scales)
        torch.testing.assert_close(back.get_opacities[order], model.get_opacities, rtol=0, atol=1 / 255)
        torch.testing.assert_close(back.get_rgb[order], model.get_rgb.clamp(0, 1), rtol=0, atol=1 / 255 + 1e-6)
        turned = (back.get_quats[order] * model.get_quats).sum(-1).abs()
        assert turned.min() > 0.999
        assert back.params["opacities"].isfinite().all()
    assert load_gaussians(tmp_path / "a.splat", 2).get_sh.shape == (60, 9, 3)


def test_flat_and_unturned_rows_of_a_splat_file_are_usable(tmp_path):
    row = np.zeros(1, [("position", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("rotation", "u1", 4)])
    row["rotation"] = 128
    (tmp_path / "flat.splat").write_bytes(row.tobytes())
    model = load_gaussians(tmp_path / "flat.splat")
    assert bool(model.finite_rows().all()) and model.params["quats"].tolist() == [[1, 0, 0, 0]]


def test_bad_splat_files_are_explained(tmp_path):
    (tmp_path / "empty.splat").write_bytes(b"")
    with pytest.raises(GaussianFileError, match=r"empty\.splat: contains no Gaussians"):
        load_gaussians(tmp_path / "empty.splat")
    (tmp_path / "cut.splat").write_bytes(bytes(33))
    with pytest.raises(GaussianFileError, match=r"cut\.splat: no \.splat file, or cut short: its 33 bytes"):
        load_gaussians(tmp_path / "cut.splat")
    with pytest.raises(GaussianFileError, match=r"gone\.splat: cannot be read"):
        load_gaussians(tmp_path / "gone.splat")
    broken = np.full(8, np.nan, "<f4")
    (tmp_path / "nan.splat").write_bytes(broken.tobytes())
    with pytest.raises(GaussianFileError, match=r"nan\.splat: 1 of 1 Gaussians have values that are not finite"):
        load_gaussians(tmp_path / "nan.splat")
