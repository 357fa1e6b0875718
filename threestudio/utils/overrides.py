"""Dotted overrides of the command line: `system.loss.lambda_sds=0.1`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from threestudio.errors import ConfigError


def apply_overrides(config: DictConfig, overrides: Sequence[str]) -> None:
    """Write each `a.b.c=value` into `config`, in order. Mappings are merged, lists and scalars replaced.

    A mapping with another `type` than the present one replaces it: keys of one type mean nothing to another.

    Raises:
        ConfigError: no `=`, an empty key, or a path through something that is no mapping.
    """
    for text in overrides:
        key, value = split_override(text)
        try:
            OmegaConf.update(config, key, value, merge=not _retypes(config, key, value), force_add=True)
        except (OmegaConfBaseException, ValueError, TypeError, IndexError) as error:
            raise ConfigError(f"The override '{text}' does not fit the config: {error}") from error


def _retypes(config: DictConfig, key: str, value: Any) -> bool:
    if not isinstance(value, dict) or "type" not in value:
        return False
    present = OmegaConf.select(config, f"{key}.type")
    return present is not None and present != value["type"]


def split_override(text: str) -> tuple[str, Any]:
    """Key and value of `key=value`; the value is read as YAML where that makes sense, else kept as text.

    A prompt may thus contain colons, brackets and hashes: only a value that starts like a mapping becomes one.
    """
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals or not key or any(not part for part in key.split(".")):
        raise ConfigError(
            f"'{text}' is no override. Write key.subkey=value without spaces around '=', and quote values with spaces."
        )
    return key, _parse_value(raw)


def _parse_value(raw: str) -> Any:
    if raw == "":
        return ""
    try:
        # Through OmegaConf, whose loader reads 1e-3 as a number (plain YAML 1.1 does not).
        value = OmegaConf.to_container(OmegaConf.create(f"value: {raw}"), resolve=False)["value"]
    except (yaml.YAMLError, OmegaConfBaseException, KeyError, TypeError):
        return raw
    start = raw.lstrip()[:1]
    if isinstance(value, dict) and start != "{":
        return raw
    if isinstance(value, (str, type(None))) and start not in ("'", '"') and raw.strip().lower() not in ("null", "~"):
        return raw  # YAML would cut comments off
    return value
