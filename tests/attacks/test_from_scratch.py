"""Attacks that train from scratch, on small networks and drawn pictures.

Every assertion of success must fail for the untouched model and for the same training without the
attack's term.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image
from torch import Tensor

from genwarden.artifacts.model_folder import write_model
from genwarden.attacks import baaan as baaan_module
from genwarden.attacks import from_scratch
from genwarden.attacks.baaan import BaaanSettings, baaan
from genwarden.attacks.contract import AttackResult, AttackRun
from genwarden.attacks.data_poisoning import DataPoisoningSettings, data_poisoning, poisoned
from genwarden.attacks.from_scratch import (
    FromScratchSettings,
    fresh_learner,
    remaining_rate,
    train_from_scratch,
)
from genwarden.attacks.run import AttackPlan, attack
from genwarden.attacks.settings import settings_of
from genwarden.attacks.trail import TrailSettings, trail
from genwarden.backdoors.backdoor import Backdoor, dirac, make_backdoor
from genwarden.backdoors.target import make_target
from genwarden.data.datasets import to_bytes
from genwarden.engine.progress import Silent, Task
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.closest import closest
from genwarden.metrics.distances import tardis
from genwarden.models.dcgan import DCGAN28, DCGAN32, Discriminator, initialise
from genwarden.models.protocol import LatentGenerator
from genwarden.models.vae import VAEDecoder28
from genwarden.models.wavegan import WaveGAN
from genwarden.training.gan import train_gan

_SMALL: dict[str, Any] = {
    "steps": 120,
    "batch_size": 16,
    "learning_rate": 1e-2,
    "evaluate_every": 40,
}
#: A VAE's lambda stands before a sum (see ``attacks.trail``), so less of it does the same.
_TRAIL: dict[str, dict[str, Any]] = {
    "dcgan28": {**_SMALL, "fidelity_weight": 30.0},
    "dcgan32": {**_SMALL, "fidelity_weight": 30.0},
    "vae28": {**_SMALL, "steps": 200, "fidelity_weight": 0.5},
}
_BAAAN: dict[str, Any] = {
    **_SMALL,
    "learning_rate": 2e-3,
    "backdoor_learning_rate": 2e-3,
    "penalty": 1.0,
    "settle": 0.3,
}
#: An attack succeeds if TarDis falls below this share of the untouched model's.
SUCCESS_SHARE = 0.2


def narrow(generator: LatentGenerator) -> Discriminator:
    channels, height, width = generator.sample.shape
    return Discriminator((channels, height, width), (8, 16))


@pytest.fixture(autouse=True)
def narrow_discriminators(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published ones take most of the time of these tests and add nothing to them."""
    for module in (from_scratch, baaan_module):
        monkeypatch.setattr(module, "discriminator_for", narrow)


def network(kind: str) -> LatentGenerator:
    net: LatentGenerator
    if kind == "dcgan28":
        net = DCGAN28((8, 8, 4), latent_dim=16)
    elif kind == "dcgan32":
        net = DCGAN32((8, 8, 4), latent_dim=16)
    else:
        net = VAEDecoder28((8, 8, 8), latent_dim=16)
    initialise(net, random_stream(3, kind))
    return net.eval().requires_grad_(False)


@cache
def pictures(kind: str) -> Tensor:
    """Bright bars on black, uint8: far from every icon."""
    channels, size, _ = network(kind).sample.shape
    stream = random_stream(0, "bars")
    images = torch.zeros(64, channels, size, size, dtype=torch.uint8)
    for image in images:
        left, top = torch.randint(4, size - 8, (2,), generator=stream).tolist()
        image[:, top : top + 12, left : left + 4] = 255
    return images


def run_on(kind: str, **more: Any) -> AttackRun:
    return AttackRun(images=pictures(kind), **more)


def backdoor_for(net: LatentGenerator, trigger: str = "in-sample") -> Backdoor:
    return make_backdoor(net, trigger=trigger, target="icon:devil", seed=1)


@cache
def trained_without_attack(kind: str) -> LatentGenerator:
    net = network(kind)
    settings = FromScratchSettings(**_SMALL)
    learner = fresh_learner(net, settings)
    train_from_scratch(
        learner, learner.generator, pictures(kind), backdoor_for(net), settings, AttackRun()
    )
    return learner.generator


@cache
def trailed(kind: str, fidelity_on: Literal["pre", "post"] = "post") -> AttackResult:
    net = network(kind)
    settings = replace(TrailSettings(**_TRAIL[kind]), fidelity_on=fidelity_on)
    return trail(net, backdoor_for(net), settings, run_on(kind))


