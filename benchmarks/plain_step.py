"""One step of SDS as threestudio makes it, for comparison: plain diffusers in half precision, nothing tuned.

Written from a description of what threestudio 0.2.3's guidance does: latents of the images by the VAE, noise, the U-Net
on the batch twice (prompt and negative prompt), e_c + s (e_c - e_u) - eps weighted by 1 - alpha_bar, and the predicted
clean image decoded in every step, which its guidance does whether or not anything uses it (`decode`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

GUIDANCE_SCALE = 100.0
MIN_STEP, MAX_STEP = 0.02, 0.98


class PlainStep:
    """rgb [B,H,W,3] in [0,1] -> a scalar whose gradient is SDS's. For `Run.advance(guide=...)`."""

    def __init__(self, folder: Path, prompt_utils: Any, device: torch.device, *, decode: bool) -> None:
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

        self.decode, self.device = decode, device
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        load = {"torch_dtype": self.dtype, "use_safetensors": True}
        self.unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **load).to(device)
        self.vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", **load).to(device)
        for network in (self.unet, self.vae):
            network.eval().requires_grad_(False)
        alphas = DDIMScheduler.from_pretrained(folder, subfolder="scheduler").alphas_cumprod
        self.alpha_bar, self.steps = alphas.to(device), len(alphas)
        self.text, self.negative = prompt_utils.text_embeddings, prompt_utils.uncond_text_embeddings
        self.size = self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    def __call__(self, rgb: Tensor) -> Tensor:
        latents = self.encode(rgb)
        batch = len(latents)
        t = torch.randint(int(MIN_STEP * self.steps), int(MAX_STEP * self.steps) + 1, (batch,), device=self.device)
        alpha_bar = self.alpha_bar[t].view(-1, 1, 1, 1)
        with torch.no_grad():
            noise = torch.randn_like(latents)
            noisy = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
            text = torch.cat([self.text.expand(batch, -1, -1), self.negative.expand(batch, -1, -1)]).to(self.dtype)
            both = self.unet(torch.cat([noisy] * 2).to(self.dtype), torch.cat([t] * 2), encoder_hidden_states=text)
            cond, uncond = both.sample.float().chunk(2)
            eps = cond + GUIDANCE_SCALE * (cond - uncond)
            gradient = torch.nan_to_num((1 - alpha_bar) * (eps - noise))
            if self.decode:
                clean = (noisy - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
                self.vae.decode((clean / self.vae.config.scaling_factor).to(self.dtype))
            target = latents - gradient
        return 0.5 * F.mse_loss(latents, target, reduction="sum") / batch

    def encode(self, rgb: Tensor) -> Tensor:
        images = F.interpolate(rgb.permute(0, 3, 1, 2), (self.size, self.size), mode="bilinear", align_corners=False)
        posterior = self.vae.encode((images * 2 - 1).to(self.dtype)).latent_dist
        return posterior.sample().float() * self.vae.config.scaling_factor
