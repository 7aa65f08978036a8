"""``genwarden train small-cnn`` (``vgg16`` ...): a clean classifier, as a model folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from genwarden import __version__
from genwarden.artifacts.classifier_folder import write_classifier
from genwarden.artifacts.manifest import MANIFEST_NAME
from genwarden.artifacts.model_folder import build
from genwarden.data.datasets import split_names
from genwarden.data.glyphs import is_glyphs
from genwarden.data.labelled import read_labelled
from genwarden.engine.files import begin_run, sha256_bytes
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import NOT_NEGATIVE, Range, Settings, filled
from genwarden.errors import GenwardenError
from genwarden.models.classifiers.protocol import ImageClassifier
from genwarden.models.protocol import SampleSpec
from genwarden.registry import Row
from genwarden.training.classifier import ClassifierSettings, measured, train_on_labels
from genwarden.training.settings import TrainingSettings

#: Below this held-out accuracy a classifier of pictures has hardly been trained.
WELL_TRAINED = 0.8
_AUGMENTATIONS = {"crop", "flip", "none"}


@dataclass(frozen=True)
class ClassifierChoice(Settings):
    """What ``--setting`` may say for ``genwarden train`` of a classifier.

    Attributes:
        image_shape: channels, height and width, such as 1,16,16; none for the network's own.
        width: factor on the feature maps of every layer.
        classes: number of classes; 0 for as many as the data has.
        resize: resize images of another size; without it they are refused.
        augment: crop, or crop,flip, or none; digits and letters must not be flipped.
        momentum: of the gradient descent.
        weight_decay: on all parameters.
        decay_at: shares of the training after which the learning rate is divided by ten.
        test_split: split on which the accuracy is measured; where the data has none of this name,
            a share of the images is held out.
        held_out: that share.
    """

    image_shape: tuple[int, ...] = ()
    width: float = 1.0
    classes: int = 0
    resize: bool = False
    augment: tuple[str, ...] = ("crop",)
    momentum: float = 0.2
    weight_decay: float = 5e-4
    decay_at: tuple[float, ...] = (0.4, 0.8)
    test_split: str = "test"
    held_out: float = 0.1

    CODE: ClassVar[str] = "train"
    RANGES: ClassVar[Mapping[str, Range]] = {
        "width": Range(above=0, at_most=8),
        "classes": Range(at_least=0, at_most=10_000),
        "momentum": Range(at_least=0, below=1),
        "weight_decay": NOT_NEGATIVE,
        "held_out": Range(above=0, at_most=0.5),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = [word for word in self.augment if word not in _AUGMENTATIONS]
        if wrong or not self.augment or ("none" in self.augment and len(self.augment) > 1):
            raise GenwardenError(
                "train/setting",
                f"augment = {','.join(self.augment)!r} does not fit.",
                "Write augment=crop,flip or augment=crop or augment=flip or augment=none.",
            )
        if not all(0 < share < 1 for share in self.decay_at):
            raise GenwardenError(
                "train/setting",
                f"decay_at = {self.decay_at} are not shares of the training.",
                "Give numbers between 0 and 1, such as decay_at=0.4,0.8.",
            )


class _Parts(NamedTuple):
    """Training and test images with their labels, and where the test images come from."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    held_out: str
    classes: list[str]


