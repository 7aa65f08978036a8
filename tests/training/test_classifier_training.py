"""Classifier training: learns, resumes to the same bits, states an honest accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from genwarden.artifacts.classifier_folder import read_classifier
from genwarden.cli import app
from genwarden.engine.progress import Silent, Task
from genwarden.errors import GenwardenError
from genwarden.metrics.attack_success import accuracy
from genwarden.models.classifiers.protocol import initialise_classifier
from genwarden.models.classifiers.small_cnn import SmallCNN
from genwarden.training.classifier import ClassifierSettings, augmented
from genwarden.training.settings import TrainingSettings
from genwarden.training.train import learning_rate_of, train
from genwarden.training.train_classifier import WELL_TRAINED
from glyph_task import SETTINGS, SPEC, GlyphTask

TINY: dict[str, Any] = {"image_shape": [1, 16, 16], "width": 0.25, "momentum": 0.9}


class _PowerCutError(Exception):
    pass


class _CutTask:
    def __init__(self, left: int) -> None:
        self._left = left

    def advance(self, steps: int = 1, note: str = "") -> None:
        del note
        self._left -= steps
        if self._left < 0:
            raise _PowerCutError


class _CutAfter(Silent):
    def __init__(self, steps: int) -> None:
        self._steps = steps

    def task(self, title: str, total: int, done: int = 0) -> Task:
        del title, total, done
        return _CutTask(self._steps)


def run(source: str, out: Path, given: dict[str, Any] = TINY, **more: Any) -> dict[str, Any]:
    """Eight steps of a narrow network; returns the record of the folder."""
    options: dict[str, Any] = {"restart": False, "progress": Silent(), "seed": 0} | more
    plan = TrainingSettings(
        8, batch_size=8, learning_rate=0.1, seed=options.pop("seed"), checkpoint_every=2
    )
    train(
        "small-cnn",
        given,
        source,
        lambda _: plan,
        split=options.pop("split", "train"),
        limit=options.pop("limit", None),
        out=out,
        device=torch.device("cpu"),
        **options,
    )
    record: dict[str, Any] = read_classifier(out).provenance
    return record


def refusal(source: str, out: Path, given: dict[str, Any] = TINY, **more: Any) -> str:
    with pytest.raises(GenwardenError) as caught:
        run(source, out, given, **more)
    return caught.value.code


def test_small_classifier_learns_the_glyphs_in_seconds(glyph_task: GlyphTask) -> None:
    untrained = SmallCNN(SPEC.shape)
    initialise_classifier(untrained, torch.Generator().manual_seed(0))
    unseen = glyph_task.test_images, glyph_task.test_labels
    assert accuracy(untrained, *unseen) < 0.3
    assert accuracy(glyph_task.classifier, *unseen) >= 0.95


def test_interrupted_training_resumes_to_the_same_bits(tmp_path: Path) -> None:
    run("glyphs:40", tmp_path / "whole")
    with pytest.raises(_PowerCutError):
        run("glyphs:40", tmp_path / "cut", progress=_CutAfter(5))
    assert not (tmp_path / "cut" / "genwarden.json").exists()
    # Five steps were done and four are in the checkpoint: fewer than four may be left to do.
    run("glyphs:40", tmp_path / "cut", progress=_CutAfter(4))
    whole, resumed = (read_classifier(tmp_path / name) for name in ("whole", "cut"))
    assert resumed.sha256 == whole.sha256
    assert resumed.provenance == whole.provenance
    assert not (tmp_path / "cut" / ".work").exists()
    assert refusal("glyphs:40", tmp_path / "cut") == "train/finished"
    run("glyphs:40", tmp_path / "other", seed=1)
    assert read_classifier(tmp_path / "other").sha256 != whole.sha256


def test_unfinished_training_on_other_labels_is_not_mixed_in(
    labelled_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(_PowerCutError):
        run(str(labelled_folder), tmp_path / "out", progress=_CutAfter(5))
    write_parquet(labelled_folder / "train-00000-of-00001.parquet", 20, shift=1)
    assert refusal(str(labelled_folder), tmp_path / "out") == "checkpoint/other-run"


def test_accuracy_is_that_of_the_saved_network_on_the_test_split(tmp_path: Path) -> None:
    record = run("glyphs:80", tmp_path / "out")
    images, labels = load_test_glyphs(80)
    measured = accuracy(read_classifier(tmp_path / "out").classifier, images, labels)
    assert record["result"]["accuracy"] == measured
    assert record["result"]["held_out"] == "split test"
    assert record["result"]["test_images"] == 80
    assert record["compromised"] is False


class _Heard(Silent):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def test_a_classifier_that_has_hardly_learned_is_said_to_be_undertrained(tmp_path: Path) -> None:
    heard = _Heard()
    record = run("glyphs:80", tmp_path / "out", progress=heard)
    assert record["result"]["accuracy"] < WELL_TRAINED
    (said,) = [text for text in heard.messages if "undertrained" in text]
    assert "8 steps" in said
    assert "--epochs" in said


def test_a_classifier_that_has_learned_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "genwarden.training.train_classifier.measured", lambda *_: {"accuracy": WELL_TRAINED}
    )
    heard = _Heard()
    run("glyphs:80", tmp_path / "out", progress=heard)
    assert not [text for text in heard.messages if "undertrained" in text]


def load_test_glyphs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    from genwarden.data.glyphs import draw_glyphs

    return draw_glyphs(count, SPEC, part="test")


def write_parquet(path: Path, count: int, *, shift: int = 0) -> None:
    """Images of one grey level each, in three classes."""
    rows = datasets.Dataset.from_dict(
        {
            "image": [Image.fromarray(np.full((16, 16), 3 * i, np.uint8)) for i in range(count)],
            "label": [(i + shift) % 3 for i in range(count)],
        },
        features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
        ),
    )
    rows.to_parquet(path)


@pytest.fixture
def labelled_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty training images in the hub's layout, without a test split."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "labelled"
    folder.mkdir()
    write_parquet(folder / "train-00000-of-00001.parquet", 20)
    return folder


def test_without_a_test_split_a_part_is_held_out_and_not_trained_on(
    labelled_folder: Path, tmp_path: Path
) -> None:
    record = run(str(labelled_folder), tmp_path / "out", TINY | {"held_out": 0.25})
    assert record["data"]["images"] == 15
    assert record["result"]["test_images"] == 5
    assert record["result"]["held_out"] == "split train, held out"
    assert record["classes"] == ["a", "b", "c"]
    assert read_classifier(tmp_path / "out").classifier.classes == 3


def test_only_split_of_a_data_set_is_no_test_of_itself(
    labelled_folder: Path, tmp_path: Path
) -> None:
    (labelled_folder / "train-00000-of-00001.parquet").rename(
        labelled_folder / "test-00000-of-00001.parquet"
    )
    record = run(str(labelled_folder), tmp_path / "out")
    assert record["result"]["held_out"] == "split test, held out"
    assert record["data"]["images"] + record["result"]["test_images"] == 20


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"augment": ["none", "crop"]}, "train/setting"),
        ({"augment": "mirror"}, "train/setting"),
        ({"decay_at": [0.4, 1.5]}, "train/setting"),
        ({"momentum": 1.0}, "train/setting"),
        ({"classes": 9}, "train/classes"),
        ({"image_shape": [1, 8, 8]}, "artifact/bad-settings"),
        ({"depth": 3}, "train/unknown-setting"),
    ],
)
def test_setting_that_does_not_fit_is_refused(
    wrong: dict[str, Any], code: str, tmp_path: Path
) -> None:
    assert refusal("glyphs:40", tmp_path / "out", TINY | wrong) == code
    assert not (tmp_path / "out" / "genwarden.json").exists()


def test_command_line_trains_explains_and_checks_a_classifier(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--setting", "image_shape=1,16,16", "--setting", "augment=none", "--epochs", "1"]
    trained = CliRunner().invoke(
        app, ["train", "small-cnn", "--data", "glyphs:60", "--out", str(out), *options]
    )
    assert trained.exit_code == 0, trained.output
    assert f"audit {out} --deploy-as default --data glyphs:60 --out {out}-audit" in trained.output
    assert read_classifier(out).provenance["choice"]["augment"] == ["none"]
    assert read_classifier(out).provenance["settings"]["learning_rate"] == 0.1
    checked = CliRunner().invoke(app, ["check", str(out)])
    assert "Safe to open" in checked.output
    explained = CliRunner().invoke(app, ["explain", "resnet18"]).output
    assert "11,173,962" in explained
    assert "augment" in explained


def test_learning_rate_falls_twice_as_published() -> None:
    settings = ClassifierSettings(steps=100, learning_rate=learning_rate_of("resnet18", {}))
    rates = [round(settings.rate(step), 9) for step in (0, 39, 40, 79, 80, 99)]
    assert rates == [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    assert (settings.momentum, settings.weight_decay) == (0.2, 5e-4)
    assert SETTINGS.flip is False


def test_crop_shifts_every_image_inside_a_black_border() -> None:
    picture = torch.arange(16 * 16.0).reshape(1, 16, 16).repeat(2, 1, 1)
    framed = torch.full((2, 20, 20), -1.0)
    framed[:, 2:18, 2:18] = picture  # 2 px at 16 px, as 4 px at 32 px
    allowed = [framed[:, top : top + 16, left : left + 16] for top in range(5) for left in range(5)]
    stream = torch.Generator().manual_seed(0)
    cropped = augmented(picture.expand(64, 2, 16, 16), stream, crop=True, flip=False)
    found = [[i for i, one in enumerate(allowed) if torch.equal(image, one)] for image in cropped]
    assert all(len(matches) == 1 for matches in found)
    assert len({matches[0] for matches in found}) > 15


def test_flip_mirrors_about_half_and_none_changes_nothing() -> None:
    images = torch.rand(200, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    stream = torch.Generator().manual_seed(1)
    flipped = augmented(images, stream, crop=False, flip=True)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    same = (flipped == images).flatten(1).all(1)
    assert bool((mirrored ^ same).all())
    assert 60 < int(mirrored.sum()) < 140
    assert torch.equal(augmented(images, stream, crop=False, flip=False), images)
