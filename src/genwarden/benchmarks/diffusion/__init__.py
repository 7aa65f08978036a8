"""Recipes for diffusion models: attack tables, sampler matrix, population study."""
