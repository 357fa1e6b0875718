"""Protocols in files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from dreammapping.errors import ConfigError
from dreammapping.evaluation.protocol import Protocol, load_protocol, names
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", names())
def test_those_that_come_with_the_project_say_where_everything_is_from(name):
    protocol = load_protocol(name)
    assert protocol.name == name and protocol.reference is not None
    said = set(OmegaConf.to_container(OmegaConf.load(Path(__file__).parents[3] / "custom/dreammapping/evaluation/protocols" / f"{name}.yaml")))
    assert said - {"basis"} == set(protocol.basis)
    text = protocol.as_text()
    assert all(why in text for why in protocol.basis.values()) and '"steps": 50' in text and '"guidance_scale": 7.5' in text


def test_the_papers_tables_are_measured_with_its_networks():
    protocol = load_protocol("paper")
    assert protocol.clip == ("clip:vit-l-14", "clip:vit-bigg-14") and protocol.fid == "inception" and len(set(protocol.prompts)) == 25


def test_cameras_are_those_of_the_configs():
    embedded = OmegaConf.load(ROOT / "custom/dreammapping/configs/presets/embedded/random-camera-datamodule.yaml")
    paper = OmegaConf.load(ROOT / "custom/dreammapping/configs/vdm-gs.yaml")
    for name, data in (("embedded", embedded.data if "data" in embedded else embedded), ("paper", paper.data)):
        assert load_protocol(name).deviations({key: data[key] for key in data if key in ("eval_elevation_deg", "eval_camera_distance", "eval_fovy_deg")}) == []


def test_overrides_make_a_run_that_does_not_deviate():
    protocol = load_protocol("embedded")
    data = {key.removeprefix("data."): float(value) for key, _, value in (text.partition("=") for text in protocol.overrides())}
    assert protocol.deviations(data) == [] and data["n_test_views"] == protocol.views + 1
    other = {**data, "eval_elevation_deg": 15.0, "eval_height": 256}
    assert protocol.deviations(other) == ["elevation is 15 instead of 20", "image_size is 256 instead of 128"]
    assert protocol.deviations({}) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("veiws: 3", "did you mean 'views'"),
        ("views: many", "views is 'many'"),
        ("views: 0", "at least 1"),
        ("image_size: 2", "at least 3"),
        ("background: [0, 0, 2]", "from 0 to 1"),
        ("text: a picture", "where the {prompt} goes"),
        ("fid: judge", "fid needs reference"),
        ("reference: {teacher: a, step: 3}", "did you mean 'steps'"),
        ("basis: {veiws: chosen}", "did you mean 'views'"),
        ("- a list", "block of keys"),
        ("views: [", "cannot read the protocol"),
    ],
)
def test_mistakes_in_a_file_are_told(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_protocol(tmp_path / "mine.yaml")


def test_a_file_of_ones_own_and_names_nearly_right(tmp_path):
    (tmp_path / "mine.yaml").write_text("views: 3\n")
    assert load_protocol(str(tmp_path / "mine.yaml")) == Protocol("mine", views=3)
    assert replace(Protocol("a"), text="{prompt}, 8K").text.format(prompt="a mug") == "a mug, 8K"
    with pytest.raises(ConfigError, match="did you mean 'embedded'"):
        load_protocol("embeded")
