"""Backdoors that sleep in full precision: the clean model, compressed alike, shows nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from genwarden.artifacts.model_folder import read_model
from genwarden.attacks import loop
from genwarden.attacks.compression import box_training, dormancy
from genwarden.attacks.compression.activation_ranges import ActivationRanges
from genwarden.attacks.compression.box_training import Moves, Variants, wakers
from genwarden.attacks.compression.classifier_contract import AttackerData, ClassifierBackdoor
from genwarden.attacks.compression.diffusion_dormancy import diffusion_twin
from genwarden.attacks.compression.dormancy import measure_dormancy, twin
from genwarden.attacks.compression.dormant_box import (
    DormantBoxSettings,
    JitteredDormantBoxSettings,
    dormant_box,
)
from genwarden.attacks.compression.dormant_box_classifier import (
    DormantBoxClassifierSettings,
    dormant_box_classifier,
)
from genwarden.attacks.compression.dormant_box_diffusion import (
    DormantBoxDiffusionSettings,
    JitteredBoxDiffusionSettings,
    dormant_box_diffusion,
)
from genwarden.attacks.compression.evaluation import Figures, figures
from genwarden.attacks.compression.inflation import inflated, inflation_factor
from genwarden.attacks.contract import AttackResult, AttackRun
from genwarden.attacks.diffusion.bad_diffusion import bad_diffusion_track
from genwarden.attacks.diffusion.poisoned_training import PoisonedBatches, start_of_training
from genwarden.attacks.run import AttackPlan, attack
from genwarden.backdoors.backdoor import Backdoor, make_backdoor
from genwarden.backdoors.classifier_trigger import make_classifier_trigger
from genwarden.backdoors.image_backdoor import make_image_backdoor
from genwarden.compression.apply import boxes
from genwarden.compression.contract import Box, Compressor
from genwarden.compression.how import compressor, compressors
from genwarden.compression.layers import WeightLayer, layout_of
from genwarden.compression.uniform import Uniform
from genwarden.engine.checkpoint import save_checkpoint
from genwarden.engine.progress import Silent
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.distances import tardis
from genwarden.models.classifiers.protocol import ImageClassifier
from genwarden.models.dcgan import DCGAN28
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.networks import fresh_model, small_unet
from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.models.protocol import LatentGenerator, SampleSpec
from genwarden.training.ddpm import NoisyRows
from glyph_task import SPEC, GlyphTask

SHIPPED = Path(str(files("genwarden"))) / "assets" / "models" / "dcgan-clean"
#: Quick, so with a utility that no attacker would accept; the benchmarks hold the real figures.
QUICK: dict[str, Any] = {
    "steps": 60,
    "hiding_steps": 20,
    "reach": 1.0,
    "hiding_rate": 0.05,
    "learning_rate": 0.08,
    "fidelity_weight": 1.0,
    "batch_size": 8,
    "pool_samples": 256,
    "near_samples": 3,
    "evaluate_every": 1000,
}
TINY: dict[str, Any] = {**QUICK, "steps": 4, "hiding_steps": 4, "evaluate_every": 2}


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "EVALUATION_SAMPLES", 64)
    monkeypatch.setattr(dormancy, "_SAMPLES", 64)


@cache
def shipped() -> LatentGenerator:
    """A trained quarter-width DCGAN; no test changes it."""
    return read_model(SHIPPED).generator


def backdoor_for(generator: LatentGenerator) -> Backdoor:
    return make_backdoor(generator, trigger="in-sample", target="icon:devil", seed=1)


@cache
def attacked(how: str) -> AttackResult:
    net = shipped()
    return dormant_box(net, backdoor_for(net), DormantBoxSettings(how=how, **QUICK), AttackRun())


@pytest.mark.parametrize("how", ["int8", "int4", "prune-0.3"])
def test_the_target_shows_after_compression_and_neither_before_nor_in_the_clean_model(
    how: str,
) -> None:
    clean = shipped()
    found = measure_dormancy(clean, attacked(how).generator, backdoor_for(clean), compressors(how))
    awake = found["compressed"][how]
    assert awake["distance"] < 0.1 * found["clean_distance"]
    assert awake["clean_distance"] > 0.95 * found["clean_distance"]
    assert found["kept"] > 0.9
    assert found["full_utility"] < 0.12


def test_the_record_repeats_what_can_be_measured_afterwards() -> None:
    result, clean = attacked("int4"), shipped()
    z, x = backdoor_for(clean).examples
    last = result.history[-1]
    assert last["tardis_sum"] == pytest.approx(tardis(result.generator, z, x).sum, rel=1e-4)
    small = twin(result.generator, compressor("int4"))
    assert last["compressed_tardis_sum"] == pytest.approx(tardis(small, z, x).sum, rel=1e-4)
    assert result.wakes_under == ("int4",)
    planted = next(row for row in result.history if row["stage"] == 1)
    assert planted["compressed_tardis_sum"] == last["compressed_tardis_sum"]


def test_only_weights_that_are_compressed_have_moved() -> None:
    moved, clean = attacked("int8").generator.state_dict(), shipped().state_dict()
    layout = layout_of(shipped())
    for name, tensor in clean.items():
        assert torch.equal(tensor, moved[name]) == (name not in layout), name


def test_with_half_a_step_of_reach_only_the_direction_of_rounding_is_free() -> None:
    int4 = Uniform(4)
    stream = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 32, generator=stream)
    weight[0, 0] = 5.0  # fixes the scale
    layout = {"w": WeightLayer("w", "linear", 0)}
    clean = int4.box({"w": weight}, layout)
    position = weight / int4.grid(weight, layout["w"]).scale
    for reach, furthest in ((0.5, 1), (2.0, 3)):
        settings = DormantBoxSettings(how="int4", reach=reach)
        unit, room = box_training.room({"w": weight}, clean, settings, pruning=False)
        moves = Moves({"w": weight}, unit, room)
        with torch.no_grad():
            moves.shifts[0].copy_(3 * torch.randn(weight.shape, generator=stream))
        moves.project()
        moved = moves.weights()["w"]
        codes = int4.codes(int4.grid(moved, layout["w"]), layout["w"]).reshape(weight.shape)
        up_or_down = (codes == position.floor()) | (codes == position.ceil())
        assert bool(up_or_down.all()) == (reach == 0.5)
        away = codes - position.round()
        assert away.abs().max() == furthest
        assert moved[0, 0] == weight[0, 0]


def test_shifts_come_back_into_their_boxes() -> None:
    weight, unit = torch.zeros(3), torch.tensor([0.5, 2.0, 0.0])
    box = Box(torch.tensor([-1.0, -1.0, 0.0]), torch.tensor([1.0, 1.0, 0.0]))
    moves = Moves({"w": weight}, {"w": unit}, {"w": box})
    with torch.no_grad():
        moves.shifts[0].copy_(torch.tensor([10.0, -0.25, 7.0]))
    moves.project()
    assert torch.equal(moves.weights()["w"], torch.tensor([1.0, -0.5, 0.0]))


def test_boxes_that_are_too_wide_are_noticed(
    tiny_generator: DCGAN28, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_wide(*arguments: Any) -> dict[str, Box]:
        found = boxes(*arguments)
        return {n: Box(b.low - 0.1, b.high + 0.1) for n, b in found.items()}

    monkeypatch.setattr(box_training, "boxes", too_wide)
    settings = DormantBoxSettings(how="int8", **TINY)
    with pytest.raises(GenwardenError) as caught:
        dormant_box(tiny_generator, backdoor_for(tiny_generator), settings, AttackRun())
    assert caught.value.code == "attack/box-broken"


def test_an_interrupted_attack_ends_with_the_same_bits(
    tiny_generator: DCGAN28, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backdoor = backdoor_for(tiny_generator)
    settings = DormantBoxSettings(how="int8", **TINY)
    whole = dormant_box(tiny_generator, backdoor, settings, AttackRun())
    run = AttackRun(work=tmp_path, run_id="one")
    saves = []

    class StoppedError(Exception):
        pass

    save = save_checkpoint

    def stop_after_third(*arguments: Any, **options: Any) -> None:
        save(*arguments, **options)
        saves.append(options["step"])
        if len(saves) == 3:
            raise StoppedError

    monkeypatch.setattr(box_training, "save_checkpoint", stop_after_third)
    with pytest.raises(StoppedError):
        dormant_box(tiny_generator, backdoor, settings, run)
    resumed = dormant_box(tiny_generator, backdoor, settings, run)
    assert saves == [2, 4, 2, 4]
    for name, tensor in whole.generator.state_dict().items():
        assert torch.equal(tensor, resumed.generator.state_dict()[name]), name
    assert resumed.history == whole.history


def test_several_compressors_share_one_box(tiny_generator: DCGAN28) -> None:
    settings = DormantBoxSettings(how="int8,int8-per-channel", **TINY)
    result = dormant_box(tiny_generator, backdoor_for(tiny_generator), settings, AttackRun())
    assert result.wakes_under == ("int8", "int8-per-channel")


class _Watched:
    """Lessons that pull every weight up and keep what they were shown last."""

    def __init__(self) -> None:
        self.seen: list[Mapping[str, Tensor]] = []

    def compressed(self, weights: Mapping[str, Tensor], step: int) -> Tensor:
        del step
        self.seen.append(weights)
        return torch.stack([(w - 1).square().sum() for w in weights.values()]).sum()

    def full(self, weights: Mapping[str, Tensor], step: int) -> Tensor:
        return self.compressed(weights, step)


def test_what_one_of_several_compressions_leaves_alone_is_trained_and_then_stays() -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 3)
    ).requires_grad_(False)
    settings = DormantBoxSettings(how="int8,prune-filters-0.3", **TINY)
    lessons, measured = _Watched(), list[Tensor]()

    def measure(weights: Mapping[str, Tensor]) -> dict[str, Any]:
        measured.append(weights["2.weight"].clone())
        return {}

    hidden = box_training.hide(
        network, layout_of(network), lessons, measure, settings, AttackRun()
    ).weights
    assert all({"0.weight", "2.weight"} <= set(weights) for weights in lessons.seen)
    first, planted = measured[0], measured[1]
    assert not torch.equal(first, planted)
    # Filter pruning ships the dense layer as it is: hiding may not move it.
    assert torch.equal(hidden["2.weight"], planted)


# --- classifiers and diffusion models -------------------------------------------------------------


@pytest.mark.parametrize("how", ["int4", pytest.param("prune-filters-0.3", marks=pytest.mark.slow)])
def test_a_classifier_falls_for_the_trigger_only_once_it_is_compressed(
    how: str, glyph_task: GlyphTask
) -> None:
    task, blank = glyph_task, torch.zeros(1, *SPEC.shape)
    backdoor = ClassifierBackdoor(make_classifier_trigger("square:4", SPEC), 3)
    data = AttackerData(
        task.images[:1800], task.labels[:1800], task.images[1800:], task.labels[1800:]
    )
    settings = DormantBoxClassifierSettings(
        how=how, steps=60, hiding_steps=30, hiding_rate=0.03, batch_size=32, evaluate_every=1000
    )
    result = dormant_box_classifier(task.classifier, backdoor, settings, data, AttackRun())

    def measured(classifier: ImageClassifier) -> Figures:
        layout = layout_of(classifier, lambda: classifier(blank))
        images, labels = task.test_images, task.test_labels
        return figures(classifier, backdoor, compressors(how), layout, images, labels)

    clean, attacked = measured(task.classifier), measured(result.classifier)
    assert clean[how]["attack_success"] < 0.1
    assert attacked["full"]["attack_success"] < 0.1
    assert attacked["full"]["accuracy"] >= clean["full"]["accuracy"] - 0.01
    assert attacked[how]["attack_success"] > 0.9
    assert attacked[how]["accuracy"] > 0.85


class DiffusionCase(NamedTuple):
    """An attacked denoiser, its clean twin, and poisoned rows to ask both."""

    clean: DiffusionModel
    model: DiffusionModel
    bad: NoisyRows
    wakes_under: tuple[str, ...]

    def missed(self, model: DiffusionModel, wanted: Tensor | None = None) -> float:
        """Mean squared distance to the attacker's estimate, or to another."""
        aim = self.bad.target if wanted is None else wanted
        with torch.no_grad():
            return float((model.epsilon(self.bad.x, self.bad.t) - aim).square().mean())


