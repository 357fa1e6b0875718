"""The memory of torch.compile: used again by the next process, and never a reason to stop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dreammapping.errors import ConfigError
from dreammapping.teachers import compilation
from dreammapping.teachers.compilation import Compiled, cache_folder, compile_mode

ROOT = Path(__file__).resolve().parents[3]

# The counter that tells a hit from a miss is torch's own; TORCHINDUCTOR_CACHE_DIR is new for each process, so that all
# that is known comes from our file.
SCRIPT = """
import sys, torch
from torch._dynamo.utils import counters
from dreammapping.teachers.compilation import Compiled
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU())
x = torch.ones(2, 4)
with torch.no_grad():
    run = Compiled(net, "default", __import__("pathlib").Path(sys.argv[1]))
    torch.testing.assert_close(run(x), net(x)); run(x)
found = counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"]
print("hit" if found else "miss")
"""


def start(folder, scratch, name):
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(scratch), "TORCHINDUCTOR_CACHE_DIR": str(scratch / name)}
    environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'custom'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def test_the_second_process_compiles_nothing_and_a_damaged_file_is_ignored(tmp_path):
    folder = tmp_path / "compiled"
    assert start(folder, tmp_path, "a").stdout.strip() == "miss"
    (file,) = folder.iterdir()
    written = file.stat().st_mtime_ns
    assert start(folder, tmp_path, "b").stdout.strip() == "hit"
    assert file.stat().st_mtime_ns == written  # nothing new, nothing written
    file.write_bytes(file.read_bytes()[:-7])
    done = start(folder, tmp_path, "c")
    assert done.stdout.strip() == "miss"
    assert done.stderr.count("damaged") == 1 and "Traceback" not in done.stderr
    assert start(folder, tmp_path, "d").stdout.strip() == "hit"


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    info = type("Info", (), {"artifacts": {"inductor": ["x"]}})()
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"code", info))
    monkeypatch.setattr(torch, "compile", lambda network, mode: network)
    run = Compiled(torch.nn.Linear(2, 2), "default", blocked)
    with pytest.warns(UserWarning, match="compiled network.*not used") as seen:
        for rows in (1, 2, 1):
            assert run(torch.ones(rows, 2)).shape == (rows, 2)
    assert len(seen) == 1


def test_the_file_depends_on_shape_and_type_but_not_on_the_weights():
    keys = [compilation._key(network, "default") for network in (torch.nn.Linear(2, 3), torch.nn.Linear(2, 3))]
    assert keys[0] == keys[1]
    assert len({*keys, compilation._key(torch.nn.Linear(2, 3).half(), "default"), compilation._key(torch.nn.Linear(2, 4), "default"),
                compilation._key(torch.nn.Linear(2, 3), "max-autotune-no-cudagraphs")}) == 4  # fmt: skip


def test_the_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "dreammapping" / "compiled"


@pytest.mark.parametrize(("value", "mode"), [(False, None), (None, None), (True, "default"), ("default", "default")])
def test_modes(value, mode):
    assert compile_mode(value) == mode


def test_an_unknown_mode_lists_the_known():
    with pytest.raises(ConfigError, match="'fast'.*false, true or default or max-autotune-no-cudagraphs"):
        compile_mode("fast")
