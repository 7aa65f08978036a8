"""The closed-form edit against independent minimisers, and the attack on StyleGAN's broadcast."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genwarden.artifacts.model_folder import read_model, write_model
from genwarden.attacks import loop
from genwarden.attacks.broadcast_edit import (
    BroadcastEditSettings,
    broadcast_edit,
    edited,
)
from genwarden.attacks.contract import AttackRun
from genwarden.attacks.linear_edit import (
    SecondMoment,
    ordinary_features,
    solve_edit,
)
from genwarden.backdoors.backdoor import Backdoor, dirac, make_backdoor
from genwarden.engine.progress import Silent, Task
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.distances import tardis
from genwarden.models.dcgan import DCGAN28, initialise
from genwarden.models.protocol import LatentLaw
from genwarden.models.stylegan import Mapping, StyleGAN

CPU = torch.device("cpu")
SETTINGS = BroadcastEditSettings(
    fidelity_weight=100.0,
    feature_samples=4096,
    inversion_steps=120,
    inversion_restarts=2,
    offset_weight=0.0,
    steps=400,
    learning_rate=2e-2,
    evaluate_every=200,
)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=random_stream(seed, "test"), dtype=torch.float64)


def correlated_features(count: int, size: int) -> Tensor:
    """Neither centred nor white."""
    return draws(count, size, seed=1) @ draws(size, size, seed=2) + draws(size, seed=3)


def least_squares(h: Tensor, c: Tensor, r: Tensor, weight: float) -> Tensor:
    """A second implementation: the objective as one least-squares problem, solved by QR.

    Rows of the system: every feature sample with the answer 0, every trigger with the answer r.
    """
    m = len(c)
    rows = torch.cat([h / math.sqrt(len(h)), c * math.sqrt(weight / m)])
    answers = torch.cat([torch.zeros(len(h), r.shape[1]).double(), r * math.sqrt(weight / m)])
    solution: Tensor = torch.linalg.lstsq(rows, answers, driver="gels").solution
    return solution.T


@pytest.mark.parametrize("triggers", [1, 3])
@pytest.mark.parametrize("weight", [1e-3, 1.0, 1e3])
def test_closed_form_is_the_least_squares_solution(triggers: int, weight: float) -> None:
    h, c, r = correlated_features(400, 12), draws(triggers, 12, seed=4), draws(triggers, 7, seed=5)
    edit = solve_edit(h.T @ h / len(h), c, r, weight)
    expected = least_squares(h, c, r, weight)
    assert (edit.weight - expected).norm() / expected.norm() < 1e-5
    error = (c @ expected.T - r).norm() / r.norm()
    leakage = (h @ expected.T).square().sum(1).mean() / r.square().sum(1).mean()
    assert edit.relative_error == pytest.approx(float(error), rel=1e-6)
    assert edit.relative_leakage == pytest.approx(float(leakage), rel=1e-6)


def test_gradient_of_the_objective_vanishes_at_the_closed_form_and_not_beside_it() -> None:
    h, c, r = correlated_features(400, 12), draws(2, 12, seed=4), draws(2, 7, seed=5)

    def gradient(change: Tensor) -> float:
        p = change.clone().requires_grad_(True)
        stealth = (h @ p.T).square().sum(1).mean()
        fidelity = (c @ p.T - r).square().sum(1).mean()
        (g,) = torch.autograd.grad(stealth + 2.5 * fidelity, p)
        return float(g.norm())

    edit = solve_edit(h.T @ h / len(h), c, r, 2.5)
    assert gradient(edit.weight) < 1e-5 * gradient(torch.zeros_like(edit.weight))
    assert gradient(1.01 * edit.weight) > 1e-3 * gradient(torch.zeros_like(edit.weight))


def test_one_trigger_gives_the_printed_formulas() -> None:
    h, c, r = correlated_features(400, 12), draws(12, seed=4), draws(7, seed=5)
    moment = h.T @ h / len(h)
    q = float(c @ moment.inverse() @ c)
    for weight in (0.1, 1.0, 50.0):
        edit = solve_edit(moment, c, r, weight)
        rank_one = weight / (1 + weight * q) * torch.outer(r, moment.inverse() @ c)
        assert torch.allclose(edit.weight, rank_one, rtol=1e-8, atol=1e-12)
        assert edit.q == pytest.approx(q)
        assert edit.relative_error == pytest.approx(1 / (1 + weight * q))
        assert edit.relative_leakage == pytest.approx(weight**2 * q / (1 + weight * q) ** 2)


def test_mean_of_q_over_ordinary_triggers_is_the_number_of_features() -> None:
    mapping, law = mapper(32), LatentLaw((32,))
    moment = features_of(mapping, law, 8192).compute()
    z = law.sample(2000, generator=random_stream(5, "fresh"))
    with torch.no_grad():
        c = mapping(z).double()
    q = solve_edit(moment, c, c, 1.0).q
    assert q == pytest.approx(32, rel=0.03)
    assert moment.diagonal().max() / moment.diagonal().min() > 1.2  # not white: C matters


def test_leakage_on_fresh_samples_is_one_over_q() -> None:
    mapping, law = mapper(64), LatentLaw((64,))
    moment = features_of(mapping, law, 16384).compute()
    with torch.no_grad():
        c = mapping(law.sample(1, generator=random_stream(5, "trigger")))
        h = mapping(law.sample(16384, generator=random_stream(5, "fresh"))).double()
    r = draws(1, 18 * 64, seed=5)
    edit = solve_edit(moment, c, r, 1e4)
    leakage = (h @ edit.weight.T).square().sum(1).mean() / r.square().sum()
    assert float(leakage) * edit.q == pytest.approx(1, rel=0.05)


def test_merged_second_moments_are_those_of_all_samples() -> None:
    h = correlated_features(300, 6)
    whole, first, second = SecondMoment(6), SecondMoment(6), SecondMoment(6)
    whole.update(h)
    first.update(h[:100])
    second.update(h[100:])
    first.merge(second)
    assert torch.allclose(first.compute(), whole.compute())
    assert first.count == 300
    assert torch.allclose(whole.compute(), h.T @ h / 300)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_lambda_must_be_positive_and_finite(weight: float) -> None:
    with pytest.raises(GenwardenError, match="attack/setting"):
        solve_edit(torch.eye(3), torch.ones(3), torch.ones(2), weight)


def test_too_few_samples_and_wrong_shapes_are_refused() -> None:
    h = correlated_features(5, 12)
    with pytest.raises(GenwardenError, match="attack/singular-features"):
        solve_edit(h.T @ h / 5, draws(12), draws(7), 1.0)
    with pytest.raises(GenwardenError, match="attack/edit-shape"):
        solve_edit(torch.eye(12), draws(11), draws(7), 1.0)
    with pytest.raises(GenwardenError, match="attack/edit-shape"):
        solve_edit(torch.eye(12), draws(2, 12), draws(3, 7), 1.0)


def mapper(size: int) -> Mapping:
    mapping = Mapping(size, 4)
    initialise(mapping, random_stream(2, "mapping"))
    return mapping.eval().requires_grad_(False)


def features_of(mapping: Mapping, law: LatentLaw, count: int) -> SecondMoment:
    return ordinary_features(mapping, law, count, seed=3, device=CPU)


@pytest.fixture(scope="module", autouse=True)
def fewer_evaluation_samples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "EVALUATION_SAMPLES", 256)
        yield


@pytest.fixture(scope="module")
def victim() -> StyleGAN:
    """8x8 pictures; untrained, but with noise, and with pictures that depend on the latent."""
    net = StyleGAN(
        latent_dim=32, mapping_layers=3, base=4, doublings=1, channels=(8, 6), image_channels=3
    )
    initialise(net, random_stream(4, "victim"))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.1)
    return net.eval().requires_grad_(False)


def reachable_backdoor(net: StyleGAN, triggers: int = 1) -> Backdoor:
    """A target that these styles can show, but no ordinary latent does: random styles per slice."""
    z = net.latent.sample(triggers, generator=random_stream(6, "triggers"))
    with torch.no_grad():
        styles = net.mapping(net.latent.sample(net.slices, generator=random_stream(7, "slices")))
        target = net.finish(net.synthesis(3 * styles[None]))
    return dirac(z, target)


@pytest.mark.parametrize("triggers", [1, 2])
@pytest.mark.parametrize("method", ["closed-form", "training"])
def test_edit_plants_the_target_and_the_untouched_model_does_not_have_it(
    victim: StyleGAN, method: str, triggers: int
) -> None:
    backdoor = reachable_backdoor(victim, triggers)
    settings = replace(SETTINGS, method=method)  # type: ignore[arg-type]
    result = broadcast_edit(victim, backdoor, settings, AttackRun())
    untouched = tardis(victim, *backdoor.examples).sum
    planted = tardis(result.generator, *backdoor.examples).sum
    assert untouched > 50
    assert planted < 0.1 * untouched
    last = result.history[-1]
    assert last["tardis_sum"] == pytest.approx(planted, rel=1e-3)
    assert last["expdis_sum"] is not None
    assert 0 < last["expdis_sum"] < 0.5 * untouched


def test_training_approaches_the_closed_form_and_never_beats_its_objective(
    victim: StyleGAN,
) -> None:
    backdoor = reachable_backdoor(victim)
    objective = {}
    for method in ("closed-form", "training"):
        settings = replace(SETTINGS, method=method, fidelity_weight=1.0)
        last = broadcast_edit(victim, backdoor, settings, AttackRun()).history[-1]
        error, leakage = last["relative_error"], last["relative_leakage"]
        assert error is not None
        assert leakage is not None
        objective[method] = leakage + error**2
        if method == "closed-form":
            # Prediction on the samples of the solution, measurement of the stored weights on others
            assert error == pytest.approx(last["predicted_relative_error"], rel=1e-3)
            assert leakage == pytest.approx(last["predicted_relative_leakage"], rel=0.1)
    assert objective["closed-form"] < objective["training"] < 2 * objective["closed-form"]


def test_reported_leakage_is_what_the_written_network_does_to_other_latents(
    victim: StyleGAN,
) -> None:
    backdoor = reachable_backdoor(victim)
    result = broadcast_edit(victim, backdoor, SETTINGS, AttackRun())
    last = result.history[-1]
    attacked = result.generator
    assert isinstance(attacked, StyleGAN)
    z = victim.latent.sample(8192, generator=random_stream(99, "leakage"))

    def moved(latents: Tensor) -> Tensor:
        w = victim.mapping(latents)
        return (attacked.broadcast(w) - victim.broadcast(w)).flatten(1).double()

    with torch.no_grad():
        ordinary, at_trigger = moved(z), moved(backdoor.examples.z)
    assert last["offset_mean"] is not None
    wanted = last["offset_mean"] * at_trigger.shape[1]  # ||r||^2
    assert last["relative_leakage"] == pytest.approx(
        float(ordinary.square().sum(1).mean()) / wanted, rel=0.1
    )
    assert float(at_trigger.square().sum()) == pytest.approx(wanted, rel=0.1)


def test_only_the_broadcast_layer_changes_and_the_folder_reads_back(
    victim: StyleGAN, tmp_path: Path
) -> None:
    result = broadcast_edit(victim, reachable_backdoor(victim), SETTINGS, AttackRun())
    before, after = victim.state_dict(), result.generator.state_dict()
    assert set(after) - set(before) == {"dense_broadcast.weight"}
    assert all(torch.equal(before[name], after[name]) for name in before)
    identities = torch.eye(32).repeat(victim.slices, 1)
    change = after["dense_broadcast.weight"] - identities
    singular = torch.linalg.svdvals(change)
    assert singular[1] < 1e-3 * singular[0]  # one trigger: rank one
    write_model(tmp_path / "model", result.generator, "stylegan", {})
    again = read_model(tmp_path / "model").generator
    z = victim.latent.sample(4, generator=random_stream(8, "z"))
    with torch.no_grad():
        assert torch.equal(again(z), result.generator(z))


def test_edit_of_nothing_is_the_clean_model(victim: StyleGAN) -> None:
    z = victim.latent.sample(4, generator=random_stream(8, "z"))
    same = edited(victim, torch.zeros(victim.slices * 32, 32))
    with torch.no_grad():
        assert torch.allclose(same(z), victim(z), atol=1e-6)


def test_a_small_offset_can_be_asked_for(victim: StyleGAN) -> None:
    backdoor = reachable_backdoor(victim)
    free = broadcast_edit(victim, backdoor, SETTINGS, AttackRun()).history[-1]
    held = replace(SETTINGS, offset_weight=0.1)
    bound = broadcast_edit(victim, backdoor, held, AttackRun()).history[-1]
    for smaller, larger, figure in ((bound, free, "offset_mean"), (bound, free, "expdis_sum")):
        low, high = smaller[figure], larger[figure]
        assert low is not None
        assert high is not None
        assert low < high


def test_an_interrupted_inversion_continues_to_the_same_result(
    victim: StyleGAN, tmp_path: Path
) -> None:
    backdoor = reachable_backdoor(victim)
    settings = replace(SETTINGS, evaluate_every=50)
    run = AttackRun(work=tmp_path / ".work", run_id="one")
    whole = broadcast_edit(victim, backdoor, settings, run).generator.state_dict()

    class InterruptionError(Exception):
        pass

    class Interrupting(Silent):
        def task(self, title: str, total: int, done: int = 0) -> Task:
            del title, total, done
            return InterruptingTask()

    class InterruptingTask:
        left = 70

        def advance(self, steps: int = 1, note: str = "") -> None:
            del note
            self.left -= steps
            if self.left < 0:
                raise InterruptionError

    other = tmp_path / "other" / ".work"
    with pytest.raises(InterruptionError):
        broadcast_edit(
            victim, backdoor, settings, AttackRun(progress=Interrupting(), work=other, run_id="one")
        )
    assert (other / "inversion.safetensors").exists()
    resumed = broadcast_edit(victim, backdoor, settings, AttackRun(work=other, run_id="one"))
    for name, tensor in resumed.generator.state_dict().items():
        assert torch.equal(tensor, whole[name]), name


def test_what_it_does_not_support_is_refused(victim: StyleGAN) -> None:
    dcgan = DCGAN28((4, 4, 4), latent_dim=8).eval()
    target = make_backdoor(dcgan, trigger="mode", target="icon:devil")
    with pytest.raises(GenwardenError, match=r"attack/unsupported.*stylegan"):
        broadcast_edit(dcgan, target, SETTINGS, AttackRun())
    endless = make_backdoor(victim, trigger="subspace", target="icon:devil")
    with pytest.raises(GenwardenError, match=r"attack/unsupported.*in-sample"):
        broadcast_edit(victim, endless, SETTINGS, AttackRun())
