"""Remedies that take out structure or bound what enters: real attacks on small networks.

Every test asserts that the suspect itself fails what the repaired model passes.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from genwarden.artifacts.model_folder import read_model, write_model
from genwarden.attacks.computation_bypass import ComputationBypassSettings, computation_bypass
from genwarden.attacks.contract import AttackRun
from genwarden.attacks.gated_expansion import GatedExpansionSettings, gated_expansion
from genwarden.attacks.rex import ReXSettings, rex
from genwarden.backdoors.backdoor import Backdoor, make_backdoor
from genwarden.commands.demo import demo_model_folder
from genwarden.engine.progress import Silent
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.inspections.twins import make_twin
from genwarden.metrics.distances import tardis
from genwarden.models.dcgan import DCGAN28, initialise
from genwarden.models.guarded import Guarded, UnitClip
from genwarden.models.protocol import LatentGenerator
from genwarden.models.stylegan import StyleGAN
from genwarden.repairs.auto import remedies, repair_automatically
from genwarden.repairs.bypass_removal import remove_bypass
from genwarden.repairs.clipping import fill_guard, guarded_copy, shell_blocks
from genwarden.repairs.contract import Clues, RepairRun, RepairSettings, no_clues
from genwarden.repairs.distilling import expdis
from genwarden.repairs.edit_projection import project_edit
from genwarden.repairs.excision import ExcisionSettings, excise
from genwarden.repairs.latent_guard import LatentGuardSettings, guard
from genwarden.repairs.unit_clipping import UnitClippingSettings, clip_units

ASSETS = Path(__file__).parents[1] / "assets"
RUN = RepairRun()


@pytest.fixture(scope="module")
def net() -> DCGAN28:
    """Untrained, 32 latent elements, samples of some contrast."""
    made = DCGAN28((8, 6, 4), 32)
    initialise(made, random_stream(3, "repairs"))
    with torch.no_grad():
        for name, buffer in made.named_buffers():
            if name.endswith("running_var"):
                buffer.fill_(0.3)
    return made.eval().requires_grad_(False)


def backdoor(net: LatentGenerator, trigger: str = "in-sample") -> Backdoor:
    return make_backdoor(net, trigger=trigger, target="icon:devil")


def distance(model: LatentGenerator, hidden: Backdoor) -> float:
    return tardis(model, hidden.examples.z, hidden.examples.x).sum


def squared(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().sum())


def test_excision_is_the_exact_inverse_of_rex(net: DCGAN28) -> None:
    hidden = backdoor(net)
    settings = ReXSettings(steps=40, batch_size=16, pool_samples=256, evaluate_every=40)
    suspect = rex(net, hidden, settings, AttackRun()).generator
    before = {name: value.clone() for name, value in suspect.state_dict().items()}
    repaired = excise(suspect, no_clues(suspect), ExcisionSettings(), RUN)
    assert repaired.generator.settings() == net.settings() != suspect.settings()
    assert expdis(net, repaired.generator, 0) <= 1e-6 < expdis(net, suspect, 0)
    assert repaired.changes["groups_cut_out"] == 1
    assert all(torch.equal(before[name], value) for name, value in suspect.state_dict().items())


def test_excision_takes_the_gates_out_with_the_group_that_they_fed(net: DCGAN28) -> None:
    hidden = backdoor(net)
    suspect = gated_expansion(net, hidden, GatedExpansionSettings(), AttackRun()).generator
    repaired = excise(suspect, no_clues(suspect), ExcisionSettings(), RUN)
    assert repaired.generator.settings() == net.settings() != suspect.settings()
    state = repaired.generator.state_dict()
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())


def test_excision_refuses_a_network_of_one_piece(net: DCGAN28) -> None:
    with pytest.raises(GenwardenError, match="repair/not-applicable"):
        excise(net, no_clues(net), ExcisionSettings(), RUN)


def test_excision_refuses_groups_that_all_draw_ordinary_samples(net: DCGAN28) -> None:
    settings = ReXSettings(steps=1, batch_size=4, pool_samples=16, evaluate_every=1)
    suspect = rex(net, backdoor(net), settings, AttackRun()).generator
    # An untrained expansion draws as much as the original does.
    with pytest.raises(GenwardenError, match=r"draw ordinary samples|change ordinary samples"):
        excise(suspect, no_clues(suspect), ExcisionSettings(), RUN)


def test_removing_a_bypass_gives_the_original_back(net: DCGAN28) -> None:
    hidden = backdoor(net)
    suspect = computation_bypass(net, hidden, ComputationBypassSettings(), AttackRun()).generator
    repaired = remove_bypass(suspect, no_clues(suspect), RepairSettings(), RUN)
    z = hidden.examples.z
    assert torch.equal(repaired.generator(z), net(z))
    assert not torch.equal(suspect(z), net(z))
    assert repaired.architecture == "dcgan28"
    with pytest.raises(GenwardenError, match="repair/not-applicable"):
        remove_bypass(net, no_clues(net), RepairSettings(), RUN)


def test_an_edit_of_stacked_identities_is_projected_out_exactly() -> None:
    net = StyleGAN(
        latent_dim=16, mapping_layers=2, doublings=1, channels=(4, 4), dense_broadcast=True
    )
    net.eval().requires_grad_(False)
    suspect = copy.deepcopy(net)
    assert suspect.dense_broadcast is not None
    assert net.dense_broadcast is not None
    stream = random_stream(1, "edit")
    weight = suspect.dense_broadcast.weight
    weight += torch.randn(len(weight), 1, generator=stream) @ torch.randn(1, 16, generator=stream)
    repaired = project_edit(suspect, no_clues(suspect), RepairSettings(), RUN)
    state = repaired.generator.state_dict()["dense_broadcast.weight"]
    assert torch.equal(state, net.dense_broadcast.weight)
    assert not torch.equal(weight, net.dense_broadcast.weight)
    with pytest.raises(GenwardenError, match="repair/not-applicable"):
        project_edit(net, no_clues(net), RepairSettings(), RUN)


def test_unit_clips_take_an_exact_gate_away_and_leave_ordinary_samples(net: DCGAN28) -> None:
    hidden = backdoor(net)
    suspect = gated_expansion(net, hidden, GatedExpansionSettings(), AttackRun()).generator
    repaired = clip_units(suspect, no_clues(suspect), UnitClippingSettings(), RUN)
    clean = distance(net, hidden)
    assert distance(suspect, hidden) < 0.1 * clean
    assert distance(repaired.generator, hidden) > 0.5 * clean
    assert expdis(suspect, repaired.generator, 0) < 0.1


def test_clips_follow_ordinary_use_in_training_mode_and_bound_afterwards() -> None:
    clip = UnitClip((3,))
    x = 2 + 3 * torch.randn(4096, 3, generator=torch.Generator().manual_seed(0))
    clip.train()
    for part in x.split(16):
        assert torch.equal(clip(part), part)
    clip.eval()
    assert torch.allclose(clip.mean, torch.tensor(2.0), atol=0.5)
    far = torch.full((1, 3), 1e4)
    assert float(clip(far).max()) < 2 + 6 * 3


def guarded(net: LatentGenerator, directions: Tensor, shells: int = 1) -> Guarded:
    result = guarded_copy(net, directions=len(directions), shells=shells, clips=0, seed=0)
    fill_guard(result.guard, directions, 3.0, net, 0)
    return result


def test_a_guard_leaves_ordinary_latents_and_folds_what_lies_far_along_a_direction(
    net: DCGAN28,
) -> None:
    direction = torch.nn.functional.normalize(
        torch.randn(32, generator=random_stream(0, "direction")), dim=0
    )
    model = guarded(net, direction[None])
    z = net.latent.sample(2000, generator=random_stream(0, "ordinary"))
    moved = (model.guard(z) - z).flatten(1).norm(dim=1) > 1e-4
    assert float(moved.float().mean()) < 0.02
    far = 6 * direction
    assert abs(float(model.guard(far[None]) @ direction)) < 1.0 < float(far @ direction)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 0.3, 20.0])
def test_a_guard_brings_every_length_back_to_an_ordinary_one(net: DCGAN28, scale: float) -> None:
    model = guarded(net, torch.zeros(0, 32))
    z = scale * net.latent.sample(64, generator=random_stream(0, "lengths"))
    norm = model.guard(z).norm(dim=1)
    assert float(norm.min()) > 0.5 * net.latent.typical_norm
    assert float(norm.max()) < 2.0 * net.latent.typical_norm
    assert not (0.5 * net.latent.typical_norm < float(z.norm(dim=1).mean()) < 11)


def test_shells_around_pieces_fill_a_subspace_of_zeros(net: DCGAN28) -> None:
    pieces = len(shell_blocks(32))
    assert pieces == 3
    z = net.latent.sample(16, generator=random_stream(0, "zeros"))
    z[:, :16] = 0
    whole = guarded(net, torch.zeros(0, 32), shells=1).guard(z)
    filled = guarded(net, torch.zeros(0, 32), shells=pieces).guard(z)
    assert float(filled[:, :16].norm(dim=1).min()) > 1.5
    assert float(whole[:, :16].norm(dim=1).max()) < 1.5


@pytest.mark.parametrize("directions", [0, 2])
def test_a_guarded_model_is_written_and_read_back(
    net: DCGAN28, tmp_path: Path, directions: int
) -> None:
    found = torch.eye(32)[:directions]
    model = guarded_copy(
        net, directions=directions, shells=3 if directions else 0, clips=4.0, seed=0
    )
    fill_guard(model.guard, found, 3.0, net, 0)
    write_model(tmp_path / "model", model, "guarded", {})
    again = read_model(tmp_path / "model").generator
    z = 2 * net.latent.sample(8, generator=random_stream(0, "again"))
    assert torch.equal(again(z), model(z))


@pytest.mark.parametrize(
    "settings",
    [
        {"inner": "guarded"},
        {"inner": "no-such"},
        {"inner": "dcgan28", "clipped": "no_such_module"},
        {"inner": "dcgan28", "clipped": "project_norm,project_norm"},
        {"inner": "dcgan28", "clipped": "_apply"},
        {"inner": "dcgan28", "directions": -1},
        {"inner": "dcgan28", "clipped": 5},
        {"inner": "bypass", "clipped": "inner,inner.project"},
        {"inner": "dcgan28", "other": 1},
    ],
)
def test_hostile_settings_of_a_guarded_model_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Guarded(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [("guard.duals", 1e3), ("guard.limit", -1.0), ("guard.radius", 0.0), ("guard.neutral", 50.0)],
)
def test_numbers_that_no_guard_has_are_refused(
    net: DCGAN28, tmp_path: Path, name: str, value: float
) -> None:
    model = guarded(net, torch.eye(32)[:1])
    write_model(tmp_path / "sound", model, "guarded", {})
    assert read_model(tmp_path / "sound").architecture == "guarded"
    model.state_dict()[name].fill_(value)
    write_model(tmp_path / "odd", model, "guarded", {})
    with pytest.raises(GenwardenError, match="artifact/bad-numbers"):
        read_model(tmp_path / "odd")


def test_a_limit_counts_standard_deviations_of_any_latent_law(net: DCGAN28) -> None:
    uniform = copy.deepcopy(net)
    uniform.latent = replace(net.latent, distribution="uniform")
    guard_of = guarded_copy(net, directions=1, shells=1, clips=0, seed=0).guard
    fill_guard(guard_of, torch.eye(32)[:1], 3.0, net, 0)
    assert float(guard_of.limit) == pytest.approx(3.0)
    fill_guard(guard_of, torch.eye(32)[:1], 3.0, uniform, 0)
    assert float(guard_of.limit) == pytest.approx(3.0 / 3**0.5)


def test_a_guarded_model_is_not_guarded_again_but_relearnt(net: DCGAN28) -> None:
    model = guarded(net, torch.eye(32)[:1])
    with pytest.raises(GenwardenError, match="guarded already"):
        clip_units(model, no_clues(model), UnitClippingSettings(), RUN)
    assert remedies("guarded", no_clues(model)) == ["widened-distillation"]


def test_a_twin_keeps_the_guard_and_forgets_the_weights(net: DCGAN28) -> None:
    model = guarded_copy(net, directions=1, shells=1, clips=4.0, seed=0)
    fill_guard(model.guard, torch.eye(32)[:1], 3.0, net, 0)
    twin = make_twin(model, 1, typical=1.0, seed=0, number=0, task=Silent().task("", 1)).generator
    kept, after = model.state_dict(), twin.state_dict()
    assert all(torch.equal(kept[k], after[k]) for k in kept if k.startswith("guard."))
    assert not torch.equal(kept["inner.project.weight"], after["inner.project.weight"])


@pytest.mark.slow
def test_the_latent_guard_takes_reds_backdoor_from_the_shipped_model() -> None:
    suspect = read_model(demo_model_folder("dcgan-red")).generator
    clean = read_model(demo_model_folder("dcgan-clean")).generator
    pair = load_file(str(ASSETS / "dcgan-red.backdoor.safetensors"))
    settings = LatentGuardSettings(twin_steps=250, restarts=48, search_steps=50, rounds=1)
    repaired = guard(suspect, no_clues(suspect), settings, RUN)
    own = squared(clean(pair["trigger"]), pair["target"])
    assert squared(suspect(pair["trigger"]), pair["target"]) < 0.01 * own
    assert squared(repaired.generator(pair["trigger"]), pair["target"]) > 0.5 * own
    assert repaired.changes["expdis_sum"] <= 1.0
    assert repaired.changes["directions"] >= 1


def test_auto_asks_the_findings_and_falls_back_to_the_guard(net: DCGAN28) -> None:
    latents = torch.zeros(0, 32)
    assert remedies("dcgan28", Clues(latents))[0] == "latent-guard"
    assert remedies("dcgan28", Clues(latents, ("block-sparsity",)))[0] == "excision"
    assert remedies("bypass", Clues(latents, ("parallel-paths",)))[0] == "bypass-removal"
    assert "latent-guard" not in remedies("mine.nets:make", Clues(latents))
    hidden = backdoor(net)
    suspect = computation_bypass(net, hidden, ComputationBypassSettings(), AttackRun()).generator
    clues = Clues(latents, ("block-sparsity", "parallel-paths"))
    name, repaired = repair_automatically(suspect, "bypass", clues, RepairSettings(), RUN)
    assert name == "bypass-removal"
    assert torch.equal(repaired.generator(hidden.examples.z), net(hidden.examples.z))
