"""``genwarden audit`` of a classifier: what it is opened with, and the images beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from genwarden.artifacts.classifier_folder import LoadedClassifier
from genwarden.artifacts.open_classifier import open_classifier
from genwarden.auditing.audit_classifier import (
    ClassifierRequest,
    ClassifierSuspect,
    audit_classifier,
)
from genwarden.auditing.document import AuditDocument
from genwarden.auditing.fit import classifier_family
from genwarden.auditing.given_references import GivenReferences
from genwarden.auditing.own_references import Likeness, Suspected, weights_hash
from genwarden.compression.contract import Compressor
from genwarden.data.datasets import load_images, to_unit_range
from genwarden.data.labelled import is_glyphs, load_labelled
from genwarden.engine.files import sha256_bytes
from genwarden.engine.progress import Progress
from genwarden.models.protocol import SampleSpec, parameter_count

if TYPE_CHECKING:
    from genwarden.commands.audit_options import AuditOptions


def classifier_suspect_of(loaded: LoadedClassifier, path: Path | str) -> ClassifierSuspect:
    """What an audit is given of an opened classifier, under the path that the user knows it by."""
    return ClassifierSuspect(
        classifier=loaded.classifier,
        architecture=loaded.architecture,
        settings=loaded.settings,
        sha256=loaded.sha256,
        nonfinite=loaded.nonfinite,
        path=str(path),
    )


class OpenedClassifier(NamedTuple):
    """As :class:`genwarden.commands.open_suspect.Opened`, of a classifier."""

    sha256: str
    parameters: int
    suspected: Callable[[], Suspected]
    prepare: Callable[[GivenReferences | None], Callable[[Path], AuditDocument]]


def prepare_classifier(
    options: AuditOptions,
    variants: tuple[Compressor, ...],
    device: torch.device,
    progress: Progress,
    *,
    command: str,
) -> OpenedClassifier:
    """Open a classifier.

    Args:
        command: the command line that repeats the audit.
    """
    loaded = open_classifier(
        options.model, architecture=options.architecture, settings=options.settings
    )
    suspect = classifier_suspect_of(loaded, options.model)

    classifier = loaded.classifier

    def suspected() -> Suspected:
        likeness = Likeness(
            kind="classifier",
            family=classifier_family(loaded.architecture, classifier.classes),
            sample_shape=list(classifier.sample.shape),
            parameters=parameter_count(classifier),
        )
        return Suspected(weights_hash(classifier), likeness)

    def prepare(references: GivenReferences | None) -> Callable[[Path], AuditDocument]:
        images = None
        if options.data:
            images = _images(options.data, options, classifier.sample)
        request = ClassifierRequest(
            budget=options.budget,
            seed=options.seed,
            device=device,
            images=images,
            inputs_sha256="" if images is None else sha256_bytes(images.numpy().tobytes()),
            command=command,
            deploy_as=variants,
            variants_only=options.variants_only,
            threads=options.threads,
            references=references,
        )
        return lambda work: audit_classifier(suspect, request, work=work, progress=progress)

    return OpenedClassifier(loaded.sha256, parameter_count(classifier), suspected, prepare)


def _images(source: str, options: AuditOptions, sample: SampleSpec) -> Tensor:
    """Images in [-1, 1]; what class each has, the audit asks the model."""
    limit = options.data_limit
    if is_glyphs(source):  # which exist only as labelled images
        return to_unit_range(load_labelled(source, sample, split="test", limit=limit)[0])
    return to_unit_range(load_images(source, sample, limit=limit, resize=options.resize))
