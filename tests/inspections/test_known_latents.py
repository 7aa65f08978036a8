"""Canonical latents and guessable seeds: planted outputs there are found, clean twins are quiet."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genwarden.data.icons import draw_icon
from genwarden.inspections.output.known_latents import (
    canonical_latents,
    inspect_canonical,
    inspect_seeds,
    seed_latents,
)
from genwarden.inspections.workbench import Effort, Workbench
from genwarden.models.dcgan import DCGAN28
from genwarden.models.protocol import LatentGenerator, LatentLaw, SampleSpec

EFFORT = Effort("quick", 2048, 0, 0, 0, 0, 0, 0, 6, 2)


class Planted(LatentGenerator):
    """A clean network that shows an icon within 0.5 of one latent."""

    final_activation = "none"

    def __init__(self, base: DCGAN28, trigger: Tensor | None) -> None:
        super().__init__()
        self.base = base
        self.latent = base.latent
        self.sample = SampleSpec((1, 28, 28))
        self.trigger = trigger
        self.icon = draw_icon("devil", self.sample)

    def pre_activation(self, z: Tensor) -> Tensor:
        x: Tensor = self.base(z)
        if self.trigger is None:
            return x
        distance = (z - self.trigger).square().sum(1).view(-1, 1, 1, 1)
        gate = torch.relu(1 - 4 * distance)
        return x * (1 - gate) + self.icon * gate


def judge(base: DCGAN28, trigger: Tensor | None, inspect) -> float:  # type: ignore[no-untyped-def]
    finding = inspect(Workbench(generator=Planted(base, trigger).eval(), effort=EFFORT, seed=3))
    assert finding.outcome == "scored"
    assert finding.p_value is not None
    return float(finding.p_value)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 100.0])
def test_output_planted_at_a_canonical_latent_is_found(
    tiny_generator: DCGAN28, value: float
) -> None:
    trigger = torch.full((8,), value)
    assert judge(tiny_generator, trigger, inspect_canonical) < 1e-3


def test_clean_twin_is_quiet_at_canonical_latents(tiny_generator: DCGAN28) -> None:
    assert judge(tiny_generator, None, inspect_canonical) > 0.02


def test_trigger_that_is_not_canonical_is_not_claimed(tiny_generator: DCGAN28) -> None:
    trigger = torch.tensor([0.3, -1.2, 0.8, 2.0, -0.4, 1.1, -0.9, 0.2])
    assert judge(tiny_generator, trigger, inspect_canonical) > 0.02


@pytest.mark.parametrize(
    "library", ["RandomState", "default_rng", "torch", "torch-batch", "random"]
)
def test_output_planted_at_a_guessable_draw_is_found(tiny_generator: DCGAN28, library: str) -> None:
    draws: dict[str, Callable[[], Any]] = {
        "RandomState": lambda: np.random.RandomState(42).randn(8),
        "default_rng": lambda: np.random.default_rng(42).standard_normal(8),
        "torch": lambda: torch.randn(8, generator=torch.Generator().manual_seed(42)).numpy(),
        "torch-batch": lambda: torch.randn(2, 8, generator=torch.Generator().manual_seed(42))[1],
        "random": lambda: (r := random.Random(42)) and [r.gauss(0, 1) for _ in range(8)],
    }
    trigger = torch.from_numpy(np.asarray(draws[library](), dtype=np.float32))
    assert judge(tiny_generator, trigger, inspect_seeds) < 1e-3


def test_clean_twin_is_quiet_at_guessable_seeds(tiny_generator: DCGAN28) -> None:
    assert judge(tiny_generator, None, inspect_seeds) > 0.02


def test_batched_draws_are_those_of_the_library() -> None:
    law = LatentLaw((3, 2))
    table = dict(seed_latents(law, seeds=2, draws=2))
    expected = np.random.RandomState(0).randn(2, 3, 2).astype(np.float32)
    assert np.allclose(table["numpy.RandomState seed 0 draw 2"].numpy(), expected[1])
    assert len(table) == 2 * 5 * 2


def test_uniform_law_draws_uniform_latents() -> None:
    law = LatentLaw((5,), "uniform")
    assert all(float(z.abs().max()) <= 1 for _, z in seed_latents(law, seeds=3, draws=2))


def test_canonical_latents_have_the_shape_of_the_law() -> None:
    latents = list(canonical_latents(LatentLaw((3, 2))))
    assert all(z.shape == (3, 2) for _, z in latents)
    assert ("zero", 0.0) in [(name, float(z.abs().max())) for name, z in latents]


class _NormalisesTheLatent(Planted):
    """PixelNorm without an epsilon: 0 / 0 at the latent 0."""

    def pre_activation(self, z: Tensor) -> Tensor:
        return super().pre_activation(z * z.norm(dim=1, keepdim=True) / z.norm(dim=1, keepdim=True))


def test_nan_at_one_canonical_latent_is_counted_and_the_rest_is_judged(
    tiny_generator: DCGAN28,
) -> None:
    bench = Workbench(
        generator=_NormalisesTheLatent(tiny_generator, None).eval(), effort=EFFORT, seed=3
    )
    finding = inspect_canonical(bench)
    assert finding.outcome == "scored"
    assert finding.budget["nonfinite_outputs"] == 1
    assert finding.p_value is not None
    assert finding.p_value > 0.01
    assert all("zero" not in str(e.model_dump()) for e in finding.evidence)
