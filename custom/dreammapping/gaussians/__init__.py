"""The Gaussian model, its learning rates, its densification and its files."""
