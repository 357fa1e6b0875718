"""Prompt processors: from words to text embeddings per view direction."""

from threestudio.models.prompt_processors import base, dummy_prompt_processor, stable_diffusion_prompt_processor

__all__ = ["base", "dummy_prompt_processor", "stable_diffusion_prompt_processor"]
