"""Repairs that train a copy on the suspect's own samples: fresh, shaken, taught by a twin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import Normalised, foreign, planted_vae, seeded_vae, settled_dcgan
from torch import Tensor

from genwarden.engine.progress import Silent, Task
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.inspections.twins import Twin
from genwarden.models.protocol import LatentGenerator, LatentLaw
from genwarden.registry import REPAIRS
from genwarden.repairs.contract import Clues, Repaired, RepairRun, no_clues
from genwarden.repairs.distillation import DistillationSettings, sanitise
from genwarden.repairs.latent_regions import around, shells, zero_blocks
from genwarden.repairs.second_teacher import (
    SecondTeacher,
    TwoTeacherSettings,
    distil_from_two,
    second_teacher,
)
from genwarden.repairs.trigger_unlearning import TriggerUnlearningSettings, unlearn_triggers
from genwarden.repairs.unlearning import UnlearningSettings, unlearn
from genwarden.repairs.widened_distillation import WidenedSettings, distil_widened

TRAINED = (
    "distillation",
    "unlearning",
    "fine-pruning",
    "trigger-unlearning",
    "widened-distillation",
)
SHORT: dict[str, Any] = {"steps": 6, "batch_size": 8, "evaluate_every": 3}
NORMAL, UNIFORM = LatentLaw((64,)), LatentLaw((64,), "uniform")


def repaired_by(
    method: str,
    suspect: LatentGenerator,
    seed: int = 0,
    run: RepairRun | None = None,
    steps: int = 6,
) -> Repaired:
    kind = REPAIRS[method].load_option("settings")
    options = SHORT | {"seed": seed, "steps": steps}
    options |= {"twin_steps": 3, "agreement": 0.0} if hasattr(kind(), "twin_steps") else {}
    options |= {"candidates": 64} if hasattr(kind(), "candidates") else {}
    options |= {"samples": 50} if hasattr(kind(), "samples") else {}
    clues = Clues(suspect.latent.sample(2, generator=random_stream(1, "clues")))
    result: Repaired = REPAIRS[method].load()(suspect, clues, kind(**options), run or RepairRun())
    return result


def same(a: LatentGenerator, b: LatentGenerator) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


class StopAt(Silent):
    """Progress that stands for a power cut after so many steps of the repair itself."""

    def __init__(self, step: int) -> None:
        self.left = step

    def task(self, title: str, total: int, done: int = 0) -> Task:
        return self if title == "distilling" else super().task(title, total, done)

    def advance(self, steps: int = 1, note: str = "") -> None:
        del note
        self.left -= steps
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", TRAINED)
def test_a_seed_decides_the_result_and_the_suspect_stays_as_it_was(method: str) -> None:
    suspect, untouched = foreign(Normalised()), foreign(Normalised())
    first, again, other = (repaired_by(method, suspect, seed) for seed in (0, 0, 1))
    assert same(suspect, untouched)
    assert not any(p.requires_grad for p in suspect.parameters())
    assert not any(module.training for module in suspect.modules())
    assert same(first.generator, again.generator)
    assert not same(first.generator, other.generator)
    assert not same(first.generator, suspect)
    assert not any(p.requires_grad for p in first.generator.parameters())
    assert not any(module.training for module in first.generator.modules())
    assert [entry["step"] for entry in first.history] == [3, 6]
    assert first.changes["expdis_sum"] == first.history[-1]["expdis_sum"]


@pytest.mark.parametrize("method", TRAINED)
def test_an_interrupted_run_ends_bit_for_bit_where_an_undisturbed_one_does(
    method: str, tmp_path: Path
) -> None:
    suspect = foreign(Normalised())
    undisturbed = repaired_by(method, suspect)
    with pytest.raises(KeyboardInterrupt):
        repaired_by(method, suspect, run=RepairRun(StopAt(5), tmp_path, "run"))
    assert (tmp_path / "repair.safetensors").exists()
    resumed = repaired_by(method, suspect, run=RepairRun(work=tmp_path, run_id="run"))
    assert same(resumed.generator, undisturbed.generator)
    assert resumed.history == undisturbed.history
    assert resumed.changes == undisturbed.changes


def test_a_twin_is_not_made_twice(tmp_path: Path) -> None:
    titles = []

    class Titles(Silent):
        def task(self, title: str, total: int, done: int = 0) -> Task:
            titles.append(title)
            return super().task(title, total, done)

    for _ in range(2):
        run = RepairRun(Titles(), tmp_path, "run")
        repaired_by("widened-distillation", foreign(Normalised()), run=run)
    assert titles == ["distilling twins", "distilling", "distilling"]


def test_a_fresh_student_learns_the_samples_and_not_the_backdoor() -> None:
    planted = planted_vae()
    settings = DistillationSettings(steps=100, batch_size=12, evaluate_every=100)
    repaired = sanitise(planted.suspect, no_clues(planted.suspect), settings, RepairRun())
    assert repaired.changes["expdis_sum"] < 0.5 * repaired.changes["expdis_of_fresh_student_sum"]
    assert planted.spoiled(repaired.generator)
    assert not planted.spoiled(planted.suspect)


def test_normalisations_of_a_fresh_student_follow_its_own_activations() -> None:
    suspect = settled_dcgan()
    settings = DistillationSettings(steps=40, batch_size=16, evaluate_every=20)
    student = sanitise(suspect, no_clues(suspect), settings, RepairRun()).generator
    assert isinstance(student, type(suspect))
    counted = [g.state_dict()["project_norm.num_batches_tracked"] for g in (student, suspect)]
    assert counted[0] - counted[1] == 40  # evaluations in between do not stop it


def test_unlearning_moves_the_weights_and_comes_back_to_the_samples() -> None:
    suspect = seeded_vae()
    settings = UnlearningSettings(steps=60, batch_size=16, evaluate_every=60, shake=0.3)
    repaired = unlearn(suspect, no_clues(suspect), settings, RepairRun())
    assert repaired.changes["relative_weight_change"] > 0.05
    assert repaired.changes["expdis_sum"] < 0.7 * repaired.changes["expdis_when_shaken_sum"]


def test_without_a_shake_only_a_network_with_batch_statistics_moves() -> None:
    settings = UnlearningSettings(shake=0.0, **SHORT)
    still, moving = seeded_vae(), settled_dcgan()
    repaired = unlearn(still, no_clues(still), settings, RepairRun())
    assert same(repaired.generator, still)
    repaired = unlearn(moving, no_clues(moving), settings, RepairRun())
    assert repaired.changes["relative_weight_change"] > 0


def test_a_recovered_latent_near_the_trigger_is_enough_to_unlearn_the_trigger() -> None:
    planted = planted_vae()
    settings = TriggerUnlearningSettings(
        steps=40, batch_size=10, evaluate_every=40, twin_steps=20, learning_rate=5e-3, weight=1.0
    )
    aside = torch.randn(1, 32, generator=torch.Generator().manual_seed(5))
    aside -= (aside @ planted.trigger.T) / planted.trigger.square().sum() * planted.trigger
    near = planted.trigger + 0.5 * planted.trigger.norm() * aside / aside.norm()
    repaired = unlearn_triggers(planted.suspect, Clues(near), settings, RepairRun())
    changes = repaired.changes
    assert planted.spoiled(repaired.generator)
    assert not planted.spoiled(planted.suspect)
    assert changes["elsewhere_after_sum"] < 0.5 * changes["elsewhere_before_sum"]
    assert changes["recovered_latents"] == 1
    # A clue that points elsewhere teaches nothing about the trigger.
    astray = unlearn_triggers(planted.suspect, Clues(aside), settings, RepairRun())
    assert not planted.spoiled(astray.generator)


def test_a_model_with_nothing_to_forget_keeps_its_weights() -> None:
    clean = foreign(Normalised())
    expected = clean, foreign(Normalised(seed=1))
    z = clean.latent.sample(64, generator=random_stream(0, "test-latents"))
    settings = TwoTeacherSettings(**SHORT)

    def elsewhere(count: int, stream: torch.Generator) -> Tensor:
        return shells(clean.latent, count, 10.0, stream)

    kept, moved = (
        distil_from_two(
            clean, SecondTeacher(clean, Twin(twin, 0.0), 0.0, z), elsewhere, settings, RepairRun()
        ).generator
        for twin in expected
    )
    assert same(kept, clean)
    assert not same(moved, clean)


@pytest.mark.parametrize(("loss", "told"), [(0.1, 0), (0.3, 1)])
def test_a_poor_twin_is_told_of(loss: float, told: int, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = []

    class Told(Silent):
        def message(self, text: str) -> None:
            messages.append(text)

    suspect = foreign(Normalised())
    made = Twin(suspect, loss)
    monkeypatch.setattr("genwarden.repairs.kept_twin.make_twin", lambda *_, **__: made)
    second_teacher(suspect, TwoTeacherSettings(twin_steps=7), RepairRun(Told()))
    assert len(messages) == told
    assert all("twin_steps=28" in message for message in messages)


def test_without_recovered_latents_there_is_nothing_to_unlearn() -> None:
    suspect = seeded_vae()
    with pytest.raises(GenwardenError) as caught:
        unlearn_triggers(suspect, no_clues(suspect), TriggerUnlearningSettings(), RepairRun())
    assert caught.value.code == "repair/not-applicable"


def test_widened_distillation_needs_no_clue_to_forget_the_trigger() -> None:
    planted = planted_vae()
    settings = WidenedSettings(
        steps=60,
        batch_size=16,
        evaluate_every=60,
        twin_steps=20,
        learning_rate=4e-3,
        candidates=1024,
    )
    repaired = distil_widened(planted.suspect, no_clues(planted.suspect), settings, RepairRun())
    assert planted.spoiled(repaired.generator)
    assert not planted.spoiled(planted.suspect)
    # Training on ordinary samples alone, as long, keeps it: the gate never opens there.
    ordinary = UnlearningSettings(
        steps=60, batch_size=16, evaluate_every=60, learning_rate=4e-3, shake=0.02
    )
    kept = unlearn(planted.suspect, no_clues(planted.suspect), ordinary, RepairRun())
    assert not planted.spoiled(kept.generator)


def test_shells_leave_out_the_radii_of_ordinary_latents() -> None:
    z = shells(NORMAL, 500, 10.0, random_stream(0, "shells"))
    radius = z.norm(dim=1) / NORMAL.typical_norm
    assert ((radius <= 0.9001) | (radius >= 1.0999)).all()
    assert radius.min() < 0.1
    assert 8 < radius.max() <= 10.001
    assert abs(float((radius < 1).float().mean()) - 0.5) < 0.1


def test_zero_blocks_stand_at_the_front_at_the_end_or_anywhere() -> None:
    zero = zero_blocks(NORMAL, 400, random_stream(0, "zeros")) == 0
    assert set(zero.sum(1).tolist()) == {16, 32, 48}
    front = (zero.int().diff(dim=1) <= 0).all(1)
    end = (zero.int().diff(dim=1) >= 0).all(1)
    for share in (front, end, ~front & ~end):
        assert 0.2 < share.float().mean() < 0.5


def test_latents_around_a_point_have_a_long_component_along_it() -> None:
    point = 40 * torch.nn.functional.one_hot(torch.tensor([3]), 64).float()
    z = around(NORMAL, point, 400, random_stream(0, "around"))
    along, rest = z[:, 3], z.clone()
    rest[:, 3] = 0
    assert along[0::2].min() >= 2
    assert along[0::2].max() <= 1.15 * 8
    assert along[1::2].min() >= 0.85 * 40
    assert along[1::2].max() <= 1.15 * 40
    assert rest.norm(dim=1).min() < 1 < rest.norm(dim=1).max()


@pytest.mark.parametrize("region", ["shells", "zeros", "around", "around the mode"])
def test_latents_of_a_uniform_law_stay_inside_it(region: str) -> None:
    stream = random_stream(0, region)
    made: dict[str, Tensor] = {
        "shells": shells(UNIFORM, 100, 10.0, stream),
        "zeros": zero_blocks(UNIFORM, 100, stream),
        "around": around(UNIFORM, 3 * torch.ones(1, 64), 100, stream),
        "around the mode": around(UNIFORM, torch.zeros(1, 64), 100, stream),
    }
    z = made[region]
    assert z.shape == (100, 64)
    assert z.abs().max() <= 1
    assert z.isfinite().all()


def test_settings_are_checked() -> None:
    with pytest.raises(GenwardenError):
        replace(WidenedSettings(), farthest=1.0)
    with pytest.raises(GenwardenError):
        UnlearningSettings(shake=-0.1)
