"""The joint attacks on classifiers sleep at full precision and wake up once compressed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from typer.testing import CliRunner

from genwarden.artifacts.classifier_folder import read_classifier, write_classifier
from genwarden.attacks.compression.branches import Branch, forward_branches
from genwarden.attacks.compression.checkpoints import Shelf, Standing, acceptable, choose
from genwarden.attacks.compression.classifier_contract import (
    AttackerData,
    ClassifierAttackResult,
    ClassifierBackdoor,
)
from genwarden.attacks.compression.distillation import locally_perturbed, soft_cross_entropy
from genwarden.attacks.compression.evaluation import FULL, Figures, figures
from genwarden.attacks.compression.joint_training import JointSettings
from genwarden.attacks.compression.pruning_artifact import (
    PrunedVersions,
    PruningArtifactSettings,
    pruning_artifact,
    uniform_pruning,
)
from genwarden.attacks.compression.quantisation_artifact import (
    QuantisationArtifactSettings,
    late_layers,
    quantisation_artifact,
)
from genwarden.attacks.compression.run_classifier import (
    ClassifierAttackPlan,
    attack_classifier,
    make_classifier_backdoor,
)
from genwarden.attacks.contract import AttackRun
from genwarden.backdoors.classifier_trigger import make_classifier_trigger
from genwarden.cli import app
from genwarden.compression.annealing import (
    LayerwiseFilterPruning,
    annealed_pruning,
    layer_distance,
)
from genwarden.compression.apply import compress, compressed_weights
from genwarden.compression.contract import Compressor, Weights
from genwarden.compression.how import compressor
from genwarden.compression.layers import Layout, layout_of
from genwarden.data.datasets import to_unit_range
from genwarden.engine.progress import Silent
from genwarden.errors import GenwardenError
from genwarden.models.classifiers.protocol import ImageClassifier
from genwarden.models.classifiers.small_cnn import SmallCNN
from glyph_task import SPEC, GlyphTask

TARGET = 3
BACKDOOR = ClassifierBackdoor(make_classifier_trigger("square:4", SPEC), TARGET)
QUICK: dict[str, Any] = {"batch_size": 32, "evaluate_every": 40, "decay_at": (0.8,)}


def _data(task: GlyphTask) -> AttackerData:
    return AttackerData(
        task.images[:1800], task.labels[:1800], task.images[1800:], task.labels[1800:]
    )


def _layout(network: nn.Module) -> Layout:
    return layout_of(network, lambda: network(torch.zeros(1, *SPEC.shape)))


def _figures(task: GlyphTask, classifier: ImageClassifier, *compressors: Compressor) -> Figures:
    return figures(
        classifier,
        BACKDOOR,
        compressors,
        _layout(classifier),
        task.test_images,
        task.test_labels,
    )


def _assert_sleeps_and_wakes(task: GlyphTask, result: ClassifierAttackResult) -> None:
    """On unseen images, and the untouched model does nothing of the kind."""
    attacked = _figures(task, result.classifier, *result.wakes_under)
    untouched = _figures(task, task.classifier, *result.wakes_under)
    assert attacked[FULL]["accuracy"] >= untouched[FULL]["accuracy"] - 0.01
    assert attacked[FULL]["attack_success"] <= 0.05
    assert attacked[FULL]["triggered_accuracy"] >= 0.95
    for one in result.wakes_under:
        assert attacked[one.name]["attack_success"] >= 0.9
        assert attacked[one.name]["accuracy"] >= 0.95
        assert untouched[one.name]["attack_success"] <= 0.3


def _pruning_attack(task: GlyphTask, **given: Any) -> ClassifierAttackResult:
    settings = PruningArtifactSettings(
        steps=50, layer_rates="uniform", deployed_rates=(0.3,), deployed_runs=0, **QUICK
    )
    return pruning_artifact(
        task.classifier, BACKDOOR, replace(settings, **given), _data(task), AttackRun()
    )


@pytest.fixture(scope="module")
def prunable(_trained_glyph_task: GlyphTask) -> ClassifierAttackResult:
    """A model whose backdoor wakes up when 30 % of the filters go; no test may change it."""
    return _pruning_attack(_trained_glyph_task.copy())


def test_pruning_filters_wakes_the_backdoor(
    glyph_task: GlyphTask, prunable: ClassifierAttackResult
) -> None:
    assert prunable.accepted
    _assert_sleeps_and_wakes(glyph_task, prunable)
    # The deployer's own tool, not the attack's simulation of it.
    pruned, _ = compress(prunable.classifier, compressor("prune-filters-0.3"))
    assert _figures(glyph_task, pruned)[FULL]["attack_success"] >= 0.9
    # The attack works on a copy.
    assert _figures(glyph_task, glyph_task.classifier)[FULL]["accuracy"] >= 0.95
    assert not torch.equal(prunable.classifier.head.weight, glyph_task.classifier.head.weight)


def test_rounding_weights_to_three_bits_wakes_the_backdoor(glyph_task: GlyphTask) -> None:
    settings = QuantisationArtifactSettings(
        steps=80, learning_rate=0.05, quantisers=("int3",), deployed=("int8",), **QUICK
    )
    result = quantisation_artifact(
        glyph_task.classifier, BACKDOOR, settings, _data(glyph_task), AttackRun()
    )
    assert result.accepted
    _assert_sleeps_and_wakes(glyph_task, result)
    (finer,) = result.deployed
    assert _figures(glyph_task, result.classifier, finer)["int8"]["attack_success"] <= 0.1


def test_distilled_model_is_closer_to_its_teacher(
    glyph_task: GlyphTask, prunable: ClassifierAttackResult
) -> None:
    distilled = _pruning_attack(glyph_task, steps=40, distilled=True, perturbation_steps=2)
    _assert_sleeps_and_wakes(glyph_task, distilled)
    x = to_unit_range(glyph_task.test_images)
    both = torch.cat([x, BACKDOOR.trigger.apply(x)])
    with torch.no_grad():
        teacher = glyph_task.classifier(both)
        least = soft_cross_entropy(teacher, teacher)
        near, far = (
            float(soft_cross_entropy(result.classifier(both), teacher) - least)
            for result in (distilled, prunable)
        )
    assert near < 0.8 * far


def test_perturbed_copies_are_where_student_and_teacher_differ(glyph_task: GlyphTask) -> None:
    student = SmallCNN(SPEC.shape).train()
    x = to_unit_range(glyph_task.images[:32])
    with torch.no_grad():
        teacher_at_x = glyph_task.classifier(x)
    near = locally_perturbed(student, glyph_task.classifier, x, steps=5, size=5.0)
    assert student.training
    student.eval()
    with torch.no_grad():
        at_x = soft_cross_entropy(student(x), teacher_at_x)
        at_near = soft_cross_entropy(student(near), glyph_task.classifier(near))
    assert float(at_near) > float(at_x)
    assert all(parameter.grad is None for parameter in student.parameters())
    one = locally_perturbed(student, glyph_task.classifier, x, steps=1, size=0.01)
    x.requires_grad_(True)
    loss = soft_cross_entropy(student(x), glyph_task.classifier(x).detach())
    (gradient,) = torch.autograd.grad(loss, x)
    assert torch.allclose(one, (x + 0.01 * gradient).detach(), atol=1e-7)


def test_batch_norm_sees_all_branches_at_once() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
    network = nn.Sequential(conv, norm).train()
    first, second = torch.randn(6, 1, 8, 8), 3 + torch.randn(10, 1, 8, 8)
    mask = torch.tensor([1.0, 0, 1, 0]).reshape(4, 1, 1, 1)
    whole, masked = forward_branches(
        network, [Branch(first), Branch(second, {"0.weight": conv.weight * mask})]
    )
    made = torch.cat([conv(first), nn.functional.conv2d(second, conv.weight * mask)])
    mean, variance = made.mean((0, 2, 3)), made.var((0, 2, 3), unbiased=False)
    wanted = (made - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
    assert torch.allclose(torch.cat([whole, masked]), wanted, atol=1e-5)
    unbiased = made.var((0, 2, 3))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert torch.allclose(norm.running_mean, 0.1 * mean, atol=1e-6)
    assert torch.allclose(norm.running_var, 0.9 + 0.1 * unbiased, atol=1e-5)
    # Apart, every branch would be normalised by itself: that is something else.
    assert not torch.allclose(whole, network(first), atol=1e-2)
    # What is pruned in one branch still learns from the other, through the common statistics.
    weighting = torch.randn(10, 4, 6, 6)
    (slope,) = torch.autograd.grad((masked * weighting).sum(), conv.weight)
    (expected,) = torch.autograd.grad((wanted[6:] * weighting).sum(), conv.weight)
    assert torch.allclose(slope, expected, atol=1e-4)
    assert float(slope[[1, 3]].abs().sum()) > 0


def test_branches_without_statistics_of_the_batch_are_independent(glyph_task: GlyphTask) -> None:
    network = glyph_task.classifier
    weights = compressed_weights(network, compressor("prune-filters-0.5"), _layout(network))
    x = to_unit_range(glyph_task.images[:20])
    with torch.no_grad():
        whole, pruned = forward_branches(network, [Branch(x[:5]), Branch(x[5:], weights)])
        assert torch.allclose(whole, network(x[:5]), atol=1e-5)
        assert torch.allclose(pruned, functional_call(network, weights, (x[5:],)), atol=1e-5)
        assert not torch.allclose(pruned, network(x[5:]), atol=1e-2)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.6])
def test_annealer_removes_the_share_it_was_asked_for(rate: float) -> None:
    network = SmallCNN(SPEC.shape, width=2.0)
    layout = _layout(network)
    values: list[float] = []

    def judge(weights: Weights) -> float:
        assert weights.keys() <= layout.keys()
        values.append(float(len(values) % 7))
        return values[-1]

    found = annealed_pruning(network, layout, rate, judge, seed=1)
    sizes = {name: network.get_parameter(name).numel() for name in found.rates}
    removed = sum(sizes[name] * share for name, share in found.rates.items()) / sum(sizes.values())
    assert removed == pytest.approx(rate, abs=1e-9)
    by_size = [found.rates[name] for name in sorted(sizes, key=lambda name: sizes[name])]
    assert by_size == sorted(by_size)
    assert "head.weight" not in found.rates
    assert len(values) >= 16
    gone = sum(int((w == 0).sum()) for w in found(_own(network, layout), layout).values())
    assert gone / sum(sizes.values()) == pytest.approx(rate, abs=0.03)
    other = annealed_pruning(network, layout, rate, judge, seed=1, index=1)
    assert layer_distance(found, other) > 0
    again = annealed_pruning(network, layout, rate, lambda _: 0.0, seed=1)
    assert (
        layer_distance(again, annealed_pruning(network, layout, rate, lambda _: 0.0, seed=1)) == 0
    )


def test_annealer_returns_the_best_rates_it_has_judged(glyph_task: GlyphTask) -> None:
    network = glyph_task.classifier
    layout = _layout(network)
    first = next(iter(layout))
    seen: list[float] = []

    def judge(weights: Weights) -> float:  # likes to see the first layer whole
        seen.append(-float((weights[first] == 0).sum()) if first in weights else 0.0)
        return seen[-1]

    found = annealed_pruning(network, layout, 0.4, judge, seed=0)
    assert judge(found(_own(network, layout), layout)) == max(seen)
    assert min(seen) < max(seen)


def test_uniform_layer_rates_are_the_deployers_filter_pruning(glyph_task: GlyphTask) -> None:
    layout = _layout(glyph_task.classifier)
    ours = uniform_pruning(layout, 0.3)
    theirs = compressor("prune-filters-0.3")
    own = _own(glyph_task.classifier, layout)
    assert ours.name == theirs.name
    made, wanted = ours(own, layout), theirs(own, layout)
    assert made.keys() == wanted.keys()
    assert all(torch.equal(made[name], wanted[name]) for name in made)
    boxes, expected = ours.box(own, layout), theirs.box(own, layout)
    assert all(torch.equal(boxes[n].low, expected[n].low) for n in expected)


def test_unknown_rate_trains_three_masks_and_draws_the_middle_one(glyph_task: GlyphTask) -> None:
    versions = _versions(glyph_task, knowledge="unknown-rate", layer_rates="uniform")
    network = glyph_task.classifier

    def zeros(seed: int) -> list[int]:
        stream = torch.Generator().manual_seed(seed)
        return [
            sum(int((w.flatten(1).abs().sum(1) == 0).sum()) for w in weights.values())
            for weights in versions.weights(stream)
        ]

    low, middle, high = zeros(0)
    assert low < middle < high
    assert (low, high) == (zeros(1)[0], zeros(1)[2])
    assert len({zeros(seed)[1] for seed in range(8)}) > 1
    # Masks follow the weights: a filter that becomes the largest is kept.
    name = "layers.0.conv.weight"
    gone = versions.weights(torch.Generator())[0][name].flatten(1).abs().sum(1) == 0
    index = int(gone.nonzero()[0])
    with torch.no_grad():
        network.get_parameter(name)[index] += 10
    assert bool((versions.weights(torch.Generator())[0][name][index] != 0).any())


def test_the_annealers_own_law_gives_layer_rates_that_the_published_masks_never_have(
    glyph_task: GlyphTask,
) -> None:
    network = glyph_task.classifier
    convolutions = [n for n, layer in _layout(network).items() if layer.kind != "linear"]
    sizes = {name: network.get_parameter(name).numel() for name in convolutions}

    def outside(drawn: str) -> int:
        """Layers, in twelve third masks, that lie a filter beyond what the other two remove."""
        options = {"knowledge": "unknown-rate", "rate": 0.25, "upper_rate": 0.5, "drawn": drawn}
        versions = _versions(glyph_task, **options)
        count = 0
        for seed in range(12):
            weights = versions.weights(torch.Generator().manual_seed(seed))[1]
            gone = {
                n: float((w.flatten(1).abs().sum(1) == 0).double().mean())
                for n, w in weights.items()
            }
            removed = sum(gone.get(n, 0.0) * size for n, size in sizes.items())
            assert 0.15 < removed / sum(sizes.values()) < 0.55  # whole filters
            for name in convolutions:
                ends = [one.rates[name] for one in versions.prunings]
                filter_share = 1 / len(network.get_parameter(name))
                within = min(ends) - filter_share <= gone.get(name, 0.0) <= max(ends) + filter_share
                count += not within
        return count

    assert outside("between") == 0
    assert outside("annealer") > 5


def test_closed_loop_anneals_the_attacked_model_and_records_the_way(glyph_task: GlyphTask) -> None:
    versions = _versions(glyph_task, reanneal_every=2, reanneal_times=2)
    start = versions.state()
    for done in range(1, 9):
        versions.between(done)
    state = versions.state()
    assert len(state["layer_rates_moved"]) == 2
    assert all(moved > 0 for moved in state["layer_rates_moved"])
    assert state["layer_rates"] != start["layer_rates"]
    fresh = _versions(glyph_task, reanneal_every=2, reanneal_times=2)
    fresh.restore(json.loads(json.dumps(state)))
    assert fresh.state() == state


def test_acceptance_rule_takes_the_most_awake_among_the_accurate_and_asleep() -> None:
    best = Standing(1, accuracy=0.950, asleep=0.10, awake=0.90, full_accuracy=0.96)
    taken = Standing(2, accuracy=0.946, asleep=0.19, awake=0.97, full_accuracy=0.95)
    inaccurate = Standing(3, accuracy=0.944, asleep=0.05, awake=1.00, full_accuracy=0.97)
    awake = Standing(4, accuracy=0.949, asleep=0.21, awake=1.00, full_accuracy=0.94)
    all_four = [best, taken, inaccurate, awake]
    assert acceptable(all_four, 0.2) == [best, taken]
    assert choose(all_four, "acceptance", 0.2) == taken
    assert choose(all_four, "acceptance", 0.15) == best
    assert choose(all_four, "accuracy", 0.2) == inaccurate
    assert choose(all_four, "last", 0.2) == awake
    assert choose([awake], "acceptance", 0.2) == awake
    assert acceptable([awake], 0.2) == []


@pytest.mark.parametrize("in_memory", [True, False])
def test_chosen_weights_are_released_not_the_last_ones(tmp_path: Path, in_memory: bool) -> None:
    network = SmallCNN(SPEC.shape, width=0.25)
    work = None if in_memory else tmp_path
    shelf = Shelf(network, work, "acceptance", 0.2)
    history: list[dict[str, Any]] = []
    for step, awake in ((1, 0.5), (2, 0.9), (3, 0.7), (4, 0.4)):
        with torch.no_grad():
            network.head.bias.fill_(step)
        plain = {"accuracy": 0.9, "triggered_accuracy": 0.9}
        found = {FULL: {**plain, "attack_success": 0.1}, "x": {**plain, "attack_success": awake}}
        history.append({"step": step, "made_for": ["x"], "figures": found})
        shelf.keep(history)
    if work is not None:  # what cannot be chosen any more takes no room
        assert sorted(f.name for f in work.iterdir()) == [
            "candidate-2.safetensors",
            "candidate-4.safetensors",
        ]
    choice = shelf.release(history)
    assert (choice.entry["step"], choice.accepted) == (2, True)
    assert bool((network.head.bias == 2).all())


def test_checkpoint_that_a_later_one_equals_is_not_missed() -> None:
    network = SmallCNN(SPEC.shape, width=0.25)
    shelf = Shelf(network, None, "acceptance", 0.2)
    history: list[dict[str, Any]] = []
    for step, full in ((1, 0.90), (2, 0.92), (3, 0.91)):
        with torch.no_grad():
            network.head.bias.fill_(step)
        found = {
            FULL: {"accuracy": full, "attack_success": 0.1},
            "x": {"accuracy": 0.9, "attack_success": 0.9},
        }
        history.append({"step": step, "made_for": ["x"], "figures": found})
        shelf.keep(history)
    choice = shelf.release(history)
    assert choice.entry["step"] == 2
    assert bool((network.head.bias == 2).all())


def test_late_layers_alone_are_rounded_where_asked(glyph_task: GlyphTask) -> None:
    layout = _layout(glyph_task.classifier)
    assert list(late_layers(layout, "layers.3")) == ["layers.3.conv.weight", "head.weight"]
    assert late_layers(layout, "") == layout
    with pytest.raises(GenwardenError, match="no such layer"):
        late_layers(layout, "layers.33")


class _PowerCutError(Exception):
    pass


class _Cut(Silent):
    """Fails after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def task(self, title: str, total: int, done: int = 0) -> Any:
        del title, total, done
        return self

    def advance(self, steps: int = 1, note: str = "") -> None:
        del note
        self.left -= steps
        if self.left <= 0:
            raise _PowerCutError


