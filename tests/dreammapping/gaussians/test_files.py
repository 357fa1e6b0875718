from __future__ import annotations

import numpy as np
import pytest
import torch
from dreammapping.gaussians import FILE_FORMATS, GaussianFileError, GaussianModel, load_gaussians, save_gaussians
from dreammapping.gaussians.files import gaussian_bytes
from dreammapping.gaussians.ply import read_ply_vertices

pytest.importorskip("gsplat")


@pytest.mark.parametrize("sh_degree", [0, 1, 3, 4])
def test_ply_comes_back_bit_for_bit(scene, tmp_path, sh_degree):
    make_model, _, _ = scene
    model = make_model(33, sh_degree=sh_degree)
    back = load_gaussians(save_gaussians(model, tmp_path / "deep" / "a.ply"))
    assert back.sh_degree == sh_degree
    for name, value in model.params.items():
        assert torch.equal(value, back.params[name]), name


def test_ply_loads_into_another_sh_degree(scene, tmp_path):
    make_model, _, _ = scene
    model = make_model(5, sh_degree=2)
    path = save_gaussians(model, tmp_path / "a.ply")
    assert torch.equal(load_gaussians(path, 1).get_sh, model.get_sh[:, :4])
    assert load_gaussians(path, 3).get_sh[:, 9:].abs().sum() == 0


def test_ply_is_read_by_trimesh_and_has_the_usual_properties(scene, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    make_model, _, _ = scene
    model = make_model(12, sh_degree=1)
    path = save_gaussians(model, tmp_path / "a.ply")
    cloud = trimesh.load(path, process=False)
    np.testing.assert_array_equal(np.asarray(cloud.vertices, np.float32), model.get_means.detach().numpy())
    rows = read_ply_vertices(path)
    assert rows.dtype.names[:6] == ("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2")
    np.testing.assert_array_equal(rows["opacity"], model.params["opacities"].detach().numpy())
    np.testing.assert_array_equal(rows["rot_0"], model.params["quats"][:, 0].detach().numpy())
    # Coefficients of red come first, then green, then blue.
    np.testing.assert_array_equal(rows["f_rest_1"], model.params["shN"][:, 1, 0].detach().numpy())
    np.testing.assert_array_equal(rows["f_rest_3"], model.params["shN"][:, 0, 1].detach().numpy())


def test_splat_file_has_32_bytes_for_each_gaussian(scene, tmp_path):
    make_model, _, _ = scene
    model = make_model(50, sh_degree=0)
    data = save_gaussians(model, tmp_path / "a.splat").read_bytes()
    assert len(data) == 50 * 32
    layout = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("rotation", "u1", 4)])
    records = np.frombuffer(data, layout)
    # Rows come in spatial order; match them by position.
    means = model.get_means.detach().numpy()
    order = [int(np.abs(means - p).sum(1).argmin()) for p in records["position"]]
    assert sorted(order) == list(range(50))
    np.testing.assert_array_equal(records["position"], means[order])
    np.testing.assert_allclose(records["scale"], model.get_scales.detach().numpy()[order], rtol=1e-6)
    color = torch.cat([model.get_rgb.clamp(0, 1), model.get_opacities[:, None]], 1).detach().numpy()[order]
    assert np.abs(records["color"] / 255.0 - color).max() <= 1.001 / 255
    quats = model.get_quats.detach().numpy()[order]
    assert np.abs((records["rotation"].astype(float) - 128) / 128 - quats).max() <= 1.001 / 128


