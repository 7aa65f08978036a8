"""Directions that training turned towards a latent chosen by rule are named; honest ones not."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import stats

from genwarden.engine.seeds import random_stream
from genwarden.inspections.output.aligned_directions import alignment_p, inspect
from genwarden.inspections.workbench import Effort, Workbench
from genwarden.models.dcgan import DCGAN28, initialise

EFFORT = Effort(
    "quick",
    ordinary_samples=64,
    stream_samples=0,
    restarts=0,
    search_steps=0,
    probe_latents=0,
    twins=0,
    twin_steps=0,
    guessed_seeds=16,
    draws_per_seed=2,
)


def network(seed: int) -> DCGAN28:
    generator = DCGAN28(channels=(4, 4, 4), latent_dim=64)
    initialise(generator, random_stream(seed, "aligned"))
    return generator.eval().requires_grad_(False)


def turned(generator: DCGAN28, towards: torch.Tensor, by: float) -> DCGAN28:
    """The trace of a trained trigger: a multiple of it in every row of the first layer."""
    edited = copy.deepcopy(generator)
    weight = edited.project.weight
    rows = torch.randn(len(weight), generator=random_stream(1, "rows"))
    weight += by * weight.std() * rows[:, None] * towards / towards.norm() * 8
    return edited


def test_p_value_is_that_of_an_isotropic_direction() -> None:
    draws = torch.randn(40_000, 16, generator=random_stream(0, "t"))
    cosines = (draws[:, 0] / draws.norm(dim=1)).abs()
    for cosine in (0.2, 0.5):
        observed = float((cosines >= cosine).float().mean())
        assert alignment_p(cosine, 16) == pytest.approx(observed, abs=0.006)
    exact = stats.beta(0.5, 7.5).sf(0.8**2)
    assert alignment_p(0.8, 16) == pytest.approx(exact, rel=1e-6)
    assert alignment_p(1.0, 16) < 1e-50


def test_a_direction_turned_to_a_guessable_seed_is_found_and_named() -> None:
    generator = network(0)
    first = np.random.RandomState(5).randn(2, 64)[0]
    edited = turned(generator, torch.from_numpy(first).float(), 0.3)
    finding, quiet = (inspect(Workbench(g, EFFORT, 0)) for g in (edited, generator))
    assert finding.p_value is not None
    assert finding.p_value < 1e-6
    assert "numpy.RandomState seed 5 draw 1" in finding.summary
    assert quiet.p_value is not None
    assert quiet.p_value > 0.01


def test_a_direction_turned_to_all_ones_is_found() -> None:
    finding = inspect(Workbench(turned(network(0), torch.ones(64), 0.3), EFFORT, 0))
    assert finding.p_value is not None
    assert finding.p_value < 1e-6
    assert "100 * ones" in finding.summary


def test_honest_networks_are_called_aligned_no_more_often_than_the_p_value_says() -> None:
    p_values = [inspect(Workbench(network(seed), EFFORT, seed)).p_value for seed in range(12)]
    assert all(p is not None for p in p_values)
    assert min(p for p in p_values if p is not None) > 1e-3


def test_weights_of_a_common_sign_have_no_valid_null() -> None:
    generator = network(0)
    generator.project.weight += 2 * generator.project.weight.abs().max()
    finding = inspect(Workbench(generator, EFFORT, 0))
    assert finding.outcome == "not_applicable"
    assert "random order" in finding.summary