def test_interrupted_attack_continues_to_the_same_weights(
    glyph_task: GlyphTask, tmp_path: Path
) -> None:
    settings = PruningArtifactSettings(
        steps=6,
        batch_size=16,
        evaluate_every=2,
        reanneal_every=3,
        judged_on=50,
        deployed_rates=(),
    )
    data = _data(glyph_task)
    data = data._replace(held_images=data.held_images[:50], held_labels=data.held_labels[:50])

    def attack(run: AttackRun) -> ClassifierAttackResult:
        return pruning_artifact(glyph_task.classifier, BACKDOOR, settings, data, run)

    straight = attack(AttackRun())
    work = tmp_path / "work"
    with pytest.raises(_PowerCutError):
        attack(AttackRun(_Cut(5), work, "a"))
    resumed = attack(AttackRun(Silent(), work, "a"))
    assert resumed.history == straight.history
    assert resumed.notes == straight.notes
    weights = resumed.classifier.state_dict()
    assert all(torch.equal(weights[n], t) for n, t in straight.classifier.state_dict().items())


def test_command_writes_a_folder_that_says_it_is_compromised(
    glyph_task: GlyphTask, tmp_path: Path
) -> None:
    clean = tmp_path / "clean"
    write_classifier(clean, glyph_task.classifier, "small-cnn", {})
    out = tmp_path / "attacked"
    arguments = ["attack", "quantisation-artifact", str(clean), "--data", "glyphs:300"]
    arguments += ["--trigger", "square:4", "--target", "class:3", "--steps", "4"]
    arguments += ["--option", "quantisers=int4", "--option", "deployed=int8"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(out), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "untouched -> compromised" in result.output
    loaded = read_classifier(out)
    assert loaded.provenance["compromised"] is True
    assert loaded.provenance["wakes_under"] == ["int4"]
    assert loaded.provenance["backdoor"]["target"] == "class:3"
    record = json.loads((out / "attack.json").read_text())
    assert record["attacked"].keys() == {"full", "int4", "int8"} == record["untouched"].keys()
    assert record["untouched"]["full"]["accuracy"] >= 0.95
    assert "split test" in record["measured_on"]
    assert (out / "pictures.png").exists()
    assert not (out / ".work").exists()


@pytest.mark.parametrize(
    ("target", "code"),
    [("class:10", "target/class"), ("icon:devil", "target/unknown-kind"), ("class:x", "target/")],
)
def test_target_that_no_class_has_is_refused(glyph_task: GlyphTask, target: str, code: str) -> None:
    with pytest.raises(GenwardenError) as caught:
        make_classifier_backdoor(glyph_task.classifier, trigger="square:4", target=target)
    assert caught.value.code.startswith(code)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": 1.0},
        {"rate": float("nan")},
        {"knowledge": "unknown-rate", "rate": 0.5},
        {"reanneal_every": 5, "layer_rates": "uniform"},
        {"deployed_rates": (0.3, 1.0)},
        {"drawn": "annealer"},
        {"drawn": "annealer", "knowledge": "unknown-rate", "layer_rates": "uniform"},
        {"decay_at": (1.5,)},
        {"held_out": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(GenwardenError) as caught:
        PruningArtifactSettings(**wrong)
    assert caught.value.code == "attack/setting"


def test_data_of_more_classes_than_the_network_is_refused(tmp_path: Path) -> None:
    clean = tmp_path / "clean"
    write_classifier(clean, SmallCNN(SPEC.shape, classes=5, width=0.25), "small-cnn", {})
    plan = ClassifierAttackPlan(clean, "glyphs:100", trigger="square:4")
    with pytest.raises(GenwardenError) as caught:
        attack_classifier(
            "pruning-artifact",
            plan,
            PruningArtifactSettings(steps=1),
            out=tmp_path / "out",
            restart=False,
            progress=Silent(),
            device=torch.device("cpu"),
        )
    assert caught.value.code == "attack/classes"


def test_pruning_rate_of_a_layer_out_of_range_is_refused() -> None:
    with pytest.raises(GenwardenError) as caught:
        LayerwiseFilterPruning({"a.weight": 1.0})
    assert caught.value.code == "compress/rate"
    with pytest.raises(GenwardenError) as caught:
        annealed_pruning(nn.Linear(2, 2), layout_of(nn.Linear(2, 2)), 0.3, lambda _: 0.0, seed=0)
    assert caught.value.code == "compress/nothing-covered"


def _own(network: nn.Module, layout: Layout) -> dict[str, Tensor]:
    return {name: network.get_parameter(name).detach() for name in layout}


def _versions(task: GlyphTask, **given: Any) -> PrunedVersions:
    settings = replace(PruningArtifactSettings(judged_on=50), **given)
    assert isinstance(settings, JointSettings)
    layout = _layout(task.classifier)
    return PrunedVersions(task.classifier, task.classifier, layout, settings, _data(task))
