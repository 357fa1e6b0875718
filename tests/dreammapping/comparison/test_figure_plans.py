"""The plans of the paper's figures: their methods are settings that the losses know, and those the figures name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dreammapping.degradation import OPERATORS
from dreammapping.distillation import COEFFICIENTS, LOSSES, build_coefficient
from dreammapping.distillation.dca import CutOff
from dreammapping.distillation.noise_schedule import NoiseSchedule
from dreammapping.settings import parse_settings
from omegaconf import OmegaConf

PACKAGE = Path(__file__).resolve().parents[3] / "custom" / "dreammapping"
PLANS = PACKAGE / "comparison" / "plans"
OWN = ("figure-6", "figure-7", "figure-8", "figure-10", "beyond-the-paper")


def methods(name: str) -> dict:
    return OmegaConf.to_container(OmegaConf.load(PLANS / f"{name}.yaml"))["methods"]


def guidance(method: dict, representation: str) -> dict:
    config = OmegaConf.load(PACKAGE / "configs" / f"{method['loss']}-{representation}.yaml")
    merged = OmegaConf.merge(config, OmegaConf.from_dotlist(method.get("overrides", [])))
    return OmegaConf.to_container(merged, resolve=False)["system"]["guidance"]


def settings(method: dict, representation: str):
    block = guidance(method, representation)["loss"]
    return parse_settings(LOSSES.get(block.pop("type")).Settings, block, "loss")


@pytest.mark.parametrize("name", OWN)
def test_every_method_is_one_the_loss_knows_and_differs_from_the_others(name):
    plan = OmegaConf.to_container(OmegaConf.load(PLANS / f"{name}.yaml"))
    assert plan["base"] in plan["methods"] and plan["prompts"] and len(plan["seeds"]) > 1
    for representation in plan["representations"]:
        found = [(method["loss"], guidance(method, representation)) for method in plan["methods"].values()]
        assert all(one not in found[:i] for i, one in enumerate(found))
        for method in plan["methods"].values():
            settings(method, representation)


@pytest.mark.parametrize("name", OWN)
def test_the_prompts_are_the_embedded_teachers(name):
    words = set(json.loads((PACKAGE.parents[1] / "load" / "embedded-teacher" / "vocabulary.json").read_text())["words"])
    for prompt in OmegaConf.load(PLANS / f"{name}.yaml").prompts:
        assert set(prompt.lower().split()) <= words, prompt


def test_figure_6_and_8_are_the_papers_ablations():
    cut_offs = {label: settings(m, "gs").dca_cutoff for label, m in methods("figure-8").items() if m["loss"] == "vdm"}
    assert cut_offs == {"t = 0": None, "t = 100": 100, "t = 300": 300, "t = 500": 500}
    assert guidance(methods("figure-8")["SDS, CFG 7.5"], "gs")["guidance_scale"] == 7.5
    figure = methods("figure-6")
    assert guidance(figure["SDS, CFG 7.5"], "gs")["guidance_scale"] == 7.5
    assert [settings(figure[label], "gs").dca_cutoff for label in ("VDM", "VDM + DCA")] == [None, 300]


def test_figure_7_has_every_operator():
    assert sorted(settings(m, "gs").operator for m in methods("figure-7").values()) == OPERATORS.names()


def test_beyond_the_paper_has_every_coefficient_and_rule():
    blocks = [settings(m, "2d").dca for m in methods("beyond-the-paper").values()]
    assert {block["type"] for block in blocks} == set(COEFFICIENTS.names())
    made = [build_coefficient(block, NoiseSchedule.scaled_linear(), CutOff()) for block in blocks]
    assert {m.settings.rule for m in made if hasattr(m.settings, "rule")} == {"decorrelate", "predict", "correlation"}


def test_no_plan_of_a_figure_is_missing_here():
    assert {path.stem for path in PLANS.glob("figure-*.yaml")} <= set(OWN)
