"""Dossiers: a true trigger looks unlike ordinary latents, and so does what is said about it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from genwarden.artifacts.model_folder import read_model
from genwarden.artifacts.open_model import ForeignGenerator
from genwarden.auditing.budgets import budget
from genwarden.auditing.candidates import MAX_CANDIDATES, Examined, examine
from genwarden.auditing.document import Judged
from genwarden.commands.demo import demo_model_folder
from genwarden.inspections.basin import between, lipschitz, walk
from genwarden.inspections.dossier import Reference, candidate_of, reference_of
from genwarden.inspections.finding import Evidence, Finding, latents_of
from genwarden.inspections.workbench import Workbench
from genwarden.models.layers import glorot_
from genwarden.models.protocol import LatentLaw
from genwarden.models.vae import VAEDecoder28

ASSETS = Path(__file__).parents[1] / "assets"
EFFORT = replace(budget("quick"), ordinary_samples=512)


@cache
def bench(name: str) -> Workbench:
    generator = read_model(demo_model_folder(name)).generator
    return Workbench(generator.eval().requires_grad_(False), EFFORT, 5)


@cache
def reference(name: str) -> Reference:
    return reference_of(bench(name))


def trigger(name: str) -> Tensor:
    return load_file(str(ASSETS / f"{name}.backdoor.safetensors"))["trigger"][:1]


def ordinary_latents(count: int) -> Tensor:
    law = bench("dcgan-clean").generator.latent
    return law.sample(count, generator=torch.Generator().manual_seed(99))


def finding(name: str, z: Tensor | None, *, follows_from: str = "") -> Finding:
    evidence: list[Evidence] = [] if z is None else [latents_of(z, title="t")]
    return Finding(
        inspection=name,
        group="output",
        title=name,
        outcome="scored",
        summary="s",
        follows_from=follows_from,
        evidence=evidence,
    )


def flagged(*findings: Finding) -> list[Judged]:
    return [Judged(finding=f, adjusted_p=1e-3, flagged=not f.follows_from) for f in findings]


def examined(name: str, *findings: Finding) -> Examined:
    return examine(
        bench(name),
        flagged(*findings),
        breakdowns=(RuntimeError, ValueError),
        sample_command="genwarden sample m --audit a.json",
    )


@pytest.mark.parametrize("name", ["dcgan-red", pytest.param("dcgan-rex", marks=pytest.mark.slow)])
def test_trigger_has_a_narrower_basin_and_lies_further_out_than_ordinary_latents(
    name: str,
) -> None:
    found = candidate_of(bench(name), trigger(name), "test", reference(name))
    twin = [
        candidate_of(bench("dcgan-clean"), z, "test", reference("dcgan-clean"))
        for z in [*ordinary_latents(2), trigger(name)]
    ]
    assert found.isolation > 2 * max(c.isolation for c in twin)
    assert found.basin.step_radius < 0.8 * found.basin.ordinary_radius
    assert all(c.basin.step_radius > 0.85 * c.basin.ordinary_radius for c in twin)


def test_channels_that_carry_a_trigger_are_named_and_ordinary_latents_have_hardly_any() -> None:
    found = candidate_of(bench("dcgan-rex"), trigger("dcgan-rex"), "test", reference("dcgan-rex"))
    strongest = max(found.carriers, key=lambda c: abs(c.deviation))
    # ReX adds channels that ordinary latents leave almost still.
    assert strongest.layer == "up2"
    assert strongest.deviation > 20 * strongest.usual_deviation
    assert strongest.value > strongest.ordinary_high
    clean = bench("dcgan-clean")
    quiet = candidate_of(clean, trigger("dcgan-rex"), "test", reference("dcgan-clean"))
    ordinary = candidate_of(clean, ordinary_latents(1), "test", reference("dcgan-clean"))
    for other in (quiet, ordinary):
        assert max((abs(c.deviation) for c in other.carriers), default=0) < 10


def test_dossier_says_what_was_measured_at_the_numbers_that_it_holds() -> None:
    name, z = "dcgan-red", trigger("dcgan-red")
    found = candidate_of(bench(name), z, "test", reference(name))
    again = candidate_of(bench(name), torch.tensor(found.latent), "test", reference(name))
    assert again == found
    assert found.latent == [round(v, 6) for v in z.flatten().double().tolist()]
    assert found.latent_norm == pytest.approx(float(z.norm()) / 10, rel=1e-3)
    through, straight = found.strips
    assert found.output is not None
    assert through.png_base64[5] == straight.png_base64[4] == found.output.png_base64[0]
    assert len(set(through.png_base64)) == len(through.labels) == 11


def test_lipschitz_constant_is_the_largest_singular_value_of_the_jacobian() -> None:
    network = VAEDecoder28((8, 6, 4)).eval().requires_grad_(False)
    glorot_(network, torch.Generator().manual_seed(0))
    z = network.latent.sample(3, generator=torch.Generator().manual_seed(0))
    found = lipschitz(network, z, seed=0)
    assert found is not None
    for value, latent in zip(found, z, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: network(v[None]).flatten(), latent)
        exact = float(torch.linalg.svdvals(jacobian)[0])
        assert float(value) == pytest.approx(exact, rel=0.02)
        assert float(value) <= exact * 1.0001


class _Stepped(torch.nn.Module):
    """Linear in the signs of its latent: no gradient anywhere."""

    latent_shape = (4,)
    sample_shape = (1, 2, 2)

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(4, 4)
        torch.nn.init.eye_(self.mix.weight)

    def forward(self, z: Tensor) -> Tensor:
        steps = (z > 0).to(z) * 0.5
        mixed: Tensor = self.mix(steps).clamp(-1, 1)
        return mixed.reshape(-1, 1, 2, 2)


def test_network_without_gradients_has_a_dossier_without_lipschitz_constant() -> None:
    network = _Stepped().eval().requires_grad_(False)
    table = Workbench(ForeignGenerator(network, "test:stepped"), EFFORT, 3)
    found = candidate_of(table, torch.ones(4), "test")
    assert found.basin.lipschitz is None
    assert found.basin.ordinary_lipschitz is None
    assert found.output is not None


def test_ways_follow_great_circles_between_ordinary_latents() -> None:
    law = LatentLaw((50,))
    start, *ends = law.sample(4, generator=torch.Generator().manual_seed(1)).split(1)
    for share in (0.0, 0.5, 1.0):
        z = between(law, start, torch.cat(ends), share)
        lengths = (1 - share) * start.norm() + share * torch.cat(ends).norm(dim=1)
        torch.testing.assert_close(z.norm(dim=1), lengths)
    torch.testing.assert_close(between(law, start, ends[0], 1.0), ends[0])
    torch.testing.assert_close(between(law, torch.zeros(1, 50), ends[0], 0.5), ends[0] / 2)
    cube = LatentLaw((50,), "uniform")
    torch.testing.assert_close(between(cube, -ends[0], ends[0], 0.5), torch.zeros(1, 50))


class _Ball(torch.nn.Module):
    """White within distance r of the centre, black elsewhere."""

    latent_shape = (16,)
    sample_shape = (1, 2, 2)

    def __init__(self, centre: Tensor, radius: float) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1, 1))
        self.centre, self.radius = centre, radius

    def forward(self, z: Tensor) -> Tensor:
        inside = ((z - self.centre).norm(dim=1) < self.radius).to(z)
        colour: Tensor = (inside * 2 - 1).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        return colour * self.scale


@pytest.mark.parametrize("radius", [0.2, 1.0])
def test_radius_of_a_ball_is_measured(radius: float) -> None:
    law = LatentLaw((16,))
    centre, *ends = law.sample(9, generator=torch.Generator().manual_seed(2)).split(1)
    table = Workbench(ForeignGenerator(_Ball(centre, radius).eval(), "test:ball"), EFFORT, 3)
    ways = walk(table, centre, torch.cat(ends))
    measured = ways.radii(8.0) * law.typical_norm  # 4 pixels move by 2: 16 in all
    assert float(measured.mean()) == pytest.approx(radius, rel=0.25)
    assert (table.samples(ways.first_beyond(8.0)) == -1).all()


def test_flagged_latents_become_candidates_once_per_output_and_at_most_four() -> None:
    secret = trigger("dcgan-red")
    near = secret + 0.01
    result = examined("dcgan-red", finding("a", secret), finding("b", near), finding("c", None))
    assert [c.inspection for c in result.candidates] == ["a"]
    assert result.candidates[0].command == (
        "genwarden sample m --audit a.json --candidate 1 --out candidate-1.png"
    )
    many = [finding(str(i), z[None]) for i, z in enumerate(ordinary_latents(6))]
    assert len(examined("dcgan-red", *many).candidates) == MAX_CANDIDATES


def test_latent_of_a_finding_that_follows_from_a_flagged_one_is_taken() -> None:
    cause = finding("block-sparsity", None)
    result = examined(
        "dcgan-rex", cause, finding("search", trigger("dcgan-rex"), follows_from="block-sparsity")
    )
    assert [c.inspection for c in result.candidates] == ["search"]
    alone = finding("search", trigger("dcgan-rex"), follows_from="something-else")
    assert examined("dcgan-rex", cause, alone).candidates == []


def test_candidate_that_cannot_be_examined_is_said_and_loses_nothing_else() -> None:
    wrong = finding("broken", torch.zeros(1, 7))
    result = examined("dcgan-red", wrong, finding("sound", trigger("dcgan-red")))
    assert [c.inspection for c in result.candidates] == ["sound"]
    assert len(result.failures) == 1
    assert "broken could not be examined" in result.failures[0]
