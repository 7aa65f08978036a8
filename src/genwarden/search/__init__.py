"""Batched optimisation over the latents of a generator: inspections, metrics, adaptive attacks."""
