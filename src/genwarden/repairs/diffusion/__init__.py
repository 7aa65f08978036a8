"""Repairs of diffusion models, and the choice between them."""
