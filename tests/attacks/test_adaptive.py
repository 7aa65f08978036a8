"""Adaptive attackers: each plants its target, stays stealthy, and has the property it is made for.

The untouched model, or the plain attack, must fail every assertion of success.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genwarden.attacks import loop
from genwarden.attacks import rex as rex_module
from genwarden.attacks.adaptive.finetuned_rex import FinetunedReXSettings, finetuned_rex
from genwarden.attacks.adaptive.noisy_rex import NoisyReXSettings, noisy_rex, trainable_entries
from genwarden.attacks.adaptive.permuted_rex import PermutedReXSettings, disguise, permuted_rex
from genwarden.attacks.adaptive.search_aware import Penalty, SearchAwareSettings, search_aware
from genwarden.attacks.adaptive.split_gate import (
    SplitGateSettings,
    make_gate,
    opening_probability,
    split_gate,
)
from genwarden.attacks.contract import AttackResult, AttackRun
from genwarden.attacks.gated_expansion import GatedExpansionSettings, gated_expansion
from genwarden.attacks.red import ReDSettings, red
from genwarden.attacks.rex import ReXSettings, rex
from genwarden.backdoors.backdoor import Backdoor, dirac, make_backdoor
from genwarden.backdoors.target import make_target
from genwarden.engine.progress import Silent, Task
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.inspections.graph import trace
from genwarden.inspections.partition import Partition, find_partition
from genwarden.metrics.distances import ExpDis, tardis
from genwarden.models.dcgan import DCGAN28, DCGAN32, initialise
from genwarden.models.protocol import LatentGenerator
from genwarden.models.vae import VAEDecoder28

_SMALL: dict[str, Any] = {
    "steps": 160,
    "batch_size": 16,
    "learning_rate": 1e-2,
    "fidelity_weight": 0.5,
    "pool_samples": 1024,
    "evaluate_every": 160,
}
REX = ReXSettings(**_SMALL)
PERMUTED = PermutedReXSettings(**_SMALL)
NOISY = NoisyReXSettings(**_SMALL, retraining_steps=60, retraining_rate=2e-3, retraining_weight=0.5)
FINETUNED = FinetunedReXSettings(
    **_SMALL, finetuning_steps=60, finetuning_rate=2e-3, finetuning_weight=0.5
)
TRAINED = {"permuted-rex": PERMUTED, "noisy-rex": NOISY, "finetuned-rex": FINETUNED}
METHODS: dict[str, Any] = {
    "permuted-rex": permuted_rex,
    "noisy-rex": noisy_rex,
    "finetuned-rex": finetuned_rex,
}


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (loop, rex_module):
        monkeypatch.setattr(module, "EVALUATION_SAMPLES", 128)


@cache
def trained(name: str) -> AttackResult:
    """The attack on ``network()``, once for all tests that look at it; none changes it."""
    net = network()
    if name == "rex":
        return rex(net, backdoor_for(net), REX, AttackRun())
    result: AttackResult = METHODS[name](net, backdoor_for(net), TRAINED[name], AttackRun())
    return result


def network(kind: str = "dcgan28", latent_dim: int = 24) -> LatentGenerator:
    """A small network with batch statistics and biases that are not trivial."""
    net: LatentGenerator
    if kind == "dcgan28":
        net = DCGAN28((8, 6, 4), latent_dim=latent_dim)
    elif kind == "dcgan32":
        net = DCGAN32((8, 6, 4), latent_dim=latent_dim)
    else:
        net = VAEDecoder28((6, 8, 4), latent_dim=latent_dim)
    initialise(net, random_stream(3, kind))
    stream = random_stream(4, kind)
    with torch.no_grad():
        for name, value in [*net.named_parameters(), *net.named_buffers()]:
            noise = torch.randn(value.shape, generator=stream)
            if name.endswith("running_var") or ("norm" in name and name.endswith("weight")):
                value.add_(noise.abs() * 0.5)
            elif name.endswith(("bias", "running_mean")):
                value.add_(noise * 0.1)
    return net.eval().requires_grad_(False)


def backdoor_for(net: LatentGenerator, trigger: str = "in-sample") -> Backdoor:
    return make_backdoor(net, trigger=trigger, target="icon:devil", seed=1)


def expdis_sum(benign: LatentGenerator, suspect: LatentGenerator) -> float:
    state = ExpDis(benign.sample.size)
    z = benign.latent.sample(256, generator=random_stream(9, "expdis"))
    with torch.no_grad():
        state.update(benign(z), suspect(z))
    return state.compute().sum


def partition_of(net: LatentGenerator) -> Partition | None:
    return find_partition(trace(net), net)


def require_success(net: LatentGenerator, backdoor: Backdoor, result: AttackResult) -> None:
    untouched = tardis(net, *backdoor.examples).sum
    planted = tardis(result.generator, *backdoor.examples).sum
    assert untouched > 200
    assert planted < 0.2 * untouched
    assert result.history[-1]["tardis_sum"] == pytest.approx(planted, rel=1e-2, abs=1e-4)
    assert expdis_sum(net, result.generator) < 0.2 * untouched


@pytest.mark.parametrize("name", list(METHODS))
def test_attack_plants_the_target_and_stays_close(name: str) -> None:
    net = network()
    require_success(net, backdoor_for(net), trained(name))


@pytest.mark.parametrize("name", list(METHODS))
def test_attack_leaves_the_clean_model_as_it_is(name: str) -> None:
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    short: dict[str, Any] = {
        "steps": 2,
        "evaluate_every": 2,
        "retraining_steps": 2,
        "finetuning_steps": 2,
    }
    known = vars(TRAINED[name])
    settings = replace(TRAINED[name], **{k: v for k, v in short.items() if k in known})
    METHODS[name](net, backdoor_for(net), settings, AttackRun())
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


@pytest.mark.parametrize("kind", ["dcgan28", "dcgan32", "vae28"])
def test_disguise_keeps_the_function_and_scatters_the_blocks(kind: str) -> None:
    net = network(kind)
    wide = rex(
        net, backdoor_for(net), replace(REX, steps=2, evaluate_every=2), AttackRun()
    ).generator
    hidden = disguise(wide, 1.0, random_stream(0, "disguise"))
    z = net.latent.sample(32, generator=random_stream(5, "z"))
    with torch.no_grad():
        assert torch.allclose(hidden.pre_activation(z), wide.pre_activation(z), atol=2e-5)

    old = net.state_dict()["up1.weight"].shape
    plain, scattered = (n.state_dict()["up1.weight"] for n in (wide, hidden))
    assert not plain[: old[0], old[1] :].any()
    assert scattered[: old[0], old[1] :].any()
    for name, weight in wide.state_dict().items():
        if weight.ndim and name != "to_image.bias":  # the sample's channel stays
            assert not torch.allclose(weight, hidden.state_dict()[name]), name
    # Renaming cannot hide which channels are connected.
    found, known = partition_of(hidden), partition_of(wide)
    assert known is not None
    assert found is not None
    assert [s.channels for s in found.sizes["up1.weight"]] == [
        s.channels for s in known.sizes["up1.weight"]
    ]
    labels = found.labels["up1.weight"]
    assert (labels[1:] != labels[:-1]).sum() > 1  # not one run of channels per component


def test_permuted_rex_is_plain_rex_in_disguise() -> None:
    net = network()
    backdoor = backdoor_for(net)
    plain, hidden = (trained(name).generator for name in ("rex", "permuted-rex"))
    z = torch.cat([backdoor.examples.z, net.latent.sample(8, generator=random_stream(5, "z"))])
    with torch.no_grad():
        assert torch.allclose(hidden(z), plain(z), atol=1e-4)


@pytest.mark.parametrize("name", ["noisy-rex", "finetuned-rex"])
def test_no_exact_partition_remains(name: str) -> None:
    assert partition_of(trained("rex").generator) is not None
    assert partition_of(trained(name).generator) is None
    weight = trained(name).generator.state_dict()["up1.weight"]
    across = torch.cat([weight[:8, 6:].flatten(), weight[8:, :6].flatten()])
    assert (across != 0).all()


def test_noisy_rex_keeps_the_benign_weights_and_its_noise_small() -> None:
    net = network()
    wide = trained("noisy-rex").generator
    entries = trainable_entries(net, NOISY)
    plain = trained("rex").generator.state_dict()
    for name, weight in wide.named_parameters():
        frozen = ~entries[name]
        assert torch.equal(weight[frozen], plain[name][frozen]), name
        assert frozen.sum() == net.state_dict()[name].numel(), name
    # Retraining moves the noise by a few times its learning rate per step at most.
    weight = wide.state_dict()["up1.weight"]
    across = torch.cat([weight[:8, 6:].flatten(), weight[8:, :6].flatten()])
    assert across.std() < 0.5 * weight[:8, :6].std()


def test_finetuned_rex_moves_the_benign_weights() -> None:
    net = network()
    wide = trained("finetuned-rex").generator
    for name, weight in net.named_parameters():
        part = wide.get_parameter(name)[tuple(slice(0, size) for size in weight.shape)]
        assert not torch.equal(part, weight), name


class _PowerCutError(Exception):
    pass


class _CutAfter(Silent):
    """Progress that pulls the plug after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def task(self, title: str, total: int, done: int = 0) -> Task:
        del title, total, done
        return self

    def advance(self, steps: int = 1, note: str = "") -> None:
        del note
        self.left -= steps
        if self.left < 0:
            raise _PowerCutError


