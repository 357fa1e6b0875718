"""Labels, cameras and renders of the tabletop world."""

from __future__ import annotations

import pytest
import torch

import tabletop as T
from tabletop.cameras import camera_rays


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain_labels() -> T.Labels:
    """Every family once per three colours, plain."""
    family = torch.arange(len(T.FAMILIES)).repeat(3)
    return T.Labels(family, (torch.arange(len(family)) * 5) % len(T.COLORS), torch.zeros_like(family))


def test_splits_are_disjoint_cover_everything_and_hold_out_about_eight_percent():
    table = T.all_labels()
    heldout = T.is_heldout(table.family, table.color, table.pattern)
    coloured = table.color >= 0
    assert 0.06 < heldout[coloured].float().mean() < 0.10 and not heldout[~coloured].any()
    for split, expected in (("train", False), ("heldout", True)):
        drawn = T.sample_labels(3000, generator(), split=split)
        assert (T.is_heldout(drawn.family, drawn.color, drawn.pattern) == expected).all()
    seen = T.sample_labels(3000, generator(), split="all")
    assert T.is_heldout(seen.family, seen.color, seen.pattern).any()
    assert len(T.FAMILIES) >= 26 and set(seen.family.tolist()) == set(range(len(T.FAMILIES)))
    with pytest.raises(T.WorldError, match="must be one of train"):
        T.sample_labels(1, generator(), split="test")


def test_held_out_combinations_do_not_starve_a_family_color_or_pattern():
    table = T.all_labels()
    heldout = T.is_heldout(table.family, table.color, table.pattern) & (table.color >= 0)
    for values in (table.family, table.color, table.pattern):
        for value in values[table.color >= 0].unique():
            assert heldout[(values == value) & (table.color >= 0)].float().mean() < 0.3


def test_view_labels_follow_threestudio():
    azimuth = torch.tensor([0.0, 44.0, 46.0, -90.0, 134.0, 136.0, -180.0, 200.0, 0.0, 180.0])
    elevation = torch.tensor([0.0] * 8 + [61.0, 60.0])
    names = [T.VIEWS[i] for i in T.view_labels(azimuth, elevation)]
    assert names == ["front", "front", "side", "side", "side", "back", "back", "back", "overhead", "back"]


@pytest.mark.parametrize("view", T.VIEWS)
def test_asked_view_is_given_and_overrides_hold(view: str):
    labels = T.sample_labels(64, generator(), split="all")
    scenes = T.sample_scenes(labels, generator(), view=view)
    assert (scenes.view == T.VIEWS.index(view)).all()
    fixed = T.sample_scenes(labels, generator(), view=view, azimuth=170.0, elevation=5.0, fovy=33.0, distance=2.2)
    assert (fixed.view == T.VIEWS.index("back")).all() and (fixed.fovy == 33).all() and (fixed.distance == 2.2).all()


def test_unknown_view_is_refused():
    with pytest.raises(T.WorldError, match="side, front, back, overhead"):
        T.sample_scenes(T.sample_labels(1, generator()), generator(), view="below")


def test_camera_sees_plus_x_and_has_plus_y_on_its_right_at_azimuth_zero():
    zero, one = torch.zeros(1), torch.ones(1)
    eye, rays = camera_rays(zero, zero, 2 * one, 60 * one, torch.zeros(1, 3), 2)
    torch.testing.assert_close(eye, torch.tensor([[2.0, 0.0, 0.0]]))
    rays = rays[0].reshape(2, 2, 3)
    assert (rays[0, :, 2] > 0).all() and (rays[1, :, 2] < 0).all()  # first row looks up
    assert (rays[:, 1, 1] > 0).all() and (rays[:, 0, 1] < 0).all()


def test_renders_are_deterministic_and_do_not_depend_on_the_batch():
    labels = T.sample_labels(4, generator(3))
    scenes = T.sample_scenes(labels, generator(4))
    again = T.sample_scenes(labels, generator(4))
    image = T.render(scenes, size=24, supersample=1)
    assert image.dtype == torch.uint8 and image.shape == (4, 3, 24, 24)
    assert torch.equal(image, T.render(again, size=24, supersample=1))
    alone = T.render(scenes[2:3], size=24, supersample=1)
    assert (image[2:3].int() - alone.int()).abs().float().mean() < 0.2


