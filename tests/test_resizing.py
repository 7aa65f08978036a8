"""Images of another size are refused, and scaled where the user of audit or repair asks for it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genwarden.auditing.audit import Request
from genwarden.auditing.audit_classifier import ClassifierRequest
from genwarden.commands import open_classifier_suspect as classifiers
from genwarden.commands import open_suspect as generators
from genwarden.commands import repair_classifier, repair_diffusion
from genwarden.commands.audit import audit_model
from genwarden.commands.audit_options import AuditOptions, repeat_command
from genwarden.commands.compress import CompressOptions, compress_model
from genwarden.commands.demo import demo_model_folder
from genwarden.commands.repair import repair_model
from genwarden.commands.repairing import RepairOptions, command_line
from genwarden.engine.progress import Silent
from genwarden.errors import GenwardenError


class _StoppedError(Exception):
    """Ends an audit before it is run."""


@pytest.fixture
def larger(tmp_path: Path) -> Path:
    """Twelve images of 32 pixels, for smaller models."""
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize(("name", "side"), [("cnn-clean", 16), ("dcgan-clean", 28)])
def test_images_are_scaled_only_on_request(
    name: str, side: int, larger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def stop(_: Any, request: Request | ClassifierRequest, **__: Any) -> None:
        seen.append(request.images if isinstance(request, ClassifierRequest) else request.training)
        raise _StoppedError

    monkeypatch.setattr(classifiers, "audit_classifier", stop)
    monkeypatch.setattr(generators, "audit", stop)
    model = demo_model_folder(name)
    options = AuditOptions(model, tmp_path / "as-they-are", data=str(larger))
    with pytest.raises(GenwardenError, match="audit, repair and compress take --resize") as caught:
        audit_model(options, progress=Silent())
    assert caught.value.code == "image/shape"
    assert not seen
    options = AuditOptions(model, tmp_path / "scaled", data=str(larger), resize=True)
    with pytest.raises(_StoppedError):
        audit_model(options, progress=Silent())
    assert tuple(seen[0].shape) == (12, 1, side, side)
    assert "--resize" in repeat_command(options)


@pytest.mark.parametrize("resize", [False, True])
@pytest.mark.parametrize(
    ("name", "method", "read"),
    [
        ("cnn-clean", "fine-pruning", (repair_classifier, "load_labelled")),
        ("ddpm-clean", "auto", (repair_diffusion, "load_images")),
    ],
)
def test_a_repair_scales_its_images_only_on_request(
    name: str,
    method: str,
    read: tuple[ModuleType, str],
    resize: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []

    def stop(*_: Any, resize: bool, **__: Any) -> None:
        asked.append(resize)
        raise _StoppedError

    monkeypatch.setattr(*read, stop)
    options = RepairOptions(
        demo_model_folder(name), tmp_path / "out", method=method, data="images", resize=resize
    )
    repair = repair_classifier.repair_classifier if name == "cnn-clean" else repair_model
    with pytest.raises(_StoppedError):
        repair(options, progress=Silent())
    assert asked == [resize]
    assert ("--resize" in command_line(options)) is resize


def test_a_repaired_classifier_is_audited_with_the_same_scaling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[AuditOptions] = []

    def stop(options: AuditOptions, **_: Any) -> None:
        seen.append(options)
        raise _StoppedError

    monkeypatch.setattr(repair_classifier, "audit_model", stop)
    options = RepairOptions(
        demo_model_folder("cnn-clean"),
        tmp_path / "out",
        method="fine-pruning",
        given={"steps": 1},
        data="glyphs",
        resize=True,
        budget="quick",
    )
    with pytest.raises(_StoppedError):
        repair_classifier.repair_classifier(options, progress=Silent())
    assert seen[0].resize


@pytest.mark.parametrize("name", ["cnn-clean", "ddpm-clean", "dcgan-clean"])
def test_a_repair_needs_something_to_scale(name: str, tmp_path: Path) -> None:
    options = RepairOptions(demo_model_folder(name), tmp_path / "out", resize=True)
    repair = repair_classifier.repair_classifier if name == "cnn-clean" else repair_model
    with pytest.raises(GenwardenError, match="--data") as caught:
        repair(options, progress=Silent())
    assert caught.value.code == "usage/repair-options"
    assert "--resize" in caught.value.cause


def test_a_diffusion_model_is_audited_without_images_to_scale(tmp_path: Path) -> None:
    options = AuditOptions(demo_model_folder("ddpm-clean"), tmp_path / "out", resize=True)
    with pytest.raises(GenwardenError, match="--resize cannot be used with a diffusion model"):
        audit_model(options, progress=Silent())


def test_a_compression_needs_something_to_scale(tmp_path: Path) -> None:
    options = CompressOptions(demo_model_folder("cnn-clean"), tmp_path, "int8", resize=True)
    with pytest.raises(GenwardenError, match="--calibration") as caught:
        compress_model(options, progress=Silent())
    assert caught.value.code == "usage/compress-options"


def test_there_must_be_something_to_scale(tmp_path: Path) -> None:
    options = AuditOptions(demo_model_folder("cnn-clean"), tmp_path / "out", resize=True)
    with pytest.raises(GenwardenError, match="--data") as caught:
        audit_model(options, progress=Silent())
    assert caught.value.code == "usage/audit-options"
