"""Attacks on diffusion models that know the defences."""
