"""Opening a classifier that is audited, and the images beside it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from genwarden.artifacts.classifier_folder import LoadedClassifier
from genwarden.artifacts.open_classifier import open_classifier
from genwarden.auditing.audit_classifier import (
    ClassifierRequest,
    ClassifierSuspect,
    audit_classifier,
)
from genwarden.auditing.fit import classifier_family
from genwarden.auditing.given_references import GivenReferences
from genwarden.auditing.own_references import Suspected, hash_of, suspected_of
from genwarden.commands.audit_options import AuditOptions, repeat_command
from genwarden.commands.audit_variants import where_usable
from genwarden.commands.opened import Opened, Run, whole
from genwarden.compression.contract import Compressor
from genwarden.data.datasets import load_images, to_unit_range
from genwarden.data.glyphs import is_glyphs
from genwarden.engine.files import sha256_bytes
from genwarden.engine.progress import Progress
from genwarden.engine.threads import fixed_threads
from genwarden.models.protocol import SampleSpec, parameter_count


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


def open_classifier_suspect(
    options: AuditOptions,
    variants: tuple[Compressor, ...],
    device: torch.device,
    progress: Progress,
) -> Opened:
    """Open a classifier."""
    loaded = open_classifier(
        options.model, architecture=options.architecture, settings=options.settings
    )
    suspect = classifier_suspect_of(loaded, options.model)
    classifier = loaded.classifier

    def suspected() -> Suspected:
        family = classifier_family(loaded.architecture, classifier.classes)
        return suspected_of(
            "classifier",
            classifier,
            family,
            classifier.sample.shape,
            settings=hash_of(loaded.settings),
        )

    def prepare(references: GivenReferences | None) -> Run:
        images = None
        if options.data:
            images = _images(options.data, options, classifier.sample)
        request = ClassifierRequest(
            budget=options.budget,
            seed=options.seed,
            device=device,
            images=images,
            inputs_sha256="" if images is None else sha256_bytes(images.numpy().tobytes()),
            command=repeat_command(options),
            deploy_as=variants,
            where_usable=where_usable(options.deploy_as),
            variants_only=options.variants_only,
            threads=options.threads,
            references=references,
        )
        return whole(lambda work: audit_classifier(suspect, request, work=work, progress=progress))

    return Opened(loaded.sha256, fixed_threads(parameter_count(classifier)), suspected, prepare)


def _images(source: str, options: AuditOptions, sample: SampleSpec) -> Tensor:
    """Images in [-1, 1]; what class each has, the audit asks the model."""
    split = "test" if is_glyphs(source) else "train"
    limit, resize = options.data_limit, options.resize
    return to_unit_range(load_images(source, sample, split=split, limit=limit, resize=resize))
