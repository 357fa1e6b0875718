"""What the geometry's `init` is, where that depends on more than the geometry: on prompts, and on checkpoints to come."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import threestudio

from ..errors import ConfigError
from ..settings import to_plain

SHAP_E = "shap-e:"
"""`geometry_convert_from: "shap-e:a prompt"`, as threestudio-3dgs writes it; threestudio itself takes it for a path."""
LIBRARY = Path("load") / "prompt_library.json"


@contextmanager
def settled_start(cfg: Any, resumed: bool) -> Iterator[None]:
    """While the parts are built, the system's config `cfg` has an `init` that the geometry understands. Afterwards it is as
    it was, for whoever reports it.

    `geometry_convert_from: "shap-e:a prompt"` becomes `init: {type: shap-e, prompt: a prompt}`; without a prompt of its own
    Shap-E gets the run's; "lib:" names are looked up; and where a checkpoint brings the geometry, Shap-E is not asked at all.

    Raises:
        ConfigError: no prompt, a geometry that does not start from Shap-E, or a name that is not in the library.
    """
    given = {name: cfg[name] for name in ("geometry", "geometry_convert_from")}
    try:
        _settle(cfg, resumed)
        yield
    finally:
        for name, value in given.items():
            cfg[name] = value


def _settle(cfg: Any, resumed: bool) -> None:
    converts = str(cfg.geometry_convert_from or "").startswith(SHAP_E)
    geometry = to_plain(cfg.geometry) or {}
    init = geometry.get("init")
    init = dict(init) if isinstance(init, dict) else {}
    if converts:
        init |= {"type": "shap-e", "prompt": _prompt_in(cfg)}
        cfg.geometry_convert_from = None
    if init.get("type") != "shap-e":
        return
    if _comes_from_checkpoint(cfg, geometry, resumed):
        init["type"] = "sphere"  # a stand-in, made in no time; the checkpoint replaces all of it
    else:
        prompt = str(init.get("prompt") or (to_plain(cfg.prompt_processor) or {}).get("prompt") or "")
        init["prompt"] = _library_prompt(cfg.prompt_processor_type, prompt) if prompt.startswith("lib:") else prompt
    cfg.geometry = {**geometry, "init": init}


def _prompt_in(cfg: Any) -> str:
    prompt = cfg.geometry_convert_from[len(SHAP_E) :].strip()
    if not prompt:
        raise ConfigError(f"system.geometry_convert_from is {cfg.geometry_convert_from!r}; say what to make after the colon")
    if "init" not in {field.name for field in dataclasses.fields(threestudio.find(cfg.geometry_type).Config)}:
        raise ConfigError(
            f"system.geometry_convert_from is {cfg.geometry_convert_from!r}, but {cfg.geometry_type} does not start from Shap-E; "
            "system.geometry_type=dreammapping-gaussians does"
        )
    return prompt


def _comes_from_checkpoint(cfg: Any, geometry: dict[str, Any], resumed: bool) -> bool:
    from_weights = cfg.weights is not None and "geometry" not in (cfg.weights_ignore_modules or ())
    return resumed or from_weights or bool(geometry.get("weights"))


def _library_prompt(processor_type: str, name: str) -> str:
    """The prompt that the run's prompt processor would take; it is built later, as it needs the teacher."""
    try:
        library = json.loads(LIBRARY.read_text(encoding="utf-8"))
        return threestudio.find(processor_type).preprocess_prompt(SimpleNamespace(prompt_library=library), name)
    except (OSError, ValueError, KeyError) as problem:
        raise ConfigError(f"Shap-E's prompt is {name!r}, which cannot be looked up in {LIBRARY}: {problem}") from problem
