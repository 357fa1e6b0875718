"""Errors, registry and settings: what a typing mistake gets told."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Optional

import pytest
from dreammapping.errors import ConfigError, suggest
from dreammapping.registry import Registry
from dreammapping.settings import parse_settings
from omegaconf import OmegaConf


class Color(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Inner:
    width: float = 1.0


@dataclass
class Outer:
    count: int = 1
    rate: float = 0.5
    cutoff: Optional[int] = 300
    either: float | list[float | int] = 0.1
    mode: Literal["a", "b"] = "a"
    betas: tuple[float, float] = (0.9, 0.99)
    color: Color = Color.RED
    flag: bool = False
    inner: Inner = field(default_factory=Inner)


@dataclass
class Needs:
    path: str


def test_values_are_converted():
    given = {
        "count": 3,
        "rate": "1e-3",
        "cutoff": None,
        "either": [0, 0.98, 0.5, 10],
        "mode": "b",
        "betas": [0, 1],
        "color": "blue",
        "inner": {"width": 2},
    }
    for values in (given, OmegaConf.create(given)):
        got = parse_settings(Outer, values, "x")
        assert got == Outer(3, 1e-3, None, [0, 0.98, 0.5, 10], "b", (0.0, 1.0), Color.BLUE, False, Inner(2.0))
        # An int in a step schedule means steps, a float epochs: both must survive.
        assert [type(v) for v in got.either] == [int, float, float, int]


def test_none_gives_the_defaults_and_an_instance_passes():
    assert parse_settings(Outer, None, "x") == Outer()
    instance = Outer(count=5)
    assert parse_settings(Outer, instance, "x") is instance


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cout": 1}, r"system.loss.cout is not a known key; did you mean 'count'"),
        ({"inner": {"widht": 1}}, r"system.loss.inner.widht .* 'width'"),
        ({"count": 1.5}, r"system.loss.count is 1.5; it must be a whole number"),
        ({"count": True}, r"system.loss.count is True"),
        ({"rate": "fast"}, r"system.loss.rate is 'fast'; it must be a number"),
        ({"mode": "c"}, r"it must be one of 'a', 'b'"),
        ({"color": "green"}, r"it must be one of 'red', 'blue'"),
        ({"betas": [1]}, r"system.loss.betas has 1 entries; it must have 2"),
        ({"cutoff": "x"}, r"system.loss.cutoff is 'x'; it must be a whole number"),
        ({"either": "x"}, r"system.loss.either is 'x'"),
        ({"flag": 1}, r"it must be true or false"),
        ({"inner": 3}, r"system.loss.inner must be a block of keys"),
    ],
)
def test_mistakes_name_the_key(values, message):
    with pytest.raises(ConfigError, match=message):
        parse_settings(Outer, values, "system.loss")


def test_a_missing_required_key_is_named():
    with pytest.raises(ConfigError, match="teacher.path must be given"):
        parse_settings(Needs, {}, "teacher")


def test_registry_returns_lists_and_suggests():
    registry = Registry("loss")
    registry.register("sds")(Inner)
    registry.register("sds")(Inner)  # a module imported twice
    assert registry.get("sds") is Inner and registry.names() == ["sds"] and "sds" in registry
    with pytest.raises(ConfigError, match="unknown loss 'sdz'; did you mean 'sds'"):
        registry.get("sdz")
    with pytest.raises(ConfigError, match="registered twice"):
        registry.register("sds")(Outer)


def test_suggestions_fall_back_to_the_whole_list():
    assert suggest("zzz", ["a", "b"]) == "known: a, b"
    assert ConfigError.is_user_error
