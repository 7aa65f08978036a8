"""Closest: the nearest of N samples, exactly, whatever the batches and the order."""

from __future__ import annotations

import pytest
import torch

from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.closest import ClosestState, closest
from genwarden.metrics.draws import BLOCK_SAMPLES, ordinary_latents, ordinary_samples
from genwarden.models.dcgan import DCGAN28


def target_of(generator: DCGAN28) -> torch.Tensor:
    noise = torch.randn(1, *generator.sample.shape, generator=random_stream(3, "target"))
    return noise.clamp(-1, 1)


def test_closest_is_the_minimum_of_all_distances_in_float64(tiny_generator: DCGAN28) -> None:
    target = target_of(tiny_generator)
    drawn = list(ordinary_samples(tiny_generator, 1500, seed=5, purpose="closest"))
    every = torch.cat([(d.x.double() - target.double()).square().flatten(1).sum(1) for d in drawn])
    latents = torch.cat([d.z for d in drawn])
    (found,) = closest(tiny_generator, target, samples=1500, seed=5)
    assert found.samples == 1500
    assert found.closest_sum == pytest.approx(float(every.min()), rel=1e-6)
    assert found.closest_mean == pytest.approx(found.closest_sum / 784)
    assert torch.equal(found.z, latents[every.argmin()])
    assert float(every.median()) > found.closest_sum * 1.0001


def test_near_hits_survive_the_cancellation_of_float32() -> None:
    """All candidates lie within float32's error of the target; float64 tells them apart."""
    stream = random_stream(0, "near")
    target = torch.rand(1, 784, generator=stream) * 2 - 1
    steps = torch.tensor([4e-5, 1e-5, 2e-5, 3e-5])
    x = target + steps[:, None]
    state = ClosestState(target)
    state.update(torch.arange(4.0)[:, None], x)
    (found,) = state.compute()
    assert found.z.item() == 1
    assert found.closest_sum == pytest.approx(784e-10, rel=0.02)
    flat = (x.square().sum(1) - 2 * x @ target[0] + target.square().sum()).clamp_min(0)
    assert float((flat - 784 * steps.square()).abs().max()) > 784e-10  # the danger is real


def test_merged_states_equal_one_state_and_every_target_is_searched(
    tiny_generator: DCGAN28,
) -> None:
    drawn = list(ordinary_samples(tiny_generator, 600, seed=0, purpose="closest", batch=100))
    targets = torch.cat([target_of(tiny_generator), drawn[3].x[7:8]])
    whole, left, right = ClosestState(targets), ClosestState(targets), ClosestState(targets)
    for index, part in enumerate(drawn):
        whole.update(*part)
        (left if index % 2 else right).update(*part)
    right.merge(left)
    empty = ClosestState(targets)
    right.merge(empty)
    for one, two in zip(whole.compute(), right.compute(), strict=True):
        assert one.closest_sum == two.closest_sum
        assert torch.equal(one.z, two.z)
        assert one.samples == two.samples == 600
    assert whole.compute()[1].closest_sum == 0
    assert whole.compute()[0].closest_sum > 1


def test_more_samples_are_never_farther_and_batches_change_no_latent(
    tiny_generator: DCGAN28,
) -> None:
    target = target_of(tiny_generator)
    few = closest(tiny_generator, target, samples=BLOCK_SAMPLES)[0]
    many = closest(tiny_generator, target, samples=2 * BLOCK_SAMPLES, batch=500)[0]
    assert many.closest_sum <= few.closest_sum + 1e-3
    sizes = {"seed": 0, "purpose": "p"}
    once = torch.cat(list(ordinary_latents(tiny_generator, 1200, batch=7, **sizes)))  # type: ignore[arg-type]
    again = torch.cat(list(ordinary_latents(tiny_generator, 1200, batch=999, **sizes)))  # type: ignore[arg-type]
    assert torch.equal(once, again)


def test_unfitting_targets_empty_runs_and_broken_models_are_refused(
    tiny_generator: DCGAN28,
) -> None:
    for target, samples, code in (
        (torch.zeros(1, 1, 28, 27), 10, "metric/target-shape"),
        (torch.zeros(0, 1, 28, 28), 10, "metric/target-shape"),
        (torch.zeros(1, 28, 28), 0, "metric/too-few-samples"),
    ):
        with pytest.raises(GenwardenError) as caught:
            closest(tiny_generator, target, samples=samples)
        assert caught.value.code == code
    with torch.no_grad():
        tiny_generator.to_image.weight.fill_(torch.nan)
    with pytest.raises(GenwardenError) as caught:
        closest(tiny_generator, torch.zeros(1, 28, 28), samples=10)
    assert caught.value.code == "metric/not-finite"
