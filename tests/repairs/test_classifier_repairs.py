"""A classifier that compression wakes is compressed safely once it is repaired."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from box_attack import wake_under
from genwarden.artifacts.classifier_folder import read_classifier, write_classifier
from genwarden.backdoors.classifier_trigger import make_classifier_trigger
from genwarden.cli import app
from genwarden.commands.repair_classifier import repair_classifier
from genwarden.commands.repairing import RepairOptions
from genwarden.compression.apply import compress
from genwarden.compression.how import compressor
from genwarden.data.datasets import to_unit_range
from genwarden.engine.checkpoint import save_checkpoint
from genwarden.engine.progress import Silent
from genwarden.engine.settings import filled
from genwarden.errors import GenwardenError
from genwarden.metrics.attack_success import accuracy, attack_success
from genwarden.models.classifiers.protocol import ImageClassifier
from genwarden.models.classifiers.small_cnn import SmallCNN
from genwarden.registry import CLASSIFIER_REPAIRS
from genwarden.repairs.classifier.contract import LabelledData, RepairedClassifier
from genwarden.repairs.classifier.sau import SauSettings, jensen_shannon, shared_adversarial
from genwarden.repairs.classifier.super_fine_tuning import SuperFineTuningSettings
from genwarden.repairs.contract import RepairRun
from glyph_task import GlyphTask

HOW = compressor("int4")
TARGET = 3
QUICK: dict[str, dict[str, Any]] = {
    "fine-pruning": {"steps": 30, "batch_size": 32},
    "super-fine-tuning": {"steps": 80, "batch_size": 32, "peak": 1.5},
    "sau": {"steps": 24, "batch_size": 24, "learning_rate": 2e-3, "inner_steps": 2},
}


@pytest.fixture(scope="module")
def woken(_trained_glyph_task: GlyphTask) -> GlyphTask:
    """The task with a backdoor that int4 wakes; no test changes its classifier."""
    task = _trained_glyph_task.copy()
    square = make_classifier_trigger("square:4", task.classifier.sample)
    wake_under(HOW, task.classifier, task.images, task.labels, square, TARGET, steps=(45, 40))
    return task


def _success(task: GlyphTask, network: nn.Module) -> float:
    square = make_classifier_trigger("square:4", task.classifier.sample)
    return attack_success(network, task.test_images, task.test_labels, square, TARGET)


def _small(network: ImageClassifier) -> ImageClassifier:
    return compress(network, HOW, lambda one: one(torch.zeros(2, 1, 16, 16)))[0]


def _data(task: GlyphTask) -> LabelledData:
    return LabelledData(task.images[:400], task.labels[:400])


def _repaired(
    name: str, task: GlyphTask, run: RepairRun | None = None, **given: Any
) -> RepairedClassifier:
    row = CLASSIFIER_REPAIRS[name]
    settings = filled(
        row.load_option("settings"), {**QUICK[name], **given}, method=name, what="repair"
    )
    made: RepairedClassifier = row.load()(
        task.classifier, _data(task), settings, run or RepairRun()
    )
    return made


@pytest.mark.parametrize("name", QUICK)
def test_the_backdoor_no_longer_wakes_and_accuracy_stays(name: str, woken: GlyphTask) -> None:
    assert _success(woken, _small(woken.classifier)) > 0.95
    assert _success(woken, woken.classifier) < 0.1
    result = _repaired(name, woken)
    assert _success(woken, _small(result.classifier)) < 0.3
    assert accuracy(result.classifier, woken.test_images, woken.test_labels) > 0.95
    assert not result.classifier.training
    assert result.history[-1]["step"] == QUICK[name]["steps"]


@pytest.mark.parametrize("name", QUICK)
def test_a_clean_classifier_stays_good_and_the_suspect_is_untouched(
    name: str, glyph_task: GlyphTask
) -> None:
    before = {n: t.clone() for n, t in glyph_task.classifier.state_dict().items()}
    short: dict[str, Any] = {"steps": 10, "peak": 0.3}
    if name != "super-fine-tuning":
        del short["peak"]
    result = _repaired(name, glyph_task, **short)
    assert accuracy(result.classifier, glyph_task.test_images, glyph_task.test_labels) > 0.9
    after = glyph_task.classifier.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)
    moved = result.classifier.state_dict()
    assert any(not torch.equal(before[n], moved[n]) for n in before)


def test_fine_pruning_keeps_its_channels_silent(woken: GlyphTask) -> None:
    result = _repaired("fine-pruning", woken, steps=3)
    assert result.changes["layer"] == "layers.3.conv"
    gone = result.changes["pruned_channels"]
    assert 0 < gone < result.changes["channels"]
    assert isinstance(result.classifier, SmallCNN)
    features = result.classifier.features(to_unit_range(woken.test_images[:50]))
    assert int((features == 0).all(0).sum()) >= gone


def test_fine_pruning_without_tolerance_prunes_less(woken: GlyphTask) -> None:
    counts = [
        _repaired("fine-pruning", woken, steps=1, tolerance=share).changes["pruned_channels"]
        for share in (0.0, 0.3)
    ]
    assert counts[0] < counts[1]


def test_the_learning_rate_goes_up_and_down_as_published() -> None:
    settings = SuperFineTuningSettings(steps=100)
    assert [settings.rate(step) for step in (0, 10, 20)] == pytest.approx([0.03, 2.5, 0.03])
    assert settings.rate(5) == pytest.approx((0.03 + 2.5) / 2)
    assert max(settings.rate(step) for step in range(40, 100)) == pytest.approx(0.05)


def test_shared_examples_fool_both_networks_within_the_radius(woken: GlyphTask) -> None:
    x, y = to_unit_range(woken.images[:64]), woken.labels[:64]
    settings = SauSettings(radius=0.6, inner_steps=8, inner_rate=0.3)
    net = woken.classifier
    found = shared_adversarial(net, net, x, y, settings, 0)
    assert float((found - x).abs().max()) <= 0.6 + 1e-6
    assert float(found.abs().max()) <= 1
    started = shared_adversarial(net, net, x, y, replace(settings, inner_steps=1), 0)
    right, right_before = ((net(one).argmax(1) == y).float().mean() for one in (found, started))
    assert right < right_before


def test_two_equal_laws_do_not_diverge() -> None:
    logits = torch.tensor([[3.0, -1.0, 0.5], [0.0, 0.0, 9.0]])
    assert jensen_shannon(logits, logits + 2).abs().max() < 1e-6
    far = jensen_shannon(torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]]))
    assert float(far) == pytest.approx(0.6931, abs=1e-3)


def test_an_interrupted_repair_ends_with_the_same_bits(
    glyph_task: GlyphTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short: dict[str, Any] = {"steps": 6, "evaluate_every": 2}
    whole = _repaired("super-fine-tuning", glyph_task, **short)

    class StoppedError(Exception):
        pass

    where = "genwarden.repairs.classifier.training.save_checkpoint"

    def stop_at_four(*arguments: Any, **options: Any) -> None:
        save_checkpoint(*arguments, **options)
        if options["step"] == 4:
            raise StoppedError

    run = RepairRun(work=tmp_path, run_id="one")
    monkeypatch.setattr(where, stop_at_four)
    with pytest.raises(StoppedError):
        _repaired("super-fine-tuning", glyph_task, run, **short)
    monkeypatch.undo()
    resumed = _repaired("super-fine-tuning", glyph_task, run, **short)
    for name, tensor in whole.classifier.state_dict().items():
        assert torch.equal(tensor, resumed.classifier.state_dict()[name]), name
    assert resumed.history == whole.history


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def folder(glyph_task: GlyphTask, tmp_path: Path) -> Path:
    """``glyph_task``'s classifier as a model folder."""
    label = {"compromised": True, "note": "x" * 1000}
    write_classifier(tmp_path / "suspect", glyph_task.classifier, "small-cnn", label)
    return tmp_path / "suspect"


