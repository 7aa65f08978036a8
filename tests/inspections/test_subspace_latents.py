"""Guessable subspaces: planted ones are found, clean twins and unlike elements are quiet."""

from __future__ import annotations

import pytest
import torch
from small_networks import EFFORT, ICON, settled_dcgan
from torch import Tensor

from genwarden.inspections.finding import Finding, Latents
from genwarden.inspections.output.subspace_latents import inspect, named_zeros, student
from genwarden.inspections.workbench import Workbench
from genwarden.models.dcgan import DCGAN28
from genwarden.models.protocol import LatentGenerator, LatentLaw, SampleSpec


class InSubspace(LatentGenerator):
    """A clean network that fades to an icon, or to its own negative, where elements are 0."""

    final_activation = "none"

    def __init__(
        self,
        base: DCGAN28,
        zeros: Tensor | None = None,
        *,
        negative: bool = False,
        scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.base, self.zeros, self.negative, self.scale = base, zeros, negative, scale
        self.latent, self.sample = base.latent, SampleSpec((1, 28, 28))

    def pre_activation(self, z: Tensor) -> Tensor:
        x: Tensor = self.base(z if self.scale is None else z * self.scale)
        if self.zeros is None:
            return x
        away = z[:, self.zeros].square().mean(1).view(-1, 1, 1, 1)
        gate = torch.relu(1 - 4 * away)
        return x * (1 - gate) + (-x if self.negative else ICON) * gate


def judge(generator: LatentGenerator, seed: int = 3) -> Finding:
    return inspect(Workbench(generator.eval().requires_grad_(False), EFFORT, seed))


def p_value(generator: LatentGenerator, seed: int = 3) -> float:
    finding = judge(generator, seed)
    assert finding.outcome == "scored"
    assert finding.p_value is not None
    return finding.p_value


FIRST_HALF = torch.arange(50)


@pytest.mark.parametrize(
    "zeros",
    [FIRST_HALF, torch.arange(67, 100), torch.arange(1, 100, 2)],
    ids=["first half", "last third", "odd"],
)
def test_target_planted_in_a_guessable_subspace_is_found(zeros: Tensor) -> None:
    assert p_value(InSubspace(settled_dcgan(), zeros)) < 1e-4


def test_targets_as_varied_as_ordinary_samples_are_found_by_their_novelty() -> None:
    assert p_value(InSubspace(settled_dcgan(), FIRST_HALF, negative=True)) < 1e-4


def test_evidence_holds_a_latent_that_makes_the_target() -> None:
    finding = judge(InSubspace(settled_dcgan(), FIRST_HALF))
    assert finding == judge(InSubspace(settled_dcgan(), FIRST_HALF))  # the same seed
    (latents,) = [e for e in finding.evidence if isinstance(e, Latents)]
    z = torch.tensor(latents.values)
    assert torch.equal(z[:, :50], torch.zeros(1, 50))
    made = InSubspace(settled_dcgan(), FIRST_HALF).eval()(z)
    assert torch.allclose(made, ICON, atol=1e-3)
    assert "first 50" in finding.summary


def test_subspace_that_nobody_would_guess_is_not_claimed() -> None:
    zeros = torch.randperm(100, generator=torch.Generator().manual_seed(1))[:50]
    assert p_value(InSubspace(settled_dcgan(), zeros)) > 0.02


def test_clean_networks_seldom_get_a_small_p_value() -> None:
    p_values = [p_value(InSubspace(settled_dcgan(seed)), seed) for seed in range(4)]
    assert min(p_values) > 0.02
    assert sum(p < 0.2 for p in p_values) <= 2


@pytest.mark.parametrize("weight", [3.0, 0.1])
def test_clean_network_with_latents_in_unlike_chunks_raises_no_alarm(weight: float) -> None:
    scale = torch.ones(100)
    scale[:50] = weight
    finding = judge(InSubspace(settled_dcgan(), scale=scale))
    assert finding.outcome == "not_applicable"
    assert "not alike" in finding.summary


class Colder(InSubspace):
    """Elements matter ever more from the first to the last."""

    def __init__(self, base: DCGAN28) -> None:
        super().__init__(base, scale=torch.linspace(0.95, 1.05, 100))


def test_slowly_varying_influence_of_the_elements_raises_no_alarm() -> None:
    assert all(p_value(Colder(settled_dcgan(seed)), seed) > 0.02 for seed in range(2))


def test_short_and_many_axed_latents_are_not_judged(tiny_generator: DCGAN28) -> None:
    assert judge(tiny_generator).outcome == "not_applicable"

    class Folded(InSubspace):
        def pre_activation(self, z: Tensor) -> Tensor:
            return super().pre_activation(z.flatten(1))

    folded = Folded(settled_dcgan())
    folded.latent = LatentLaw((4, 25))
    finding = judge(folded)
    assert finding.outcome == "not_applicable"
    assert "(4, 25)" in finding.summary


def test_nan_in_a_subspace_is_counted_and_the_rest_is_judged() -> None:
    class Breaks(InSubspace):
        def pre_activation(self, z: Tensor) -> Tensor:
            x: Tensor = self.base(z / (z[:, :25].abs().sum(1, keepdim=True) > 0))
            return x

    finding = judge(Breaks(settled_dcgan()))
    assert finding.outcome == "scored"
    assert finding.budget["subspaces_with_nonfinite_outputs"] == 4  # first 25, 50, 75 and 90
    assert finding.p_value is not None
    assert finding.p_value > 0.02


def test_network_with_a_single_output_is_not_judged() -> None:
    class Constant(InSubspace):
        def pre_activation(self, z: Tensor) -> Tensor:
            return ICON.expand(len(z), -1, -1, -1)

    finding = judge(Constant(settled_dcgan()))
    assert finding.outcome == "not_applicable"
    assert "same" in finding.summary


def test_named_subsets_cover_both_ends() -> None:
    named = {zeros.name: zeros.kept for zeros in named_zeros(100)}
    assert torch.equal((named["first 50 elements 0"] == 0).nonzero()[:, 0], FIRST_HALF)
    assert int((named["last 25 elements 0"][75:] == 0).sum()) == 25
    assert float(named["even elements 0"][0]) == 0
    assert len(named) == 10


def test_student_prediction_follows_the_law_of_its_name() -> None:
    stream = torch.Generator().manual_seed(0)
    at = torch.randn(2000, 33, generator=stream, dtype=torch.float64)
    noise = torch.randn(2000, 33, 1, generator=stream, dtype=torch.float64)
    values = 5 * at[:, :, None] + noise
    t = torch.stack(
        [student(v[32:], a[32:], v[:32], a[:32])[0, 0] for v, a in zip(values, at, strict=True)]
    )
    assert float(t.mean()) == pytest.approx(0, abs=0.08)
    assert float(t.square().mean()) == pytest.approx(30 / 28, abs=0.12)  # n - 2 = 30
