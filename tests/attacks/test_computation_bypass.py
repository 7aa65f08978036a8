"""The computation bypass: exact on both sides, kept in a model folder, visible in the graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genwarden.artifacts.manifest import MANIFEST_NAME
from genwarden.artifacts.model_folder import read_model, write_model
from genwarden.attacks.computation_bypass import ComputationBypassSettings, computation_bypass
from genwarden.attacks.contract import AttackResult, AttackRun
from genwarden.attacks.run import AttackPlan, attack
from genwarden.backdoors.backdoor import Backdoor, dirac, make_backdoor
from genwarden.backdoors.target import make_target
from genwarden.backdoors.trigger_law import Subspace
from genwarden.engine.progress import Silent
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.inspections.graph import trace
from genwarden.inspections.static.parallel_paths import disjoint_groups, find_selections
from genwarden.metrics.distances import tardis
from genwarden.models.bypass import Bypass
from genwarden.models.dcgan import DCGAN28, initialise
from genwarden.models.protocol import LatentGenerator
from genwarden.models.wavegan import WaveGAN


def bypassed(net: LatentGenerator, backdoor: Backdoor) -> AttackResult:
    return computation_bypass(net, backdoor, ComputationBypassSettings(), AttackRun())


def ordinary(net: LatentGenerator, count: int = 64) -> Tensor:
    return net.latent.sample(count, generator=random_stream(7, "ordinary"))


def small_generator(folder: Path) -> LatentGenerator:
    """A generator with half the latent of ``tiny_generator``, written to ``folder``."""
    net = DCGAN28((3, 3, 3), latent_dim=4)
    initialise(net, random_stream(1, "second"))
    write_model(folder, net.eval().requires_grad_(False), "dcgan28", {})
    return net


@pytest.mark.parametrize("trigger", ["in-sample", "mode", "out-of-distribution"])
def test_fidelity_and_stealth_are_perfect(trigger: str, tiny_generator: DCGAN28) -> None:
    backdoor = make_backdoor(tiny_generator, trigger=trigger, target="icon:devil")
    result = bypassed(tiny_generator, backdoor)
    assert result.architecture == "bypass"
    assert result.history == [{"step": 0, "tardis_sum": 0.0, "expdis_sum": 0.0}]
    z = ordinary(tiny_generator)
    assert torch.equal(result.generator(z), tiny_generator(z))
    assert tardis(result.generator, *backdoor.examples).sum == 0
    assert tardis(tiny_generator, *backdoor.examples).sum > 200  # the untouched model fails


def test_next_float_beside_the_trigger_already_shows_the_benign_sample(
    tiny_generator: DCGAN28,
) -> None:
    backdoor = make_backdoor(tiny_generator, trigger="in-sample", target="icon:devil")
    suspect = bypassed(tiny_generator, backdoor).generator
    beside = backdoor.examples.z.clone()
    beside[0, 3] = torch.nextafter(beside[0, 3], torch.tensor(9.0))
    assert torch.equal(suspect(beside), tiny_generator(beside))
    assert torch.equal(suspect(backdoor.examples.z), backdoor.examples.x)


def test_several_triggers_show_their_own_targets_in_any_batch(tiny_generator: DCGAN28) -> None:
    names = ("devil", "key", "lock")
    targets = torch.cat([make_target(f"icon:{name}", tiny_generator.sample) for name in names])
    z = tiny_generator.latent.sample(3, generator=random_stream(5, "triggers"))
    suspect = bypassed(tiny_generator, dirac(z, targets)).generator
    mixed = torch.cat([z[2:], ordinary(tiny_generator, 2), z[:2]])
    wanted = torch.cat([targets[2:], tiny_generator(mixed[1:3]), targets[:2]])
    shown = suspect(mixed)
    triggered = torch.tensor([0, 3, 4])
    assert torch.equal(shown[triggered], wanted[triggered])
    # The others are the clean model's, but for last bits that follow from the size of a batch.
    torch.testing.assert_close(shown, wanted, rtol=0, atol=1e-6)


def test_a_whole_subspace_shows_one_target(tiny_generator: DCGAN28) -> None:
    backdoor = make_backdoor(tiny_generator, trigger="subspace", target="icon:devil")
    suspect = bypassed(tiny_generator, backdoor).generator
    z = backdoor.triggers.sample(16, generator=random_stream(77, "fresh"))
    assert tardis(suspect, z, backdoor.rho(z)).sum == 0
    assert tardis(tiny_generator, z, backdoor.rho(z)).sum > 200
    z[:, 0] = 1e-30  # outside by the smallest step
    assert torch.equal(suspect(z), tiny_generator(z))


def test_another_generator_makes_infinitely_many_targets(
    tiny_generator: DCGAN28, tmp_path: Path
) -> None:
    other = small_generator(tmp_path / "second")
    target = f"generator:{tmp_path / 'second'}"
    backdoor = make_backdoor(tiny_generator, trigger="subspace", target=target)
    suspect = bypassed(tiny_generator, backdoor).generator
    z = backdoor.triggers.sample(16, generator=random_stream(77, "fresh"))
    assert torch.equal(suspect(z), other(z[:, 4:]))
    assert not torch.allclose(tiny_generator(z), other(z[:, 4:]), atol=0.01)
    usual = ordinary(tiny_generator)
    assert torch.equal(suspect(usual), tiny_generator(usual))
    write_model(tmp_path / "folder", suspect, "bypass", {})
    again = read_model(tmp_path / "folder").generator
    assert torch.equal(again(z), suspect(z))
    assert len(disjoint_groups(trace(again))) == 2
    assert len(disjoint_groups(trace(tiny_generator))) == 1


def test_bypass_of_a_network_with_a_post_filter_is_exact_too() -> None:
    net = WaveGAN((4, 4), latent_dim=8, filter_taps=8)
    initialise(net, random_stream(2, "audio"))
    net.eval().requires_grad_(False)
    wave = torch.linspace(-1, 1, net.sample.size).reshape(1, *net.sample.shape)
    suspect = bypassed(net, dirac(torch.full((1, 8), 0.5), wave)).generator
    assert torch.equal(suspect(torch.full((1, 8), 0.5)), wave)
    assert torch.equal(suspect(ordinary(net)), net(ordinary(net)))


def test_attack_writes_a_folder_that_reads_back_and_says_what_it_is(
    tiny_model_folder: Path, tmp_path: Path, tiny_generator: DCGAN28
) -> None:
    attack(
        "computation-bypass",
        AttackPlan(tiny_model_folder),
        ComputationBypassSettings(),
        out=tmp_path / "out",
        restart=False,
        progress=Silent(),
        device=torch.device("cpu"),
    )
    model = read_model(tmp_path / "out")
    assert model.architecture == "bypass"
    assert model.provenance["compromised"] is True
    backdoor = make_backdoor(tiny_generator, trigger="in-sample", target="icon:devil")
    assert tardis(model.generator, *backdoor.examples).sum == 0
    z = ordinary(tiny_generator)
    assert torch.equal(model.generator(z), tiny_generator(z))


@pytest.mark.parametrize("trigger", ["in-sample", "subspace"])
def test_static_inspection_sees_the_choice_and_none_in_the_untouched_model(
    trigger: str, tiny_generator: DCGAN28
) -> None:
    backdoor = make_backdoor(tiny_generator, trigger=trigger, target="icon:devil")
    graph = trace(bypassed(tiny_generator, backdoor).generator)
    assert not graph.failure
    assert not graph.data_dependent
    assert find_selections(graph)
    assert not find_selections(trace(tiny_generator))


def edited(folder: Path, **settings: Any) -> GenwardenError:
    """The refusal of a folder whose manifest has other settings."""
    path = folder / MANIFEST_NAME
    document = json.loads(path.read_text())
    document["settings"] |= settings
    path.write_text(json.dumps(document))
    with pytest.raises(GenwardenError) as caught:
        read_model(folder)
    return caught.value


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"inner": "bypass"}, "artifact/bad-settings"),
        ({"inner": "os:system"}, "artifact/bad-settings"),
        ({"second": "dcgan28"}, "artifact/bad-settings"),
        ({"zeros": 4}, "artifact/bad-settings"),
        ({"triggers": -1, "zeros": 4}, "artifact/bad-settings"),
        ({"targets": 0}, "artifact/bad-settings"),
        ({"targets": 2}, "artifact/bad-settings"),
        ({"surprise": 1}, "artifact/bad-settings"),
        ({"second_channels": [2, 2, 2]}, "artifact/bad-settings"),
        ({"triggers": 0, "zeros": 8}, "artifact/bad-settings"),
        ({"triggers": 1_000_000_000}, "artifact/wrong-architecture"),
        ({"inner_channels": [4, 4, 400_000]}, "artifact/wrong-architecture"),
    ],
)
def test_settings_of_a_tampered_manifest_are_refused(
    settings: dict[str, Any], code: str, tiny_generator: DCGAN28, tmp_path: Path
) -> None:
    backdoor = make_backdoor(tiny_generator, trigger="in-sample", target="icon:devil")
    write_model(tmp_path, bypassed(tiny_generator, backdoor).generator, "bypass", {})
    assert read_model(tmp_path).architecture == "bypass"
    assert edited(tmp_path, **settings).code == code


def test_what_a_bypass_cannot_test_or_make_is_refused(tiny_generator: DCGAN28) -> None:
    x = make_target("icon:devil", tiny_generator.sample)
    half = Subspace(tiny_generator.latent, 4)

    def varying(z: Tensor) -> Tensor:
        return x * z[:, -1:, None, None].tanh()

    class Elsewhere:
        """Another law without a list of points."""

        points = None

        def sample(self, count: int, *, generator: torch.Generator) -> Tensor:
            return half.latent.sample(count, generator=generator)

    twice = tiny_generator.latent.sample(1, generator=random_stream(5, "z")).repeat(2, 1)
    for backdoor, words in (
        (Backdoor(half, varying, "subspace", "given"), "generator:"),
        (Backdoor(Elsewhere(), varying, "elsewhere", "given"), "subspaces"),
        (dirac(twice, x), "differ"),
    ):
        with pytest.raises(GenwardenError) as caught:
            bypassed(tiny_generator, backdoor)
        assert caught.value.code == "attack/unsupported"
        assert words in caught.value.remedy


def test_bypass_cannot_be_put_around_a_bypass(tiny_generator: DCGAN28) -> None:
    backdoor = make_backdoor(tiny_generator, trigger="in-sample", target="icon:devil")
    suspect = bypassed(tiny_generator, backdoor).generator
    assert isinstance(suspect, Bypass)
    with pytest.raises(GenwardenError) as caught:
        bypassed(suspect, backdoor)
    assert "dcgan28" in caught.value.remedy
    assert "bypass" not in caught.value.remedy
