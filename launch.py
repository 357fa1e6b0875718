"""Command line: train, validate, test or export a 3D asset described by a config.

    python launch.py --config CONFIG.yaml --train system.prompt_processor.prompt="a red apple"
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence


def build_parser() -> argparse.ArgumentParser:
    """The flags; everything else on the command line is an override `a.b.c=value`."""
    parser = argparse.ArgumentParser(
        description="Train, validate, test or export. Further arguments are overrides of the config: key.subkey=value."
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="the YAML file of the run")
    parser.add_argument("--gpu", metavar="LIST", help="GPUs by number, such as 0 or 0,1; default: the first or the CPU")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--train", action="store_true", help="train, then test")
    mode.add_argument("--validate", action="store_true", help="render the validation views of resume=CHECKPOINT")
    mode.add_argument("--test", action="store_true", help="render the test views of resume=CHECKPOINT")
    mode.add_argument("--export", action="store_true", help="export resume=CHECKPOINT as a mesh or splat")
    parser.add_argument("--preset", choices=("paper", "embedded", "auto"), default="auto", help="default: auto")
    parser.add_argument("--verbose", action="store_true", help="show debug messages")
    parser.add_argument("--typecheck", action="store_true", help="accepted for compatibility; changes nothing")
    return parser


def select_gpus(requested: str | None) -> None:
    """Make the GPUs asked for the visible ones; must run before anything asks CUDA. A variable already set wins."""
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or (requested is not None and not visible):
        os.environ["CUDA_VISIBLE_DEVICES"] = requested or "0"


def user_message(error: Exception) -> str | None:
    """What to tell the user instead of a traceback; None if the traceback is what helps."""
    if getattr(error, "is_user_error", False):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        where = f" while {error.filename} was written" if error.filename else ""
        return f"The disk is full{where}. Free some space, then resume the run from its last checkpoint."
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 2 a mistake the message explains, 130 interrupted."""
    arguments, overrides = build_parser().parse_known_args(argv)
    select_gpus(arguments.gpu)
    try:
        from threestudio.launcher import launch  # late: the GPUs are chosen first, and --help answers at once

        launch(arguments, overrides)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
