"""Diffusion models that are tiny and untrained, and an audit of them that takes a second."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from genwarden.artifacts.diffusers_folder import write_diffusion
from genwarden.auditing import audit_diffusion, budgets
from genwarden.models.diffusion.networks import fresh_model, small_unet
from genwarden.models.diffusion.schedule import NoiseSchedule


def shrink_quick_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the quick budget of diffusion models do next to nothing, for networks that do nothing."""
    monkeypatch.setattr(audit_diffusion, "_LEAST_DENOISING", math.inf)
    effort = replace(
        budgets.DIFFUSION_BUDGETS["quick"],
        search_starts=1,
        search_steps=2,
        search_noises=2,
        probe_noises=4,
        screen_noises=4,
        refine_steps=2,
        refine_noises=2,
        samples=2,
        sampler_steps=2,
    )
    monkeypatch.setitem(budgets.DIFFUSION_BUDGETS, "quick", effort)
    spent = replace(
        budgets.DIFFUSION_VARIANT_BUDGETS["quick"],
        steps=2,
        noises=2,
        probe_noises=4,
        placebos=2,
    )
    monkeypatch.setitem(budgets.DIFFUSION_VARIANT_BUDGETS, "quick", spent)


def model_at(
    path: Path, seed: int, size: int = 8, channels: int = 1, steps: int = 1000, **provenance: Any
) -> Path:
    """Write an untrained model as a diffusers folder."""
    model = fresh_model(
        small_unet(size, channels, (8,), middle_attention=False),
        NoiseSchedule.linear(steps),
        torch.Generator().manual_seed(seed),
    )
    write_diffusion(path, model, provenance)
    return path
