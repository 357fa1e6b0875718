"""What is written can be read back, is the same for the same input, and appears whole."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from threestudio.errors import ConfigError, UserError
from threestudio.models.mesh import Mesh
from threestudio.utils import picture_saving
from threestudio.utils.background_writer import BackgroundWriter
from threestudio.utils.files import atomic_path, write_atomic
from threestudio.utils.saving import SaverMixin


@pytest.fixture
def saver(tmp_path):
    saver = SaverMixin()
    saver.set_save_dir(str(tmp_path))
    return saver


def read(path):
    return np.asarray(Image.open(path))


def test_no_folder_is_a_value_error():
    with pytest.raises(ValueError, match="set_save_dir"):
        SaverMixin().get_save_path("a.png")


def test_save_path_makes_folders_and_is_absolute(saver, tmp_path):
    path = saver.get_save_path("a/b/c.txt")
    assert path == str(tmp_path / "a" / "b" / "c.txt") and Path(path).parent.is_dir()


def test_convert_data(saver):
    data = saver.convert_data(
        {"a": torch.ones(2, dtype=torch.bfloat16, requires_grad=True), "b": [torch.tensor([1, 2]), None]}
    )
    assert data["a"].dtype == np.float32 and data["b"][0].dtype == np.int64 and data["b"][1] is None
    with pytest.raises(TypeError, match="str"):
        saver.convert_data("text")


def test_rgb_image_ranges_formats_and_channel_groups(saver):
    img = torch.tensor([[[-1.0, 0.0, 1.0], [5.0, -5.0, float("nan")]]])
    assert read(saver.save_rgb_image("a.png", img, data_range=(-1, 1))).tolist() == [[[0, 128, 255], [255, 0, 0]]]
    assert np.array_equal(
        read(saver.save_rgb_image("b.png", img.permute(2, 0, 1), "CHW", (-1, 1))), read(saver.get_save_path("a.png"))
    )
    four = torch.tensor([0.0, 0.2, 0.4, 1.0]).expand(2, 2, 4)
    wide = read(saver.save_rgb_image("c.png", four))
    assert wide.shape == (2, 4, 3) and wide[0, 0].tolist() == [0, 51, 102] and wide[0, 2].tolist() == [255, 0, 0]
    raw = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert np.array_equal(read(saver.save_rgb_image("d.png", raw)), raw)
    with pytest.raises(ConfigError, match="data_format"):
        saver.save_rgb_image("e.png", raw, data_format="WHC")


def test_grayscale_image(saver):
    img = torch.tensor([[2.0, 4.0]])
    assert read(saver.save_grayscale_image("a.png", img, cmap=None)).tolist() == [[[0, 0, 0], [255, 255, 255]]]
    assert read(saver.save_grayscale_image("b.png", img, data_range=(0, 4), cmap=None))[0, 0].tolist() == [
        128,
        128,
        128,
    ]
    low, high = read(saver.save_grayscale_image("c.png", img, cmap="jet"))[0]
    assert low[2] > 100 and low[0] == 0 and high[0] > 100 and high[2] == 0  # jet runs from blue to red
    for cmap in ("magma", "spectral"):
        assert read(saver.save_grayscale_image("d.png", img, cmap=cmap)).std() > 0
    assert read(saver.save_grayscale_image("e.png", torch.ones(2, 2), cmap=None)).max() == 0
    with pytest.raises(ConfigError, match="plasma"):
        saver.save_grayscale_image("f.png", img, cmap="plasma")


def test_uv_and_cubemap(saver):
    uv = torch.tensor([[[0.0, 0.0], [1 / 64, 0.0], [1 / 64, 1 / 64]]])
    board = read(saver.save_uv_image("a.png", uv))
    assert board[0, 0].tolist() == board[0, 2].tolist() != board[0, 1].tolist()
    assert read(saver.save_uv_image("b.png", torch.tensor([[[1.0, 0.4]]]), cmap="color")).tolist() == [[[255, 102, 0]]]
    faces = (torch.arange(6.0) / 5)[:, None, None, None].expand(6, 2, 2, 3)
    cross = read(saver.save_cubemap("c.png", faces))
    assert cross.shape == (6, 8, 3)
    assert (
        [cross[3, x, 0] for x in (1, 3, 5, 7)] == [51, 204, 0, 255] and cross[0, 2, 0] == 102 and cross[5, 2, 0] == 153
    )
    transparent = read(saver.save_cubemap("d.png", faces, rgba=True))
    assert transparent[0, 0, 3] == 0 and transparent[3, 3, 3] == 255


def test_image_grid_alignment_and_texts(saver):
    cell = {"type": "rgb", "img": torch.ones(4, 4, 3), "kwargs": {"data_format": "HWC"}}
    small = {"type": "grayscale", "img": torch.ones(2, 2), "kwargs": {"cmap": None, "data_range": (0, 1)}}
    sizes = {"max": (4, 8), "min": (2, 4), 3: (3, 6), (5, 6): (5, 12)}
    for align, size in sizes.items():
        assert read(saver.save_image_grid("a.png", [cell, small], align=align)).shape[:2] == size
    ragged = read(saver.save_image_grid("b.png", [[cell, small], [cell]]))
    assert ragged.shape == (8, 8, 3) and ragged[0].min() == 255 and ragged[4:, 4:].max() == 0
    big = {"type": "rgb", "img": torch.full((40, 80, 3), 0.5), "kwargs": {}}
    plain, written = (
        read(saver.save_image_grid("c.png", [big])),
        read(saver.save_image_grid("d.png", [big], texts=["one", "two"])),
    )
    assert (plain[:20] != written[:20]).any() and (plain[20:] != written[20:]).any()
    with pytest.raises(ConfigError, match="rbg"):
        saver.save_image_grid("e.png", [{"type": "rbg", "img": torch.ones(2, 2, 3)}])
    with pytest.raises(ConfigError, match="align"):
        saver.save_image_grid("f.png", [cell], align="mean")


def test_data_state_and_json_read_back(saver):
    assert np.load(saver.save_data("a", torch.arange(3))).tolist() == [0, 1, 2]
    assert np.load(saver.save_data("b.npz", {"x": torch.eye(2)}))["x"].tolist() == [[1, 0], [0, 1]]
    state = torch.load(saver.save_state_dict("c.pth", {"w": torch.ones(2)}), weights_only=True)
    assert state["w"].tolist() == [1, 1]
    assert json.loads(Path(saver.save_json("d.json", {"ä": [1, None]})).read_text("utf-8")) == {"ä": [1, None]}
    source = saver.get_save_path("source.bin")
    Path(source).write_bytes(b"abc")
    assert Path(saver.save_file("copy/e.bin", source)).read_bytes() == b"abc"


def test_equal_input_gives_equal_bytes(saver):
    for i in range(6):
        saver.save_rgb_image(f"frames/{i}.png", torch.full((8, 8, 3), i / 6))
    makers = {
        "png": lambda n: saver.save_rgb_image(n, torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(0))),
        "npz": lambda n: saver.save_data(n, {"x": np.arange(4)}),
        "pth": lambda n: saver.save_state_dict(n, {"x": torch.arange(4)}),
        "mp4": lambda n: saver.save_img_sequence(n, "frames", r"(\d+)\.png"),
        "gif": lambda n: saver.save_img_sequence(n, "frames", r"(\d+)\.png", save_format="gif"),
    }
    for suffix, make in makers.items():
        assert Path(make(f"first.{suffix}")).read_bytes() == Path(make(f"second.{suffix}")).read_bytes(), suffix


def test_video_orders_frames_by_number_and_keeps_their_look(saver):
    import imageio.v2 as imageio

    for i in (0, 2, 10, 9):
        saver.save_rgb_image(f"run/{i}.png", torch.full((17, 33, 3), i / 10))
    for save_format in ("mp4", "gif"):
        path = saver.save_img_sequence("run", "run", r"(\d+)\.png", save_format=save_format, fps=10)
        assert path.endswith(f"run.{save_format}")
        frames = [np.asarray(frame)[..., :3] for frame in imageio.mimread(path)]
        assert len(frames) == 4 and frames[0].shape[:2] == ((18, 34) if save_format == "mp4" else (17, 33))
        assert np.allclose([frame.mean() for frame in frames], [0, 51, 230, 255], atol=6)
    saver.save_rgb_image("run/11.png", torch.zeros(8, 8, 3))
    with pytest.raises(UserError, match="11.png"):
        saver.save_img_sequence("run", "run", r"(\d+)\.png")
    assert not list(Path(saver.get_save_dir()).glob(".*"))  # no temporary file stays behind


def test_sequence_mistakes_are_named(saver):
    saver.save_rgb_image("run/a.png", torch.zeros(8, 8, 3))
    with pytest.raises(UserError, match="no file"):
        saver.save_img_sequence("v", "run", r"(\d+)\.png")
    with pytest.raises(UserError, match="does not exist"):
        saver.save_img_sequence("v", "nowhere", r"(\d+)\.png")
    with pytest.raises(ConfigError, match="group"):
        saver.save_img_sequence("v", "run", r"\d+\.png")
    with pytest.raises(ConfigError, match="webm"):
        saver.save_img_sequence("v", "run", r"(\d+)\.png", save_format="webm")


def test_a_missing_encoder_names_the_install_command(saver, monkeypatch):
    import sys

    saver.save_rgb_image("run/1.png", torch.zeros(8, 8, 3))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match="pip install imageio"):
        saver.save_img_sequence("v", "run", r"(\d+)\.png")


def quad():
    mesh = Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]), torch.tensor([[0, 1, 2], [0, 2, 3]]))
    mesh._v_tex, mesh._t_tex_idx = torch.tensor([[0.0, 0.0], [1, 0], [1, 1], [0, 1]]), mesh.t_pos_idx
    mesh.set_vertex_color(torch.tensor([[1.0, 0, 0]] * 4))
    return mesh


def test_obj_with_material_reads_back(saver):
    import trimesh

    kd, rough = torch.zeros(4, 4, 3), torch.full((4, 4, 1), 0.5)
    kd[0, 0, 0] = 1.0
    paths = saver.save_obj(
        "out/model.obj",
        quad(),
        save_mat=True,
        save_normal=True,
        save_uv=True,
        map_Kd=kd,
        map_Pr=rough,
        map_format="png",
    )
    assert [Path(path).name for path in paths] == ["model.obj", "model.mtl", "texture_kd.png", "texture_roughness.png"]
    text = Path(paths[0]).read_text()
    assert "mtllib model.mtl" in text and "vt 0 1" in text and "f 1/1/1 2/2/2 3/3/3" in text
    assert (
        "map_Kd texture_kd.png" in Path(paths[1]).read_text()
        and "map_Pr texture_roughness.png" in Path(paths[1]).read_text()
    )
    assert read(paths[3])[0, 0].tolist() == [128] * 3
    mesh = trimesh.load(paths[0], process=False)
    assert mesh.faces.shape == (2, 3) and mesh.area == pytest.approx(1.0)
    assert np.allclose(mesh.vertex_normals, [0, 0, 1])


def test_plain_obj_carries_vertex_colors(saver):
    (path,) = saver.save_obj("model", quad(), save_vertex_color=True)
    assert "v 1 1 0 1 0 0" in Path(path).read_text() and "f 1 2 3" in Path(path).read_text()


def test_mesh_through_trimesh_reads_back(saver):
    import trimesh

    mesh = quad()
    loaded = trimesh.load(saver.save_mesh("m.ply", mesh.v_pos, mesh.t_pos_idx), process=False)
    assert np.allclose(loaded.vertices, mesh.v_pos) and np.array_equal(loaded.faces, mesh.t_pos_idx)


def test_an_interrupted_write_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "deep" / "a.txt"
    write_atomic(target, b"old")
    with pytest.raises(OSError, match="full"):
        with atomic_path(target) as temporary:
            temporary.write_bytes(b"half")
            raise OSError("disk full")
    assert target.read_bytes() == b"old" and [path.name for path in target.parent.iterdir()] == ["a.txt"]


# ---- by a thread ----


@pytest.fixture
def slow(monkeypatch):
    """Every picture takes a while, so that a file that nobody has waited for is not there."""
    write = picture_saving._write_picture

    def slowly(*arguments):
        time.sleep(0.2)
        write(*arguments)

    monkeypatch.setattr(picture_saving, "_write_picture", slowly)


@pytest.fixture
def later(saver):
    saver.write_pictures_in_background()
    yield saver
    saver.write_pictures_at_once(quietly=True)


def save_one_of_each(saver):
    """All methods for images; what they are given changes right afterwards."""
    x, array = torch.rand(6, 8, 8, 4, generator=torch.Generator().manual_seed(1)), np.eye(8, dtype=np.uint8)
    grid = [[{"type": "rgb", "img": x[0], "kwargs": {}}, {"type": "grayscale", "img": x[1, :, :, 0], "kwargs": {}}]]
    paths = [
        saver.save_image("image.png", array),
        saver.save_image("tensor.png", (x[0] * 255).to(torch.uint8)),
        saver.save_rgb_image("rgb.jpg", x[1].permute(2, 0, 1), "CHW", (-1, 1)),
        saver.save_rgb_image("bfloat16.png", x[1].bfloat16()),
        saver.save_uv_image("uv.png", x[2, ..., :2], cmap="color"),
        saver.save_grayscale_image("gray.png", x[3, :, :, 0]),
        saver.save_image_grid("grid.png", grid, align=(9, 11), texts=["one"]),
        saver.save_cubemap("cube.png", x, rgba=True),
    ]
    x.zero_()
    array.fill(7)
    grid[0].clear()
    return paths


def test_a_thread_writes_the_same_bytes(saver, slow, tmp_path):
    now = {Path(path).name: Path(path).read_bytes() for path in save_one_of_each(saver)}
    saver.set_save_dir(tmp_path / "later")
    saver.write_pictures_in_background()
    paths = save_one_of_each(saver)
    assert not any(Path(path).exists() for path in paths)
    saver.finish_pictures()
    assert {Path(path).name: Path(path).read_bytes() for path in paths} == now
    assert len(set(now.values())) == 8
    saver.write_pictures_at_once()
    assert Path(saver.save_image("z.png", np.eye(8, dtype=np.uint8))).exists()


def test_who_asks_for_the_folder_or_a_video_finds_all_pictures(later, slow):
    later.save_rgb_image("run/1.png", torch.zeros(8, 8, 3))
    assert sorted(path.name for path in Path(later.get_save_dir(), "run").iterdir()) == ["1.png"]
    later.save_rgb_image("run/2.png", torch.ones(8, 8, 3))
    path = later.save_img_sequence("run", "run", r"(\d+)\.png", save_format="gif")
    with Image.open(path) as gif:
        assert gif.n_frames == 2


def test_the_later_of_two_pictures_of_one_name_stays(later, slow):
    for value in (0.0, 1.0):
        path = later.save_rgb_image("a.png", torch.full((2, 2, 3), value))
    later.write_pictures_at_once()
    assert read(path).min() == 255


def test_an_obj_finds_its_textures(later, slow):
    paths = later.save_obj("model", quad(), save_mat=True, save_uv=True, map_Kd=torch.ones(4, 4, 3), map_format="png")
    assert all(Path(path).exists() for path in paths) and len(paths) == 3


def test_wandb_reads_a_file_that_is_there(later, slow, monkeypatch):
    shown = []
    wandb = SimpleNamespace(Image=lambda path: read(path).mean(), log=lambda item: shown.append(item))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    later._wandb_logger = object()
    later.save_rgb_image("a.png", torch.ones(2, 2, 3), name="view", step=3)
    assert shown == [{"view": 255.0, "trainer/global_step": 3}]


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize(
    "number, message",
    [(errno.ENOSPC, "disk is full while .*a.png.*Free some space"), (errno.EACCES, "a.png cannot be.*permissions")],
)
def test_a_picture_that_cannot_be_written_says_what_next(saver, monkeypatch, in_background, number, message):
    def broken(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Image.Image, "save", broken)
    if in_background:
        saver.write_pictures_in_background()
    with pytest.raises(UserError, match=message):
        saver.save_rgb_image("a.png", torch.ones(2, 2, 3))
        saver.write_pictures_at_once()
    assert list(Path(saver.get_save_dir()).iterdir()) == []


def test_a_mistake_found_by_the_thread_names_the_picture(later):
    later.save_grayscale_image("g.png", torch.ones(2, 2), cmap="plasma")
    with pytest.raises(UserError, match="g.png: .*plasma"):
        later.get_save_dir()


def test_a_waiting_picture_counts_with_all_it_holds(saver, monkeypatch):
    sizes, put = [], BackgroundWriter.put

    def counted(self, path, job, size):
        sizes.append(size)
        put(self, path, job, size)

    monkeypatch.setattr(BackgroundWriter, "put", counted)
    saver.write_pictures_in_background()
    save_one_of_each(saver)
    saver.write_pictures_at_once()
    assert sizes == [64, 256, 1024, 512, 512, 256, 1280, 6144] and picture_saving.WAITING_PICTURES < 2**30
