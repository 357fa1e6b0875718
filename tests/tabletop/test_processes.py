"""Two processes that average their gradients do what one process with all the data does."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tabletop import processes

ROOT = Path(__file__).resolve().parents[2]
TRAIN = """
import sys
import torch
from pathlib import Path
from tabletop import processes
from tabletop.training import LoopSettings, Stage

rank = processes.join()
torch.manual_seed(rank)  # different starts: the first process's must win
model = torch.nn.Linear(3, 2)
stage = Stage({"model": model}, LoopSettings(6, minutes=1.0, learning_rate=0.05, warmup=2), Path(sys.argv[1]))
data = torch.randn(6, 8, 3, generator=torch.Generator().manual_seed(1))
data = data.chunk(2, dim=1)[rank] if processes.together() else data
stage.run(lambda step: (model(data[step]) - data[step][:, :2]).square().mean())
"""


def train(folder: Path, *launcher: str) -> dict[str, torch.Tensor]:
    script = folder.parent / "train.py"
    script.write_text(TRAIN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, *launcher, str(script), str(folder)], check=True, env=environment, capture_output=True)
    return load_file(folder / "weights.safetensors")


def test_two_processes_train_like_one(tmp_path):
    alone = train(tmp_path / "alone")
    both = train(tmp_path / "both", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert alone.keys() == both.keys()
    for name, value in alone.items():
        torch.testing.assert_close(both[name], value, rtol=1e-5, atol=1e-6)


def test_alone_nothing_is_exchanged():
    tensors = [torch.ones(2), torch.full((3,), 2.0)]
    processes.share(tensors)
    processes.average(tensors)
    assert processes.is_first() and not processes.together()
    assert torch.equal(tensors[0], torch.ones(2)) and torch.equal(tensors[1], torch.full((3,), 2.0))
