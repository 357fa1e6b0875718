"""Scores of known records, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import known
import numpy as np
import pytest
from dreammapping.comparison import references
from dreammapping.comparison.choose import choose, write_choices
from dreammapping.comparison.look import Look, load_look
from dreammapping.comparison.plan import ROOT, load_plan, runs
from dreammapping.comparison.runner import Limits, work, write_record
from dreammapping.comparison.scores import TEACHER, Asset, Results, asked, collect, summarize
from dreammapping.errors import DreamMappingError
from dreammapping.evaluation.fid import frechet_distance
from dreammapping.evaluation.intervals import Interval
from dreammapping.evaluation.protocol import Protocol
from dreammapping.evaluation.reference_samples import SampleSettings
from PIL import Image


@pytest.fixture(scope="module")
def judge():
    name = f"judge:{ROOT / 'load' / 'embedded-judge'}"
    return load_look(Protocol("judge", clip=(name,), judge=name))


def asset(method: str, prompt: str, seed: int, *, kind: str = "gs", cost: float = 1.0, **values: float) -> Asset:
    return Asset(kind, method, prompt, seed, f"{method}.{prompt}.{seed}", values, {"unet_forwards": cost})


def rows_of(folder: Path, assets: list[Asset], **changes) -> dict:
    rows = summarize(known.plan_of(folder, **changes), Results(assets, {}, [], {}), known.LOOK)
    return {(row["representation"], row["method"]): row for row in rows}


def test_means_pairs_and_costs_by_hand(tmp_path):
    mug, car = "a red mug", "a blue car"
    assets = [
        asset("vdm", mug, 0, family=1.0, cost=2.0), asset("vdm", mug, 1, family=0.5, cost=4.0), asset("vdm", car, 0, family=0.25, cost=9.0),
        asset("sds", mug, 0, family=0.5, janus=1.0), asset("sds", car, 0, family=0.25), asset("sds", car, 1, family=0.0),
    ]  # fmt: skip
    rows = rows_of(tmp_path, assets)
    vdm, sds, vsd = (rows["gs", name] for name in ("vdm", "sds", "vsd"))
    assert vdm["values"]["family"].value == 0.5  # mean of 0.75 and 0.25: a prompt counts once
    assert sds["differences"]["family"].value == -0.25  # only seeds that both have: -0.5 and 0
    assert vdm["differences"] == {} and vdm["costs"]["unet_forwards"] == 4.0
    assert sds["values"]["janus"].value == 1.0 and "janus" not in vdm["values"] and sds["assets"] == 3
    assert (vsd["assets"], vsd["values"], vsd["costs"]) == (0, {}, {})


def test_the_base_is_the_plans(tmp_path):
    rows = rows_of(tmp_path, [asset("vdm", "a red mug", 0, family=1.0), asset("sds", "a red mug", 0, family=0.5)], base="sds")
    assert rows["gs", "vdm"]["differences"]["family"].value == 0.5 and rows["gs", "sds"]["differences"] == {}


def test_each_prompt_of_a_run_gets_its_own_pictures_and_its_share_of_the_cost(tmp_path):
    plan = known.plan_of(tmp_path, representations=["2d"], prompts_per_run=2, particles=2, seeds=[0], methods=["vdm"])
    for run in runs(plan):
        work(run.job, tmp_path, known.CRAFT, Limits())
    found = collect(tmp_path, runs(plan), known.LOOK)
    assert [(a.prompt, a.place) for a in found.assets] == [("a red mug", (0, 2)), ("a blue car", (1, 2)), ("a gray duck", (0, 1))]
    assert all(80 < a.values["clip.fake"] < 100 and a.features["fake"].shape == (2, known.LENGTH) for a in found.assets)
    assert [a.cost["unet_forwards"] for a in found.assets] == [500, 500, 1000] and found.assets[0].cost["seconds"] == 5.0
    assert 0 < found.assets[0].values["statistics.saturation"] < 1


def test_failed_and_missing_runs_are_told_and_not_counted(tmp_path):
    plan = known.plan_of(tmp_path, methods=["vdm"], seeds=[0])
    first, second, third = runs(plan)
    work(first.job, tmp_path, known.CRAFT, Limits())
    write_record(tmp_path, second.job, {"failure": "NaN"})
    found = collect(tmp_path, runs(plan), known.LOOK)
    assert found.failed == {second.job.name: "NaN"} and found.missing == [third.job.name] and len(found.assets) == 1
    (tmp_path / "runs" / f"{first.job.name}.npz").write_bytes(b"PK")
    with pytest.raises(DreamMappingError, match="delete .* to make the run again"):
        collect(tmp_path, runs(plan), known.LOOK)


def test_the_judge_answers_on_prompts_of_its_world(judge):
    (name,) = judge.networks

    def ask(views: list[str], prompt: str, kind: str = "gs") -> dict[str, float]:
        """As if the judge had seen pictures of just these texts."""
        return asked(judge, {name: judge.networks[name].text_features(views).numpy()}, prompt, kind, {})

    sides = "f" * 3 + "s" * 7 + "b" * 5 + "s" * 7 + "f" * 2
    views = [f"a yellow duck, {dict(f='front', s='side', b='back')[side]} view" for side in sides]
    values = ask(views, "a yellow duck")
    assert values["family"] == values["color"] == 1.0 and values["side"] > 0.8 and values["janus"] == 0.0
    assert values[f"clip.{name}"] > 60
    assert ask([view.replace("back", "front") for view in views], "a yellow duck")["janus"] == 1.0
    assert set(ask(views, "a yellow duck", "2d")) == {"family", "color", "pattern", f"clip.{name}"}
    assert set(ask(views, "a duck on a hill")) == {f"clip.{name}"}
    wrong = ask(views, "a red mug")
    assert wrong["family"] == 0.0 and "janus" not in wrong  # not recognized: nobody knows its front


def test_the_text_is_the_protocols(judge):
    (name,) = judge.networks
    asking = Look(replace(judge.protocol, text="a photo of {prompt}", judge=None), judge.networks)
    same = judge.networks[name].text_features(["a photo of a yellow duck"]).numpy()
    assert asked(asking, {name: same}, "a yellow duck", "gs", {}) == {f"clip.{name}": pytest.approx(100.0, abs=1e-3)}


def with_features(method: str, prompt: str, seed: int, features: np.ndarray) -> Asset:
    return Asset("2d", method, prompt, seed, "", {}, {}, {"net": features})


NET = Look(Protocol("net", clip=(), fid="net", reference=SampleSettings("some")), {})


def distance_rows(tmp_path, views: dict[str, dict], samples: dict, look: Look = NET) -> dict:
    assets = [with_features(method, p, s, v) for method, own in views.items() for (p, s), v in own.items()]
    teacher = [with_features(TEACHER, p, 0, v) for p, v in samples.items()]
    plan = known.plan_of(tmp_path, representations=["2d"], methods=list(views), base="vdm")
    return {row["method"]: row for row in summarize(plan, Results(assets, {}, [], {}), look, teacher)}


def test_the_distance_is_that_of_all_views_of_the_common_prompts(tmp_path):
    rng = np.random.default_rng(0)
    vdm = {(p, s): rng.normal(size=(6, 4)).astype(np.float16) for p in "abc" for s in (0, 1)}
    sds = {(p, 0): rng.normal(0.5, size=(6, 4)).astype(np.float16) for p in "bad"}
    samples = {p: rng.normal(1.0, size=(5, 4)).astype(np.float16) for p in "abd"}
    theirs = np.concatenate([samples[p] for p in "ab"])
    rows = distance_rows(tmp_path, {"vdm": vdm, "sds": sds}, samples)
    found, expected = rows["vdm"]["distances"]["net"], frechet_distance(np.concatenate([vdm[p, s] for p in "ab" for s in (0, 1)]), theirs)
    assert found.value == pytest.approx(expected, rel=1e-6) and found.low < expected < found.high
    difference = rows["sds"]["differences"]["distance.net"]  # over a and b: vdm has no d
    assert difference.value == pytest.approx(frechet_distance(np.concatenate([sds[p, 0] for p in "ab"]), theirs) - expected, rel=1e-6)
    assert difference.low < difference.value < difference.high and "distance.net" not in rows["vdm"]["differences"]


def test_one_common_prompt_gives_a_difference_without_an_interval(tmp_path):
    rng = np.random.default_rng(0)
    vdm, sds = ({(p, 0): rng.normal(size=(6, 4)) for p in prompts} for prompts in ("a", "ab"))
    samples = {p: rng.normal(1.0, size=(5, 4)) for p in "ab"}
    difference = distance_rows(tmp_path, {"vdm": vdm, "sds": sds}, samples)["sds"]["differences"]["distance.net"]
    expected = frechet_distance(sds["a", 0], samples["a"]) - frechet_distance(vdm["a", 0], samples["a"])
    assert difference.value == pytest.approx(expected) and math.isnan(difference.low)
    apart = distance_rows(tmp_path, {"vdm": vdm, "sds": {("b", 0): sds["b", 0]}}, samples)["sds"]
    assert "net" in apart["distances"] and apart["differences"] == {}


def test_without_samples_or_a_network_there_is_no_distance(tmp_path):
    views = {(p, 0): np.random.default_rng(0).normal(size=(6, 4)) for p in "ac"}
    one = {"vdm": {("a", 0): views["a", 0]}, "sds": {("a", 0): views["c", 0]}}
    rows = distance_rows(tmp_path, one, {"a": views["a", 0] + 1})
    assert math.isnan(rows["vdm"]["distances"]["net"].low)
    assert rows["sds"]["differences"]["distance.net"].value == pytest.approx(rows["sds"]["distances"]["net"].value - rows["vdm"]["distances"]["net"].value)
    assert distance_rows(tmp_path, one, {"c": views["c", 0]})["vdm"]["distances"] == {}
    assert distance_rows(tmp_path, one, {"a": views["a", 0]}, replace(NET, protocol=replace(NET.protocol, fid=None)))["vdm"]["distances"] == {}


def test_shares_stay_within_what_is_possible(tmp_path):
    prompts = ["a red mug", "a blue car", "a gray duck"]
    assets = [asset("vdm", p, 0, family=value, **{"statistics.sharpness": 1000 * (1 - value)}) for p, value in zip(prompts, (1.0, 1.0, 0.2))]
    found = rows_of(tmp_path, assets)["gs", "vdm"]["values"]
    assert (found["family"].low, found["family"].high) == (0.0, 1.0)
    assert found["statistics.sharpness"].low == 0.0 and found["statistics.sharpness"].high > 1000


def test_the_teachers_samples_are_a_row_of_their_own(tmp_path, monkeypatch):
    for number in range(3):
        Image.new("RGB", (8, 8), (200, 10 * number, 0)).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(references, "reference_samples", lambda prompts, *_, **__: {p: [tmp_path / f"{n}.png" for n in range(3)] for p in prompts})
    look = Look(replace(known.LOOK.protocol, reference=SampleSettings("some"), fid="fake"), known.LOOK.networks)
    seen = references.teacher_assets(["a red mug"], look)
    assert seen[0].features["fake"].shape == (3, known.LENGTH) and seen[0].values["statistics.saturation"] == pytest.approx(1.0)
    assert references.teacher_assets(["a red mug"], known.LOOK) == []
    rows = summarize(known.plan_of(tmp_path), Results([], {}, [], {}), look, seen)
    assert rows[-1]["method"] == TEACHER and rows[-1]["assets"] == 1 and "clip.fake" in rows[-1]["values"]


# ---- choosing ----


def rates(tmp_path, scores: dict[str, dict[str, list[float]]]):
    plan = known.plan_of(
        tmp_path, methods=["vdm", "sds"], variants={"slow": {"of": {"gs": ["lr=1"]}}, "fast": {"of": {"gs": ["lr=3"]}}},
    )  # fmt: skip
    assets = [
        asset(f"{loss}, {label}", plan.prompts[i], 0, family=value)
        for loss, variants in scores.items() for label, values in variants.items() for i, value in enumerate(values)
    ]  # fmt: skip
    return plan, summarize(plan, Results(assets, {}, [], {}), known.LOOK), assets


def test_each_loss_gets_its_best_variant_that_did_not_fail(tmp_path):
    plan, rows, assets = rates(tmp_path, {"vdm": {"slow": [0.5, 0.5], "fast": [0.7, 0.6]}, "sds": {"slow": [0.2, 0.2], "fast": [1.0]}})
    assert choose(plan, rows, assets, "family") == {"gs": {"vdm": ["lr=3"], "sds": ["lr=1"]}}
    with pytest.raises(DreamMappingError, match="by which to choose; did you mean 'family'"):
        choose(plan, rows, assets, "famly")
    plan, rows, assets = rates(tmp_path, {"vdm": {"slow": [0.5]}})
    with pytest.raises(DreamMappingError, match="no run of sds .gs. has finished"):
        choose(plan, rows, assets, "family")


@pytest.mark.parametrize(
    ("slow", "distances_of", "expected"),
    [
        ([0.55, 0.73], {"slow": (0.3, 0.28, 0.32), "fast": (0.1, 0.08, 0.12)}, "lr=3"),  # equal within the spread: the nearer
        ([0.55, 0.73], {"slow": (0.1, 0.08, 0.12), "fast": (0.3, 0.28, 0.32)}, "lr=1"),
        ([0.55, 0.73], {"slow": (0.3, 0.11, 0.50), "fast": (0.1, 0.08, 0.12)}, "lr=1"),  # nor can that be told: the first
        ([0.55, 0.73], {"slow": (0.3, math.nan, math.nan), "fast": (0.1, math.nan, math.nan)}, "lr=3"),
        ([0.1, 0.3], {"slow": (0.1, 0.08, 0.12), "fast": (0.3, 0.28, 0.32)}, "lr=3"),  # clearly worse
    ],
)
def test_of_variants_that_cannot_be_told_apart_the_nearest_to_the_teacher_is_chosen(tmp_path, slow, distances_of, expected):
    plan, rows, assets = rates(tmp_path, {"vdm": {"slow": slow, "fast": [0.6, 0.75]}, "sds": {"slow": [0.2, 0.2], "fast": [0.2, 0.2]}})
    rows.append({"representation": "gs", "method": TEACHER, "assets": 9, "values": dict(rows[0]["values"]), "distances": {}})
    assert choose(plan, rows, assets, "family")["gs"]["vdm"] == ["lr=3"]  # nothing is known of distances
    for row in rows[:-1]:
        row["distances"] = {"net": Interval(*distances_of[row["method"].split(", ")[1]])}
    assert choose(plan, rows, assets, "family")["gs"]["vdm"] == [expected]


def test_what_was_chosen_is_what_another_plan_takes(tmp_path):
    file = tmp_path / "chosen.yaml"
    file.write_text("2d: {vdm: [a=1]}\ngs: {csd: [a=2]}\n")
    plan, rows, assets = rates(tmp_path, {"vdm": {"slow": [0.5], "fast": [0.7]}, "sds": {"slow": [0.2], "fast": [0.1]}})
    write_choices(file, plan, rows, assets, "family")
    assert "2d:\n  vdm:\n  - a=1\n" in file.read_text()
    taken = known.plan_of(tmp_path, choices="chosen.yaml")
    assert {name: method.of["gs"] for name, method in taken.methods.items()} == {"vdm": ["lr=3"], "sds": ["lr=1"], "vsd": []}


@pytest.mark.parametrize("kind", ["2d", "gs"])
def test_the_learning_rates_of_the_repository_can_be_chosen(kind):
    plan = load_plan(f"learning-rates-{kind}")
    assert {method.loss for method in plan.methods.values()} and len(plan.methods) % 3 == 0
