"""Plain compression wakes what is hidden; the same compression with a remedy does not."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from box_attack import wake_under
from genwarden.artifacts.classifier_folder import write_classifier
from genwarden.artifacts.model_folder import read_model
from genwarden.backdoors.classifier_trigger import make_classifier_trigger
from genwarden.commands.compress import CompressFiles, CompressOptions, compress_model
from genwarden.compression.apply import compress
from genwarden.compression.contract import Compressor
from genwarden.compression.how import compressor
from genwarden.compression.layers import layout_of
from genwarden.compression.remedies.run import Cured, compress_with, remedy_settings
from genwarden.data.datasets import to_unit_range
from genwarden.engine.progress import Silent
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.attack_success import accuracy, attack_success
from genwarden.models.classifiers.small_cnn import SmallCNN
from genwarden.registry import COMPRESSION_REMEDIES
from glyph_task import GlyphTask
from sleeping import INT4, SmallGenerator, attacked, honest, target, trigger

#: Quick settings, and what an honest model may pay at most, in costs of plain compression.
REMEDIES: dict[str, tuple[dict[str, Any], float]] = {
    # Codes of 4 bits hardly move at 1.02: a third of the way back to sleep is missing then.
    "scale-jitter": ({"factor": 0.85}, 1.5),
    "stochastic-rounding": ({}, 3.0),
    "noise": ({"steps": 0.15}, 1.5),
    "efrap": ({"steps": 60, "calibration": 64, "learning_rate": 0.05}, 1.5),
    "task-vector": ({}, 1.6),
    "finetuned": ({"steps": 120, "batch_size": 32, "searched": 32}, 1.0),
}


def _latents(count: int, seed: int, purpose: str) -> tuple[Tensor, ...]:
    return (honest().latent.sample(count, generator=random_stream(seed, purpose)),)


def _within(z: Tensor, began: Tensor) -> Tensor:
    del began
    short: Tensor = (4.0 / z.norm(dim=1, keepdim=True)).clamp_max(1)
    return z * short


def _cured(
    network: nn.Module, chosen: Compressor, name: str, given: dict[str, Any] | None = None
) -> Cured:
    settings = remedy_settings(name, REMEDIES[name][0] if given is None else given)
    layout = layout_of(network)
    return compress_with(network, chosen, layout, name, settings, _latents, confine=_within)


def _distance(network: SmallGenerator) -> float:
    """Mean squared distance from the hidden picture at its trigger."""
    with torch.no_grad():
        return float((network(trigger()) - target()).square().mean())


def _cost(network: SmallGenerator, original: SmallGenerator) -> float:
    (z,) = _latents(256, 9, "cost")
    with torch.no_grad():
        return float((network(z) - original(z)).square().mean())


def test_every_remedy_is_tried_here() -> None:
    assert set(REMEDIES) == set(COMPRESSION_REMEDIES)


@pytest.mark.parametrize("name", REMEDIES)
def test_the_picture_that_plain_compression_shows_stays_away(name: str) -> None:
    usual = _distance(honest())
    plain, _ = compress(attacked(), INT4)
    assert _distance(plain) < 0.1 * usual
    assert _distance(attacked()) > 0.9 * usual
    assert _distance(_cured(attacked(), INT4, name).network) > 0.75 * usual


@pytest.mark.parametrize("name", REMEDIES)
def test_an_honest_model_pays_a_known_price(name: str) -> None:
    plain, coverage = compress(honest(), INT4)
    cured = _cured(honest(), INT4, name)
    assert replace(cured.coverage, zeroed=0) == replace(coverage, zeroed=0)
    assert _cost(cured.network, honest()) < REMEDIES[name][1] * _cost(plain, honest())
    for weight in coverage.layers:  # the device's format still holds it
        assert len((1e4 * cured.network.get_parameter(weight)).round().unique()) <= 15
        assert not torch.equal(cured.network.get_parameter(weight), plain.get_parameter(weight))


@pytest.mark.parametrize("name", REMEDIES)
def test_what_an_earlier_stage_pruned_stays_pruned(name: str) -> None:
    pruned, _ = compress(honest(), compressor("prune-0.3"))
    cured = _cured(honest(), compressor("prune-0.3+int4"), name)
    for weight in cured.coverage.layers:
        gone = pruned.get_parameter(weight) == 0
        assert gone.float().mean() > 0.29
        assert (cured.network.get_parameter(weight)[gone] == 0).all()


def test_a_classifier_that_pruning_wakes_is_finetuned_back_to_sleep(glyph_task: GlyphTask) -> None:
    task, how = glyph_task, compressor("prune-0.3")
    square = make_classifier_trigger("square:4", task.classifier.sample)
    before = copy.deepcopy(task.classifier)
    wake_under(how, task.classifier, task.images, task.labels, square, 3, steps=(45, 30))
    images = to_unit_range(task.images[:300])  # without their classes

    def drawn(count: int, seed: int, purpose: str) -> tuple[Tensor, ...]:
        return (images[torch.randint(300, (count,), generator=random_stream(seed, purpose))],)

    def success(network: nn.Module) -> float:
        return attack_success(network, task.test_images, task.test_labels, square, 3)

    plain, _ = compress(task.classifier, how)
    assert success(plain) > 0.95
    assert success(task.classifier) < 0.2
    assert success(compress(before, how)[0]) < 0.1
    settings = remedy_settings("finetuned", {"steps": 40, "searched": 0, "batch_size": 32})
    layout = layout_of(task.classifier)
    cured = compress_with(task.classifier, how, layout, "finetuned", settings, drawn).network
    assert success(cured) < 0.3
    assert accuracy(cured, task.test_images, task.test_labels) > 0.95
    for name in layout:
        weight = cured.get_parameter(name)
        assert ((weight == 0) == (plain.get_parameter(name) == 0)).all()


# --- what each does to weights --------------------------------------------------------------------


def test_the_task_vector_turns_exactly_the_weights_with_large_errors() -> None:
    plain, coverage = compress(honest(), INT4)
    cured = _cured(honest(), INT4, "task-vector", {"scale": 0.25}).network
    for name in coverage.layers:
        weight, rounded = honest().get_parameter(name), plain.get_parameter(name)
        step = float(weight.abs().max()) / 7
        error = (weight - rounded).abs() / step
        clear = (error - 0.4).abs() > 1e-3  # 1 / (2 (1 + 0.25))
        turned = cured.get_parameter(name) != rounded
        assert torch.equal(turned[clear], (error > 0.4)[clear])


def test_efrap_turns_weights_with_larger_errors_than_those_it_leaves() -> None:
    plain, coverage = compress(honest(), INT4)
    cured = _cured(honest(), INT4, "efrap").network
    for name in coverage.layers:
        error = (honest().get_parameter(name) - plain.get_parameter(name)).abs()
        turned = cured.get_parameter(name) != plain.get_parameter(name)
        assert 0 < turned.float().mean() < 0.5
        assert error[turned].mean() > 1.3 * error[~turned].mean()


def test_more_noise_changes_more_codes_and_calibrated_noise_most() -> None:
    given: list[dict[str, Any]] = [{"steps": 0.05}, {"steps": 0.2}, {"calibrated": True}]
    shares = [_cured(honest(), INT4, "noise", one).changes["changed_share"] for one in given]
    # Gaussian noise of s steps crosses one of two edges with probability 2 s / sqrt(2 pi).
    assert shares[0] == pytest.approx(0.04, abs=0.015)
    assert shares[0] < shares[1] < shares[2]


def test_block_formats_have_remedies_too() -> None:
    plain, _ = compress(honest(), compressor("q4_0"))
    for name in ("noise", "task-vector"):
        cured = _cured(honest(), compressor("q4_0"), name).network
        assert _cost(cured, honest()) < 2 * _cost(plain, honest())
        assert not torch.equal(cured.last.weight, plain.last.weight)


def test_the_seed_decides_what_is_drawn() -> None:
    made = [
        _cured(honest(), INT4, "stochastic-rounding", {"seed": seed}).network.last.weight
        for seed in (1, 1, 2)
    ]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


# --- the command ----------------------------------------------------------------------------------


def _command(model: Path, how: str, out: Path, **more: Any) -> CompressFiles:
    return compress_model(CompressOptions(model, out, how, device="cpu", **more), progress=Silent())


@pytest.mark.parametrize("fold", [False, True])
def test_the_command_shows_the_price_and_writes_codes_that_plain_tools_keep(
    fold: bool, tiny_model_folder: Path, tmp_path: Path
) -> None:
    files = _command(tiny_model_folder, "int4", tmp_path / "small", remedy="task-vector", fold=fold)
    result = json.loads((tmp_path / "small" / "compress.json").read_text())
    assert result["remedy"]["name"] == "task-vector"
    assert result["remedy"]["settings"] == {"scale": 0.25, "seed": 0}
    assert 0.1 < result["remedy"]["changes"]["changed_share"] < 0.3
    assert files.fidelity is not None
    assert files.plain_fidelity is not None
    assert result["fidelity"]["mse_mean"] != result["remedy"]["plain_fidelity"]["mse_mean"]
    assert "--remedy task-vector" in result["command"]
    again = _command(tmp_path / "small", "int4", tmp_path / "again")
    assert again.fidelity is not None
    assert again.fidelity.mse_mean < 1e-9
    first, second = (read_model(tmp_path / name).generator for name in ("small", "again"))
    for name, parameter in first.named_parameters():
        torch.testing.assert_close(parameter, second.get_parameter(name))


@pytest.mark.parametrize(
    ("how", "more", "code"),
    [
        ("int8", {"remedy": "prayer"}, "usage/unknown-name"),
        ("prune-0.3", {"remedy": "noise"}, "compress/remedy-not-applicable"),
        ("int8+prune-2:4", {"remedy": "efrap"}, "compress/remedy-not-applicable"),
        # Trained after it was rounded it would no longer be int8.
        ("int8+prune-0.3", {"remedy": "finetuned"}, "compress/remedy-not-applicable"),
        ("q8_0", {"remedy": "scale-jitter"}, "compress/remedy-not-applicable"),
        ("int8-stochastic", {"remedy": "noise"}, "compress/remedy-not-applicable"),
        ("int8", {"given": {"factor": 1.1}}, "compress/unknown-setting"),
        ("int8", {"remedy": "noise", "given": {"factor": 1.1}}, "compress/unknown-setting"),
        ("int8", {"remedy": "noise", "given": {"steps": -1.0}}, "compress/setting"),
        ("int8", {"remedy": "scale-jitter", "given": {"factor": 3.0}}, "compress/setting"),
        ("int8", {"remedy": "noise", "confirm": "onnxruntime"}, "compress/not-confirmable"),
    ],
)
def test_what_makes_no_sense_is_refused(
    how: str, more: dict[str, Any], code: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(GenwardenError) as caught:
        _command(tiny_model_folder, how, tmp_path / "small", **more)
    assert caught.value.code == code
    assert not (tmp_path / "small").exists()


def test_remedies_that_learn_ask_for_images_of_a_classifier(tmp_path: Path) -> None:
    network = SmallCNN((1, 16, 16), classes=3, width=0.25).eval()
    write_classifier(tmp_path / "classifier", network, "small-cnn", {})
    for name in ("efrap", "finetuned"):
        with pytest.raises(GenwardenError) as caught:
            _command(tmp_path / "classifier", "int8", tmp_path / "small", remedy=name)
        assert caught.value.code == "compress/no-calibration"