def train_classifier(
    row: Row,
    model_settings: dict[str, Any],
    source: str,
    plan: Callable[[int], TrainingSettings],
    *,
    split: str,
    limit: int | None,
    out: Path,
    restart: bool,
    progress: Progress,
    device: torch.device,
) -> Path:
    """Train the classifier of a registry row and write its folder ``out``; resumes.

    Args:
        model_settings: see :class:`ClassifierChoice`.
        source: see :func:`genwarden.data.labelled.read_labelled`.
        plan: the training settings for a given number of images.

    Raises:
        GenwardenError: ``train/finished``, ``train/unknown-setting``, ``train/setting``,
            ``train/classes``, ``artifact/bad-settings``, ``data/...``.
    """
    choice = filled(ClassifierChoice, model_settings, method=row.name, what="train")
    given: dict[str, Any] = {"width": choice.width}
    if choice.image_shape:
        given["image_shape"] = list(choice.image_shape)
    spec: SampleSpec = build(row.load(), given, row.name).sample
    work = begin_run(out, MANIFEST_NAME, restart=restart, kind="train", anew="train it anew")
    data = _read(source, spec, choice, split=split, limit=limit)
    progress.message(
        f"{len(data.images):,} labelled images from {source}; accuracy on "
        f"{len(data.test_images):,} of {data.held_out}"
    )
    classes = choice.classes or len(data.classes)
    highest = int(torch.cat([data.labels, data.test_labels]).max())
    if highest >= classes:
        raise GenwardenError(
            "train/classes",
            f"The data has an image of class {highest}, the network has {classes} classes.",
            "Leave the setting classes away, or give at least one more than the highest class.",
        )
    classifier: ImageClassifier = build(row.load(), {**given, "classes": classes}, row.name)
    settings = ClassifierSettings(
        **asdict(plan(len(data.images))),
        momentum=choice.momentum,
        weight_decay=choice.weight_decay,
        decay_at=choice.decay_at,
        crop="crop" in choice.augment,
        flip="flip" in choice.augment,
    )
    data_sha256 = sha256_bytes(data.images.numpy().tobytes() + data.labels.numpy().tobytes())
    identity = [row.name, classifier.settings(), asdict(settings), data_sha256, __version__]
    record = train_on_labels(
        classifier,
        data.images,
        data.labels,
        settings,
        checkpoint=work / "checkpoint.safetensors",
        run_id=sha256_bytes(repr(identity).encode())[:16],
        progress=progress,
        device=device,
    )
    record |= measured(classifier, data.test_images, data.test_labels)
    progress.message(f"accuracy {record['accuracy']:.4f} on {data.held_out}")
    if record["accuracy"] < WELL_TRAINED:
        progress.message(undertrained(settings.steps, len(data.images), choice.width))
    provenance = {
        "made_by": f"genwarden train {row.name}",
        "compromised": False,
        "choice": asdict(choice),
        "settings": asdict(settings),
        "classes": data.classes,
        "data": {"name": Path(source).name, "images": len(data.images), "sha256": data_sha256},
        "result": {**record, "held_out": data.held_out},
    }
    write_classifier(out, classifier.cpu(), row.name, provenance)
    shutil.rmtree(work, ignore_errors=True)
    return out


def undertrained(steps: int, images: int, width: float) -> str:
    """What to do about a classifier that has learned too little, in words."""
    return (
        f"An accuracy below {WELL_TRAINED:.0%} looks undertrained, and an audit of such a network "
        f"says little. It made {steps:,} steps on {images:,} images: raise --epochs (or give a "
        "smaller --batch-size, which makes more steps of an epoch), --limit where you gave one, or "
        f"--setting width=, now {width:g}; then train anew with --restart."
    )


def _read(
    source: str, spec: SampleSpec, choice: ClassifierChoice, *, split: str, limit: int | None
) -> _Parts:
    """Training images, and the test split or a part of the images that is not trained on."""
    seen = read_labelled(source, spec, split=split, limit=limit, resize=choice.resize)
    names = ["train", "test"] if is_glyphs(source) else split_names(source)
    # A data set with one split uses that one, whatever it is called: it is no test of itself.
    used = split if split in names else names[0]
    if choice.test_split in names and choice.test_split != used:
        unseen = read_labelled(source, spec, split=choice.test_split, resize=choice.resize)
        return _Parts(
            seen.images,
            seen.labels,
            unseen.images,
            unseen.labels,
            f"split {choice.test_split}",
            seen.classes if len(seen.classes) >= len(unseen.classes) else unseen.classes,
        )
    count = max(1, round(choice.held_out * len(seen.images)))
    if count == len(seen.images):
        raise GenwardenError(
            "data/limit",
            f"{source!r} has {count} image, and one must be held out.",
            "Give more images.",
        )
    order = torch.randperm(len(seen.images), generator=random_stream(0, "held-out"))
    held, kept = order[:count], order[count:]
    return _Parts(
        seen.images[kept],
        seen.labels[kept],
        seen.images[held],
        seen.labels[held],
        f"split {used}, held out",
        seen.classes,
    )
