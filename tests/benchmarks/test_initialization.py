"""The comparison of starts: its grid, its runner, its figures."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import threestudio
from dreammapping.comparison.runner import Craft, Limits, finished, work
from dreammapping.distillation import build_timesteps
from dreammapping.evaluation.intervals import mean_interval
from dreammapping.initialization import INITIALIZATIONS
from PIL import Image
from threestudio.launcher import read_run_config

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import initialization as benchmark  # noqa: E402
import initialization_report as report  # noqa: E402
import initialization_variants as grid  # noqa: E402

SMALL = (
    "trainer.max_steps=2", "data.batch_size=1", "data.height=32", "data.width=32", "system.geometry.init.num_points=60",
    "data.n_val_views=2", "data.n_test_views=9",
)  # fmt: skip


@pytest.fixture(scope="module")
def judge():
    return benchmark.Judge(ROOT / "load" / "embedded-judge")


# ---- the grid ----


def test_the_most_important_runs_come_first():
    ordered = grid.cells(["few", "sphere", "many", "shap-e"], ["vdm", "sds"], [0, 4], [0, 1])
    assert len(set(ordered)) == len({cell.name for cell in ordered}) == len(ordered) == 4 * 2 * 2 * 2
    assert [cell.seed for cell in ordered] == [0] * 16 + [1] * 16
    assert [cell.variant for cell in ordered[:16:4]] == ["sphere", "shap-e", "few", "many"]
    assert [(c.loss, c.prompt) for c in ordered[:4]] == [("vdm", 0), ("vdm", 4), ("sds", 0), ("sds", 4)]


@pytest.mark.parametrize("loss", grid.LOSSES)
@pytest.mark.parametrize("name", list(grid.VARIANTS))
def test_every_variant_is_made_of_settings(name, loss, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = grid.Cell(name, loss, 4, 1).job(50).arguments
    config, preset = read_run_config(arguments[1], [a for a in arguments[2:] if "=" in a], "embedded", use_cuda=False)
    assert preset.taken == "embedded" and config.seed == 1 and config.system.prompt_processor.prompt == "a yellow duck"
    assert config.trainer.max_steps == grid.VARIANTS[name].steps and config.system.guidance.loss.type == loss
    data = threestudio.find(config.data_type)(config.data)
    data.setup("fit")
    build_timesteps(config.system.guidance.timesteps)
    processor = threestudio.find(config.system.prompt_processor_type)
    assert set(config.system.prompt_processor) <= set(processor.Config.__dataclass_fields__)
    if config.system.geometry.init.get("type") != "shap-e":
        geometry = threestudio.find(config.system.geometry_type)(config.system.geometry)
        assert geometry.count == config.system.geometry.init.num_points
    elif "shap-e" in INITIALIZATIONS:
        from dreammapping.initialization import InitSettings
        from dreammapping.settings import parse_settings

        assert parse_settings(InitSettings, config.system.geometry.init, "init").prompt == "a yellow duck"


@pytest.mark.parametrize("name", ["shap-e", "shap-e-half"])
def test_the_whole_course_goes_by_the_variants_steps(name):
    from threestudio.utils.config import load_config
    from threestudio.utils.presets import overlay_files

    config = ROOT / grid.CONFIGS / "vdm-gs.yaml"
    told = [argument for argument in grid.Cell(name, "vdm", 1, 0).job(50).arguments if argument.startswith("trainer.max_steps=")]
    steps = {"shap-e": 500, "shap-e-half": 250}[name]
    assert told == [f"trainer.max_steps={steps}"]
    system = load_config(config, *overlay_files(config, "embedded"), cli_args=told).system
    refinement = [system.geometry.densification[f"refine_{key}"] for key in ("start_iter", "every", "stop_iter")]
    assert refinement == [steps // 10, steps // 10, 9 * steps // 10]
    assert system.guidance.timesteps.max_step_percent[3] == 4 * steps // 5 and system.geometry.position_lr[3] == steps


# ---- what a run leaves ----


def test_a_run_leaves_its_record_and_the_next_one_is_not_disturbed(tmp_path, monkeypatch, judge):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(benchmark, "_judge", judge, raising=False)
    cell, folders = grid.Cell("random-colors", "sds", 1, 0), (tmp_path / "first", tmp_path / "second")
    for folder in folders:
        job = cell.job(1, SMALL)
        facts = work(job, folder, Craft(benchmark.harvest), Limits(keep_trials=folder == folders[1]))
        assert "failure" not in facts, facts
        assert (facts["steps"], facts["gaussians"], facts["variant"], facts["seed"]) == (2, 60, "random-colors", 0)
        assert finished(folder, job)
    first, second = (folder / "runs" / cell.name for folder in folders)
    assert sorted(f.name for f in first.parent.iterdir()) == [f"{cell.name}.{suffix}" for suffix in ("jpg", "json", "npz")]
    assert not list((folders[0] / "trials").iterdir()) and (folders[1] / "trials" / cell.name / "run" / "save" / "model_card.json").exists()
    assert not list(folders[1].rglob("*.mp4"))
    with np.load(f"{first}.npz") as seen:
        assert seen["steps"].tolist() == [0, 1, 2] and seen["looks"].shape == (3, 2, 96) and seen["final"].shape == (8, 96)
        # the same object from the same two sides, 0 and 180 degrees, at the end of training and in the test
        assert np.allclose(seen["looks"][2], seen["final"][[0, 4]], atol=0.02)
        assert not np.allclose(seen["looks"][0], seen["looks"][2], atol=1e-4)
    assert Image.open(f"{first}.jpg").size == (8 * grid.SIZE, grid.SIZE)
    for suffix in ("npz", "jpg"):
        assert Path(f"{first}.{suffix}").read_bytes() == Path(f"{second}.{suffix}").read_bytes()


# ---- the figures ----


def run(variant: str, prompt: int, seed: int, clip: list[float], *, loss: str = "vdm", janus: bool | None = False, **final: float) -> report.Run:
    shares = {**dict.fromkeys(report.SHARES, 1.0), "clip": clip[-1], **final}
    steps = tuple(range(0, 50 * len(clip), 50))
    facts = {"training_seconds": 30.0, "seconds": 35.0, "gaussians": 100}
    return report.Run(grid.Cell(variant, loss, prompt, seed), facts, shares, janus, (0.0,), steps, tuple(clip))


def test_differences_have_the_interval_of_prompts_with_their_seeds():
    """Each prompt counts once, however many of its seeds are there; one pair alone has no interval."""
    sphere = [run("sphere", p, s, [10.0]) for p in range(3) for s in range(2)]
    others = [run("few", 0, 0, [11.0]), run("few", 1, 0, [14.0]), run("few", 1, 1, [12.0]), run("few", 2, 1, [15.0])]
    known = mean_interval([[1.0], [4.0, 2.0], [5.0]])
    assert report.compared(others, sphere, lambda r: r.final["clip"]) == (3.0, known.low, known.high)
    assert report.compared(others[:1], sphere, lambda r: r.final["clip"]) == (1.0, None, None)


def test_only_runs_of_the_same_loss_prompt_and_seed_are_compared():
    sphere = [run("sphere", 0, 0, [10.0]), run("sphere", 1, 0, [20.0]), run("sphere", 0, 1, [99.0], loss="sds")]
    others = [run("few", 0, 0, [11.0]), run("few", 1, 0, [23.0]), run("few", 0, 1, [0.0]), run("few", 2, 0, [0.0])]
    assert report.compared(others, sphere, lambda r: r.final["clip"])[0] == 2.0
    assert report.compared(others[2:], sphere, lambda r: r.final["clip"]) is None
    unknown = [run("few", 0, 0, [11.0], janus=None), run("few", 1, 0, [11.0], janus=True)]
    assert report.compared(unknown, sphere, lambda r: None if r.janus is None else float(r.janus))[0] == 1.0


def test_steps_to_a_score_by_hand():
    curve, steps = [0.0, 20.0, 40.0, 30.0], [0, 50, 100, 150]
    assert report.steps_to(curve, steps, -1.0) == 0.0
    assert report.steps_to(curve, steps, 10.0) == 25.0
    assert report.steps_to(curve, steps, 20.0) == 50.0
    assert report.steps_to(curve, steps, 35.0) == 87.5
    assert report.steps_to(curve, steps, 41.0) is None


def test_the_summary_by_hand():
    runs = [
        run("sphere", 0, 0, [0.0, 40.0, 60.0]), run("sphere", 1, 0, [0.0, 20.0, 60.0], janus=True),
        run("few", 0, 0, [0.0, 60.0, 70.0], family=0.5), run("few", 1, 0, [0.0, 60.0, 80.0], janus=None),
    ]  # fmt: skip
    few, sphere = (report.summarize(runs)["vdm"][name] for name in ("few", "sphere"))
    assert (few["runs"], few["recognized"], few["family"], few["clip"]) == (2, 1, 0.75, 75.0)
    assert few["clip_difference"][0] == 15.0 and few["family_difference"][0] == -0.25 and sphere["clip_difference"] == (0.0, 0.0, 0.0)
    assert (sphere["janus"], few["janus"], few["janus_difference"][0]) == (0.5, 0.0, 0.0)
    assert sphere["curve"] == {"steps": [0, 50, 100], "clip": [0.0, 30.0, 60.0]}
    assert few["reached"]["sphere's last"] == {"score": 60.0, "mean_curve": 50.0, "share": 1.0, "median": 50.0}
    assert few["reached"]["65"]["median"] == pytest.approx((75 + 62.5) / 2)
    assert sphere["reached"]["65"] == {"score": 65.0, "mean_curve": None, "share": 0.0, "median": None}


def record(folder: Path, judge, cell: grid.Cell, texts: list[str], looks: list[str]) -> None:
    """As a run leaves it, of which the judge has seen nothing but these texts."""
    folder.mkdir(parents=True, exist_ok=True)
    final, on_the_way = judge.embed_texts(texts).half().numpy(), judge.embed_texts(looks).half().numpy()[:, None]
    buffer = io.BytesIO()
    np.savez(buffer, steps=np.arange(len(looks)) * 50, looks=on_the_way, final=final)
    (folder / f"{cell.name}.npz").write_bytes(buffer.getvalue())
    noise = np.random.default_rng(cell.seed).integers(0, 256, (grid.SIZE, grid.SIZE * len(texts), 3), dtype=np.uint8)
    noise[:, : grid.SIZE], noise[:, grid.SIZE * (len(texts) // 2) :][:, : grid.SIZE] = (255, 0, 0), (0, 0, 255)
    Image.fromarray(noise).save(folder / f"{cell.name}.jpg", quality=95)
    facts = {**cell.__dict__, "arguments": ["tag=run", f"exp_root_dir={folder}"], "training_seconds": 31.0, "seconds": 36.0, "gaussians": 77}
    (folder / f"{cell.name}.json").write_text(json.dumps(facts))


def around(name: str, sides: str) -> list[str]:
    return [f"{name}, {dict(f='front', s='side', b='back')[side]} view" for side in sides]


def test_the_report_of_records(tmp_path, judge):
    wanted = grid.cells(["sphere", "few"], ["vdm"], [4], [0, 1])  # a yellow duck
    true, janus = "fffsssssssbbbbbsssssssff", "fffsssssssfffffsssssssff"
    record(tmp_path / "runs", judge, wanted[0], around("a yellow duck", true), ["a gray fish", "a yellow duck"])
    record(tmp_path / "runs", judge, wanted[1], around("a yellow duck", janus), ["a yellow duck", "a yellow duck"])
    (tmp_path / "runs" / f"{wanted[2].name}.json").write_text(json.dumps({"failure": "out of memory"}))
    runs, failed, missing = report.read(tmp_path / "runs", wanted, judge)
    assert failed == {wanted[2].name: "out of memory"} and missing == [wanted[3].name]
    assert [r.janus for r in runs] == [False, True] and runs[0].final["family"] == runs[0].final["color"] == 1.0
    assert runs[0].final["side"] == 1.0 and runs[1].final["side"] == 0.75
    assert runs[0].fronts == (0.0, 15.0, 30.0, 330.0, 345.0)
    assert runs[0].clip[1] == pytest.approx(100.0, abs=0.1) and runs[0].clip[0] < 90
    text = report.write_report(tmp_path, wanted, judge)
    assert (tmp_path / "report.md").read_text() == text and "2 of 4 runs" in text
    assert f"- {wanted[2].name}: out of memory" in text and "few.vdm (1)" in text
    assert "| few | 1 | 100.0 % (+0.0) |" in text and "100 % (1) (+100.0) | 77 | 31 / 36 |" in text
    raw = json.loads((tmp_path / "report.json").read_text())
    assert str(tmp_path) not in (tmp_path / "report.json").read_text() and "tag=run" in raw["runs"][0]["arguments"]
    assert raw["summary"]["vdm"]["few"]["janus_difference"] == [1.0, None, None] and raw["runs"][0]["looks"]["steps"] == [0, 50]
    assert [r["janus"] for r in raw["runs"]] == [False, True] and raw["missing"] == missing and raw["failed"] == failed
    sheet = Image.open(tmp_path / "contact_sheet_vdm.png").convert("RGB")
    assert sheet.size == (2 * 194, 14 + 98)
    assert [max(range(3), key=sheet.getpixel((x, 60)).__getitem__) for x in (48, 144, 194 + 48, 194 + 144)] == [0, 2, 0, 2]


def test_an_object_that_is_not_recognized_has_no_front(tmp_path, judge):
    (cell,) = grid.cells(["sphere"], ["vdm"], [4], [0])
    record(tmp_path, judge, cell, around("a red mug", "f" * 24), ["a red mug"])
    ((found,), _, _) = report.read(tmp_path, [cell], judge)
    assert found.janus is None and found.final["family"] == 0.0
    assert "| (0) |" in report.markdown(report.summarize([found]), {}, [], 1)


def test_a_large_sheet_is_made_small_enough(tmp_path, judge):
    names, cells = ["sphere", "few", "many", "ball", "opaque"], []
    for cell in grid.cells(names, ["vdm"], list(range(10)), [0]):
        noise = np.random.default_rng(cell.prompt).integers(0, 256, (grid.SIZE, grid.SIZE * 2, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{cell.name}.jpg")
        cells.append(run(cell.variant, cell.prompt, 0, [1.0]))
    data = report.contact_sheet(tmp_path, cells)
    assert len(data) <= report.SHEET_BYTES
    assert Image.open(io.BytesIO(data)).width % len(names) == 0
