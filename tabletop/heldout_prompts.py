"""Prompts of combinations that training never showed, for plans of custom/dreammapping/comparison:

    python -m tabletop.heldout_prompts --seed 0 > custom/dreammapping/comparison/plans/heldout.txt

All of them, in a random order in which every family comes once before any comes again, so that any beginning of the list has many families.
"""

from __future__ import annotations

import argparse

import torch

from .captions import plain_prompt
from .world import all_labels, is_heldout

HEAD = """# Combinations of the embedded world that the teacher never saw, one a line, families evenly mixed; written by
# python -m tabletop.heldout_prompts --seed {seed}
"""


def heldout_prompts(seed: int) -> list[str]:
    """All of them, in an order that depends on the seed alone."""
    labels = all_labels()
    chosen = labels[is_heldout(labels.family, labels.color, labels.pattern).nonzero()[:, 0]]
    shuffled = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))]
    seen: dict[int, int] = {}
    rounds = []
    for place, (family, color, pattern) in enumerate(zip(shuffled.family.tolist(), shuffled.color.tolist(), shuffled.pattern.tolist())):
        seen[family] = seen.get(family, 0) + 1
        rounds.append((seen[family], place, plain_prompt(family, color, pattern)))
    return [text for _, _, text in sorted(rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    print(HEAD.format(seed=seed) + "\n".join(heldout_prompts(seed)))


if __name__ == "__main__":
    main()