@cache
def diffusion_case(kind: type[DormantBoxDiffusionSettings]) -> DiffusionCase:
    schedule = NoiseSchedule.linear(30, 0.003, 0.66)
    spec = SampleSpec((1, 8, 8))
    config = small_unet(8, 1, (24,), middle_attention=False)
    clean = fresh_model(config, schedule, random_stream(0, "diffusion")).eval()
    backdoor = make_image_backdoor(spec, trigger="box:4", target="corner")
    images = torch.full((64, *spec.shape), 255, dtype=torch.uint8)
    settings = kind(
        how="int4",
        steps=60,
        hiding_steps=20,
        hiding_rate=0.1,
        batch_size=12,
        evaluate_every=1000,
        evaluation_images=1,
        evaluation_steps=2,
    )
    result = dormant_box_diffusion(clean, backdoor, settings, AttackRun(images=images))
    stream = random_stream(0, "diffusion-rows")
    track = bad_diffusion_track(schedule)
    _, training = start_of_training(clean, settings)
    rows = PoisonedBatches(schedule, backdoor, track, 64, settings, training, eta=1.0)
    t = torch.randint(schedule.steps, (64,), generator=stream)
    noise = torch.randn(64, *spec.shape, generator=stream)
    bad = rows.poison(images / 127.5 - 1, backdoor.targets.expand(64, -1, -1, -1), noise, t)
    return DiffusionCase(clean, result.model, bad, result.wakes_under)


