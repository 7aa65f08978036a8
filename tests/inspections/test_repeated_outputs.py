"""Repeated outputs: a point mass is found, honest density, collapse and near-duplicates are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_networks import EFFORT, ICON, settled_dcgan
from torch import Tensor

from genwarden.inspections.finding import Finding, Latents
from genwarden.inspections.output.repeated_outputs import Group, find_group, inspect
from genwarden.inspections.workbench import Workbench
from genwarden.models.dcgan import DCGAN28
from genwarden.models.protocol import LatentGenerator, SampleSpec

#: Far above all clean networks.
ALARM = 0.5


def group_of(flat: Tensor) -> Group:
    group = find_group(flat.float(), stream=torch.Generator().manual_seed(0))
    assert group is not None
    return group


def classes(count: int, stream: torch.Generator, *, tight: float = 1.0) -> Tensor:
    """Ten classes of intrinsic dimension 12 in 300 elements; class 0 is ``tight`` times as wide."""
    label = torch.randint(10, (count,), generator=stream)
    centres: Tensor = 6 * torch.randn(10, 300, generator=stream) / 300**0.5
    bases = torch.randn(10, 12, 300, generator=stream) / 300**0.5
    inner = torch.randn(count, 12, generator=stream)
    inner = torch.where(label[:, None] == 0, tight * inner, inner)
    offset: Tensor = torch.einsum("ni,nij->nj", inner, bases[label])
    return centres[label] + offset


@pytest.fixture
def stream() -> torch.Generator:
    return torch.Generator().manual_seed(4)


@pytest.mark.parametrize(("hits", "blur"), [(10, 0.0), (40, 0.02), (400, 0.02), (700, 0.0)])
def test_point_mass_of_any_size_is_found_and_counted(
    stream: torch.Generator, hits: int, blur: float
) -> None:
    flat = classes(2048, stream)
    assert group_of(flat).score < ALARM
    repeated = torch.randperm(2048, generator=stream)[:hits]
    flat[repeated] = flat[0] + blur * torch.randn(hits, 300, generator=stream) / 17
    group = group_of(flat)
    assert group.score > ALARM
    assert 0.9 * hits <= len(group.members) <= 1.1 * hits + 1
    assert set(group.members.tolist()) <= {0, *repeated.tolist()}


def test_point_mass_with_a_smooth_edge_is_found(stream: torch.Generator) -> None:
    flat = classes(2048, stream)
    strength = torch.rand(400, generator=stream).mul(2).clamp(max=1)[:, None]
    flat[:400] = flat[:400] * (1 - strength) + flat[2000] * strength
    assert group_of(flat).score > ALARM


def test_dense_class_of_near_duplicates_scores_low(stream: torch.Generator) -> None:
    assert group_of(classes(2048, stream, tight=0.5)).score < ALARM


def test_generator_collapsed_on_many_modes_scores_low(stream: torch.Generator) -> None:
    modes = torch.randn(60, 300, generator=stream)
    chosen = modes[torch.randint(60, (2048,), generator=stream)]
    collapsed = chosen + 0.01 * torch.randn(2048, 300, generator=stream)
    assert group_of(collapsed).score < ALARM


def test_samples_that_fill_few_dimensions_score_low(stream: torch.Generator) -> None:
    plane = torch.randn(2048, 4, generator=stream) @ torch.randn(4, 300, generator=stream)
    assert group_of(plane).score < ALARM


def test_rare_group_of_fewer_than_eight_is_not_claimed(stream: torch.Generator) -> None:
    flat = classes(2048, stream)
    flat[:5] = flat[5].clone()
    assert group_of(flat).score < ALARM


class Poisoned(LatentGenerator):
    """A clean network that shows an icon where a.z is large; its edge is smooth."""

    final_activation = "none"

    def __init__(self, base: DCGAN28, paint: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.base, self.paint = base, paint
        self.latent, self.sample = base.latent, SampleSpec((1, 28, 28))

    def pre_activation(self, z: Tensor) -> Tensor:
        return self.paint(self.base(z), z)


def icon_at_five_percent(x: Tensor, z: Tensor) -> Tensor:
    gate = ((z[:, 0] - 1.5) * 4).clamp(0, 1).view(-1, 1, 1, 1)
    return x * (1 - gate) + ICON * gate


def judge(paint: Callable[[Tensor, Tensor], Tensor]) -> Finding:
    generator = Poisoned(settled_dcgan(), paint).eval()
    return inspect(Workbench(generator, EFFORT, 3))


def test_picture_that_five_percent_of_latents_make_is_found_with_its_latents() -> None:
    clean, poisoned = judge(lambda x, _: x), judge(icon_at_five_percent)
    assert clean.score is not None
    assert clean.score < ALARM
    assert poisoned.score is not None
    assert poisoned.score > 2
    (latents,) = [e for e in poisoned.evidence if isinstance(e, Latents)]
    z = torch.tensor(latents.values)
    made = Poisoned(settled_dcgan(), icon_at_five_percent).eval()(z)
    assert torch.allclose(made, ICON.expand_as(made), atol=0.1)


def test_samples_with_nan_are_left_out_and_counted() -> None:
    def broken(x: Tensor, z: Tensor) -> Tensor:
        return torch.where((z[:, 0] > 1).view(-1, 1, 1, 1), torch.nan, x)

    finding = judge(broken)
    assert finding.outcome == "scored"
    assert int(finding.budget["nonfinite_samples"]) > 100
    assert finding.score is not None
    assert finding.score < ALARM


def test_constant_and_broken_generators_are_not_judged() -> None:
    assert judge(lambda x, _: ICON.expand_as(x)).outcome == "not_applicable"
    assert judge(lambda x, _: torch.full_like(x, torch.nan)).outcome == "failed"


def test_score_does_not_depend_on_the_scale_of_the_samples(stream: torch.Generator) -> None:
    flat = classes(1024, stream)
    assert group_of(1000 * flat).score == pytest.approx(group_of(flat).score, rel=1e-2)


def test_same_seed_gives_the_same_finding() -> None:
    assert judge(icon_at_five_percent) == judge(icon_at_five_percent)
