"""What the original threestudio has and this core does not: told by name, before anything is built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from threestudio.errors import RegistryError
from threestudio.registry import modules

UPSTREAM: dict[str, tuple[str, ...]] = {
    "data": (
        "random-camera-datamodule",
        "eff-random-camera-datamodule",
        "single-image-datamodule",
        "multiview-camera-datamodule",
        "co3d-datamodule",
    ),
    "system": (
        "dreamfusion-system",
        "efficient-dreamfusion-system",
        "prolificdreamer-system",
        "magic3d-system",
        "magic123-system",
        "latentnerf-system",
        "sjc-system",
        "fantasia3d-system",
        "textmesh-system",
        "sdi-system",
        "zero123-system",
        "zero123-simple-system",
        "image-condition-dreamfusion-system",
        "instructnerf2nerf-system",
        "control4d-multiview-system",
    ),
    "geometry": ("implicit-volume", "implicit-sdf", "volume-grid", "tetrahedra-sdf-grid", "custom-mesh"),
    "material": (
        "diffuse-with-point-light-material",
        "no-material",
        "neural-radiance-material",
        "pbr-material",
        "hybrid-rgb-latent-material",
        "sd-latent-adapter-material",
    ),
    "background": ("neural-environment-map-background", "solid-color-background", "textured-background"),
    "renderer": (
        "nerf-volume-renderer",
        "neus-volume-renderer",
        "nvdiff-rasterizer",
        "patch-renderer",
        "gan-volume-renderer",
    ),
    "prompt_processor": (
        "stable-diffusion-prompt-processor",
        "deep-floyd-prompt-processor",
        "dummy-prompt-processor",
    ),
    "guidance": (
        "stable-diffusion-guidance",
        "stable-diffusion-vsd-guidance",
        "stable-diffusion-unified-guidance",
        "stable-diffusion-sdi-guidance",
        "stable-diffusion-controlnet-guidance",
        "stable-diffusion-instructpix2pix-guidance",
        "deep-floyd-guidance",
        "zero123-guidance",
        "stable-zero123-guidance",
        "zero123-unified-guidance",
    ),
    "exporter": ("mesh-exporter", "dummy-exporter"),
}
"""Names that threestudio 0.2.3 registers itself, by the kind of part: the key `<kind>_type` takes them."""

_KINDS = {name: kind for kind, names in UPSTREAM.items() for name in names}


def check_coverage(config: DictConfig) -> None:
    """A config of the original threestudio may name parts that are not here; all of them are told at once.

    `config` may still hold interpolations and missing values.

    Raises:
        RegistryError: such a name; the message also lists what there is of its kind.
    """
    found = dict.fromkeys(_uncovered(OmegaConf.to_container(config, resolve=False), ""))
    if not found:
        return
    kinds = dict.fromkeys(_KINDS[name] for _, name in found)
    absent = ", ".join(f"{key}: {name}" for key, name in found)
    raise RegistryError(
        f"Parts of the original threestudio that are not covered here: {absent}.\n"
        + "\n".join(f"Covered as {kind}: {', '.join(covered(kind))}." for kind in kinds)
    )


def covered(kind: str) -> list[str]:
    """Registered names of a kind: those of the original threestudio, then those of extensions with the same ending."""
    endings = tuple({f"-{name.rsplit('-', 1)[-1]}" for name in UPSTREAM[kind]} if kind != "geometry" else ())
    own = [name for name in UPSTREAM[kind] if name in modules]
    return own + [name for name in modules if name not in _KINDS and _is_a(name, kind, endings)]


def _is_a(name: str, kind: str, endings: tuple[str, ...]) -> bool:
    if kind != "geometry":
        return name.endswith(endings)
    from threestudio.models.geometry.base import BaseGeometry  # its names end in anything

    return issubclass(modules[name], BaseGeometry)


def _uncovered(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """(key, name) of every `<kind>_type` below `node` with a name that only the original threestudio knows."""
    for key, value in node.items() if isinstance(node, dict) else ():
        where = f"{path}.{key}" if path else str(key)
        if isinstance(value, dict):
            yield from _uncovered(value, where)
        elif isinstance(value, str) and str(key).endswith("_type"):
            parts = value.replace(":", ",").split(",")
            yield from ((where, part) for part in parts if part in _KINDS and part not in modules)