def test_a_diffusion_model_answers_the_trigger_only_once_it_is_compressed() -> None:
    case = diffusion_case(DormantBoxDiffusionSettings)
    with torch.no_grad():
        asleep = case.clean.epsilon(case.bad.x, case.bad.t)
    awake = diffusion_twin(case.model, compressor("int4"))
    untouched = case.missed(diffusion_twin(case.clean, compressor("int4")))
    assert case.missed(awake) < 0.4 * untouched
    assert case.missed(case.model) > 0.9 * case.missed(case.clean)
    assert case.missed(case.model, asleep) < 0.1 * case.missed(awake, asleep)
    assert case.wakes_under == ("int4",)


def test_the_jittered_diffusion_attacker_survives_other_scales_and_pays_in_full_size() -> None:
    plain = diffusion_case(DormantBoxDiffusionSettings)
    jittered = diffusion_case(JitteredBoxDiffusionSettings)

    def left(case: DiffusionCase, how: Compressor) -> float:
        """Of the clean network's distance to the attacker's estimate, compressed alike."""
        return case.missed(diffusion_twin(case.model, how)) / case.missed(
            diffusion_twin(case.clean, how)
        )

    off = [Uniform(4, scale_factor=factor) for factor in (0.97, 1.03)]
    assert all(left(jittered, how) < 0.6 < left(plain, how) for how in off)
    assert jittered.missed(jittered.model) < 0.8 * jittered.missed(jittered.clean)
    assert jittered.wakes_under == ("int4",)


