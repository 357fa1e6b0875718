"""How assets are measured: a YAML file in `protocols/`, or one of your own, printed with every result.

Scores of text-to-3D depend on cameras, background, wording and counts as much as on the method, so figures made by different protocols do
not compare.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Optional

from ..errors import ConfigError, suggest
from ..settings import parse_settings
from .reference_samples import SampleSettings

FOLDER = Path(__file__).resolve().parent / "protocols"


@dataclass(frozen=True)
class Protocol:
    """What is looked at, how, and with what. The defaults are no protocol of anyone; a file says all that matters."""

    name: str
    """As tables say it."""
    views: int = 24
    """Pictures of each asset, at azimuths evenly around it, the first from the front."""
    elevation: float = 15.0
    """Degrees above the horizon."""
    camera_distance: float = 3.5
    """From the middle of the object."""
    fovy: float = 31.5
    """Vertical field of view in degrees."""
    image_size: int = 256
    """Pixels of a square view; other pictures, references too, are resized to it (antialiased) before statistics are taken."""
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """R, G, B from 0 to 1, under pictures with transparency. Other pictures keep their own."""
    text: str = "{prompt}"
    """What pictures are compared with; {prompt} is the prompt without view or negative words."""
    clip: tuple[str, ...] = ()
    """Feature networks of the CLIP scores (evaluation/features.py)."""
    fid: Optional[str] = None
    """Feature network of the 3D-FID; null: none."""
    judge: Optional[str] = None
    """A judge for family, color, pattern and Janus rate (judge, judge:FOLDER); null: none."""
    reference: Optional[SampleSettings] = None
    """The teacher's pictures that FID and statistics are compared with; null: none."""
    prompts: tuple[str, ...] = ()
    """The prompts of a comparison; empty: whatever was given."""
    seeds: tuple[int, ...] = (0,)
    """The seeds of a comparison."""
    basis: dict[str, str] = field(default_factory=dict)
    """Setting -> where it comes from: stated by the paper, or chosen by us and why."""

    def __post_init__(self) -> None:
        if self.views < 1 or self.image_size < 3:
            raise ConfigError(f"views ({self.views}) must be at least 1 and image_size ({self.image_size}) at least 3")
        if not all(0 <= value <= 1 for value in self.background):
            raise ConfigError(f"background is {list(self.background)}; its values go from 0 to 1")
        if "{prompt}" not in self.text:
            raise ConfigError(f"text is {self.text!r}; it must say where the {{prompt}} goes")
        if self.fid and self.reference is None:
            raise ConfigError("fid needs reference, the teacher's pictures it compares with")
        if unknown := set(self.basis) - {f.name for f in fields(self)}:
            raise ConfigError(f"basis tells of {sorted(unknown)[0]!r}, which is no setting; {suggest(sorted(unknown)[0], [f.name for f in fields(self)])}")

    def overrides(self) -> list[str]:
        """Arguments of launch.py that make a run's turntable show what this protocol looks at."""
        data = {"eval_elevation_deg": self.elevation, "eval_camera_distance": self.camera_distance, "eval_fovy_deg": self.fovy}
        sizes = {"eval_height": self.image_size, "eval_width": self.image_size, "n_test_views": self.views + 1}  # the last repeats the first
        return [f"data.{key}={value}" for key, value in {**data, **sizes}.items()]

    def deviations(self, data: dict[str, Any]) -> list[str]:
        """In what a run's cameras, the `data` block of its config, differ from these. Unknown ones do not."""
        known = {"eval_elevation_deg": ("elevation", self.elevation), "eval_camera_distance": ("camera_distance", self.camera_distance)}
        known |= {"eval_fovy_deg": ("fovy", self.fovy), "eval_height": ("image_size", self.image_size)}
        given = [(name, data[key], wanted) for key, (name, wanted) in known.items() if isinstance(data.get(key), (int, float))]
        return [f"{name} is {value:g} instead of {wanted:g}" for name, value, wanted in given if abs(value - wanted) > 1e-6]

    def as_text(self) -> str:
        """All settings, one a line, with where they come from."""
        lines = [f"Protocol {self.name}"]
        for f in fields(self):
            if f.name in ("name", "basis"):
                continue
            value = getattr(self, f.name)
            shown = json.dumps(value.__dict__ if isinstance(value, SampleSettings) else value, ensure_ascii=False)
            why = self.basis.get(f.name)
            lines.append(f"  {f.name}: {shown}" + (f"   ({why})" if why else ""))
        return "\n".join(lines)


def names() -> list[str]:
    """Protocols that come with the project."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def load_protocol(name: str | Path) -> Protocol:
    """One of `names()`, or a YAML file of your own. Raises ConfigError for anything else, and for unknown keys and wrong values."""
    import yaml

    file = FOLDER / f"{name}.yaml" if str(name) in names() else Path(name)
    if not file.is_file():
        raise ConfigError(f"there is no protocol {str(name)!r}: neither a file nor one that comes with the project; {suggest(str(name), names())}")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise ConfigError(f"cannot read the protocol {file}: {problem}") from problem
    if not isinstance(values, dict):
        raise ConfigError(f"the protocol {file} must be a block of keys")
    return parse_settings(Protocol, {"name": file.stem, **values}, f"protocol {file.stem}")
