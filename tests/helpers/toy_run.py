"""A tiny run of the command line, for tests: a system whose training draws from every global generator."""

from __future__ import annotations

from pathlib import Path

import launch

YAML = """
name: toy
tag: run
exp_root_dir: outputs
data_type: toy-data
system_type: toy-system
system:
  loss: {lambda_toy: [0.5, 1.0, 10]}
  optimizer:
    name: Adam
    args: {lr: 0.01, betas: [0.9, 0.99]}
    params:
      geometry.weight: {lr: 0.02}
  scheduler: {name: ExponentialLR, interval: step, args: {gamma: 0.9}}
trainer: {max_steps: 7, val_check_interval: 2, num_sanity_val_steps: 1, log_every_n_steps: 1,
  enable_progress_bar: false}
checkpoint: {save_last: true, every_n_train_steps: 3, save_top_k: -1}
"""


def command(*arguments, config="toy.yaml"):
    return launch.main(["--config", str(config), *arguments])


def trials(folder="outputs/toy"):
    return sorted(Path(folder).iterdir()) if Path(folder).exists() else []
