from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from threestudio.errors import CheckpointError, ConfigError
from threestudio.utils.base import BaseModule, BaseObject, Configurable, Updateable, update_if_possible


class Recorder(BaseObject):
    def configure(self, name, calls):
        self.name, self.calls = name, calls

    def update_step(self, epoch, global_step, on_load_weights=False):
        self.calls.append((self.name, epoch, global_step, on_load_weights))

    def update_step_end(self, epoch, global_step):
        self.calls.append((self.name, "end", global_step))


class Part(BaseModule):
    @dataclass
    class Config(BaseModule.Config):
        size: int = 2

    def configure(self, name="part", calls=None):
        self.name, self.calls = name, [] if calls is None else calls
        self.weight = nn.Parameter(torch.zeros(self.cfg.size))

    def update_step(self, epoch, global_step, on_load_weights=False):
        self.calls.append((self.name, epoch, global_step, on_load_weights))


def names(calls):
    return [call[0] for call in calls]


def test_children_come_before_parents_by_name_and_once():
    calls = []
    root, shared = Part({}, "root", calls), Part({}, "shared", calls)
    root.b, root.a = Recorder({}, "b", calls), Part({}, "a", calls)
    root.a.inner = shared
    root.z = shared
    root.do_update_step(1, 2)
    assert calls == [(name, 1, 2, False) for name in ("shared", "a", "b", "root")]


def test_cycles_private_attributes_and_containers_are_not_followed():
    calls = []
    root = Recorder({}, "root", calls)
    root.child = Recorder({}, "child", calls)
    root.child.parent = root
    root._private = Recorder({}, "private", calls)
    root.many = [Recorder({}, "listed", calls)]
    root.do_update_step_end(0, 3)
    assert calls == [("child", "end", 3), ("root", "end", 3)]


def test_properties_are_not_evaluated_and_errors_surface():
    class Tricky(Updateable):
        @property
        def costly(self):
            raise RuntimeError("a property was evaluated")

    class Failing(Updateable):
        def update_step(self, epoch, global_step, on_load_weights=False):
            raise ZeroDivisionError("inside the hook")

    root = Tricky()
    root.do_update_step(0, 0)
    root.child = Failing()
    with pytest.raises(ZeroDivisionError, match="inside the hook"):
        root.do_update_step(0, 0)


def test_update_if_possible_ignores_other_objects():
    calls = []
    update_if_possible(3, 0, 0)
    update_if_possible(Recorder({}, "x", calls), 4, 5)
    assert calls == [("x", 4, 5, False)]


def test_configs_are_parsed_and_none_stands_for_empty():
    assert Part().cfg.size == 2 and Part({"size": 3}).weight.shape == (3,)
    with pytest.raises(ConfigError, match="Part.Config"):
        Part({"sise": 3})

    class Holder(Configurable):
        @dataclass
        class Config:
            a: int = 1

    assert Holder({"a": 5}).cfg.a == 5


def save(path, **entries):
    torch.save({"state_dict": entries, "epoch": 3, "global_step": 40}, path)


def test_weights_of_one_module(tmp_path):
    file = tmp_path / "run.ckpt"
    save(file, **{"geometry.weight": torch.tensor([1.0, 2.0]), "other.weight": torch.ones(2)})
    part = Part({"weights": f"{file}:geometry"})
    assert part.weight.tolist() == [1.0, 2.0]
    assert part.calls == [("part", 3, 40, True)]
    assert "_dummy" not in part.state_dict() and part._dummy.numel() == 0


@pytest.mark.parametrize(
    "entries, suffix, error, message",
    [
        ({"geometry.weight": torch.ones(3)}, ":geometry", CheckpointError, "does not fit Part"),
        ({"other.weight": torch.ones(2)}, ":geometry", CheckpointError, "nothing for 'geometry'; it has other"),
        ({"geometry.weight": torch.ones(2)}, "", ConfigError, "path/to/checkpoint.ckpt:module"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, monkeypatch, entries, suffix, error, message):
    monkeypatch.chdir(tmp_path)
    save("run.ckpt", **entries)
    with pytest.raises(error, match=message):
        Part({"weights": f"run.ckpt{suffix}"})
