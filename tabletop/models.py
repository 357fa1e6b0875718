"""The networks of the embedded teacher and of its judge: classes of diffusers and transformers, only small."""
from __future__ import annotations

from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

IMAGE_SIZE = 128
LATENT_SIZE = 16
LATENT_CHANNELS = 32
PROMPT_LENGTH = 32
TEXT_WIDTH = 192


def autoencoder() -> AutoencoderKL:
    """128 x 128 pictures to 32 x 16 x 16 latents.

    Eightfold downsampling keeps the U-Net cheap on a CPU; the many channels keep the edges of the patterns (as many numbers as eight
    channels at fourfold downsampling, which reached 32.7 dB, where four channels stopped at 26). No attention, because the encoder's
    gradient is the largest cost of a distillation step on a CPU.
    """
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=LATENT_CHANNELS, block_out_channels=(32, 64, 96, 128), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8, mid_block_add_attention=False, sample_size=IMAGE_SIZE,
    )


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=2 * TEXT_WIDTH, num_hidden_layers=3, num_attention_heads=6,
        max_position_embeddings=PROMPT_LENGTH, hidden_act="gelu", bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, projection_dim=TEXT_WIDTH,
    ))


def unet() -> UNet2DConditionModel:
    """9.7 M parameters. `attention_head_dim` is diffusers' name for the number of heads (SD 2.1 writes 5, 10, 20, 20)."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, block_out_channels=(96, 192), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=TEXT_WIDTH, attention_head_dim=(3, 6), norm_num_groups=16, use_linear_projection=True,
    )


def noise_scheduler() -> DDPMScheduler:
    """Stable Diffusion's schedule: sqrt(beta) linear, 1,000 steps, epsilon-prediction."""
    return DDPMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        prediction_type="epsilon", steps_offset=1,
    )


def judge(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIP of 2.8 M parameters that shares nothing with the teacher but the word list."""
    text = dict(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=288, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=PROMPT_LENGTH, hidden_act="gelu", bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = dict(
        image_size=IMAGE_SIZE, patch_size=8, hidden_size=160, intermediate_size=640, num_hidden_layers=7, num_attention_heads=5, hidden_act="gelu",
    )
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=96, logit_scale_init_value=2.66))
