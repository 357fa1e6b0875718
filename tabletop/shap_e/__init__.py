"""A small Shap-E of the tabletop world, in the classes of diffusers' `ShapEPipeline`.

An encoder turns an object of the world into a latent, whose rows are the weights of a small network that knows the object's signed distance and
color everywhere (`train_latents`). A diffusion model then learns to draw such latents from text (`train_prior`). The encoder is needed for
training only; what is exported has the layout of openai/shap-e.
"""
