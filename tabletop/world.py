"""Labels and scenes of the tabletop world: what is shown, how it is lit and from where it is seen."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Sequence

import torch
from torch import Tensor

from .cameras import FOVY_RANGE, VIEWS, _uniform, directions, sample_angles, sample_distance, view_labels
from .families import FAMILIES, TABLE
from .materials import COLOR_RGB, COLORS, METALLIC, PATTERNS, PLAIN, SILVER_RGB, WOOD_RGB, WOODEN
from .primitives import MAX_PRIMITIVES, ROW, Kit

SPLITS = ("train", "heldout", "all")
NATURAL = -1  # colour label of an object in its family's natural colouring
_NATURAL_SHARE, _PLAIN_SHARE, _HELDOUT_PERCENT = 0.12, 0.40, 8


class WorldError(ValueError):
    """A request the tabletop world cannot serve."""

    is_user_error = True


@dataclass
class Labels:
    """What each image shows; int64 [count]. color is NATURAL (-1) for a family's own colouring."""

    family: Tensor
    color: Tensor
    pattern: Tensor

    def __len__(self) -> int:
        return len(self.family)

    def __getitem__(self, index: slice | Tensor) -> Labels:
        return Labels(self.family[index], self.color[index], self.pattern[index])


@dataclass
class Scenes:
    """B scenes as tensors on one device. Angles in degrees, colours in [0, 1], float32 unless noted."""

    family: Tensor  # [B] int64
    color: Tensor  # [B] int64, -1 natural
    pattern: Tensor  # [B] int64
    view: Tensor  # [B] int64, index into VIEWS
    rows: Tensor  # [B, ROW, P] packed primitives
    colors: Tensor  # [B, P, 3]
    is_main: Tensor  # [B, P]
    radius: Tensor  # [B] bounding sphere around the origin
    period: Tensor  # [B] length of one pattern repeat
    phase: Tensor  # [B]
    azimuth: Tensor  # [B]
    elevation: Tensor  # [B]
    distance: Tensor  # [B]
    fovy: Tensor  # [B] vertical
    center: Tensor  # [B, 3] point the camera looks at
    light: Tensor  # [B, 3] unit direction toward the light
    ambient: Tensor  # [B]
    diffuse: Tensor  # [B]
    specular: Tensor  # [B]
    background: Tensor  # [B, 2, 3] colour at the top and at the bottom
    floor_shadow: Tensor  # [B] darkness of a soft shadow on an invisible floor, 0 is none

    def __len__(self) -> int:
        return len(self.family)

    def __getitem__(self, index: slice | Tensor) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> Scenes:
        """A copy on another device."""
        return Scenes(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def replace(self, **changes: Tensor) -> Scenes:
        """A copy with some fields exchanged."""
        return replace(self, **changes)


def is_heldout(family: Tensor, color: Tensor, pattern: Tensor) -> Tensor:
    """True for the ~8 % of coloured combinations that training never sees. Natural colouring is always trained."""
    key = family * 7919 + (color + 1) * 104729 + pattern * 1299709 + 12345
    key = torch.remainder(key * 1103515245 + 12345, 2**31)
    key = torch.remainder((key ^ (key >> 13)) * 22695477 + 1, 2**31)
    return (torch.remainder(key >> 8, 100) < _HELDOUT_PERCENT) & (color != NATURAL)


def all_labels() -> Labels:
    """Every combination of family, colour (with NATURAL) and pattern, once."""
    grid = torch.cartesian_prod(torch.arange(len(FAMILIES)), torch.arange(-1, len(COLORS)), torch.arange(len(PATTERNS)))
    return Labels(*grid.unbind(-1))


def sample_labels(count: int, generator: torch.Generator, *, split: str = "train") -> Labels:
    """Random labels: families uniform, 12 % natural colouring, 40 % plain, the rest uniform.

    split: "train" never shows a held-out combination, "heldout" only those, "all" ignores the split.
    """
    if split not in SPLITS:
        raise WorldError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    table = all_labels()
    weight = torch.where(table.color == NATURAL, _NATURAL_SHARE, (1 - _NATURAL_SHARE) / len(COLORS))
    weight = weight * torch.where(table.pattern == PLAIN, _PLAIN_SHARE, (1 - _PLAIN_SHARE) / (len(PATTERNS) - 1))
    heldout = is_heldout(table.family, table.color, table.pattern)
    if split != "all":
        weight = weight * (heldout if split == "heldout" else ~heldout)
    return table[torch.multinomial(weight, count, replacement=True, generator=generator)]


def _main_colors(labels: Labels, generator: torch.Generator) -> Tensor:
    """Main colour of each scene with a little jitter in hue and brightness: [B, 3]."""
    count = len(labels)
    palette = torch.tensor([COLOR_RGB[name] for name in COLORS])
    natural = torch.tensor([TABLE[name].natural for name in FAMILIES])  # [F, 2, 3]
    own = natural[labels.family, torch.randint(natural.shape[1], (count,), generator=generator)]
    own = torch.where((labels.pattern == WOODEN)[:, None], torch.tensor(WOOD_RGB), own)
    own = torch.where((labels.pattern == METALLIC)[:, None], torch.tensor(SILVER_RGB), own)
    color = torch.where((labels.color == NATURAL)[:, None], own, palette[labels.color.clamp_min(0)])
    jitter = 0.03 * torch.randn(count, 3, generator=generator).clamp(-2, 2) + 0.02 * torch.randn(count, 1, generator=generator).clamp(-2, 2)
    return (color + jitter).clamp(0.02, 0.99)


def _backgrounds(count: int, generator: torch.Generator) -> Tensor:
    """Top and bottom colours [B, 2, 3]: white, grays, pastels, any colour, or a vertical gradient of two."""
    kind = torch.rand(count, 2, 1, generator=generator)
    gray = torch.rand(count, 2, 1, generator=generator).expand(-1, -1, 3)
    free = torch.rand(count, 2, 3, generator=generator)
    color = torch.where(kind < 0.35, torch.ones(1), torch.where(kind < 0.60, gray, torch.where(kind < 0.82, 0.65 + 0.35 * free, free)))
    gradient = torch.rand(count, 1, 1, generator=generator) < 0.3
    return torch.where(gradient, color, color[:, :1].expand(-1, 2, -1)).clone()


def _keep_contrast(background: Tensor, main: Tensor) -> Tensor:
    """Backgrounds whose colour comes too close to the object's are replaced by the lighter or darker gray that is far from it."""
    near = (background - main[:, None]).abs().amax(dim=-1, keepdim=True) < 0.3
    away = torch.where(main.mean(dim=-1) > 0.55, 0.12, 0.9)[:, None, None]
    return torch.where(near, away.expand_as(background), background)


def _objects(labels: Labels, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Primitives of all scenes and their main colours [B, 3]. Loops over families, never over scenes."""
    count = len(labels)
    rows = torch.zeros(count, ROW, MAX_PRIMITIVES)
    colors, is_main, radius = torch.zeros(count, MAX_PRIMITIVES, 3), torch.zeros(count, MAX_PRIMITIVES), torch.zeros(count)
    for index, name in enumerate(FAMILIES):
        chosen = (labels.family == index).nonzero()[:, 0]
        if len(chosen) == 0:
            continue
        kit = Kit(len(chosen), generator)
        TABLE[name].build(kit)
        built = kit.finish(kit.vary(0.52, 0.58))
        rows[chosen], colors[chosen], is_main[chosen], radius[chosen] = built.rows, built.colors, built.is_main, built.radius
    main = _main_colors(labels, generator)
    colors = torch.where(is_main[:, :, None] > 0, main[:, None], colors)
    return {"rows": rows, "colors": colors, "is_main": is_main, "radius": radius}, main


def _override(value: Tensor | float | Sequence[float] | None, default: Tensor) -> Tensor:
    return default if value is None else torch.as_tensor(value, dtype=torch.float32).cpu().expand(default.shape).clone()


def _view_index(view: str | int | Tensor | None, count: int) -> Tensor | None:
    if view is None or isinstance(view, Tensor):
        return view if view is None else view.cpu().expand(count)
    if isinstance(view, str):
        if view not in VIEWS:
            raise WorldError(f"view is {view!r}; it must be one of {', '.join(VIEWS)}")
        view = VIEWS.index(view)
    return torch.full((count,), view, dtype=torch.int64)


def sample_scenes(labels: Labels, generator: torch.Generator, *, device: torch.device | str = "cpu", view: str | int | Tensor | None = None,
                  azimuth: Tensor | float | None = None, elevation: Tensor | float | None = None, distance: Tensor | float | None = None,
                  fovy: Tensor | float | None = None, background: Tensor | float | Sequence[float] | None = None) -> Scenes:
    """Scenes for the labels: proportions, colours, camera, light and background drawn from `generator` (CPU).

    Args:
        view: a name or index of VIEWS (or int64 [B]) the camera must fall into. Given azimuths or elevations win over it.
        azimuth, elevation, distance, fovy: fixed values, scalars or [B], degrees.
        background: one colour for all, [3], or [B, 1, 3], or [B, 2, 3] (top, bottom); a number is a gray level.
    """
    count = len(labels)
    parts, main = _objects(labels, generator)
    drawn_azimuth, drawn_elevation = sample_angles(count, generator, _view_index(view, count))
    azimuth, elevation = _override(azimuth, drawn_azimuth), _override(elevation, drawn_elevation)
    fovy = _override(fovy, _uniform(count, *FOVY_RANGE, generator))
    distance = _override(distance, sample_distance(parts["radius"], fovy, generator))
    light_azimuth = azimuth + _uniform(count, -80.0, 80.0, generator)
    scenes = Scenes(
        labels.family, labels.color, labels.pattern, view_labels(azimuth, elevation), **parts,
        period=_uniform(count, 0.20, 0.30, generator), phase=torch.rand(count, generator=generator),
        azimuth=azimuth, elevation=elevation, distance=distance, fovy=fovy,
        center=0.02 * torch.randn(count, 3, generator=generator),
        light=directions(light_azimuth, _uniform(count, 20.0, 75.0, generator)),
        ambient=_uniform(count, 0.65, 0.80, generator), diffuse=_uniform(count, 0.22, 0.40, generator),
        specular=_uniform(count, 0.0, 0.25, generator), background=_override(background, _keep_contrast(_backgrounds(count, generator), main)),
        floor_shadow=torch.where(torch.rand(count, generator=generator) < 0.1, _uniform(count, 0.15, 0.4, generator), torch.zeros(count)),
    )
    return scenes.to(device)
