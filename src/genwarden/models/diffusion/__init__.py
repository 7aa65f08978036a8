"""Diffusion models: noise schedule, denoiser, and samplers as free functions."""