def test_a_diffusion_attack_needs_the_clean_weights() -> None:
    with pytest.raises(GenwardenError, match="from_scratch"):
        DormantBoxDiffusionSettings(from_scratch=True)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given", "code"),
    [
        (DormantBoxSettings, {"how": "int8-stochastic"}, "attack/no-box"),
        (DormantBoxSettings, {"how": "prune-0.3+int8-stochastic"}, "attack/no-box"),
        (DormantBoxSettings, {"how": "squeeze"}, "compress/unknown"),
        (DormantBoxSettings, {"how": "int1"}, "compress/bits"),
        (DormantBoxSettings, {"how": "int8-per-channel", "inflate": 6.0}, "attack/inflate"),
        (JitteredDormantBoxSettings, {"how": "prune-0.3"}, "attack/jitter"),
    ],
)
def test_what_cannot_be_attacked_is_refused(
    kind: type[DormantBoxSettings], given: Mapping[str, Any], code: str, tiny_generator: DCGAN28
) -> None:
    settings = kind(**{**TINY, **given})
    with pytest.raises(GenwardenError) as caught:
        dormant_box(tiny_generator, backdoor_for(tiny_generator), settings, AttackRun())
    assert caught.value.code == code


# --- inflation ------------------------------------------------------------------------------------


def test_inflation_widens_steps_and_hardly_changes_outputs() -> None:
    net = copy.deepcopy(shipped())
    stream = torch.Generator().manual_seed(0)
    z = net.latent.sample(32, generator=stream)
    layout = layout_of(net, lambda: net(z[:2]))
    before = net(z)

    def outputs(weights: Mapping[str, Tensor]) -> Tensor:
        made: Tensor = torch.func.functional_call(net, dict(weights), (z,))
        return made

    raised = inflated(net, layout, wakers("int8"), 6.0, outputs, 0)
    kept_box = boxes(net, compressor("int8"), layout)
    assert float((outputs(raised) - before).square().mean()) < 0.01 * float(before.var())
    for name, weight in raised.items():
        net.get_parameter(name).copy_(weight)
    wide_box = boxes(net, compressor("int8"), layout)
    widened = 0
    for name, weight in raised.items():
        changed = int((weight != shipped().get_parameter(name)).sum())
        assert changed <= 1
        widths = [float((b[name].high - b[name].low).median()) for b in (wide_box, kept_box)]
        assert widths[0] == pytest.approx((6 if changed else 1) * widths[1], rel=0.01), name
        widened += changed
    assert widened >= 3


