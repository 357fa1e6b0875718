from __future__ import annotations

import pytest
import torch
from dreammapping.errors import ConfigError

from tests.helpers.known_pictures import KnownPictures

threestudio = pytest.importorskip("threestudio")


def make(prompts: int = 2, **config):
    torch.manual_seed(0)
    geometry = threestudio.find("dreammapping-image")(config)
    teacher = KnownPictures()
    teacher.latent_shape, teacher.image_size = (5, 4, 6), (8, 12)
    geometry.start(teacher, prompts)
    return geometry


def render(geometry, index):
    parts = {"geometry": geometry, "material": torch.nn.Module(), "background": torch.nn.Module()}
    return threestudio.find("dreammapping-image-renderer")({}, **parts)(index=index, c2w=None)


@pytest.mark.parametrize(
    ("config", "shape"),
    [({}, (5, 4, 6)), ({"parameterization": "pixel"}, (3, 8, 12)), ({"size": [2, 3]}, (5, 2, 3))],
)
def test_sizes_are_the_teacher_s(config, shape):
    geometry = make(prompts=2, particles=3, **config)
    assert [tuple(picture.shape) for picture in geometry.pictures] == [shape] * 6
    assert len(list(geometry.parameters())) == 6
    ((name, values),) = geometry.export().items()
    assert name == ("pixels" if config.get("parameterization") else "latents") and values.shape == (6, *shape)


def test_latents_reach_the_guidance_as_they_are():
    geometry = make()
    out = render(geometry, [1, 0, 1])
    assert set(out) == {"latents"} and out["latents"].shape == (3, 4, 6, 5)
    assert torch.equal(out["latents"][0].permute(2, 0, 1), geometry.pictures[1])
    out["latents"].sum().backward()
    assert (geometry.pictures[1].grad == 2).all() and (geometry.pictures[0].grad == 1).all()


def test_pixels_are_colors_and_come_back_from_beyond():
    geometry = make(parameterization="pixel", init={"type": "zeros"})
    with torch.no_grad():
        geometry.pictures[0][:] = 3.0
    image = render(geometry, [0, 1])["comp_rgb"]
    assert (image[0] == 1).all() and (image[1] == 0.5).all()
    image.sum().backward()  # descent darkens
    assert (geometry.pictures[0].grad == 0.5).all()


def test_others_stay_without_a_gradient():
    geometry = make()
    render(geometry, [1])["latents"].sum().backward()
    assert geometry.pictures[0].grad is None and geometry.pictures[1].grad is not None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"parameterization": "pixels"}, "latent or pixel"),
        ({"particles": 0}, "at least 1"),
        ({"size": 64}, "height, width"),
        ({"size": [0, 8]}, "from 1 to 4096"),
        ({"size": [8, 100000]}, "from 1 to 4096"),
        ({"init": {"type": "unifrom"}}, "uniform"),
        ({"weights": "a.ckpt:geometry"}, "system.weights"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(ConfigError, match="system.geometry") as caught:
        make(**config)
    assert message in str(caught.value)


def test_the_renderer_wants_pictures():
    with pytest.raises(ConfigError, match="dreammapping-image"):
        render(torch.nn.Linear(1, 1), [0])


def test_another_number_of_pictures_is_refused():
    state = {f"geometry.{name}": value for name, value in make(prompts=3).state_dict().items()}
    make(prompts=3).prepare_for_state_dict(state, "geometry.")
    with pytest.raises(ConfigError, match="has 3 pictures of 5 x 4 x 6, this config makes 2 pictures"):
        make(prompts=2).prepare_for_state_dict(state, "geometry.")
