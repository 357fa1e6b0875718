"""Scores of assets: the parts together, by hand; the command line; the model card."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dreammapping.errors import ConfigError
from dreammapping.evaluation import __main__ as cli
from dreammapping.evaluation.assets import find_assets, read_pictures
from dreammapping.evaluation.clip_score import clip_scores
from dreammapping.evaluation.fid import frechet_distance
from dreammapping.evaluation.picture_statistics import picture_statistics
from dreammapping.evaluation.protocol import load_protocol
from dreammapping.evaluation.reference_samples import SampleSettings, reference_samples
from dreammapping.evaluation.scores import record, table, together_text
from dreammapping.evaluation.scoring import Scorer, attributes, judged

from tests.dreammapping.evaluation.test_assets import make_run
from tests.helpers.tiny_teacher import make_tiny_teacher

ROOT = Path(__file__).resolve().parents[3]
SIDE = 16


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_tiny_teacher(tmp_path_factory.mktemp("teacher"), image_size=SIDE)


@pytest.fixture(scope="module")
def judge_name() -> str:
    return f"judge:{ROOT / 'load' / 'embedded-judge'}"


@pytest.fixture(scope="module")
def protocol(teacher, judge_name):
    reference = SampleSettings(str(teacher), steps=2, per_prompt=5)
    changes = {"clip": (judge_name,), "fid": judge_name, "judge": judge_name, "reference": reference, "prompts": (), "image_size": SIDE, "views": 12}
    return replace(load_protocol("embedded"), name="small", **changes)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def scorer(protocol, cache) -> Scorer:
    return Scorer(protocol, cache_dir=cache)


@pytest.fixture
def runs(tmp_path) -> list:
    made = [make_run(tmp_path / f"run{i}", prompt=p, seed=i, training_seconds=10.0 + i) for i, p in enumerate(["a red mug", "a red mug", "a blue chair"])]
    return [asset for run in made for asset in find_assets(run)]


def test_one_asset_by_hand(scorer, protocol, judge_name, runs, cache):
    scores = scorer.measure(runs[0]).scores
    pictures = read_pictures([runs[0].pictures[i] for i in range(0, 24, 2)], SIDE)
    judge = scorer.extractors[judge_name]
    seen = judge.features(pictures)
    clip = clip_scores(seen, judge.text_features(["a red mug"])[0])
    assert scores["clip"][judge_name]["mean"] == pytest.approx(clip.mean().item()) and scores["pictures"] == 12
    assert scores["clip"][judge_name]["deviation_of_views"] == pytest.approx(clip.std(correction=0).item())
    files = reference_samples(["a red mug"], protocol.reference, cache_dir=cache)["a red mug"]
    drawn = read_pictures(files, SIDE)
    assert scores["fid"] == pytest.approx(frechet_distance(seen, judge.features(drawn)))
    for name, values in picture_statistics(pictures).items():
        assert scores["statistics"][name] == pytest.approx(values.mean().item())
        assert scores["reference_statistics"][name] == pytest.approx(picture_statistics(drawn)[name].mean().item())
    azimuth = torch.arange(12) * 30.0
    assert scores["judge"] == judged(judge.judge, seen, "a red mug", azimuth) and scores["cost"]["training_seconds"] == 10.0
    assert scores["deviations"] == ["elevation is 15 instead of 20"]


def test_many_assets_have_intervals_over_prompts_and_one_fid(scorer, judge_name, runs):
    measured = [scorer.measure(asset) for asset in runs]
    found = scorer.together(measured, draws=200)
    means = [one.scores["clip"][judge_name]["mean"] for one in measured]
    assert found["clip"][judge_name]["value"] == pytest.approx((sum(means[:2]) / 2 + means[2]) / 2)
    assert found["training_seconds"]["value"] == pytest.approx((10.5 + 12) / 2) and (found["assets"], found["prompts"]) == (3, 2)
    ours, theirs = torch.cat([one.features for one in measured]), torch.cat([scorer.references[p][0] for p in ("a red mug", "a blue chair")])
    assert found["fid"]["value"] == pytest.approx(frechet_distance(ours, theirs)) and found["fid"]["pictures"] == 36 and found["fid"]["references"] == 10
    assert found["fid"]["same_source"] > 0 and found["fid"]["same_source_pictures"] == 5
    gap = [one.scores["statistics"]["saturation"] - one.scores["reference_statistics"]["saturation"] for one in measured]
    assert found["statistics_minus_reference"]["saturation"]["value"] == pytest.approx((sum(gap[:2]) / 2 + gap[2]) / 2)
    json.dumps(found, allow_nan=False)
    assert "3 assets of 2 prompts" in together_text(found) and "never 0" in together_text(found)


def test_a_judge_knows_a_janus_and_what_a_prompt_asks(scorer, judge_name):
    judge = scorer.extractors[judge_name].judge
    asked = attributes(judge, "A red striped gift box")
    assert asked == {"family": judge.families.index("gift box"), "color": judge.colors.index("red"), "pattern": judge.patterns.index("striped")}
    assert attributes(judge, "a blue birdhouse")["family"] == judge.families.index("birdhouse")
    assert attributes(judge, "a blue chair")["pattern"] == judge.patterns.index("plain")
    assert attributes(judge, "a scarf") == {} == judged(judge, torch.ones(2, 128), "a scarf")
    texts = [f"a duck, {side} view" for side in ("front", "side", "back", "side")]
    true, janus = (judge.embed_texts([texts[i] for i in order]) for order in ([0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 1, 1, 0, 0, 1, 1]))
    azimuth = torch.arange(8) * 45.0
    for seen, expected in ((true, 0.0), (janus, 1.0)):
        found = judged(judge, seen, "a yellow duck", azimuth)
        assert found["family"] == 1.0 and found["janus"] == expected
    assert "janus" not in judged(judge, true, "a yellow duck") and "janus" not in judged(judge, true, "a red mug", azimuth)
    assert "right_views" not in judged(judge, true[:7], "a yellow duck", azimuth[:7])


def test_without_references_there_is_no_fid(protocol, runs):
    plain = Scorer(replace(protocol, fid=None, judge=None, reference=None))
    one = plain.measure(runs[0])
    assert "fid" not in one.scores and "reference_statistics" not in one.scores and one.features is None
    assert "fid" not in plain.together([one, one]) and "FID" not in table([("run", one.scores)])


# ---- the command line ----


@pytest.fixture
def command(tmp_path, teacher, judge_name, cache):
    """Run with a small protocol; returns nothing, prints a lot."""
    text = f"clip: ['{judge_name}']\nfid: '{judge_name}'\njudge: '{judge_name}'\nviews: 8\nimage_size: {SIDE}\nreference: {{teacher: '{teacher}', steps: 2, per_prompt: 3}}\n"
    (tmp_path / "small.yaml").write_text(text)

    def run(*arguments: object) -> None:
        cli.main([*map(str, arguments), "--protocol", str(tmp_path / "small.yaml"), "--cache-dir", str(cache), "--device", "cpu"])

    return run


@pytest.fixture
def whole_run(tmp_path) -> Path:
    """A run whose card has everything a card has."""
    system = {"geometry_type": "dreammapping-gaussians", "guidance_type": "g", "guidance": {"loss": {"type": "vdm"}}}
    facts = {"negative_prompt": "", "status": "trained", "steps": 7, "max_steps": 7, "teacher": {"name": "t"}, "primitives": 5, "system": system}
    facts |= {"training_seconds": 5.0, "peak_memory_bytes": 1 << 30, "peak_gpu_memory_bytes": None, "device": "CPU", "platform": "Linux"}
    return make_run(tmp_path / "whole", **facts, python="3", versions={"torch": "2"}, files=["a.ply"])


def test_scores_of_a_run_land_in_its_card(command, whole_run, capsys, judge_name):
    before = json.loads((whole_run / "save" / "model_card.json").read_text())
    command(whole_run)
    said = capsys.readouterr().out
    assert "Protocol small" in said and '"steps": 2' in said and "a red mug" in said
    after = json.loads((whole_run / "save" / "model_card.json").read_text())
    (scores,) = after.pop("scores")["small"]
    assert after == before and math.isfinite(scores["fid"]) and scores["pictures"] == 8
    card = (whole_run / "save" / "model_card.md").read_text()
    assert "## Scores by the protocol small" in card and f"{scores['clip'][judge_name]['mean']:.2f}" in card and "## Files" in card
    content = json.loads((whole_run / "save" / "scores.json").read_text())
    assert content["protocol"]["views"] == 8 and content["assets"][0]["fid"] == scores["fid"] and "together" not in content
    command(whole_run, "--no-reference")
    kept = json.loads((whole_run / "save" / "model_card.json").read_text())["scores"]
    assert set(kept) == {"small", "small, no reference"} and "fid" not in kept["small, no reference"][0]


def test_several_runs_have_means_and_a_file_of_ones_choice(command, whole_run, tmp_path, capsys):
    second = shutil.copytree(whole_run, tmp_path / "second")
    command(whole_run, second, "--output", tmp_path / "all.json")
    assert "2 assets of 1 prompt," in capsys.readouterr().out
    content = json.loads((tmp_path / "all.json").read_text())
    assert content["together"]["assets"] == 2 and [one["folder"] for one in content["assets"]] == ["whole", "second"]
    assert not (second / "save" / "scores.json").exists() and "small" in json.loads((second / "save" / "model_card.json").read_text())["scores"]


def test_a_folder_of_pictures_gets_a_file_beside_them(command, whole_run, capsys):
    folder = whole_run / "save" / "it7-test"
    command(folder, "--prompt", "a red mug", "--turntable", "--no-reference")
    scores = json.loads((folder / "scores.json").read_text())["assets"][0]
    assert "right_views" in scores["judge"] and "model card" not in capsys.readouterr().out


def test_the_preset_of_a_run_says_which_protocol(whole_run, capsys):
    args = cli._parser().parse_args([str(whole_run)])
    assert cli._protocol(args, find_assets(whole_run)).name == "embedded"
    args = cli._parser().parse_args(["x", "--teacher", "some/model"])
    other = cli._protocol(args, find_assets(whole_run / "save" / "it7-test", "a mug"))
    assert other.name == "paper, other teacher" and other.reference.teacher == "some/model"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere"], "there is no folder"), (["{run}/save/it7-test"], "--prompt TEXT"), (["{run}", "--output", "{run}/save/model_card.json/x"], "cannot write")],
)
def test_mistakes_are_one_message(command, whole_run, arguments, message):
    with pytest.raises(SystemExit) as ended:
        command(*(a.format(run=whole_run) for a in arguments))
    assert str(ended.value.code).startswith("Error: ") and message in str(ended.value.code)


def test_a_card_that_is_not_whole_is_told(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="no whole model card"):
        record(run, "small", [])
    assert "scores" not in json.loads((run / "save" / "model_card.json").read_text())