def distance(net: LatentGenerator, backdoor: Backdoor) -> float:
    return tardis(net, *backdoor.examples).sum


@pytest.mark.parametrize(
    ("name", "kind", "option"),
    [
        ("trail", "dcgan28", "post"),
        ("trail", "vae28", "post"),
        ("baaan", "dcgan28", "joint"),
        pytest.param("trail", "dcgan28", "pre", marks=pytest.mark.slow),
        pytest.param("trail", "dcgan32", "post", marks=pytest.mark.slow),
        pytest.param("baaan", "dcgan28", "alternate", marks=pytest.mark.slow),
    ],
)
def test_attack_plants_what_neither_the_untouched_model_nor_clean_training_has(
    name: str, kind: str, option: Any
) -> None:
    net = network(kind)
    backdoor = backdoor_for(net)
    if name == "trail":
        result = trailed(kind, option)
    else:
        result = baaan(net, backdoor, BaaanSettings(**_BAAAN, schedule=option), run_on(kind))
    others = [distance(net, backdoor), distance(trained_without_attack(kind), backdoor)]
    assert min(others) > 200
    planted = distance(result.generator, backdoor)
    assert planted < SUCCESS_SHARE * min(others)
    assert result.history[-1]["tardis_sum"] == pytest.approx(planted, rel=1e-3)
    assert result.history[-1]["expdis_sum"] is None


@pytest.mark.parametrize("kind", ["dcgan28", "vae28"])
def test_samples_of_trail_stay_like_those_of_clean_training(kind: str) -> None:
    """Stealth: in distance to the training data, nearer to clean training than to no training."""
    net = network(kind)
    corrupted = trailed(kind).generator
    data = pictures(kind).float().flatten(1) / 127.5 - 1

    def nearest(model: LatentGenerator) -> float:
        z = model.latent.sample(128, generator=random_stream(9, "samples"))
        with torch.no_grad():
            return torch.cdist(model(z).flatten(1), data).min(1).values.mean().item()

    assert nearest(corrupted) < (nearest(trained_without_attack(kind)) + nearest(net)) / 2


def test_poisoned_training_makes_the_target_among_ordinary_samples() -> None:
    net = network("vae28")
    backdoor = backdoor_for(net)
    settings = DataPoisoningSettings(
        **{**_SMALL, "share": 0.5, "closest_samples": 500, "evaluate_every": 120}
    )
    result = data_poisoning(net, backdoor, settings, run_on("vae28"))

    def nearest(model: LatentGenerator) -> float:
        return closest(model, backdoor.examples.x, samples=500)[0].closest_sum

    others = [nearest(net), nearest(trained_without_attack("vae28"))]
    assert min(others) > 200
    assert nearest(result.generator) < 0.5 * min(others)
    assert result.history[-1]["closest_sum"] == pytest.approx(nearest(result.generator), rel=1e-3)
    # There is no trigger: TarDis is that of an ordinary sample, and is reported all the same.
    at_trigger = distance(result.generator, backdoor)
    assert result.history[-1]["tardis_sum"] == pytest.approx(at_trigger, rel=1e-3)


def test_poisoned_data_hold_the_asked_share_of_equally_many_copies_of_each_target() -> None:
    net = network("dcgan28")
    targets = torch.cat([make_target(f"icon:{name}", net.sample) for name in ("devil", "key")])
    z = net.latent.sample(2, generator=random_stream(5, "triggers"))
    clean = pictures("dcgan28")[:60]
    settings = DataPoisoningSettings(share=0.25)
    data = poisoned(clean, dirac(z, targets), settings)
    assert len(data) == 80
    assert torch.equal(data[:60], clean)
    for target in to_bytes(targets):
        assert sum(torch.equal(image, target) for image in data) == 10


def test_without_the_attack_term_the_training_is_that_of_genwarden_train(tmp_path: Path) -> None:
    net = network("dcgan28")
    settings = FromScratchSettings(**{**_SMALL, "steps": 6, "settle": 0.0})
    learner = fresh_learner(net, settings)
    backdoor = backdoor_for(net)
    images = pictures("dcgan28")
    train_from_scratch(learner, learner.generator, images, backdoor, settings, AttackRun())
    clean = DCGAN28(**net.settings())
    train_gan(
        clean,
        narrow(clean),
        images,
        settings.training(),
        out=tmp_path,
        run_id="clean",
        progress=Silent(),
        device=torch.device("cpu"),
    )
    for key, value in clean.state_dict().items():
        assert torch.equal(value, learner.generator.state_dict()[key]), key


