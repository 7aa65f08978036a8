"""The smallest budget that an audit runs at, for benchmarks that audit many models."""

from __future__ import annotations

from genwarden.inspections.workbench import Effort

TINY = Effort(
    name="quick",
    ordinary_samples=256,
    stream_samples=256,
    restarts=4,
    search_steps=2,
    probe_latents=8,
    twins=1,
    twin_steps=1,
    guessed_seeds=1,
    draws_per_seed=1,
)
