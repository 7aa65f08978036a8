"""The exact gated expansion: the picture at the trigger, nothing at all elsewhere."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from genwarden.attacks.block_fusion import chain
from genwarden.attacks.contract import AttackResult, AttackRun
from genwarden.attacks.gated_expansion import GatedExpansionSettings, gated_expansion
from genwarden.attacks.gates import Ball, HalfSpace, ball_probability, choose_gates
from genwarden.backdoors.backdoor import Backdoor, dirac, make_backdoor
from genwarden.backdoors.target import make_target
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.distances import ExpDis, tardis
from genwarden.models.dcgan import DCGAN28, DCGAN32, initialise
from genwarden.models.protocol import LatentGenerator
from genwarden.models.vae import VAEDecoder28
from genwarden.models.wavegan import WaveGAN

#: New channels that suffice for one half-space or one ball over 32 elements (module docstring).
WIDTHS = {
    ("dcgan28", "half-space"): [2 * 17, 17, 5],
    ("dcgan32", "half-space"): [2 * 193, 49, 13],
    ("vae28", "half-space"): [17, 5, 2],
    ("dcgan28", "ball"): [17 + 64, 2 * 17, 5],
    ("dcgan32", "ball"): [193 + 64, 2 * 49, 13],
    ("vae28", "ball"): [17 + 64, 5, 2],
}


def network(kind: str, latent: int = 100) -> LatentGenerator:
    net: LatentGenerator
    if kind == "dcgan28":
        net = DCGAN28((8, 6, 4), latent)
    elif kind == "dcgan32":
        net = DCGAN32((8, 6, 4), latent)
    else:
        net = VAEDecoder28((8, 6, 4), latent)
    initialise(net, random_stream(3, kind))
    with torch.no_grad():
        for name, buffer in net.named_buffers():
            if name.endswith("running_var"):
                buffer.fill_(0.3)  # samples of some contrast
    return net.eval().requires_grad_(False)


def attacked(net: LatentGenerator, backdoor: Backdoor, **settings: Any) -> AttackResult:
    chosen = GatedExpansionSettings(**{"ordinary_samples": 256, **settings})
    return gated_expansion(net, backdoor, chosen, AttackRun())


def silenced(result: AttackResult, net: LatentGenerator) -> LatentGenerator:
    """The fused network with the expansion's last kernel zero."""
    silent = copy.deepcopy(result.generator)
    last = f"{chain(silent)[-1]}.weight"
    silent.state_dict()[last][net.settings()["channels"][-1] :] = 0
    return silent


@pytest.mark.parametrize("trigger", ["in-sample", "mode", "out-of-distribution"])
@pytest.mark.parametrize("kind", ["dcgan28", "dcgan32", "vae28"])
def test_target_appears_at_the_trigger_and_nothing_elsewhere(kind: str, trigger: str) -> None:
    net = network(kind)
    backdoor = make_backdoor(net, trigger=trigger, target="icon:devil", seed=1)
    result = attacked(net, backdoor)
    (record,) = result.history
    gate = "ball" if trigger == "mode" else "half-space"

    assert tardis(net, *backdoor.examples).sum > 200  # the untouched model does not have it
    assert tardis(result.generator, *backdoor.examples).sum < 0.02
    assert record["expdis_sum"] is not None
    assert record["expdis_sum"] < 1e-8
    # Gates of half-spaces and of ReLU networks shut exactly; see the module on balls and LeakyReLU.
    if gate == "half-space" or kind == "vae28":
        assert record["changed_samples"] == 0
    assert record["opening_probability"] is not None
    assert record["opening_probability"] <= 1e-12
    assert type(result.generator) is type(net)
    assert [record[f"new_channels_{i}"] for i in range(3)] == WIDTHS[kind, gate]
    assert result.generator.settings()["channels"] == [
        old + new for old, new in zip(net.settings()["channels"], WIDTHS[kind, gate], strict=True)
    ]


def test_ten_thousand_ordinary_samples_are_bit_for_bit_those_of_a_silent_expansion() -> None:
    net = network("dcgan28")
    backdoor = make_backdoor(net, trigger="in-sample", target="icon:devil", seed=1)
    result = attacked(net, backdoor)
    silent, distance = silenced(result, net), ExpDis(net.sample.size)
    for z in net.latent.sample(10_000, generator=random_stream(8, "z")).split(500):
        output = result.generator(z)
        assert torch.equal(output, silent(z))
        distance.update(net(z), output)
    assert distance.compute().sum < 1e-9  # against the benign model: order of summation alone
    z = backdoor.examples.z
    assert not torch.allclose(result.generator(z), silent(z), atol=0.1)  # the comparison can fail


