"""Score runs or folders of pictures:

    python -m custom.dreammapping.evaluation outputs/vdm-gs/a_red_striped_mug@20261129-120000
    python -m custom.dreammapping.evaluation RUN1 RUN2 RUN3 --protocol paper --device cuda
    python -m custom.dreammapping.evaluation my_renders --prompt "a red mug" --turntable

Prints the protocol and a table; of several runs also means over prompts with intervals. Scores go into each run's model card (save/model_card.json
and .md) and, with the protocol, into a JSON file. The teacher's pictures are drawn at the first time and kept.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, mistakes_end_the_program
from .assets import Asset, find_assets
from .protocol import Protocol, load_protocol, names
from .scores import record, table, together_text, write_json
from .scoring import Measured, Scorer


def main(arguments: list[str] | None = None) -> None:
    """The command line. Mistakes end it with one message and exit code 1."""
    args = _parser().parse_args(arguments)
    with mistakes_end_the_program():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Measure everything, print it, write it. Raises ConfigError for mistakes."""
    assets = [asset for path in args.paths for asset in find_assets(path, args.prompt, args.turntable)]
    protocol = _protocol(args, assets)
    print(protocol.as_text(), flush=True)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    scorer = Scorer(protocol, device, cache_dir=args.cache_dir, report=lambda line: print(line, flush=True))
    measured = [scorer.measure(asset) for asset in assets]
    print("\n" + table([(one.asset.folder.name, one.scores) for one in measured]))
    for text in dict.fromkeys(f"{one.asset.folder.name}: {text}" for one in measured for text in one.scores["deviations"]):
        print(f"Not as the protocol says: {text}")
    content: dict[str, Any] = {"protocol": asdict(protocol), "assets": [{"folder": one.asset.folder.name, **one.scores} for one in measured]}
    if len(measured) > 1:
        content["together"] = scorer.together(measured)
        print("\n" + together_text(content["together"]))
    _write(args, protocol, measured, content)


def _write(args: argparse.Namespace, protocol: Protocol, measured: list[Measured], content: dict[str, Any]) -> None:
    for folder in dict.fromkeys(one.asset.folder for one in measured if one.asset.card):
        print(f"Scores are in {record(folder, protocol.name, [one.scores for one in measured if one.asset.folder == folder])}")
    first = measured[0].asset
    output = args.output or (first.folder / "save" if first.card else first.folder) / "scores.json"
    write_json(output, content)
    print(f"All of it is in {output}")


def _protocol(args: argparse.Namespace, assets: list[Asset]) -> Protocol:
    """The one asked for, or the one named like the runs' preset; changed as the options say."""
    presets = {asset.card.get("preset") for asset in assets} & set(names())
    protocol = load_protocol(args.protocol or (presets.pop() if len(presets) == 1 else "paper"))
    if args.teacher is not None:
        if protocol.reference is None:
            raise ConfigError(f"--teacher: the protocol {protocol.name} has no reference")
        changed = replace(protocol.reference, teacher=args.teacher)
        protocol = replace(protocol, name=f"{protocol.name}, other teacher", reference=changed)
    if args.no_reference:
        protocol = replace(protocol, name=f"{protocol.name}, no reference", reference=None, fid=None)
    return protocol


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m custom.dreammapping.evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    paths = "a run's folder (the one with save/ in it), or a folder of pictures"
    parser.add_argument("paths", type=Path, nargs="+", metavar="RUN_OR_FOLDER", help=paths)
    parser.add_argument("--protocol", help=f"{', '.join(names())}, or a YAML file; default: the runs' preset, else paper")
    parser.add_argument("--prompt", help="what a folder of pictures shows")
    parser.add_argument("--turntable", action="store_true", help="the pictures of a folder go evenly around the object, from its front")
    parser.add_argument("--teacher", help="who draws the references, instead of the protocol's: folder or hub name")
    parser.add_argument("--no-reference", action="store_true", help="neither FID nor statistics of the teacher's pictures")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the JSON file; default: scores.json in the (first) run's save/ or folder")
    parser.add_argument("--cache-dir", type=Path, help="where the teacher's pictures are kept (.threestudio_cache/reference_samples)")
    parser.add_argument("--device", help="cuda if there is one, else cpu")
    return parser


if __name__ == "__main__":
    main()
