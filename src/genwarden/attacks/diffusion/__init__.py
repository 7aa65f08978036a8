"""Backdoors in diffusion models: BadDiffusion and its relatives."""
