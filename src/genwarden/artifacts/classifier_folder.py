"""Model folders of classifiers: the generators' folder with another kind of manifest."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genwarden.artifacts.manifest import FORMAT_VERSION, ClassifierManifest, SampleField
from genwarden.artifacts.model_folder import count_nonfinite, read_manifest, restore, write_folder
from genwarden.errors import GenwardenError
from genwarden.models.classifiers.protocol import ImageClassifier
from genwarden.registry import CLASSIFIER_ARCHITECTURES


@dataclass(frozen=True)
class LoadedClassifier:
    """A classifier in evaluation mode, ready to be inspected, and what is known about its file.

    ``provenance`` is what the folder says about its own making. It is for people and for
    benchmarks; :mod:`genwarden.auditing` never receives it.
    """

    classifier: ImageClassifier
    architecture: str
    settings: dict[str, Any]
    sha256: str
    nonfinite: dict[str, int]
    provenance: dict[str, Any] = field(default_factory=dict)


def write_classifier(
    folder: Path, classifier: ImageClassifier, architecture: str, provenance: dict[str, Any]
) -> str:
    """Write a classifier's folder; the manifest last. Returns the weights' sha256.

    Args:
        architecture: name in the registry (``genwarden list architectures``).
        provenance: how the model came to be; a compromised model of ours must say so here.
    """
    return write_folder(
        folder,
        classifier,
        lambda files: ClassifierManifest(
            format_version=FORMAT_VERSION,
            kind="classifier",
            architecture=architecture,
            settings=classifier.settings(),
            sample=SampleField.of(classifier.sample),
            classes=classifier.classes,
            files=files,
            provenance=provenance,
        ),
    )


def is_classifier_folder(path: Path) -> bool:
    """Whether a folder's manifest says that it holds a classifier.

    False for everything else, also for a manifest that cannot be read: whoever then opens the
    folder as what it should be gets the reason.
    """
    try:
        return isinstance(read_manifest(path), ClassifierManifest)
    except GenwardenError:
        return False


def read_classifier(folder: Path) -> LoadedClassifier:
    """Open a classifier's folder: manifest validated, hash checked, network from our own table.

    Raises:
        GenwardenError: ``artifact/not-a-classifier`` and other codes ``artifact/...``.
    """
    manifest = read_manifest(folder)
    if not isinstance(manifest, ClassifierManifest):
        raise not_a_classifier(f"{folder} holds a {manifest.kind}")
    classifier, weights = restore(
        folder,
        manifest,
        CLASSIFIER_ARCHITECTURES,
        lambda made: (made.classes, made.sample) == (manifest.classes, manifest.sample.spec()),
    )
    return LoadedClassifier(
        classifier=classifier,
        architecture=manifest.architecture,
        settings=dict(manifest.settings),
        sha256=weights.sha256,
        nonfinite=count_nonfinite(weights),
        provenance=manifest.provenance,
    )


def not_a_classifier(what: str) -> GenwardenError:
    """The error for a model of another kind in the place of a classifier."""
    return GenwardenError(
        "artifact/not-a-classifier",
        f"{what}, and a classifier is needed here.",
        "Give a classifier, such as `genwarden train small-cnn` writes.",
    )
