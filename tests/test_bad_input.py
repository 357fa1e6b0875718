"""What a user can get wrong: each mistake gives one message that names it, exit code 2, and no traceback."""

from __future__ import annotations

import errno
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "helpers"))
import small_run  # noqa: E402
from tiny_teacher import make_tiny_teacher  # noqa: E402

import launch  # noqa: E402
import threestudio  # noqa: E402
from threestudio.utils.checkpoint import AtomicCheckpointIO  # noqa: E402


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_teacher(tmp_path_factory.mktemp("models") / "teacher")


def run(mode: str, teacher: Path, outputs: Path, *arguments: str, steps: int = 2) -> int:
    given = small_run.overrides(teacher, outputs, steps, every=1)
    return launch.main(["--config", str(small_run.CONFIG), mode, "--preset", "paper", *given, *arguments])


def message(capsys: pytest.CaptureFixture) -> str:
    """The one line (and its continuation) that starts with error:, without anything of a traceback."""
    text = capsys.readouterr().err
    assert text.count("error: ") == 1 and "Traceback" not in text
    return text[text.index("error: ") :]


@pytest.mark.parametrize(
    "override, names",
    [
        ("system.geometry.positon_lr=0.1", ["positon_lr", "position_lr"]),
        ("system.guidance.guidance_scal=3", ["guidance_scal", "guidance_scale"]),
        ("system.geometry.densification.cap_mx=3", ["cap_mx", "cap_max"]),
        ("system.geometry.init.num_point=3", ["num_point", "num_points"]),
        ("system.guidance.loss.dca_cutof=3", ["dca_cutof", "dca_cutoff"]),
        ("system.guidance.loss.type=vdn", ["vdn", "vdm"]),
        ("system.guidance.timesteps.type=unifrom", ["unifrom", "uniform"]),
        ("system.renderer_type=dreammaping-gaussian-renderer", ["dreammapping-gaussian-renderer"]),
        ("system.renderer.backend=cuda", ["backend", "numba"]),
        ("system.loss.lambda_scal=1.0", ["lambda_scal", "lambda_scale"]),
        ("system.exporter.formats=[obj]", ["formats", "obj"]),
        ("trainer.max_step=3", ["max_step", "max_steps"]),
        ("data.fov_range=[1,2]", ["fov_range", "fovy_range"]),
        ("--presett=paper", ["--preset"]),
    ],
)
def test_unknown_names_suggest_the_nearest(teacher, tmp_path, capsys, override, names):
    assert run("--train", teacher, tmp_path, override) == 2
    text = message(capsys)
    assert all(name in text for name in names), text


@pytest.mark.parametrize(
    "override, names",
    [
        ("system.geometry.sh_degree=high", ["sh_degree", "high"]),
        ("system.geometry.position_lr=fast", ["position_lr", "fast"]),
        ("system.geometry.init.num_points=many", ["num_points", "many"]),
        ("system.guidance.guidance_scale=strong", ["guidance_scale", "strong"]),
        ("system.guidance.loss=vdm", ["loss", "vdm"]),
        ("data.batch_size=0", ["batch_size"]),
        ("data.elevation_range=[50,10]", ["elevation_range"]),
        ("trainer.max_steps=soon", ["soon"]),
        ("system.optimizer.name=SGD", ["optimizer", "Adam"]),
    ],
)
def test_wrong_types_and_values_name_the_key(teacher, tmp_path, capsys, override, names):
    assert run("--train", teacher, tmp_path, override) == 2
    text = message(capsys)
    assert all(name in text for name in names), text


@pytest.mark.parametrize("prompt", ["???", "", "   "])
def test_missing_prompt(teacher, tmp_path, capsys, prompt):
    assert run("--train", teacher, tmp_path, f"system.prompt_processor.prompt={prompt}") == 2
    assert "prompt" in message(capsys)


