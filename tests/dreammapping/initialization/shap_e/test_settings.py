from __future__ import annotations

import pytest
from dreammapping.errors import ConfigError
from dreammapping.initialization import ShapESettings
from dreammapping.settings import parse_settings

WHERE = "system.geometry.init.shap_e"


def test_the_defaults_are_those_of_shap_e_s_examples():
    settings = ShapESettings()
    assert (settings.model, settings.backend, settings.steps, settings.guidance_scale, settings.grid_size) == ("openai/shap-e", "auto", 64, 15.0, 128)
    assert settings.growing_distance == pytest.approx(0.01)  # GaussianDreamer's
    assert ShapESettings(grid_size=64).growing_distance == pytest.approx(0.01 * 127 / 63)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backend": "pytorch3d"}, "backend is 'pytorch3d'; it must be one of 'auto', 'diffusers', 'original'"),
        ({"guidence_scale": 3}, "guidence_scale is not a known key; did you mean 'guidance_scale'"),
        ({"model": " "}, "model is empty"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1001}, "steps is 1001"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"guidance_scale": 0.5}, "guidance_scale is 0.5"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"grid_size": 7}, "grid_size is 7"),
        ({"grid_size": 257}, "grid_size is 257"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1 << 63}, "seed is"),
        ({"half_precision": "yes"}, "half_precision is 'yes'"),
        ({"backend": "original", "model": "load/embedded-shap-e"}, "backend original loads OpenAI's own files"),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(ConfigError, match="shap_e") as caught:
        parse_settings(ShapESettings, values, WHERE)
    assert message in str(caught.value)


def test_the_limits_themselves_are_allowed():
    parse_settings(ShapESettings, {"steps": 1, "guidance_scale": 1, "grid_size": 8, "seed": 0}, WHERE)
    parse_settings(ShapESettings, {"steps": 1000, "grid_size": 256, "seed": (1 << 63) - 1, "backend": "original"}, WHERE)
