"""Write the mesh that Shap-E makes of a prompt, or points of its surface:

    python -m custom.dreammapping.initialization.shap_e --prompt "a red mug" --output mug.ply
    python -m custom.dreammapping.initialization.shap_e --prompt "a red mug" --output points.ply --points 50000

The first prompt fetches the weights (1.8 GB) unless --model names a folder.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

import torch

from ...errors import ConfigError, mistakes_end_the_program
from ...files import write_atomic
from ..grown import grown_points
from ..mesh import ColoredMesh, points_on_mesh
from . import ShapESettings, shap_e_mesh
from .files import FORMATS, mesh_bytes, point_bytes


def main(arguments: list[str] | None = None) -> None:
    """The command line. Mistakes end it with one message and exit code 1."""
    args = _parser().parse_args(arguments)
    with mistakes_end_the_program():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Make the mesh and write the file. Raises ConfigError for mistakes."""
    suffix = args.output.suffix.lower()
    if suffix not in FORMATS or (args.points is not None and suffix != ".ply"):
        raise ConfigError(
            f"--output is {args.output}; it must end in {', '.join(FORMATS)}" + (" (with --points: .ply)" if args.points is not None else "")
        )
    if args.points is not None and args.points < 1:
        raise ConfigError(f"--points is {args.points}; it must be at least 1")
    settings = ShapESettings(**{field.name: getattr(args, field.name) for field in fields(ShapESettings)})
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    mesh = shap_e_mesh(args.prompt, settings, device)
    data, what = _content(mesh, settings, args, suffix)
    try:
        write_atomic(args.output, data)
    except OSError as problem:
        raise ConfigError(f"cannot write {args.output}: {problem}") from problem
    print(f"{args.output}: {what}", flush=True)


def _content(mesh: ColoredMesh, settings: ShapESettings, args: argparse.Namespace, suffix: str) -> tuple[bytes, str]:
    """The file's bytes, and what they are in words."""
    up = args.up or FORMATS[suffix]
    if args.points is None:
        return mesh_bytes(mesh, suffix, up), f"{mesh.summary}, {up} up"
    generator = torch.Generator().manual_seed(settings.seed)
    if settings.growing:
        cloud = grown_points(mesh, args.points, generator, distance=settings.growing_distance)
    else:
        cloud = points_on_mesh(mesh, args.points, generator)
    return point_bytes(cloud, up), f"{cloud.count} points, {up} up"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m custom.dreammapping.initialization.shap_e",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prompt", required=True, help="what to make")
    parser.add_argument("--output", type=Path, required=True, help=f"file to write: {', '.join(FORMATS)}")
    parser.add_argument("--points", type=int, metavar="N", help="write N points of the surface instead of the mesh")
    parser.add_argument("--up", choices=("y", "z"), help="axis that points up in the file; z for .ply, y for others")
    parser.add_argument("--device", help="cuda if there is one, else cpu")
    default = ShapESettings()
    _add = parser.add_argument
    _add("--model", default=default.model, help=f"folder, or name on the Hugging Face hub ({default.model})")
    _add("--backend", choices=("auto", "diffusers", "original"), default=default.backend, help="auto: diffusers")
    _add("--steps", type=int, default=default.steps, help=f"of sampling ({default.steps})")
    _add("--guidance-scale", type=float, default=default.guidance_scale, help=f"1: none ({default.guidance_scale:g})")
    _add("--grid-size", type=int, default=default.grid_size, help=f"of marching cubes ({default.grid_size})")
    _add("--seed", type=int, default=0, help="another number, another object (0)")
    _add("--half-precision", action=argparse.BooleanOptionalAction, help="of text encoder and diffusion; on CUDA if not given")
    _add("--cache-dir", help="where meshes are kept (.threestudio_cache/shap_e)")
    _add("--growing", action=argparse.BooleanOptionalAction, default=False, help="--points from the space near the surface, colors noisy")
    return parser


if __name__ == "__main__":
    main()