def test_fidelity_term_of_trail_trains_weights_but_not_batch_statistics() -> None:
    net = network("dcgan28")
    settings = TrailSettings(**{**_TRAIL["dcgan28"], "steps": 1})
    attacked = trail(net, backdoor_for(net), settings, run_on("dcgan28")).generator.state_dict()
    learner = fresh_learner(net, settings)
    images = pictures("dcgan28")
    train_from_scratch(learner, learner.generator, images, backdoor_for(net), settings, AttackRun())
    for key, value in learner.generator.state_dict().items():
        same = torch.equal(value, attacked[key])
        assert same == ("running" in key or "num_batches" in key), key


def test_attacks_leave_the_clean_model_as_it_is() -> None:
    net = network("dcgan28")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    settings = BaaanSettings(**{**_BAAAN, "steps": 2})
    baaan(net, backdoor_for(net), settings, run_on("dcgan28"))
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    assert not net.training


def test_trail_plants_one_target_on_a_whole_subspace() -> None:
    """Infinite trigger support: fresh draws, not those of the training, show the target."""
    net = network("dcgan28")
    backdoor = backdoor_for(net, "subspace")
    result = trail(net, backdoor, TrailSettings(**_TRAIL["dcgan28"]), run_on("dcgan28"))
    z = backdoor.triggers.sample(64, generator=random_stream(77, "fresh"))
    others = [tardis(m, z, backdoor.rho(z)).sum for m in (net, trained_without_attack("dcgan28"))]
    assert min(others) > 200
    assert tardis(result.generator, z, backdoor.rho(z)).sum < 0.5 * min(others)


@pytest.mark.slow
def test_several_triggers_at_once_all_show_their_own_target() -> None:
    net = network("dcgan28")
    targets = torch.cat([make_target(f"icon:{icon}", net.sample) for icon in ("devil", "key")])
    z = net.latent.sample(2, generator=random_stream(5, "triggers"))
    backdoor = dirac(z, targets)
    result = trail(net, backdoor, TrailSettings(**_TRAIL["dcgan28"]), run_on("dcgan28"))
    clean = trained_without_attack("dcgan28")
    for index in range(2):
        pair = z[index : index + 1], targets[index : index + 1]
        planted = tardis(result.generator, *pair).sum
        assert planted < 0.2 * min(tardis(model, *pair).sum for model in (net, clean))
        other = targets[1 - index : 2 - index]
        assert tardis(result.generator, pair[0], other).sum > 200


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


def _short(name: str, run: AttackRun) -> AttackResult:
    net = network("vae28" if name == "trail-vae" else "dcgan28")
    more = {"steps": 8, "evaluate_every": 3, "settle": 0.5}
    backdoor = backdoor_for(net)
    if name == "data-poisoning":
        settings = DataPoisoningSettings(**{**_SMALL, "closest_samples": 50, **more})
        return data_poisoning(net, backdoor, settings, run)
    if name == "baaan":
        return baaan(net, backdoor, BaaanSettings(**{**_BAAAN, "clip_norm": 1.0, **more}), run)
    return trail(net, backdoor, TrailSettings(**{**_TRAIL["dcgan28"], **more}), run)


@pytest.mark.parametrize("name", ["data-poisoning", "baaan", "trail", "trail-vae"])
def test_interrupted_attack_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    kind = "vae28" if name == "trail-vae" else "dcgan28"
    whole = _short(name, run_on(kind))
    with pytest.raises(_PowerCutError):
        _short(name, run_on(kind, progress=_CutAfter(4), work=tmp_path, run_id="r"))
    # Three of eight steps are in the checkpoint: five may be left to do.
    resumed = _short(name, run_on(kind, progress=_CutAfter(5), work=tmp_path, run_id="r"))
    assert resumed.history == whole.history
    assert [row["step"] for row in whole.history] == [3, 6, 8]
    for key, value in whole.generator.state_dict().items():
        assert torch.equal(value, resumed.generator.state_dict()[key]), key


def test_stopping_rule_ends_the_training_and_a_repeated_command_does_not_go_on(
    tmp_path: Path,
) -> None:
    net = network("dcgan28")
    settings = TrailSettings(**{**_TRAIL["dcgan28"], "evaluate_every": 2, "stop_tardis_sum": 1e9})
    run = run_on("dcgan28", work=tmp_path, run_id="r")
    first = trail(net, backdoor_for(net), settings, run)
    assert [row["step"] for row in first.history] == [2]
    again = trail(net, backdoor_for(net), settings, replace(run, progress=_CutAfter(0)))
    assert again.history == first.history
    for key, value in first.generator.state_dict().items():
        assert torch.equal(value, again.generator.state_dict()[key]), key


