"""The trigger search on a compressed diffusion model beside its placebos; shipped networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor

from genwarden.artifacts.diffusers_folder import read_diffusion
from genwarden.auditing.budgets import diffusion_budget, diffusion_variant_budget
from genwarden.commands.demo import demo_model_folder
from genwarden.compression.contract import Box, Compressor, Weights
from genwarden.compression.how import compressor
from genwarden.compression.layers import Layout
from genwarden.inspections.compression import differential_trigger_search
from genwarden.inspections.compression.diffusion_bench import (
    DiffusionVariantBench,
    VariantSearch,
)
from genwarden.inspections.diffusion.bench import DiffusionBench
from genwarden.inspections.diffusion.orthogonal_response import REACHES, Recovered
from genwarden.inspections.finding import Finding, Images, Latents
from genwarden.models.diffusion.denoiser import DiffusionModel


@cache
def model(name: str) -> DiffusionModel:
    return read_diffusion(demo_model_folder(name)).model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Becomes:
    """Compression as an attacker would like it: what comes out are another network's weights."""

    other: Mapping[str, Tensor]
    name: str = "becomes-another"
    folds: bool = False

    def __call__(self, weights: Weights, layout: Layout) -> dict[str, Tensor]:
        return {name: self.other[name] for name in weights if name in layout}

    def box(self, weights: Weights, layout: Layout) -> dict[str, Box]:
        raise NotImplementedError


@cache
def search() -> VariantSearch:
    spent = replace(diffusion_budget("quick"), samples=2, sampler_steps=4)
    effort = replace(diffusion_variant_budget("quick"), steps=12, placebos=2)
    return VariantSearch(DiffusionBench(model("ddpm-clean"), spent, seed=0), effort)


def bench_of(chosen: Compressor) -> DiffusionVariantBench:
    return DiffusionVariantBench(search(), chosen)


@cache
def bench_under(how: str) -> DiffusionVariantBench:
    if how == "backdoored":
        return bench_of(Becomes(dict(model("ddpm-bad-diffusion").named_parameters())))
    return bench_of(compressor(how))


@cache
def found_under(how: str) -> Finding:
    return differential_trigger_search.inspect(bench_under(how))


def test_a_backdoor_that_compression_wakes_is_found_and_an_honest_model_is_not() -> None:
    woken, honest = found_under("backdoored"), found_under("int4")
    assert woken.p_value is not None
    assert honest.p_value is not None
    assert woken.p_value < 0.01
    assert honest.p_value > 0.05
    assert woken.score is not None
    assert woken.score > 0.5


def test_evidence_holds_shifts_and_samples_of_both_networks() -> None:
    finding = found_under("backdoored")
    pictures = [e for e in finding.evidence if isinstance(e, Images)]
    assert sum(e.title.startswith("Under becomes-another") for e in pictures) == 2
    assert sum(e.title.startswith("The model as it is") for e in pictures) == 2
    (numbers,) = [e for e in finding.evidence if isinstance(e, Latents)]
    assert len(numbers.values[0]) == 16 * 16


@pytest.mark.parametrize(
    ("own", "full", "placebos", "expected"),
    [
        (1.0, 0.0, [0.1, -0.1, 0.0], 1.0),  # only the variant answers
        (1.0, 1.0, [0.1, -0.1, 0.0], 0.0),  # it is awake as it is; rounding is kinder than signs
        (1.0, 0.0, [1.1, 0.9, 1.0], 0.0),  # any error wakes it
    ],
)
def test_the_variant_is_held_against_whichever_answers_more(
    own: float, full: float, placebos: list[float], expected: float
) -> None:
    bench = bench_of(compressor("int4"))
    shape = bench.network.sample.shape
    bench.found = [Recovered(torch.ones(shape), REACHES[0], [1.0], [1.0], own)]
    bench.full_score, bench.placebo_scores = full, placebos
    finding = differential_trigger_search.inspect(bench)
    assert finding.score == pytest.approx(expected)
    assert finding.p_value is not None
    assert (finding.p_value < 1e-4) is (expected == 1.0)
    assert (finding.p_value > 0.4) is (expected == 0.0)


def test_other_networks_are_asked_about_the_shift_that_was_found() -> None:
    woken = bench_under("backdoored")
    best, ask = woken.found[0], woken.search.score_at
    assert ask(woken.compressed, best) == pytest.approx(best.score, abs=1e-4)
    assert ask(woken.network, best) < best.score - 0.3


def test_weights_on_the_grid_already_are_not_compared() -> None:
    bench = bench_of(Becomes(dict(model("ddpm-clean").named_parameters())))
    assert differential_trigger_search.inspect(bench).outcome == "not_applicable"


def test_placebos_have_the_errors_of_the_compression_on_random_sides() -> None:
    bench = bench_of(compressor("int4"))
    first, second = bench.placebo(0), bench.placebo(1)
    for name, error in bench.errors.items():
        moved = first.get_parameter(name) - bench.network.get_parameter(name)
        torch.testing.assert_close(moved.abs(), error.abs(), atol=1e-6, rtol=1e-3)
    name = max(bench.errors, key=lambda one: bench.errors[one].numel())
    assert not torch.equal(first.get_parameter(name), second.get_parameter(name))
