from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, List, Optional, Tuple, Union

import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf

from threestudio.errors import ConfigError
from threestudio.utils.config import parse_structured
from threestudio.utils.misc import C


class Guide:
    @dataclass
    class Config:
        scale: float = 1.0
        steps: int = 10
        threshold: Union[float, str] = 0.0
        center: Tuple[float, float, float] = (0.0, 0.0, 0.0)
        names: Optional[List[str]] = None
        options: dict = field(default_factory=dict)
        anything: Any = None
        flag: bool = False
        text: str = ""
        maybe: Optional[float] = None


def from_dict(values):
    return parse_structured(Guide.Config, values)


def from_node(values):
    return parse_structured(Guide.Config, OmegaConf.create({"system": {"guide": values}}).system.guide)


both = pytest.mark.parametrize("parse", [from_dict, from_node])


@both
@pytest.mark.parametrize("key", ["scale", "steps", "threshold", "maybe"])
def test_numbers_may_be_schedules(parse, key):
    parsed = parse({key: [0, 1.0, 3.0, 100]})
    assert isinstance(parsed[key], ListConfig)
    assert C(parsed[key], 0, 50) == pytest.approx(2.0)


@both
@pytest.mark.parametrize("value, expected", [(3, 3.0), ("1e-3", 1e-3), (0.5, 0.5)])
def test_floats_convert(parse, value, expected):
    parsed = parse({"scale": value})
    assert parsed.scale == expected and isinstance(parsed.scale, float)


@both
def test_an_int_fits_a_union_of_float_and_str(parse):
    assert parse({"threshold": -1}).threshold == -1.0
    assert parse({"threshold": "auto"}).threshold == "auto"


@both
@pytest.mark.parametrize(
    "values",
    [
        {"scale": "high"},
        {"scale": [1.0, 2.0]},
        {"scale": [0, "a", 1.0, 10]},
        {"scale": None},
        {"steps": 1.5},
        {"center": [0.0, 1.0, "x"]},
        {"names": [{"a": 1}]},
        {"options": [1, 2]},
        {"options": None},
        {"flag": [0, 1.0, 2.0, 3]},
        {"text": ["a"]},
    ],
)
def test_wrong_types_name_key_and_class(parse, values):
    (key,) = values
    with pytest.raises(ConfigError) as caught:
        parse(values)
    assert key in str(caught.value)
    if parse is from_node:
        assert f"system.guide.{key}" in str(caught.value)
    if not isinstance(values[key], list) or key not in ("scale",):
        assert "Guide.Config" in str(caught.value)


@both
def test_unknown_keys_name_the_nearest_and_the_class(parse):
    with pytest.raises(ConfigError, match=r"scal is unknown to Guide\.Config\. Did you mean scale\?"):
        parse({"scal": 1.0})


@both
def test_missing_values_show_the_override(parse):
    with pytest.raises(ConfigError, match=r"text=VALUE"):
        parse({"text": "???"})


def test_the_result_refuses_unknown_attributes():
    parsed = from_dict({"options": {"free": {"form": [1, 2]}}})
    assert isinstance(parsed, DictConfig) and parsed.options.free.form == [1, 2]
    with pytest.raises(AttributeError):
        parsed.unknown


def test_nothing_and_config_objects_are_accepted():
    assert from_dict(None).steps == 10
    assert from_dict(Guide.Config(steps=3)).steps == 3
    twice = from_dict(from_dict({"scale": [0, 1.0, 2.0, 10]}))
    assert twice.scale == [0, 1.0, 2.0, 10]  # parsing again changes nothing
    with pytest.raises(ConfigError, match="mapping"):
        from_dict(3)


def test_nested_configs_pass_unchecked():
    @dataclass
    class Outer:
        base: Optional[Guide.Config] = None

    assert parse_structured(Outer, OmegaConf.create({"base": {"scale": 2.0, "extra": 1}})).base.extra == 1
