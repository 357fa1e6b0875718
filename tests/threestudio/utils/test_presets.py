from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

import threestudio.utils.pretrained as pretrained
from threestudio.errors import ConfigError, PretrainedError
from threestudio.registry import modules
from threestudio.utils.presets import choose_preset, overlay_files

MERGED = OmegaConf.create({"system": {"guidance": {"pretrained_model_name_or_path": "some/teacher"}}})


@pytest.fixture
def config_path(tmp_path):
    (tmp_path / "presets" / "embedded").mkdir(parents=True)
    (tmp_path / "presets" / "embedded.yaml").write_text("seed: 1\n")
    (tmp_path / "presets" / "embedded" / "run.yaml").write_text("seed: 2\n")
    path = tmp_path / "run.yaml"
    path.write_text("name: x\n")
    return path


def teacher_is(present, monkeypatch):
    def resolve(name, *, allow_download=True):
        assert name == "some/teacher" and not allow_download
        if not present:
            raise PretrainedError("nothing there")
        return SimpleNamespace(name=name)

    monkeypatch.setattr(pretrained, "resolve_pretrained", resolve)


@pytest.mark.parametrize(
    "cuda, present, taken, reason",
    [
        (True, True, "paper", "some/teacher is on this machine"),
        (True, False, "embedded", "weights of some/teacher are not on this machine"),
        (False, True, "embedded", "no CUDA GPU"),
        (False, False, "embedded", "no CUDA GPU"),
    ],
)
def test_auto(config_path, monkeypatch, cuda, present, taken, reason):
    teacher_is(present, monkeypatch)
    choice = choose_preset("auto", config_path, MERGED, cuda=cuda)
    assert choice.taken == taken and reason in choice.reason
    assert str(choice).startswith(f"Preset: {taken} (")
    expected = ["embedded.yaml", "embedded/run.yaml"] if taken == "embedded" else []
    assert [file.relative_to(config_path.parent / "presets").as_posix() for file in choice.files] == expected


def test_a_config_without_a_teacher_goes_by_the_gpu(config_path):
    empty = OmegaConf.create({"system": {}})
    assert choose_preset("auto", config_path, empty, cuda=True).taken == "paper"


def test_explicit_presets_ask_nothing(config_path):
    assert len(choose_preset("embedded", config_path, MERGED, cuda=True).files) == 2
    assert choose_preset("paper", config_path, MERGED, cuda=False).files == ()


def test_an_overlay_for_a_kind_of_geometry_comes_between(config_path):
    (config_path.parent / "presets" / "embedded" / "splats.yaml").write_text("seed: 3\n")
    merged = OmegaConf.merge(MERGED, {"system": {"geometry_type": "splats"}})
    files = choose_preset("embedded", config_path, merged, cuda=False).files
    assert [file.name for file in files] == ["embedded.yaml", "splats.yaml", "run.yaml"]
    other = OmegaConf.merge(MERGED, {"system": {"geometry_type": "field"}})
    assert len(choose_preset("embedded", config_path, other, cuda=False).files) == 2


def test_an_overlay_for_a_kind_of_data_comes_before_that(config_path):
    folder = config_path.parent / "presets" / "embedded"
    for kind in ("cameras", "splats"):
        (folder / f"{kind}.yaml").write_text("seed: 3\n")
    merged = OmegaConf.merge(MERGED, {"data_type": "cameras", "system": {"geometry_type": "splats"}})
    files = choose_preset("embedded", config_path, merged, cuda=False).files
    assert [file.name for file in files] == ["embedded.yaml", "cameras.yaml", "splats.yaml", "run.yaml"]
    config_path.write_text("data_type: cameras\n")
    assert [file.name for file in overlay_files(config_path, "embedded")] == [
        "embedded.yaml",
        "cameras.yaml",
        "run.yaml",
    ]


def test_without_presets_the_config_is_taken_as_it_is(tmp_path):
    path = tmp_path / "plain.yaml"
    for requested in ("auto", "paper"):
        choice = choose_preset(requested, path, MERGED, cuda=False)
        assert choice.taken is None and choice.files == () and "none" in str(choice)
    with pytest.raises(ConfigError, match="no folder"):
        choose_preset("embedded", path, MERGED, cuda=False)


def test_a_preset_that_says_nothing_about_a_config(config_path):
    (config_path.parent / "presets" / "embedded.yaml").unlink()
    other = config_path.parent / "other.yaml"
    assert choose_preset("auto", other, MERGED, cuda=False).taken is None
    with pytest.raises(ConfigError, match="other.yaml"):
        choose_preset("embedded", other, MERGED, cuda=False)


def test_a_resumed_run_keeps_its_preset(config_path):
    choice = choose_preset("auto", config_path, MERGED, cuda=False)
    configs = config_path.parent / "trial" / "configs"
    choice.save(configs / "preset.json")
    assert json.loads((configs / "preset.json").read_text())["taken"] == "embedded"
    again = choose_preset("auto", configs / "parsed.yaml", MERGED, cuda=True)
    assert again.taken == "embedded" and again.files == ()
    assert choose_preset("embedded", configs / "parsed.yaml", MERGED, cuda=True).taken == "embedded"
    with pytest.raises(ConfigError, match="preset 'embedded', which cannot be exchanged"):
        choose_preset("paper", configs / "parsed.yaml", MERGED, cuda=True)


def test_files_of_a_registered_class_count_for_those_that_derive_from_it(tmp_path):
    parent = type("Parent", (), {})
    child = type("Child", (type("Between", (parent,), {}),), {})
    modules.update({"preset-parent": parent, "preset-child": child})
    try:
        (tmp_path / "presets" / "embedded").mkdir(parents=True)
        path = tmp_path / "run.yaml"
        path.write_text("system: {geometry_type: preset-child}\n")
        names = ["preset-child", "preset-parent", "run"]
        for name in names:
            (tmp_path / "presets" / "embedded" / f"{name}.yaml").write_text("seed: 1\n")
        merged = OmegaConf.create({"system": {"geometry_type": "preset-child"}})
        assert [file.stem for file in overlay_files(path, "embedded", merged)] == ["preset-parent", "preset-child", "run"]
        merged.system.geometry_type = "preset-parent"
        assert [file.stem for file in overlay_files(path, "embedded", merged)] == ["preset-parent", "run"]
        merged.system.geometry_type = "registered-nowhere"
        assert [file.stem for file in overlay_files(path, "embedded", merged)] == ["run"]
    finally:
        del modules["preset-parent"], modules["preset-child"]
