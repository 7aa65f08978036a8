"""Inspections of diffusion models, one file each."""