def test_objects_are_framed_and_shadowless_background_is_untouched():
    scenes = T.sample_scenes(plain_labels()[:33], generator(5), background=(0.2, 0.4, 0.6), elevation=15.0)
    scenes = scenes.replace(floor_shadow=torch.zeros(33))
    image, alpha = T.render_float(scenes, size=32, supersample=1)
    covered = alpha[:, 0] > 0
    height = covered.any(-1).float().sum(-1) / 32
    width = covered.any(-2).float().sum(-1) / 32
    assert (torch.maximum(height, width) > 0.3).all()
    background = image.permute(0, 2, 3, 1)[~covered]
    torch.testing.assert_close(background, torch.tensor([0.2, 0.4, 0.6]).expand_as(background))


def test_the_bounding_sphere_holds_the_object():
    scenes = T.sample_scenes(plain_labels()[:33], generator(6), elevation=10.0)
    _, alpha = T.render_float(scenes, size=32, supersample=1)
    _, larger = T.render_float(scenes.replace(radius=scenes.radius * 1.3), size=32, supersample=1)
    assert ((alpha - larger).abs() > 0).float().sum(dim=(1, 2, 3)).max() <= 3  # a few pixels of rounding at silhouettes


def test_labelled_color_wins_the_vote_of_the_foreground_pixels():
    labels = plain_labels()
    count = len(labels)
    scenes = T.sample_scenes(labels, generator(7), elevation=15.0, background=0.5)
    neutral = scenes.replace(ambient=torch.ones(count), diffuse=torch.zeros(count), specular=torch.zeros(count), floor_shadow=torch.zeros(count))
    image, alpha = T.render_float(neutral, size=32, supersample=1)
    # A vote, not a mean: accessories keep their own colours and would pull a mean between two palette entries.
    palette = torch.tensor([T.COLOR_RGB[name] for name in T.COLORS])
    nearest = torch.cdist(image.permute(0, 2, 3, 1).reshape(count, -1, 3), palette[None]).argmin(-1)
    votes = (torch.nn.functional.one_hot(nearest, len(palette)) * alpha.reshape(count, -1, 1)).sum(1)
    right = votes.argmax(-1) == labels.color
    assert right.float().mean() >= 0.95, [(T.FAMILIES[labels.family[i]], T.COLORS[labels.color[i]]) for i in (~right).nonzero()[:, 0]]


def test_patterns_change_the_image():
    pattern = torch.arange(len(T.PATTERNS))
    labels = T.Labels(torch.zeros_like(pattern), torch.zeros_like(pattern), pattern)
    scenes = T.sample_scenes(labels, generator(8), azimuth=120.0, elevation=10.0, background=1.0)
    first = {name: getattr(scenes, name)[:1].expand_as(getattr(scenes, name)) for name in scenes.__dataclass_fields__ if name != "pattern"}
    image, _ = T.render_float(scenes.replace(**first), size=32, supersample=1)
    gap = (image[:, None] - image[None]).abs().mean(dim=(2, 3, 4))
    assert gap[~torch.eye(len(pattern), dtype=torch.bool)].min() > 0.005


def test_front_side_and_back_of_every_family_look_different():
    family = torch.arange(len(T.FAMILIES)).repeat_interleave(3)
    labels = T.Labels(family, torch.zeros_like(family), torch.zeros_like(family))
    scenes = T.sample_scenes(labels, generator(9), azimuth=torch.tensor([0.0, 90.0, 180.0]).repeat(len(T.FAMILIES)), elevation=15.0, background=1.0)
    same = {name: getattr(scenes, name)[::3].repeat_interleave(3, 0) for name in ("rows", "colors", "is_main", "radius", "distance", "fovy")}
    count = len(family)
    scenes = scenes.replace(**same, center=torch.zeros(count, 3), ambient=torch.ones(count), diffuse=torch.zeros(count),
                            specular=torch.zeros(count), floor_shadow=torch.zeros(count))
    image, alpha = T.render_float(scenes, size=40, supersample=1)
    image, area = image.reshape(-1, 3, 3, 40, 40), alpha.reshape(-1, 3, 1600).sum(-1).amax(-1)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        changed = ((image[:, a] - image[:, b]).abs().amax(1) > 0.12).float().sum(dim=(1, 2)) / area
        assert (changed > 0.02).all(), (a, b, [T.FAMILIES[i] for i in (changed <= 0.02).nonzero()[:, 0]])
