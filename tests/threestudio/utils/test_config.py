from __future__ import annotations

import runpy

import pytest
from omegaconf import OmegaConf

import threestudio.utils.config as config_module
from threestudio.errors import ConfigError
from threestudio.utils.config import ExperimentConfig, dump_config, load_config, load_config_file, merge_config
from threestudio.utils.overrides import split_override

YAML = """
name: pictures
tag: "${rmspace:${system.prompt_processor.prompt},_}"
system:
  prompt_processor:
    prompt: ???
  rate: ${calc_exp_lr_decay_rate:0.1,100}
  steps: ${mul:${sub:${add:2,3},1},2}
  half: ${div:1,2}
  whole: ${idiv:7,2}
  pair: ${tuple2:3}
  grows: ${cmaxgt0:[0,0.0,1.0,10]}
  either: ${cmaxgt0orcmaxgt0:0,[0,0.0,-1.0,10]}
  negated: ${not:${gt0:3}}
  file: ${basename:a/b/c.txt}
"""


def load(*overrides, **kwargs):
    return load_config(YAML, cli_args=overrides, from_string=True, **kwargs)


def test_resolvers():
    system = load("system.prompt_processor.prompt=a cat").system
    assert system.rate == pytest.approx(0.1 ** (1 / 100))
    assert (system.steps, system.half, system.whole, system.pair) == (8, 0.5, 3, [3.0, 3.0])
    assert (system.grows, system.either, system.negated, system.file) == (True, False, False, "c.txt")


def test_loading_makes_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load("system.prompt_processor.prompt=a cat")
    assert list(tmp_path.iterdir()) == []
    assert config.trial_name == "a_cat" + config.timestamp and config.timestamp.startswith("@")
    assert config.exp_dir.replace("\\", "/") == "outputs/pictures"
    assert config.trial_dir.replace("\\", "/") == f"outputs/pictures/{config.trial_name}"


def test_a_parsed_config_keeps_its_trial(tmp_path):
    config = load("system.prompt_processor.prompt=a cat", "timestamp=@20200101-000000")
    dump_config(tmp_path / "parsed.yaml", config)
    again = load_config(tmp_path / "parsed.yaml", cli_args=["resume=x.ckpt"])
    assert again.trial_dir == config.trial_dir and again.resume == "x.ckpt"
    assert {**again, "resume": None} == dict(config)


def test_names_are_fit_for_folders():
    config = load('system.prompt_processor.prompt=a "red/blue" cat: new\\old?', "use_timestamp=false")
    assert config.trial_name == "a__red_blue__cat__new_old_"
    assert len(load("system.prompt_processor.prompt=" + "x" * 500, "use_timestamp=false").trial_name) == 120


def test_a_trial_needs_a_name():
    with pytest.raises(ConfigError, match="tag must be set or use_timestamp"):
        ExperimentConfig(use_timestamp=False)
    assert ExperimentConfig(n_gpus=2, tag="a").trial_name == "a"
    with pytest.raises(ConfigError, match="several GPUs"):
        ExperimentConfig(n_gpus=2)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ([], r'prompt is not set.*system\.prompt_processor\.prompt="a red apple"'),
        (["systme.x=1"], "systme is unknown.*Did you mean system"),
        (["seed=abc"], "seed is 'abc'.*int"),
        (["system.x=${nowhere}"], "system.x.*nowhere"),
        (["system.x=${nosuch:1}"], "nosuch"),
        (["system.x=${div:1,0}"], "division by zero"),
        (["system.prompt_processor.prompt"], "no override"),
        (["=3"], "no override"),
        (["a..b=3"], "no override"),
        (["name.x.y=3"], "name is .*str"),
    ],
)
def test_mistakes_are_user_errors(overrides, message):
    given = [] if not overrides else ["system.prompt_processor.prompt=a cat", *overrides]
    with pytest.raises(ConfigError, match=message):
        load(*given)


@pytest.mark.parametrize(
    "text, message", [("a: [", "not valid YAML"), ("- a", "mapping"), (None, "no config file.*other.yaml")]
)
def test_unreadable_files(tmp_path, text, message):
    (tmp_path / "other.yaml").write_text("")
    path = tmp_path / "given.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config_file(path)


@pytest.mark.parametrize(
    "text, value",
    [
        ("p=a cat: red", "a cat: red"),
        ("p=a cat # 3", "a cat # 3"),
        ("p=a [half", "a [half"),
        ("p='quoted: x'", "quoted: x"),
        ("p=", ""),
        ("p=null", None),
        ("p=true", True),
        ("p=1e-3", 0.001),
        ("p=[1, 2.0]", [1, 2.0]),
        ("p={a: 1}", {"a": 1}),
        ("p=a=b", "a=b"),
        ("p=*", "*"),
    ],
)
def test_values_of_overrides(text, value):
    key, parsed = split_override(text)
    assert key == "p" and parsed == value and type(parsed) is type(value)


def test_overrides_merge_mappings_and_replace_lists():
    base = "a: {b: {c: 1, d: 2}, l: [1, 2, 3]}"
    merged = merge_config(base, cli_args=["a.b={c: 5}", "a.l=[9]", "a.l.0=7", "new.key=1"], from_string=True)
    assert OmegaConf.to_container(merged) == {"a": {"b": {"c": 5, "d": 2}, "l": [7]}, "new": {"key": 1}}


def test_a_block_of_another_type_replaces_the_earlier_one():
    base = "a: {x: 1, b: {type: big, size: '${n}', c: {d: 1}}}\nn: 3"
    same, other = "a: {b: {type: big, e: 2}}", "a: {b: {type: small, e: 2}}"
    merged = OmegaConf.to_container(merge_config(base, same, from_string=True))
    assert merged == {"a": {"x": 1, "b": {"type": "big", "size": "${n}", "c": {"d": 1}, "e": 2}}, "n": 3}
    merged = OmegaConf.to_container(merge_config(base, other, from_string=True))
    assert merged == {"a": {"x": 1, "b": {"type": "small", "e": 2}}, "n": 3}


def test_the_resolvers_can_be_registered_again():
    runpy.run_path(config_module.__file__)


def test_an_override_with_another_type_replaces_the_block_and_one_with_the_same_type_is_merged():
    base = "{t: {type: percent, low: 0.1}, plain: {x: 1}}"
    overrides = ["t={type: consistency, start: 700}", "plain={type: b}", "t={type: consistency, end: 100}"]
    merged = merge_config(base, cli_args=overrides, from_string=True)
    assert OmegaConf.to_container(merged) == {
        "t": {"type": "consistency", "start": 700, "end": 100},
        "plain": {"x": 1, "type": "b"},
    }