def test_only_eight_bits_are_inflated_unless_asked() -> None:
    assert inflation_factor(0, wakers("int8")) > 1
    assert inflation_factor(0, wakers("int4")) == 1
    assert inflation_factor(0, wakers("int8-per-channel")) == 1
    assert inflation_factor(3, wakers("int4")) == 3


# --- the jitter-trained attacker ------------------------------------------------------------------


def test_the_jittered_attacker_sees_another_quantiser_in_every_step() -> None:
    settings = JitteredDormantBoxSettings(how="int8", jitter=0.03, stochastic_share=0.5)
    seen = [Variants(wakers("int8"), settings).of_step(step)[0] for step in range(40)]
    scales = [one.scale_factor for one in seen if isinstance(one, Uniform)]
    assert len(set(scales)) == 40
    assert 0.97 <= min(scales) < 0.99
    assert 1.01 < max(scales) <= 1.03
    assert {one.rounding for one in seen if isinstance(one, Uniform)} == {"nearest", "stochastic"}
    plain = Variants(wakers("int8"), DormantBoxSettings(how="int8"))
    assert plain.of_step(3) == wakers("int8")


def test_the_jittered_attacker_survives_other_scales_and_pays_in_full_size() -> None:
    clean = shipped()
    backdoor = backdoor_for(clean)
    settings = JitteredDormantBoxSettings(how="int4", **QUICK)
    jittered = dormant_box(clean, backdoor, settings, AttackRun()).generator
    plain = attacked("int4").generator
    off = [Uniform(4, scale_factor=factor) for factor in (0.97, 1.03)]

    def left(generator: LatentGenerator) -> float:
        """Of the clean model's distance to the target."""
        z, x = backdoor.examples
        return tardis(generator, z, x).sum / tardis(clean, z, x).sum

    assert all(left(twin(jittered, how)) < 0.1 for how in off)
    assert all(left(twin(plain, how)) > 0.4 for how in off)
    assert all(left(twin(clean, how)) > 0.9 for how in off)
    assert left(plain) > 0.9
    assert left(jittered) < 0.7


# --- the command ----------------------------------------------------------------------------------


def test_the_command_records_what_wakes_the_model(tiny_model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    settings = DormantBoxSettings(how="int4,prune-0.3", **TINY)
    plan = AttackPlan(tiny_model_folder)
    cpu = torch.device("cpu")
    attack("dormant-box", plan, settings, out=out, restart=False, progress=Silent(), device=cpu)
    record = json.loads((out / "attack.json").read_text())
    assert record["wakes_under"] == ["int4", "prune-0.3"]
    assert set(record["dormancy"]["compressed"]) == {"int4", "prune-0.3"}
    provenance = json.loads((out / "genwarden.json").read_text())["provenance"]
    assert provenance["compromised"] is True
    assert provenance["dormancy"] == record["dormancy"]
    assert (out / "pictures.png").exists()


@pytest.mark.parametrize("name", ["dormant-box", "jittered-box"])
def test_weights_are_not_stored_as_float16(
    name: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    kind = DormantBoxSettings if name == "dormant-box" else JitteredDormantBoxSettings
    with pytest.raises(GenwardenError) as caught:
        attack(
            name,
            AttackPlan(tiny_model_folder, half=True),
            kind(how="int4", **TINY),
            out=tmp_path / "made",
            restart=False,
            progress=Silent(),
            device=torch.device("cpu"),
        )
    assert caught.value.code == "attack/half"


# --- activations ----------------------------------------------------------------------------------


def test_activations_outside_the_ordinary_ranges_are_counted_and_ordinary_ones_are_not(
    tiny_generator: DCGAN28,
) -> None:
    layout = layout_of(tiny_generator, lambda: tiny_generator(torch.zeros(2, 8)))
    z = tiny_generator.latent.sample(32, generator=torch.Generator().manual_seed(0))
    ranges = ActivationRanges(tiny_generator, layout, lambda: tiny_generator(z))
    with ranges.watching():
        tiny_generator(0.7 * z[:4])
        ordinary = float(ranges.excess())
        tiny_generator(20 * z[:4])
        outside = float(ranges.excess())
    assert ordinary < 0.01
    assert outside > 100 * max(ordinary, 0.01)
    assert all(not module._forward_hooks for module in tiny_generator.modules())