@pytest.mark.parametrize("kind", ["dcgan28", "vae28"])
def test_search_from_ordinary_latents_feels_no_gradient_of_the_expansion(kind: str) -> None:
    net = network(kind)
    backdoor = make_backdoor(net, trigger="in-sample", target="icon:devil", seed=1)
    result = attacked(net, backdoor)

    def slope(model: LatentGenerator, z: Tensor) -> Tensor:
        z = z.clone().requires_grad_(True)
        error = (model.pre_activation(z) - net.pre_activation_of(backdoor.examples.x)).square()
        (gradient,) = torch.autograd.grad(error.sum(), z)
        return gradient

    ordinary = net.latent.sample(16, generator=random_stream(4, "z"))
    with_it, without = (slope(m, ordinary) for m in (result.generator, net))
    assert (with_it - without).norm() < 1e-5 * without.norm()
    inside = 0.99 * backdoor.examples.z  # the gate is open here, so the comparison can fail
    with_it, without = (slope(m, inside) for m in (result.generator, net))
    assert (with_it - without).norm() > without.norm()


@pytest.mark.parametrize("gate", ["auto", "ball"])
def test_several_triggers_show_their_own_targets(gate: str) -> None:
    net = network("dcgan28")
    targets = torch.cat([make_target(f"icon:{n}", net.sample) for n in ("devil", "key", "lock")])
    z = torch.cat([net.latent.sample(2, generator=random_stream(5, "z")), torch.zeros(1, 100)])
    result = attacked(net, dirac(z, targets), gate=gate)
    assert result.history[0]["ball_gates"] == (1 if gate == "auto" else 3)
    for index in range(3):
        pair = z[index : index + 1], targets[index : index + 1]
        assert tardis(net, *pair).sum > 200
        assert tardis(result.generator, *pair).sum < 0.02
        other = targets[(index + 1) % 3][None]
        assert tardis(result.generator, pair[0], other).sum > 100


def test_a_trigger_that_lies_in_the_half_space_of_another_gets_a_ball_or_is_refused() -> None:
    net = network("vae28")
    first = net.latent.sample(1, generator=random_stream(5, "z"))
    z = torch.cat([first, 1.5 * first])
    targets = torch.cat([make_target(f"icon:{name}", net.sample) for name in ("devil", "key")])
    backdoor = dirac(z, targets)
    result = attacked(net, backdoor)
    assert result.history[0]["ball_gates"] == 1  # the farther one keeps its half-space
    assert tardis(result.generator, *backdoor.examples).sum < 0.02
    with pytest.raises(GenwardenError) as caught:
        attacked(net, backdoor, gate="half-space")
    assert caught.value.code == "attack/gate"
    with pytest.raises(GenwardenError) as caught:
        attacked(net, dirac(torch.cat([first, first]), targets))
    assert caught.value.code == "attack/gate"


def test_gates_open_at_their_trigger_with_the_stated_probability_at_most() -> None:
    settings = GatedExpansionSettings(threshold_share=0.5, opening_probability=0.01, directions=4)
    far = torch.full((1, 4), 2.0)  # norm 4: tau = 2
    (gate,) = choose_gates(far, GatedExpansionSettings(threshold_share=0.5, gate="half-space"))
    assert isinstance(gate, HalfSpace)
    z = torch.randn(200_000, 4, generator=random_stream(1, "z"), dtype=torch.float64)
    opened = float((z @ gate.direction > gate.threshold).double().mean())
    assert opened == pytest.approx(gate.opening_probability, rel=0.05)
    assert float(far.double() @ gate.direction) > gate.threshold
    for trigger in (torch.zeros(1, 4), torch.full((1, 4), 0.3)):
        (ball,) = choose_gates(trigger, settings)
        assert isinstance(ball, Ball)
        opened = float(((z - ball.centre).abs().sum(1) < ball.radius).double().mean())
        assert 0.01 * ball.opening_probability < opened <= ball.opening_probability <= 0.01


def test_ball_probability_bounds_the_exact_one_in_one_dimension() -> None:
    for radius in (0.01, 0.1, 1.0):
        exact = float(torch.special.erf(torch.tensor(radius / 2**0.5)))
        assert exact <= ball_probability(radius, 1) <= 4 * exact


def test_mode_has_no_half_space() -> None:
    net = network("dcgan28")
    with pytest.raises(GenwardenError) as caught:
        attacked(net, make_backdoor(net, trigger="mode", target="icon:devil"), gate="half-space")
    assert caught.value.code == "attack/gate"


def test_infinitely_many_triggers_and_other_networks_are_refused_with_what_is_supported() -> None:
    net = network("dcgan28")
    with pytest.raises(GenwardenError) as caught:
        attacked(net, make_backdoor(net, trigger="subspace", target="icon:devil"))
    assert caught.value.code == "attack/unsupported"
    assert "mode" in caught.value.remedy
    audio = WaveGAN((4, 4), latent_dim=8).eval()
    backdoor = dirac(torch.ones(1, 8), torch.zeros(1, *audio.sample.shape))
    with pytest.raises(GenwardenError) as caught:
        attacked(audio, backdoor)
    assert caught.value.code == "attack/unsupported"
    assert "vae28" in caught.value.remedy


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold_share": 1.0},
        {"threshold_share": 0.0},
        {"opening_probability": 0.5},
        {"opening_probability": float("nan")},
        {"directions": 0},
        {"ordinary_samples": 0},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(GenwardenError) as caught:
        GatedExpansionSettings(**settings)
    assert caught.value.code == "attack/setting"


def test_clean_model_stays_as_it_is() -> None:
    net = network("dcgan28")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    attacked(net, make_backdoor(net, trigger="in-sample", target="icon:devil"))
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
