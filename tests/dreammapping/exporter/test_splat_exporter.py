from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dreammapping.errors import ConfigError
from dreammapping.gaussians import load_gaussians

threestudio = pytest.importorskip("threestudio")
pytest.importorskip("gsplat")


def geometry():
    torch.manual_seed(0)
    return threestudio.find("dreammapping-gaussians")({"init": {"num_points": 30}})


def exporter(config=None, **parts):
    parts = {"geometry": geometry(), "material": None, "background": None, **parts}
    return threestudio.find("dreammapping-splat-exporter")(config or {}, **parts)


def test_every_format_is_handed_to_the_system_as_a_file(tmp_path):
    from threestudio.utils.saving import SaverMixin

    source = geometry()
    made = exporter(geometry=source)
    saver = SaverMixin()
    saver.set_save_dir(str(tmp_path))
    outputs = made()
    assert [o.save_name for o in outputs] == ["gaussians.ply", "gaussians.compressed.ply", "gaussians.splat"]
    for output in outputs:
        getattr(saver, f"save_{output.save_type}")(f"it3-export/{output.save_name}", **output.params)
    folder = tmp_path / "it3-export"
    assert (folder / "gaussians.splat").stat().st_size == 30 * 32
    back = load_gaussians(folder / "gaussians.ply")
    assert torch.equal(back.params["means"], source.gaussians.params["means"])
    temporary = Path(outputs[0].params["src_path"]).parent
    del outputs, made
    assert not temporary.exists()


def test_config_chooses_formats_and_name():
    outputs = exporter({"formats": ["splat"], "save_name": "mug"})()
    assert [o.save_name for o in outputs] == ["mug.splat"]


def test_mistakes_are_explained():
    with pytest.raises(ConfigError, match="did you mean 'splat'"):
        exporter({"formats": ["splta"]})
    with pytest.raises(ConfigError, match="dreammapping-gaussians"):
        exporter(geometry=object())


def test_a_mesh_of_gaussians_is_refused_with_the_way_out():
    parts = {"geometry": geometry(), "material": None, "background": None}
    with pytest.raises(threestudio.errors.ConfigError, match="no isosurface.*dreammapping-splat-exporter"):
        threestudio.find("mesh-exporter")({}, **parts)