def test_the_command_measures_on_images_that_were_held_out(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["repair", str(folder), "--method", "fine-pruning", "--data", "glyphs:200"]
    words += ["--option", "steps=4", "--out", str(out), "--device", "cpu"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 3, result.output  # no audit, so no verdict
    assert "not audited" in result.output
    record = json.loads((out / "repair.json").read_text())
    assert record["images"] == {"trained_on": 160, "held_out": 40}
    assert record["verdict_after"] is None
    assert 0.5 < record["accuracy"]["after"] <= 1
    loaded = read_classifier(out / "model")
    assert loaded.sha256 == record["repaired_sha256"]
    assert loaded.provenance == {
        "made_by": "genwarden repair --method fine-pruning",
        "repaired_from_sha256": read_classifier(folder).sha256,
        "compromised_before_repair": True,
    }


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"method": "auto"}, "repair/no-method"),
        ({"data": None}, "repair/no-data"),
        ({"method": "excision"}, "usage/unknown-name"),
        ({"precaution": True}, "usage/repair-options"),
        ({"given": {"steps": 0}}, "repair/setting"),
        ({"given": {"sharpness": 1}}, "repair/unknown-setting"),
        ({"data": "glyphs:2"}, "data/limit"),
    ],
)
def test_what_makes_no_sense_is_refused(
    change: dict[str, Any], code: str, folder: Path, tmp_path: Path
) -> None:
    options = RepairOptions(folder, tmp_path / "out", method="sau", data="glyphs:50", device="cpu")
    with pytest.raises(GenwardenError) as caught:
        repair_classifier(replace(options, **change), progress=Silent())
    assert caught.value.code == code
    assert not (tmp_path / "out").exists()
