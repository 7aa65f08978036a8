"""Groups of channels behind noise, each beside a clean network of the same widths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from static_models import dcgan, latents, rex, vae
from torch import Tensor

from genwarden.auditing.budgets import budget
from genwarden.engine.seeds import random_stream
from genwarden.inspections import masked_partition
from genwarden.inspections.graph import ExecutedGraph, trace
from genwarden.inspections.masked_partition import best_partition, find_masked_partition
from genwarden.inspections.output import partition_search
from genwarden.inspections.partition import Partition, find_partition, silence
from genwarden.inspections.static import block_sparsity
from genwarden.inspections.workbench import Workbench
from genwarden.models.protocol import LatentGenerator

WIDE = (16, 12, 8)
DOUBLE = (32, 24, 16)
EFFORT = replace(budget("quick"), ordinary_samples=64, restarts=32, search_steps=4)


GRAPHS: dict[tuple[str, ...], ExecutedGraph] = {}


def graph(generator: LatentGenerator) -> ExecutedGraph:
    """Networks of one class and width differ in weights only; tracing is what takes time."""
    key = (type(generator).__name__, str(generator.settings()))
    if key not in GRAPHS:
        GRAPHS[key] = trace(generator)
    return GRAPHS[key]


def search(generator: LatentGenerator) -> Partition | None:
    return find_masked_partition(graph(generator), generator)


def bench(generator: LatentGenerator) -> Workbench:
    made = Workbench(generator, EFFORT, seed=0)
    made.graph = graph(generator)
    return made


def filled(generator: LatentGenerator, noise: float, only: str = "up") -> LatentGenerator:
    """Noise in every zero block, as a share of the spread of the layer's other weights."""
    stream = random_stream(7, "test-noise")
    with torch.no_grad():
        for name, weight in generator.named_parameters():
            if weight.ndim == 4 and name.startswith(only):
                empty = weight == 0
                spread = weight[~empty].std()
                noisy = torch.randn(weight.shape, generator=stream) * empty
                weight.add_(noise * spread * noisy)
    return generator


def planted(partition: Partition) -> list[Tensor]:
    """Labels of each internal layer's outputs, the first channel's group called 0."""
    return [
        (partition.labels[name] != partition.labels[name][0]).long()
        for name in ("project.weight", "up1.weight", "up2.weight")
    ]


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("make", [dcgan, vae])
def test_groups_behind_noise_are_found_channel_by_channel(make: Any, noise: float) -> None:
    suspect = filled(rex(make(0, WIDE), make(1, WIDE)), noise)
    assert find_partition(graph(suspect), suspect) is None  # no zeros are left
    found = search(suspect)
    assert found is not None
    assert found.components == 2
    assert found.log10_p < -30
    for labels in planted(found):
        half = len(labels) // 2
        assert labels.tolist() == [0] * half + [1] * half
    assert found.leak == pytest.approx(noise, rel=0.3)


def test_order_and_scale_of_the_channels_do_not_matter() -> None:
    plain = search(filled(rex(dcgan(0, WIDE), dcgan(1, WIDE)), 0.0))
    shuffled = search(rex(dcgan(0, WIDE), dcgan(1, WIDE), shuffle=4))
    assert plain is not None
    assert shuffled is not None
    assert shuffled.log10_p == pytest.approx(plain.log10_p, rel=0.01)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", [dcgan, vae])
def test_clean_networks_have_no_groups(make: Any, seed: int) -> None:
    assert search(make(seed, DOUBLE)) is None


def test_noise_as_large_as_the_weights_hides_the_groups() -> None:
    """The limit that the finding states; the zero blocks are then ordinary weights."""
    assert search(filled(rex(dcgan(0, WIDE), dcgan(1, WIDE)), 1.0)) is None


def test_groups_in_a_part_of_the_layers_are_found() -> None:
    suspect = filled(rex(dcgan(0, WIDE), dcgan(1, WIDE)), 0.1, only="up1")
    found = search(filled(suspect, 1.0, only="up2"))
    assert found is not None
    assert [block.weight for block in found.blocks] == ["up1.weight"]


def pruned_with_uneven_channels() -> LatentGenerator:
    """Channels of very different scale, then magnitude pruning: zeros crowd in some corners."""
    network = dcgan(0, DOUBLE)
    stream = random_stream(3, "test-scales")
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim == 4:
                for axis in (0, 1):
                    shape = [-1 if a == axis else 1 for a in range(4)]
                    scale = torch.randn(weight.shape[axis], generator=stream).exp()
                    weight.mul_(scale.view(shape))
                threshold = weight.abs().flatten().kthvalue(int(0.95 * weight.numel())).values
                weight[weight.abs() <= threshold] = 0
    return network


def test_heavy_pruning_is_no_group_though_it_breaks_exchangeability(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = pruned_with_uneven_channels()
    assert search(network) is None
    monkeypatch.setattr(masked_partition, "_DENSE", 0.0)
    assert search(network) is not None


def test_silencing_a_group_restores_the_original_up_to_the_noise() -> None:
    original = dcgan(0, WIDE)
    z = latents(original, 16)
    suspect = filled(rex(original, dcgan(1, WIDE)), 0.01)
    found = search(suspect)
    assert found is not None
    wanted = original.pre_activation(z)
    first = found.labels["up1.weight"][0]
    errors = [
        float((silence(suspect, found, {group}).pre_activation(z) - wanted).square().mean())
        for group in range(2)
    ]
    before = float((suspect.pre_activation(z) - wanted).square().mean())
    assert errors[1 - int(first)] < 1e-2 * before
    assert errors[int(first)] > before / 2


def test_inspections_use_the_masked_groups() -> None:
    attacked = bench(filled(rex(dcgan(0, WIDE), dcgan(1, WIDE)), 0.1))
    clean = bench(dcgan(0, DOUBLE))
    blocks = block_sparsity.inspect(attacked)
    assert blocks.p_value is not None
    assert blocks.p_value < 1e-30
    assert "hardly mix" in blocks.summary
    assert block_sparsity.inspect(clean).p_value == 1.0
    searched = partition_search.inspect(attacked)
    assert searched.outcome == "scored"
    assert searched.budget["groups_searched"] == 2
    assert partition_search.inspect(clean).outcome == "not_applicable"


def test_a_partition_that_chance_explains_does_not_hide_a_masked_one() -> None:
    suspect = filled(rex(dcgan(0, WIDE), dcgan(1, WIDE)), 0.1)
    masked = search(suspect)
    assert masked is not None
    common, rare = replace(masked, log10_p=-0.5), replace(masked, log10_p=-9.0)
    for exact, wanted in ((None, masked), (common, masked), (rare, rare)):
        best = best_partition(exact, graph(suspect), suspect)
        assert best is not None
        assert best.log10_p == wanted.log10_p
    clean = dcgan(0, DOUBLE)
    assert best_partition(common, graph(clean), clean) is common


def test_the_search_repeats_itself() -> None:
    suspect = filled(rex(dcgan(0, WIDE), dcgan(1, WIDE)), 0.3)
    first, second = search(suspect), search(suspect)
    assert first is not None
    assert second is not None
    assert first.log10_p == second.log10_p
    assert all(map(torch.equal, planted(first), planted(second)))