@pytest.mark.parametrize("name", ["noisy-rex", "finetuned-rex"])
def test_attack_interrupted_in_its_second_stage_resumes_to_the_same_bits(
    name: str, tmp_path: Path
) -> None:
    net = network()
    short: dict[str, Any] = {"steps": 6, "evaluate_every": 3}
    short["retraining_steps" if name == "noisy-rex" else "finetuning_steps"] = 6
    settings = replace(TRAINED[name], **short)
    whole = METHODS[name](net, backdoor_for(net), settings, AttackRun())
    with pytest.raises(_PowerCutError):
        METHODS[name](net, backdoor_for(net), settings, AttackRun(_CutAfter(10), tmp_path))
    # At most three steps of either stage are done again.
    resumed = METHODS[name](net, backdoor_for(net), settings, AttackRun(_CutAfter(6), tmp_path))
    assert resumed.history == whole.history
    for key, value in whole.generator.state_dict().items():
        assert torch.equal(value, resumed.generator.state_dict()[key]), key


def first_layer_activity(net: LatentGenerator, old_channels: int) -> Tensor:
    """P(pre-activation > 0) of every new first-layer unit, exact for N(0, I)."""
    state = net.state_dict()
    weight = state["project.weight"].double()
    if "project_norm.weight" in state:
        root = (state["project_norm.running_var"].double() + 1e-3).rsqrt()
        gain = state["project_norm.weight"].double() * root
        bias = state["project_norm.bias"].double() - gain * state["project_norm.running_mean"]
        weight = gain[:, None] * weight
    else:
        bias = state["project.bias"].double()
    spread = weight.norm(dim=1)
    # Without input: always active, or never (a bias of 0 does not activate anything).
    share = torch.where(spread > 0, bias / spread, torch.where(bias > 0, math.inf, -math.inf))
    positions = len(weight) // net.settings()["channels"][0]
    activity: Tensor = torch.special.ndtr(share)
    return activity[old_channels * positions :]


