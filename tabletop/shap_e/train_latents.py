"""Train encoder and renderer: objects to latents and back to signed distances, densities and colors.

`python -m tabletop.shap_e.train_latents --data build/tabletop/objects --output build/tabletop/shap-e-latents`

The latents are bounded by a tanh, and the renderer learns to read them under noise, so that what the prior draws need not be exact.
"""
from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from diffusers.pipelines.shap_e import ShapERenderer
from diffusers.pipelines.shap_e.renderer import encode_position
from safetensors.torch import save_file
from torch import Tensor, nn

from ..training import Stage, add_loop_arguments, settings_from, training_device
from .models import ROW_WIDTH, ROWS, ObjectEncoder, primitive_features, renderer, surface_features
from .objects import VOLUME, Objects, load_objects

SHARPNESS = 10.0
"""The signed distance is learnt as tanh(-10 d), d in Shap-E's units: positive inside, saturated beyond a tenth or two."""
DENSITY, DENSITY_EDGE = 60.0, 0.015
"""Density inside, and the width of its fall at the surface, in Shap-E's units."""
NEAR = 0.03
"""Colors count by exp(-(d / 0.03)^2), d in the world's units."""
MOST_NOISE = 0.5
"""Standard deviation of the noise on latents is uniform below this."""


def raw_outputs(model: ShapERenderer, latents: Tensor, points: Tensor) -> Tensor:
    """The twelve outputs [B, M, 12], before their activations, for B latents at points [B, M, 3] of Shap-E's volume, seen from nowhere.

    What `ShapERenderer` computes for one latent, whose weights it copies into its network; here for many at once and with gradients.
    """
    own = model.params_proj(latents)
    h = encode_position(points)
    for index, layer in enumerate(model.mlp.mlp):
        weight = own.get(f"nerstf.mlp.{index}.weight")
        # Where the direction would be put in, it is zero: its columns are left out.
        h = h @ weight.transpose(1, 2) + layer.bias if weight is not None else F.linear(h, layer.weight[:, : h.shape[-1]], layer.bias)
        if index + 1 < len(model.mlp.mlp):
            h = model.mlp.activation(h)
    return h


def target_distance(distance: Tensor) -> Tensor:
    """What the network is to say where the signed distance (world units, negative inside) is `distance`."""
    return torch.tanh(-SHARPNESS * VOLUME * distance)


def target_density(distance: Tensor) -> Tensor:
    """Per unit of Shap-E's volume."""
    return DENSITY * torch.sigmoid(-VOLUME * distance / DENSITY_EDGE)


class Reconstruction(nn.Module):
    """Mean absolute errors of distance, densities and colors, the latter near the surface."""

    def __init__(self, encoder: ObjectEncoder, model: ShapERenderer):
        super().__init__()
        self.encoder, self.model = encoder, model

    def forward(self, parts: Tensor, surface: Tensor, points: Tensor, distance: Tensor, seen: Tensor, noise: Tensor) -> Tensor:
        """Points [B, M, 3] and distances [B, M] in the world's units, colors [B, M, 3], noise on the latents."""
        network = self.model.mlp
        said = network.map_indices_to_keys(raw_outputs(self.model, self.encoder(parts, surface) + noise, VOLUME * points))
        near = torch.exp(-(distance / NEAR).square())
        near = near / near.sum().clamp_min(1.0)
        total = (network.sdf_activation(said["sdf"])[..., 0] - target_distance(distance)).abs().mean()
        for name in ("density_coarse", "density_fine"):
            density = network.density_activation(said[name])[..., 0]
            total = total + 0.1 / DENSITY * (density - target_density(distance)).abs().mean()
        for name, weight in (("stf", 0.5), ("nerf_coarse", 0.1), ("nerf_fine", 0.1)):
            error = (network.channel_activation(said[name]) - seen).abs().mean(-1)
            total = total + weight * (error * near).sum()
        return total


@torch.no_grad()
def encode(encoder: ObjectEncoder, objects: Objects, batch: int = 500) -> Tensor:
    """Latents [N, ROWS, ROW_WIDTH] of all objects, in half precision, on the encoder's device."""
    device = encoder.queries.device
    latents = []
    for first in range(0, len(objects), batch):
        part = objects[first : first + batch].to(device)
        latents.append(encoder(primitive_features(part), surface_features(part)).half())
    return torch.cat(latents)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_loop_arguments(parser, steps=30_000, learning_rate=1e-3, batch=128)
    parser.add_argument("--points", type=int, default=1024, help="points of each object in a step")
    args = parser.parse_args()
    device = training_device()
    torch.manual_seed(args.seed)
    objects = load_objects(args.data / "train", device)
    parts, surface = primitive_features(objects).half(), surface_features(objects)
    encoder, model = ObjectEncoder().to(device), renderer().to(device)
    stage = Stage({"encoder": encoder, "renderer": model}, settings_from(args, ema_decay=0.9995), args.output)
    objective = Reconstruction(encoder, model)
    if not args.no_compile:
        objective = torch.compile(objective)

    def loss_of(step: int) -> Tensor:
        index = torch.randint(len(objects), (args.batch,), device=device)
        shown = torch.randint(objects.points.shape[1], (args.batch, args.points), device=device)
        picked = [values[index[:, None], shown].float() for values in (objects.points, objects.distance, objects.seen)]
        noise = MOST_NOISE * torch.rand(args.batch, 1, 1, device=device) * torch.randn(args.batch, ROWS, ROW_WIDTH, device=device)
        return objective(parts[index].float(), surface[index], *picked, noise)  # in float32 (TF32): distances need it

    if not stage.run(loss_of):
        return
    stage.use_average()
    save_file(encoder.state_dict(), args.output / "encoder.safetensors")
    model.save_pretrained(args.output / "renderer")


if __name__ == "__main__":
    main()
