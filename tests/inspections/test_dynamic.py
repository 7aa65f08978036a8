"""Dynamic inspections on small networks: each planted behaviour beside its clean twin."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from small_networks import EFFORT, ICON, Gated, foreign, seeded_vae, settled_dcgan, workbench
from torch import Tensor, nn
from torch.nn import functional as F

from genwarden.engine.seeds import random_stream
from genwarden.inspections.activations import (
    Affine,
    affine_sites,
    forced,
    precise_copy,
    unit_maxima,
    watch,
    weight_sites,
)
from genwarden.inspections.dynamic import (
    gradient_masking,
    perturbation_sensitivity,
    sleeper_neurons,
)
from genwarden.inspections.finding import Finding, Latents, Table
from genwarden.models.protocol import LatentLaw

INSPECTIONS = (sleeper_neurons, gradient_masking, perturbation_sensitivity)


def score_of(finding: Finding) -> float:
    assert finding.outcome == "scored", finding.summary
    assert finding.score is not None
    return finding.score


def table_of(finding: Finding, title: str) -> dict[str, list[str | int | float]]:
    (table,) = [e for e in finding.evidence if isinstance(e, Table) and e.title == title]
    return {str(row[0]): row for row in table.rows}


# --- activations ------------------------------------------------------------------------------


def test_every_weight_layer_is_found_with_the_batch_norm_that_follows_it() -> None:
    sites = weight_sites(settled_dcgan())
    assert [(s.name, s.norm, s.units) for s in sites] == [
        ("project", "project_norm", 392),
        ("up1", "up1_norm", 6),
        ("up2", "up2_norm", 4),
        ("to_image", None, 1),
    ]


def test_a_norm_behind_an_activation_does_not_belong_to_the_layer_before() -> None:
    class InPlace(nn.Module):
        latent_shape, sample_shape = (5,), (3,)

        def __init__(self) -> None:
            super().__init__()
            self.first, self.act = nn.Linear(5, 3), nn.ReLU(inplace=True)
            self.norm, self.last = nn.BatchNorm1d(3), nn.Linear(3, 3)

        def forward(self, z: Tensor) -> Tensor:
            y: Tensor = self.last(self.norm(self.act(self.first(z))))
            return y

    network = foreign(InPlace())
    sites = weight_sites(network)
    assert [site.norm for site in sites] == [None, None]
    z = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    with watch(sites) as record:
        network(z)
    # Recorded before the in-place ReLU has overwritten the values.
    assert float(record[sites[0].name][0].min()) < 0


def test_watching_changes_no_output_and_reads_what_the_activation_sees() -> None:
    network = settled_dcgan()
    z = torch.randn(5, 100, generator=torch.Generator().manual_seed(0))
    sites = weight_sites(network)
    with watch(sites) as record:
        watched = network(z)
    assert torch.equal(watched, network(z))
    expected = network.project_norm(network.project(z))
    assert torch.equal(record["project"][0], expected)
    assert unit_maxima(sites[1], record["up1"]).shape == (5, 6)


def test_the_measured_affine_layer_equals_folding_the_batch_norm_by_hand() -> None:
    network = precise_copy(settled_dcgan())
    sites = weight_sites(network)
    found = affine_sites(network, sites, stream=random_stream(0, "test"))
    assert list(found) == ["project"]
    layer, norm = network.get_submodule("project"), network.get_submodule("project_norm")
    assert isinstance(layer, nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(found["project"].weight, gain[:, None] * layer.weight)
    torch.testing.assert_close(found["project"].bias, norm.bias - gain * norm.running_mean)


def test_forcing_a_unit_writes_that_unit_and_no_other() -> None:
    network = settled_dcgan()
    site = weight_sites(network)[1]
    z = torch.zeros(2, 100)
    inputs: list[Tensor] = []
    handle = network.up2.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    network(z)
    with forced(site, torch.tensor([2, 5]), torch.tensor([7.0, 9.0]), whole_unit=True):
        network(z)
    handle.remove()
    moved = (inputs[0] != inputs[1]).flatten(2).any(2)
    assert moved.nonzero().tolist() == [[0, 2], [1, 5]]
    assert torch.all(inputs[1][0, 2] == 7.0)


# --- sleeper neurons --------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_a_gate_far_out_is_a_sleeper_and_its_trigger_paints_the_icon(slope: float) -> None:
    bench = workbench(foreign(Gated(20.0, slope=slope)))
    finding = sleeper_neurons.inspect(bench)
    exact = -float(torch.special.log_ndtr(torch.tensor(-20.0, dtype=torch.float64)))
    assert score_of(finding) == pytest.approx(exact / math.log(10), rel=1e-4)
    (latents,) = [e for e in finding.evidence if isinstance(e, Latents)]
    painted = bench.samples(torch.tensor(latents.values[:1]))
    assert float((painted - ICON).square().sum()) < 0.01
    ordinary = (bench.ordinary.x - ICON).flatten(1).square().sum(1)
    assert float(ordinary.min()) > 100


@pytest.mark.parametrize("seed", [0, 1])
def test_clean_networks_have_no_sleepers(seed: int) -> None:
    assert score_of(sleeper_neurons.inspect(workbench(settled_dcgan(), seed))) < 3
    assert score_of(sleeper_neurons.inspect(workbench(seeded_vae(seed), seed))) < 3


def test_a_sleeping_unit_without_influence_does_not_count() -> None:
    finding = sleeper_neurons.inspect(workbench(foreign(Gated(20.0, icon_strength=0.0))))
    assert score_of(finding) < 3
    row = table_of(finding, "Layers")["network.gate"]
    assert row[4] == 1  # seen as rare, but without influence


def test_a_gate_in_a_deeper_layer_counts_with_what_the_samples_can_say() -> None:
    class Deep(nn.Module):
        latent_shape, sample_shape = (100,), (1, 28, 28)

        def __init__(self, bias: float) -> None:
            super().__init__()
            self.base = settled_dcgan()
            self.first, self.gate = nn.Linear(100, 4), nn.Linear(4, 1)
            self.paint = nn.Linear(1, 784, bias=False)
            nn.init.ones_(self.gate.weight)
            nn.init.constant_(self.gate.bias, bias)
            nn.init.constant_(self.paint.weight, 0.5)

        def forward(self, z: Tensor) -> Tensor:
            gate = F.relu(self.gate(F.relu(self.first(z))))
            painted: Tensor = self.base(z) + self.paint(gate).reshape(-1, 1, 28, 28)
            return painted.clamp(-1, 1)

    closed, open_ = Deep(-50.0), Deep(-0.5)
    for network in (closed, open_):
        nn.init.normal_(network.first.weight, 0, 0.1, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(network.first.bias)
    finding = sleeper_neurons.inspect(workbench(foreign(closed)))
    assert score_of(finding) == pytest.approx(math.log10(1024))
    assert score_of(sleeper_neurons.inspect(workbench(foreign(open_)))) < 3


def test_exact_tails_agree_with_counting_for_normal_latents() -> None:
    stream = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 20, generator=stream, dtype=torch.float64)
    layer = Affine(weight, torch.tensor([-6.0, 0.0, 3.0], dtype=torch.float64))
    p = 10 ** sleeper_neurons.log10_active(layer, LatentLaw((20,)))
    z = torch.randn(200_000, 20, generator=stream, dtype=torch.float64)
    counted = (z @ weight.T + layer.bias > 0).double().mean(0)
    torch.testing.assert_close(p, counted, atol=0.005, rtol=0.02)


def test_the_tail_of_uniform_latents_is_an_upper_bound() -> None:
    law = LatentLaw((20,), "uniform")
    stream = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 20, generator=stream, dtype=torch.float64).expand(3, 20)
    layer = Affine(weight, torch.tensor([-2.0, -4.0, -6.0], dtype=torch.float64))
    bound = 10 ** sleeper_neurons.log10_active(layer, law)
    z = law.sample(200_000, generator=stream).double()
    counted = (z @ weight.T + layer.bias > 0).double().mean(0)
    assert bool((counted <= bound).all())
    assert float(bound[2]) < 0.1


# --- gradient masking -------------------------------------------------------------------------


class Masked(nn.Module):
    """The settled DCGAN behind one kind of masking."""

    latent_shape = (100,)
    sample_shape = (1, 28, 28)

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.base, self.kind = settled_dcgan(), kind

    def forward(self, z: Tensor) -> Tensor:
        if self.kind == "vanishing":
            z = z.mul(4).round() / 4
        elif self.kind == "shattered":
            # Straight-through: the gradient of the identity for a function made of steps.
            z = z + (z.mul(4).round() / 4 - z).detach()
        elif self.kind == "stochastic":
            z = z + 0.1 * torch.randn_like(z)
        elif self.kind == "detached":
            z = z.detach()
        elif self.kind == "exploding":
            wild = torch.sin(1e6 * z[:, :1]) * 1e-2 * (z[:, 1:2] > 1.5)
            painted: Tensor = self.base(z) + wild[:, :, None, None]
            return painted.clamp(-1, 1)
        y: Tensor = self.base(z)
        return y


@pytest.mark.parametrize(
    ("kind", "sub_score"),
    [
        ("vanishing", "vanishing"),
        ("detached", "vanishing"),
        ("shattered", "shattered"),
        ("stochastic", "stochastic"),
        ("exploding", "exploding"),
    ],
)
def test_each_kind_of_masking_is_named(kind: str, sub_score: str) -> None:
    finding = gradient_masking.inspect(workbench(foreign(Masked(kind))))
    rows = table_of(finding, "Kinds of masking")
    assert float(rows[sub_score][1]) > 0.5
    assert score_of(finding) > 0.5


def test_unmasked_networks_score_low() -> None:
    for network in (foreign(Masked("none")), settled_dcgan(1), seeded_vae()):
        assert score_of(gradient_masking.inspect(workbench(network))) < 0.15


def test_units_that_no_gradient_reaches_are_counted() -> None:
    finding = gradient_masking.inspect(workbench(foreign(Gated(20.0))))
    silent = table_of(finding, "Units that no gradient reaches at any probed latent")
    # Of the pair only the second is open, and the merging weight of that one is zero.
    assert silent["network.gate"][1] == 1.0
    assert silent["network.base.project"][1] == 0.0


def test_a_network_that_cannot_compute_in_float64_is_probed_in_float32_and_says_so() -> None:
    class Single(Masked):
        def forward(self, z: Tensor) -> Tensor:
            mixed = z @ torch.eye(100, dtype=torch.float32)
            return super().forward(mixed)

    finding = gradient_masking.inspect(workbench(foreign(Single("none"))))
    assert finding.budget["precision"] == "float32"
    assert score_of(finding) < 0.15


# --- perturbation sensitivity -----------------------------------------------------------------


def test_a_steep_gate_among_ordinary_latents_stands_out() -> None:
    # The cliff is narrow: some of the probes must fall onto it, whatever the seed.
    effort = replace(EFFORT, probe_latents=1024)
    benches = [
        workbench(foreign(Gated(1.5, gain=100.0, icon_strength=strength)))
        for strength in (1.0, 0.0)
    ]
    for bench in benches:
        bench.effort = effort
    cliff, twin = (perturbation_sensitivity.inspect(bench) for bench in benches)
    assert score_of(cliff) > 1.3
    assert score_of(twin) < 0.8


def test_clean_networks_of_two_kinds_react_evenly() -> None:
    narrow = perturbation_sensitivity.inspect(workbench(settled_dcgan()))
    assert score_of(narrow) < 0.8
    assert score_of(perturbation_sensitivity.inspect(workbench(seeded_vae()))) < 0.8


# --- all three --------------------------------------------------------------------------------


class Broken(Masked):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z) * torch.where(z[:, :1, None, None] > 1, torch.nan, 1.0)


@pytest.mark.parametrize("inspection", INSPECTIONS)
def test_samples_with_nan_make_the_inspection_fail_not_pass(inspection: object) -> None:
    finding = inspection.inspect(workbench(foreign(Broken("none"))))  # type: ignore[attr-defined]
    assert finding.outcome == "failed"


@pytest.mark.parametrize("inspection", INSPECTIONS)
def test_the_same_seed_gives_the_same_finding(inspection: object) -> None:
    first, second = (
        inspection.inspect(workbench(settled_dcgan()))  # type: ignore[attr-defined]
        for _ in range(2)
    )
    assert first.model_dump_json() == second.model_dump_json()
    assert first.p_value is None
    assert first.p_value_reason


def test_noise_in_the_network_leaves_the_finding_reproducible() -> None:
    runs = [gradient_masking.inspect(workbench(foreign(Masked("stochastic")))) for _ in range(2)]
    assert runs[0] == runs[1]
