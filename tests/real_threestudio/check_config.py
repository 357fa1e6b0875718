"""To be run by run_on_cpu.py: load configs in threestudio without overrides, and parse every block of them.

Each block is parsed by the class that its `_type` key names; an unknown key is an error there.
"""

from __future__ import annotations

import sys

import launch
import threestudio
from threestudio.utils.config import load_config, parse_structured

BLOCKS = ("geometry", "material", "background", "renderer", "prompt_processor", "guidance", "exporter")


def check(path: str) -> None:
    config = load_config(path, cli_args=[], n_gpus=1)
    threestudio.find(config.data_type)(config.data)  # parses itself
    system = parse_structured(threestudio.find(config.system_type).Config, config.system)
    for block in BLOCKS:
        parse_structured(threestudio.find(system[f"{block}_type"]).Config, system[block])
    print(f"{config.name}: {len(BLOCKS) + 2} blocks parsed")


launch.load_custom_modules()
for path in sys.argv[1:]:
    check(path)