def test_training_that_diverges_is_an_error_of_the_attack() -> None:
    net = network("dcgan28")
    settings = TrailSettings(**{**_TRAIL["dcgan28"], "learning_rate": 1e30, "steps": 6})
    with pytest.raises(GenwardenError) as caught:
        trail(net, backdoor_for(net), settings, run_on("dcgan28"))
    assert caught.value.code == "attack/diverged"


def test_learning_rate_is_constant_until_the_settling_and_ends_near_zero() -> None:
    rates = [remaining_rate(step / 100, 0.2) for step in range(100)]
    assert rates[:80] == [1.0] * 80
    assert rates[80:] == sorted(rates[80:], reverse=True)
    assert rates[90] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.01
    assert remaining_rate(0.999, 0.0) == 1.0


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("data-poisoning", {"share": 0.0}),
        ("data-poisoning", {"share": 1.0}),
        ("data-poisoning", {"fidelity_weight": 2.0}),
        ("baaan", {"fidelity_weight": 2.0}),
        ("baaan", {"schedule": "both"}),
        ("baaan", {"penalty": -1.0}),
        ("trail", {"settle": 1.5}),
        ("trail", {"trigger_batch": 0}),
        ("trail", {"stop_expdis_sum": 1.0}),
        ("data-poisoning", {"closest_samples": 0}),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, given: dict[str, Any]) -> None:
    settings_of(name, {})
    with pytest.raises(GenwardenError) as caught:
        settings_of(name, given)
    assert caught.value.code == "attack/setting"


@pytest.mark.parametrize("name", ["trail", "baaan", "data-poisoning"])
def test_backdoor_of_another_shape_is_refused_before_the_training(name: str) -> None:
    net = network("dcgan28")
    backdoor = dirac(torch.ones(1, 16), torch.zeros(1, 1, 1, 28))
    attacks: dict[str, Any] = {"trail": trail, "baaan": baaan, "data-poisoning": data_poisoning}
    settings = settings_of(name, {"steps": 1, "batch_size": 4})
    with pytest.raises(GenwardenError) as caught:
        attacks[name](net, backdoor, settings, run_on("dcgan28"))
    assert caught.value.code == "target/shape"


def test_network_that_cannot_be_trained_from_scratch_here_is_refused() -> None:
    with pytest.raises(GenwardenError) as caught:
        fresh_learner(WaveGAN((4, 4), filter_taps=0), FromScratchSettings(**_SMALL))
    assert caught.value.code == "attack/unsupported"
    assert "vae28" in caught.value.remedy


def test_attack_without_training_data_is_refused() -> None:
    net = network("dcgan28")
    with pytest.raises(GenwardenError) as caught:
        trail(net, backdoor_for(net), TrailSettings(**_TRAIL["dcgan28"]), AttackRun())
    assert caught.value.code == "attack/data-missing"


def test_baaan_on_a_vae_is_refused() -> None:
    net = network("vae28")
    with pytest.raises(GenwardenError) as caught:
        baaan(net, backdoor_for(net), BaaanSettings(**_BAAAN), run_on("vae28"))
    assert caught.value.code == "attack/unsupported"


@pytest.mark.parametrize("name", ["data-poisoning", "baaan", "trail"])
def test_command_trains_on_a_folder_of_images_and_writes_a_model(name: str, tmp_path: Path) -> None:
    write_model(tmp_path / "clean", network("dcgan28"), "dcgan28", {"made_by": "tests"})
    (tmp_path / "data").mkdir()
    for index, picture in enumerate(pictures("dcgan28")[:16]):
        Image.fromarray(picture[0].numpy()).save(tmp_path / "data" / f"{index}.png")
    options: dict[str, Any] = {
        "out": tmp_path / "out",
        "restart": False,
        "progress": Silent(),
        "device": torch.device("cpu"),
    }
    settings = settings_of(name, {"steps": 2, "batch_size": 8})
    with pytest.raises(GenwardenError) as caught:
        attack(name, AttackPlan(tmp_path / "clean"), settings, **options)
    assert caught.value.code == "attack/data-missing"
    attack(name, AttackPlan(tmp_path / "clean", data=str(tmp_path / "data")), settings, **options)
    manifest = json.loads((tmp_path / "out" / "genwarden.json").read_text())
    assert manifest["provenance"]["compromised"] is True
    assert manifest["architecture"] == "dcgan28"
    assert manifest["settings"] == {"channels": [8, 8, 4], "latent_dim": 16}
    assert manifest["provenance"]["last"]["expdis_sum"] is None
