"""Plans: what they ask for, in which order, and what a wrong one is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from dreammapping.comparison.plan import PLANS, ROOT, load_plan, losses_with_config, plan_name, runs
from dreammapping.comparison.prompts import prompt_of, words_of
from dreammapping.distillation import LOSSES, build_timesteps
from dreammapping.errors import ConfigError
from dreammapping.evaluation.protocol import load_protocol

import threestudio
from threestudio.launcher import read_run_config

BASIC = {"title": "t", "prompts": ["a red mug", "a blue car", "a gray duck"], "methods": ["vdm", "sds"], "representations": ["gs"], "seeds": [0, 1]}


def plan(folder: Path, **changes):
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({**BASIC, **changes}, sort_keys=False))
    return load_plan(path)


def names(found) -> list[str]:
    return [run.job.name for run in found]


def config_of(run):
    arguments = list(run.job.arguments)
    preset = arguments[arguments.index("--preset") + 1]
    return read_run_config(arguments[1], [a for a in arguments[2:] if "=" in a], preset, use_cuda=False)[0]


# ---- the runs ----


def test_every_combination_is_run_once_seed_by_seed(tmp_path):
    found = runs(plan(tmp_path))
    assert names(found) == [f"gs.{m}.{p}.{s}" for s in (0, 1) for m in ("vdm", "sds") for p in ("a_red_mug", "a_blue_car", "a_gray_duck")]
    assert found[0].prompts == ("a red mug",) and found[0].job.about["prompts"] == ["a red mug"]


def test_what_changes_slowest_comes_first(tmp_path):
    found = runs(plan(tmp_path, order=["prompt", "method", "seed", "representation"]))
    assert names(found)[:4] == ["gs.vdm.a_red_mug.0", "gs.vdm.a_red_mug.1", "gs.sds.a_red_mug.0", "gs.sds.a_red_mug.1"]


def test_pictures_share_a_run_and_objects_do_not(tmp_path):
    found = runs(plan(tmp_path, representations=["2d", "gs"], prompts_per_run=2, particles=3, seeds=[0], methods=["vdm"]))
    assert [(run.representation, run.prompts) for run in found] == [
        ("2d", ("a red mug", "a blue car")), ("2d", ("a gray duck",)), ("gs", ("a red mug",)), ("gs", ("a blue car",)), ("gs", ("a gray duck",)),
    ]  # fmt: skip
    pictures = config_of(found[0])
    assert pictures.system.prompts == ["a red mug", "a blue car"] and pictures.system.geometry.particles == 3
    assert config_of(found[2]).system.prompt_processor.prompt == "a red mug"


def test_overrides_come_from_the_general_to_the_particular(tmp_path):
    steps = "trainer.max_steps={}".format
    method = {"loss": "vdm", "overrides": [steps(3)], "of": {"gs": [steps(4)]}}
    made = {"overrides": [steps(1)], "of": {"gs": [steps(2)]}, "seeds": [0], "prompts": ["a red mug"]}
    last = lambda found: [a for a in found[0].job.arguments if a.startswith("trainer.max_steps=")][-1]  # noqa: E731
    assert last(runs(plan(tmp_path, **{**made, "of": {}}))) == steps(1)
    assert last(runs(plan(tmp_path, **made))) == steps(2)
    assert last(runs(plan(tmp_path, **made, methods={"m": {**method, "of": {}}}))) == steps(3)
    assert last(runs(plan(tmp_path, **made, methods={"m": method}))) == steps(4)
    config = config_of(runs(plan(tmp_path, **made, methods={"m": method}))[0])
    assert config.trainer.max_steps == config.trainer.val_check_interval == 4 and config.system.video_fps is None


def test_variants_multiply_the_methods_and_choices_come_before_their_own_overrides(tmp_path):
    (tmp_path / "chosen.yaml").write_text("gs: {vdm: [a=1]}\n2d: {sds: [a=2]}\n")
    found = plan(
        tmp_path, methods={"VDM": {"loss": "vdm", "overrides": ["a=3"]}, "SDS": {"loss": "sds"}}, choices="chosen.yaml",
        variants={"fast": {"overrides": ["b=1"]}, "slow": {"of": {"gs": ["b=2"]}}},
    )  # fmt: skip
    assert list(found.methods) == ["VDM, fast", "VDM, slow", "SDS, fast", "SDS, slow"] and found.base == "VDM, fast"
    tail = {run.method: [a for a in run.job.arguments if a[:2] in ("a=", "b=")] for run in runs(found)}
    assert tail == {"VDM, fast": ["b=1", "a=1", "a=3"], "VDM, slow": ["a=1", "a=3", "b=2"], "SDS, fast": ["b=1"], "SDS, slow": ["b=2"]}


def test_a_plan_is_called_as_on_the_command_line(tmp_path):
    (tmp_path / "mine.yaml").write_text("title: mine")
    assert plan_name("embedded-2d") == plan_name(PLANS / "embedded-2d.yaml") == "embedded-2d"
    assert plan_name(tmp_path / "mine.yaml") == str(tmp_path / "mine.yaml")


def test_prompts_come_from_a_file_beside_the_plan(tmp_path):
    (tmp_path / "list.txt").write_text("# three\na red mug\n\na blue car\na gray duck\n")
    assert plan(tmp_path, prompts={"file": "list.txt", "first": 1, "count": 2}).prompts == ["a blue car", "a gray duck"]
    with pytest.raises(ConfigError, match="asks for 4 prompts of list.txt from 0; there are 3"):
        plan(tmp_path, prompts={"file": "list.txt", "count": 4})


def test_a_plan_without_prompts_takes_the_protocols(tmp_path):
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({key: value for key, value in BASIC.items() if key not in ("prompts", "seeds")}))
    found = load_plan(tmp_path / "plan.yaml")
    assert (tuple(found.prompts), tuple(found.seeds)) == (load_protocol("embedded").prompts, load_protocol("embedded").seeds) and found.seeds


# ---- configs ----


@pytest.mark.parametrize("kind", ["2d", "gs", "nerf"])
def test_every_loss_has_its_config(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(ROOT)
    found = runs(plan(tmp_path, methods="all", representations=[kind], seeds=[5], prompts=["a red mug"]))
    assert {run.method for run in found} == set(losses_with_config(kind)) <= set(LOSSES.names())
    assert [run.method for run in found[:3]] == ["vdm", "sds", "vsd"]
    for run in found:
        config = config_of(run)
        assert config.system.guidance.loss.type == run.method and config.seed == 5
        assert threestudio.find(config.system.geometry_type)
        build_timesteps(config.system.guidance.timesteps)


def test_a_radiance_field_gets_the_guidance_of_the_loss(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    by_loss = {run.method: config_of(run) for run in runs(plan(tmp_path, methods=["vdm", "sds", "vsd", "ism", "csd"], representations=["nerf"], seeds=[0]))}
    assert by_loss["sds"].system.guidance.guidance_scale == 100 and by_loss["vsd"].system.guidance.cfg_convention == "usual"
    assert by_loss["ism"].system.guidance.anchor == "negative" and by_loss["ism"].system.guidance.loss.interval == [0, 100, 80, 300]
    assert by_loss["vdm"].system.guidance.timesteps == by_loss["csd"].system.guidance.timesteps


# ---- the plans that come with the repository ----


@pytest.mark.parametrize("path", [path for path in sorted(PLANS.glob("*.yaml")) if "chosen" not in path.name], ids=lambda path: path.stem)
def test_a_plan_of_the_repository_is_made_of_settings(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    loaded = load_plan(path.stem)
    found = runs(loaded)
    assert len(found) == len(set(names(found))) > 0
    for method in loaded.methods:
        for kind in loaded.representations:
            assert config_of(next(run for run in found if run.method == method and run.representation == kind))


def test_the_measured_prompts_are_of_the_embedded_world_and_others_than_those_that_chose():
    import json

    known = json.loads((ROOT / "load/embedded-judge/questions.json").read_text())
    words = known["families"], known["colors"], known["patterns"]
    measured, choosing = load_plan("embedded-2d").prompts, load_plan("learning-rates-2d").prompts
    assert set(load_plan("learning-rates-gs").prompts) <= set(choosing)
    assert len(measured) == 100 and not set(measured) & set(choosing)
    assert all(words_of(prompt, *words) for prompt in (*measured, *choosing))
    assert len({words_of(prompt, *words)[0] for prompt in measured[:30]}) >= 25


def test_words_of_a_prompt():
    words = ["mug", "gift box", "orange tree"], ["red", "orange"], ["plain", "striped"]
    for asked in [(f, c, p) for f in words[0] for c in words[1] for p in words[2]]:
        assert words_of(prompt_of(*asked), *words) == asked
    for other in ("a mug", "a striped mug", "a red mug on a table", "red mug", "an red mug", "a red striped", "a red wooden mug", ""):
        assert words_of(other, *words) is None


# ---- mistakes ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metods": 1}, "plan.yaml.metods is not a known key; did you mean 'methods'"),
        ({"methods": ["vmd"]}, "has no config for .*did you mean .*.vdm."),
        ({"base": "sdi"}, "base is 'sdi', which is no method"),
        ({"seeds": [0, 0]}, "seeds has 0 twice"),
        ({"seeds": []}, "seeds is empty"),
        ({"prompts": ["a mug", "a mug"]}, "'a mug' twice"),
        ({"prompts": {"file": "none.txt"}}, "cannot read .*none.txt"),
        ({"order": ["seed"]}, "order is .* it must have each of seed, representation, method, prompt once"),
        ({"representations": ["3d"]}, "must be one of '2d', 'gs', 'nerf'"),
        ({"choices": "none.yaml"}, "cannot read .*none.yaml"),
        ({"prompts_per_run": 0}, "must be at least 1"),
    ],
)
def test_a_wrong_plan_is_told_what_is_wrong(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path, **changes)


def test_methods_whose_files_would_have_the_same_name(tmp_path):
    found = plan(tmp_path, methods={"a+b": {"loss": "vdm"}, "a b": {"loss": "vdm"}})
    with pytest.raises(ConfigError, match="have the name of another"):
        runs(found)


def test_a_file_that_is_no_plan(tmp_path):
    with pytest.raises(ConfigError, match="cannot read .*Plans that come with this repository: .*embedded-2d"):
        load_plan(tmp_path / "none")
    (tmp_path / "plan.yaml").write_text("[1]")
    with pytest.raises(ConfigError, match="holds no plan"):
        load_plan(tmp_path / "plan.yaml")
    (tmp_path / "plan.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_plan(tmp_path / "plan.yaml")


def test_a_loaded_plan_is_what_its_runs_need(tmp_path):
    found = plan(tmp_path)
    assert names(runs(dataclasses.replace(found, seeds=[1]))) == names(runs(found))[6:]