def decode_compressed(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Positions and colors of a compressed PLY, by its published layout (chunks of 256, 11-10-11 bits, 8 bits a channel)."""
    header, body = data.split(b"end_header\n", 1)
    counts = {line.split()[1]: int(line.split()[2]) for line in header.decode().splitlines() if line.startswith("element")}
    n_chunks, n = counts["chunk"], counts["vertex"]
    bounds = np.frombuffer(body, "<f4", n_chunks * 18).reshape(n_chunks, 18)[np.arange(n) // 256]
    packed = np.frombuffer(body, "<u4", n * 4, n_chunks * 72).reshape(n, 4)
    position, color = packed[:, 0], packed[:, 3]
    share = np.stack([(position >> 21) / 2047, (position >> 11 & 1023) / 1023, (position & 2047) / 2047], 1)
    tint = np.stack([color >> 24, color >> 16 & 255, color >> 8 & 255], 1) / 255
    low, high = bounds[:, 12:15], bounds[:, 15:18]
    return bounds[:, 0:3] + share * (bounds[:, 3:6] - bounds[:, 0:3]), low + tint * (high - low)


@pytest.mark.parametrize("constant_color", [False, True])
def test_compressed_ply_holds_positions_and_colors(scene, tmp_path, constant_color):
    make_model, _, _ = scene
    model = make_model(600, sh_degree=0)
    if constant_color:  # a chunk without range makes gsplat divide by zero; the file must be right all the same
        model.params["sh0"].data[:] = 0.25
    data = save_gaussians(model, tmp_path / "a.compressed.ply").read_bytes()
    positions, colors = decode_compressed(data)
    means = model.get_means.detach().numpy()
    order = [int(np.abs(means - p).sum(1).argmin()) for p in positions]
    assert sorted(order) == list(range(600))
    assert np.abs(positions - means[order]).max() < 0.01
    assert np.abs(colors - (model.params["sh0"][:, 0] * 0.28209479 + 0.5).detach().numpy()[order]).max() < 0.01


@pytest.mark.parametrize("name", list(FILE_FORMATS))
def test_equal_gaussians_give_equal_bytes(scene, name):
    make_model, _, _ = scene
    torch.manual_seed(1)
    first = gaussian_bytes(make_model(300), name)
    torch.manual_seed(2)
    assert first == gaussian_bytes(make_model(300), name)
    assert first != gaussian_bytes(make_model(300, seed=4), name)


def test_a_failed_write_leaves_the_old_file_alone(scene, tmp_path, monkeypatch):
    make_model, _, _ = scene
    path = save_gaussians(make_model(4), tmp_path / "a.ply")
    old = path.read_bytes()

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(GaussianFileError, match="No space left"):
        save_gaussians(make_model(9), path)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["a.ply"]


def test_what_cannot_be_saved_is_explained(scene, tmp_path):
    make_model, _, _ = scene
    with pytest.raises(GaussianFileError, match="no Gaussians"):
        save_gaussians(GaussianModel(0, 0), tmp_path / "a.ply")
    with pytest.raises(GaussianFileError, match=r"known: \.ply"):
        save_gaussians(make_model(2), tmp_path / "a.obj")
    broken = make_model(8)
    broken.params["opacities"].data[3] = float("nan")
    with pytest.raises(GaussianFileError, match=r"1 of 8 Gaussians .*row 3"):
        save_gaussians(broken, tmp_path / "a.splat")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_is_explained(scene, tmp_path):
    make_model, _, _ = scene
    path = save_gaussians(make_model(10), tmp_path / "a.ply")
    data = path.read_bytes()

    def check(content: bytes, message: str) -> None:
        bad = tmp_path / "bad.ply"
        bad.write_bytes(content)
        with pytest.raises(GaussianFileError, match=message) as caught:
            load_gaussians(bad)
        assert "bad.ply" in str(caught.value) and caught.value.is_user_error

    check(b"", "not a PLY")
    check(b"PK\x03\x04", "not a PLY")
    check(data[:200], "no end_header")
    check(data[:-9], "promises 10 vertices, the file holds 9")
    check(data.replace(b"property float opacity", b"property float opacitx"), "lack opacity")
    check(data.replace(b"property float f_rest_8", b"property float unknown8"), "8 f_rest properties")
    check(data.replace(b"element vertex 10", b"element vertex ten"), "malformed")
    check(data.replace(b"property float x\n", b"property flaot x\n"), "malformed")
    check(data[:-4] + np.float32("nan").tobytes(), "1 of 10 .*row 9")
    with pytest.raises(GaussianFileError, match="cannot be read"):
        load_gaussians(tmp_path / "missing.ply")
    with pytest.raises(GaussianFileError, match="compressed"):
        load_gaussians(save_gaussians(make_model(3), tmp_path / "c.compressed.ply"))


def test_ascii_and_big_endian_ply_are_read(tmp_path):
    header = "ply\nformat {} 1.0\ncomment made by hand\nelement vertex 2\nproperty float x\nproperty uchar red\nend_header\n"
    ascii_file, binary_file = tmp_path / "a.ply", tmp_path / "b.ply"
    ascii_file.write_text(header.format("ascii") + "1.5 7\n-2 255\n")
    rows = np.array([(1.5, 7), (-2, 255)], np.dtype([("x", ">f4"), ("red", "u1")]))
    binary_file.write_bytes(header.format("binary_big_endian").encode() + rows.tobytes())
    for path in (ascii_file, binary_file):
        found = read_ply_vertices(path)
        assert found["x"].tolist() == [1.5, -2.0] and found["red"].tolist() == [7, 255]
    ascii_file.write_text(header.format("ascii") + "1.5 7\n-2\n")
    with pytest.raises(GaussianFileError, match="vertex row 1 is not 2 numbers"):
        read_ply_vertices(ascii_file)
