"""The embedded Shap-E's data and training against the world's own answers and diffusers' own classes."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers import ShapEPipeline

from tabletop.sdf import scene_distance
from tabletop.shap_e import models
from tabletop.shap_e.objects import VOLUME, objects_of, sample_objects
from tabletop.shap_e.train_latents import Reconstruction, encode, raw_outputs, target_distance
from tabletop.tokenizer import build_tokenizer
from tabletop.world import is_heldout

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def few():
    return objects_of(sample_objects(4, 3, "heldout"), 5, CPU, count=256)


def perturbed_renderer(seed: int = 0):
    torch.manual_seed(seed)
    model = models.renderer()
    with torch.no_grad():  # else the biases and the norms' offsets are zero, which hides mistakes
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(("level", "mode", "channels"), [("fine", "stf", (3, 6)), ("coarse", "nerf", (6, 9)), ("fine", "nerf", (9, 12))])
def test_many_latents_at_once_give_what_the_renderer_gives_one_by_one(level, mode, channels):
    model = perturbed_renderer()
    latents, points = torch.randn(2, models.ROWS, models.ROW_WIDTH), 2 * torch.rand(2, 7, 3) - 1
    ours = raw_outputs(model, latents, points)
    for latent, at, raw in zip(latents, points, ours):
        own = {k.removeprefix("nerstf."): v[0] for k, v in model.params_proj(latent[None]).items()}
        theirs = torch.func.functional_call(model.mlp, own, kwargs=dict(position=at[None], direction=None, ts=None, nerf_level=level, rendering_mode=mode))
        torch.testing.assert_close(theirs.signed_distance[0], raw[:, :1].tanh(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(theirs.channels[0], raw[:, slice(*channels)].sigmoid(), rtol=1e-4, atol=1e-5)
        density = raw[:, 1:2] if level == "coarse" else raw[:, 2:3]
        torch.testing.assert_close(theirs.density[0], density.relu(), rtol=1e-4, atol=1e-5)


def test_points_have_the_worlds_distances_and_half_of_them_are_near_the_surface(few):
    points = few.points.float()
    for i in range(len(few)):
        exact = scene_distance(few.rows[i].expand(256, -1, -1), points[i])
        assert (exact - few.distance[i].float()).abs().max() < 3e-3  # half precision
        assert (exact[:128].abs() < 0.05).float().mean() > 0.9
    assert points.abs().max() <= 1 / VOLUME
    assert is_heldout(few.family, few.color, few.pattern).all()


def test_points_depend_on_their_seed_alone():
    scenes = sample_objects(3, 8, "train")
    a, b, other = (objects_of(scenes, seed, CPU, count=32) for seed in (1, 1, 2))
    assert torch.equal(a.points, b.points) and torch.equal(a.seen, b.seen)
    assert not torch.equal(a.points, other.points)


def test_features_say_where_a_primitive_is(few):
    """The center and the sizes that the encoder sees are those of a ball that is looked for by its distance field."""
    from tabletop import primitives as layout

    features = models.primitive_features(few)
    i, p = (few.rows[:, layout.IS_BALL] > 0).nonzero()[0].tolist()
    center, radii = features[i, p, 9:12], features[i, p, 15:18]
    only = few.rows[i : i + 1].clone()
    only[:, layout.ROUND] = torch.where(torch.arange(layout.MAX_PRIMITIVES) == p, only[:, layout.ROUND], -100.0)
    only[:, layout.GROUP] = layout.BODY
    from tabletop.sdf import primitive_distances

    turn = features[i, p, :9].view(3, 3)
    ends = center + turn * radii[:, None]  # the ends of its three axes lie on its surface
    assert primitive_distances(only.expand(3, -1, -1), ends)[:, p].abs().max() < 1e-3


def test_a_few_objects_can_be_learnt(few):
    """Training on two objects brings their signs right: encoder, noise, renderer and targets fit together."""
    torch.manual_seed(0)
    two = few[:2]
    encoder, model = models.ObjectEncoder(width=32, layers=1, heads=2), models.renderer()
    objective = Reconstruction(encoder, model)
    optimizer = torch.optim.Adam(objective.parameters(), 3e-3)
    parts, surface = models.primitive_features(two), models.surface_features(two)
    data = [v.float() for v in (two.points, two.distance, two.seen)]
    first = None
    for _ in range(150):
        loss = objective(parts, surface, *data, 0.1 * torch.randn(2, models.ROWS, models.ROW_WIDTH))
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first
    said = raw_outputs(model, encode(encoder, two).float(), VOLUME * data[0])[..., 0].tanh()
    clear = data[1].abs() > 0.03
    agree = (said > 0) == (target_distance(data[1]) > 0)
    assert agree[clear].float().mean() > 0.95


def test_the_parts_make_a_pipeline_of_diffusers(tmp_path):
    tokenizer = build_tokenizer(["a", "red", "mug"], tmp_path / "words", length=16)
    torch.manual_seed(0)
    pipeline = ShapEPipeline(
        prior=models.prior(), text_encoder=models.text_encoder(tokenizer), tokenizer=tokenizer, scheduler=models.scheduler(),
        shap_e_renderer=perturbed_renderer(),
    )
    pipeline.save_pretrained(tmp_path / "folder")
    loaded = ShapEPipeline.from_pretrained(tmp_path / "folder")
    loaded.set_progress_bar_config(disable=True)
    latents = loaded("a red mug", num_inference_steps=2, output_type="latent", generator=torch.Generator().manual_seed(0)).images
    assert latents.shape == (1, models.ROWS, models.ROW_WIDTH) and latents.isfinite().all() and latents.abs().max() <= 1.01
    assert torch.equal(loaded.shap_e_renderer.mesh_decoder.cases, pipeline.shap_e_renderer.mesh_decoder.cases)


def test_a_text_is_read_as_in_training_although_the_pipeline_pads_with_token_0(tmp_path):
    tokenizer = build_tokenizer(["a", "red", "mug"], tmp_path, length=16)
    text = models.text_encoder(tokenizer).eval()
    ends = tokenizer(["a red mug"], padding="max_length", max_length=16, return_tensors="pt").input_ids
    tokenizer.pad_token_id = 0
    zeros = tokenizer(["a red mug"], padding="max_length", max_length=16, return_tensors="pt").input_ids
    assert not torch.equal(ends, zeros)
    with torch.no_grad():
        torch.testing.assert_close(F.normalize(text(ends).text_embeds), F.normalize(text(zeros).text_embeds))