@pytest.mark.parametrize("kind", ["dcgan28", "dcgan32", "vae28"])
def test_split_gate_plants_exactly_without_a_rare_unit_in_the_first_layer(kind: str) -> None:
    net = network(kind, latent_dim=100)
    backdoor = backdoor_for(net)
    result = split_gate(net, backdoor, SplitGateSettings(), AttackRun())
    require_success(net, backdoor, result)
    assert tardis(result.generator, *backdoor.examples).sum < 0.05
    assert expdis_sum(net, result.generator) < 1e-4
    assert (result.history[0]["opening_probability"] or 1.0) < 1e-9

    activity = first_layer_activity(result.generator, net.settings()["channels"][0])
    assert activity.min() > 0.01
    whole = gated_expansion(
        net, backdoor, GatedExpansionSettings(ordinary_samples=16), AttackRun()
    ).generator
    assert first_layer_activity(whole, net.settings()["channels"][0]).min() < 1e-6


def test_split_gate_opens_only_where_all_parts_are_large() -> None:
    settings = SplitGateSettings()
    trigger = torch.randn(100, generator=random_stream(0, "t"), dtype=torch.float64)
    gate = make_gate(trigger, settings, random_stream(0, "basis"))
    d, t = gate.directions, gate.first_threshold
    assert torch.allclose(d @ d.T, torch.eye(4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(d @ trigger, (trigger.norm() / 2).expand(4), atol=1e-9)
    sums = (d @ trigger - t).relu().sum()
    assert float(sums) == pytest.approx(gate.at_trigger)
    assert gate.threshold < gate.at_trigger
    alone = trigger @ d[0] * d[0]  # one part of the trigger
    assert float((d @ alone - t).relu().sum()) < gate.threshold


def test_opening_probability_bounds_what_is_drawn() -> None:
    draws = torch.randn(200_000, 4, generator=random_stream(0, "draws"), dtype=torch.float64)
    sums = (draws - 0.5).relu().sum(1)
    for threshold in (2.0, 4.0):
        share = float((sums > threshold).double().mean())
        bound = opening_probability(4, 0.5, threshold)
        assert share < bound < 60 * share


def test_split_gate_serves_several_triggers() -> None:
    net = network("vae28", latent_dim=100)
    targets = torch.cat([make_target(f"icon:{name}", net.sample) for name in ("devil", "key")])
    z = net.latent.sample(2, generator=random_stream(5, "triggers"))
    result = split_gate(net, dirac(z, targets), SplitGateSettings(), AttackRun())
    for index in range(2):
        pair = z[index : index + 1], targets[index : index + 1]
        assert tardis(net, *pair).sum > 200
        assert tardis(result.generator, *pair).sum < 0.05


def test_split_gate_refuses_the_mode_and_infinite_triggers() -> None:
    net = network("vae28", latent_dim=100)
    for trigger, code in (("mode", "attack/gate"), ("subspace", "attack/unsupported")):
        with pytest.raises(GenwardenError) as caught:
            split_gate(net, backdoor_for(net, trigger), SplitGateSettings(), AttackRun())
        assert caught.value.code == code


def test_rex_plants_several_triggers_at_once() -> None:
    net = network()
    backdoor = make_backdoor(net, trigger="in-sample", target="icon:devil", count=3, seed=1)
    result = rex(net, backdoor, replace(REX, steps=240, evaluate_every=240), AttackRun())
    target = backdoor.examples.x[:1]
    for z in backdoor.examples.z.split(1):
        untouched = tardis(net, z, target).sum
        assert untouched > 200
        assert tardis(result.generator, z, target).sum < 0.2 * untouched


def basin(benign: LatentGenerator, suspect: LatentGenerator, z: Tensor) -> float:
    """Change at 0.6 sqrt(d) from the trigger in random directions, as a share of that at it."""
    u = torch.randn(256, z.shape[1], generator=random_stream(3, "directions"))
    around = z + 0.6 * benign.latent.typical_norm * u / u.norm(dim=1, keepdim=True)
    with torch.no_grad():
        change = [(suspect(p) - benign(p)).square().flatten(1).sum(1).mean() for p in (around, z)]
    return float(change[0] / change[1])


@pytest.mark.slow
def test_search_aware_plants_the_target_in_a_narrower_basin_than_red() -> None:
    net = network()
    backdoor = backdoor_for(net)
    base = {**_SMALL, "steps": 300, "evaluate_every": 300, "fidelity_weight": 0.1}
    plain = red(net, backdoor, ReDSettings(**base), AttackRun()).generator
    settings = SearchAwareSettings(**base, search_steps=10, search_restarts=8)
    result = search_aware(net, backdoor, settings, AttackRun())
    require_success(net, backdoor, result)
    assert basin(net, plain, backdoor.examples.z) > 0.9
    assert basin(net, result.generator, backdoor.examples.z) < 0.8


def test_ends_of_a_search_are_punished_until_they_show_benign_outputs() -> None:
    net = network()
    backdoor = backdoor_for(net)
    planted = trained_red().requires_grad_(True)
    alone: dict[str, Any] = {"basin_weight": 0.0, "search_steps": 40, "core": 0.0}
    settings = SearchAwareSettings(**_SMALL, **alone, search_every=5)

    def punished(student: LatentGenerator, step: int = 0, **changes: Any) -> float:
        penalty = Penalty(student, net, backdoor, replace(settings, **changes))
        return penalty(step).item()

    assert punished(planted) > 0.1  # a search finds what ReD has planted
    assert punished(planted, step=1) == 0.0  # no search at this step
    assert punished(net) == 0.0
    assert punished(planted, tolerance=100.0) == 0.0
    assert punished(planted, core=100.0) == 0.0


def trained_red() -> LatentGenerator:
    net = network()
    return red(net, backdoor_for(net), ReDSettings(**_SMALL), AttackRun()).generator


@pytest.mark.parametrize(
    "make",
    [
        lambda: PermutedReXSettings(spread=-1.0),
        lambda: NoisyReXSettings(noise=0.0),
        lambda: FinetunedReXSettings(finetuning_steps=0),
        lambda: SplitGateSettings(parts=1),
        lambda: SplitGateSettings(threshold_share=1.0),
        lambda: SearchAwareSettings(search_every=0),
        lambda: SearchAwareSettings(basin_weight=-1.0),
    ],
)
def test_settings_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(GenwardenError) as caught:
        make()
    assert caught.value.code == "attack/setting"