def test_missing_teacher_lists_what_was_tried(teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    nowhere = tmp_path / "nowhere"
    assert run("--train", nowhere, tmp_path) == 2
    assert str(nowhere) in message(capsys)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_truncated_weights(teacher, tmp_path, capsys, part):
    broken = shutil.copytree(teacher, tmp_path / "broken")
    weights = next((broken / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    assert run("--train", broken, tmp_path) == 2
    assert weights.name in (text := message(capsys)) or part in text


@pytest.mark.parametrize("part", ["unet", "tokenizer", "scheduler"])
def test_a_teacher_without_a_part(teacher, tmp_path, capsys, part):
    broken = shutil.copytree(teacher, tmp_path / "broken")
    shutil.rmtree(broken / part)
    assert run("--train", broken, tmp_path) == 2
    assert part in message(capsys)


@pytest.mark.parametrize("content", ["truncated", "text", "foreign", "absent"])
def test_unusable_checkpoint(teacher, tmp_path, capsys, content):
    path = tmp_path / "broken.ckpt"
    torch.save({"weights": torch.zeros(1000)}, path)
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:-500])
    elif content == "text":
        path.write_text("hello")
    elif content == "absent":
        path.unlink()
    assert run("--train", teacher, tmp_path, f"resume={path}") == 2
    assert "broken.ckpt" in message(capsys)


def point_file(path: Path, points: np.ndarray) -> Path:
    """A colored point cloud in ASCII PLY."""
    header = ["ply", "format ascii 1.0", f"element vertex {len(points)}"]
    header += [f"property float {name}" for name in ("x", "y", "z")]
    header += [f"property uchar {name}" for name in ("red", "green", "blue")] + ["end_header"]
    rows = [" ".join(f"{value}" for value in point) + " 200 10 10" for point in points]
    path.write_text("\n".join(header + rows) + "\n")
    return path


def test_a_point_file_is_a_start(teacher, tmp_path):
    points = np.random.default_rng(0).normal(scale=0.2, size=(40, 3))
    file = point_file(tmp_path / "points.ply", points)
    start = ["system.geometry.init.type=points", f"system.geometry.init.path={file}"]
    every = ["system.geometry.init.num_points=null", "data.n_test_views=1"]
    assert run("--train", teacher, tmp_path, *start, *every) == 0


@pytest.mark.parametrize("bad", ["nan", "empty", "absent"])
def test_a_point_file_with_holes(teacher, tmp_path, capsys, bad):
    points = np.random.default_rng(0).normal(scale=0.2, size=(0 if bad == "empty" else 40, 3))
    if bad == "nan":
        points[7, 1] = np.nan
    file = point_file(tmp_path / "points.ply", points)
    if bad == "absent":
        file.unlink()
    start = ["system.geometry.init.type=points", f"system.geometry.init.path={file}"]
    assert run("--train", teacher, tmp_path, *start) == 2
    assert "points.ply" in message(capsys)


def test_a_full_disk_keeps_the_previous_checkpoint(teacher, tmp_path, capsys, monkeypatch):
    place, placed = AtomicCheckpointIO._place, []

    def filling(self, path, fill):
        placed.append(path)
        if len(placed) > 2:  # the first step's checkpoint and its twin `last` fit

            def fill(stream):
                stream.write(b"half a checkpo")
                raise OSError(errno.ENOSPC, "No space left on device")

        place(self, path, fill)

    monkeypatch.setattr(AtomicCheckpointIO, "_place", filling)
    assert run("--train", teacher, tmp_path, steps=3) == 2
    assert "disk is full" in message(capsys)
    folder = tmp_path / "run" / "small" / "ckpts"
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 1
    assert not [path for path in folder.iterdir() if path.suffix != ".ckpt"]


@pytest.mark.parametrize("where", ["save_image_grid", "save_file", "save_rgb_image"])
def test_a_full_disk_while_pictures_are_written(teacher, tmp_path, capsys, monkeypatch, where):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "picture")

    monkeypatch.setattr(threestudio.find("dreammapping-system"), where, full)
    assert run("--train", teacher, tmp_path) == 2
    assert "disk is full" in message(capsys)


def test_numbers_that_explode_name_the_step_and_keep_the_checkpoint(teacher, tmp_path, capsys, monkeypatch):
    guidance = threestudio.find("dreammapping-guidance")
    forward = guidance.forward

    def exploding(self, *args, **kwargs):
        result = forward(self, *args, **kwargs)
        if self._step == 2:
            result["loss_distillation"] = result["loss_distillation"] * float("nan")
        return result

    monkeypatch.setattr(guidance, "forward", exploding)
    assert run("--train", teacher, tmp_path, steps=4) == 2
    text = message(capsys)
    assert "Step 2" in text and "grad_scale" in text
    assert torch.load(tmp_path / "run" / "small" / "ckpts" / "last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(teacher, tmp_path, capsys):
    assert run("--train", teacher, tmp_path, "--gpu", "0") == 2
    assert "--gpu 0" in message(capsys)


def test_from_the_shell(teacher, tmp_path):
    """The same from outside: exit code 2, one message, no traceback."""
    done = small_run.launch("--train", small_run.CONFIG, *small_run.overrides(teacher, tmp_path), "trainer.max_step=3")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "max_steps" in done.stderr
