"""Short audits of small classifiers, and the trigger that the ``woken`` one of them hides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from genwarden.auditing.audit_classifier import (
    ClassifierRequest,
    ClassifierSuspect,
    audit_classifier,
)
from genwarden.auditing.budgets import CLASSIFIER_BUDGETS
from genwarden.auditing.document import AuditDocument
from genwarden.auditing.given_references import GivenReferences
from genwarden.compression.contract import Compressor
from genwarden.engine.progress import Silent
from genwarden.models.classifiers.small_cnn import SmallCNN

HOW = "int4"
TARGET = 3
#: The quick budget in half the time.
SHORT = replace(CLASSIFIER_BUDGETS["quick"], images=30, synthesis_steps=60, inversion_steps=70)
SEARCHES = ("neural-cleanse", "differential-inversion")


def audit(
    classifier: SmallCNN,
    work: Path,
    *,
    images: Tensor | None = None,
    deploy_as: tuple[Compressor, ...] = (),
    only: tuple[str, ...] = SEARCHES,
    where_usable: frozenset[str] = frozenset(),
    variants_only: bool = False,
    references: GivenReferences | None = None,
) -> AuditDocument:
    suspect = ClassifierSuspect(classifier, "small-cnn", {}, "0" * 64, {}, "suspect")
    request = ClassifierRequest(
        budget="quick",
        seed=0,
        device=torch.device("cpu"),
        images=images,
        deploy_as=deploy_as,
        where_usable=where_usable,
        variants_only=variants_only,
        only=only,
        references=references,
    )
    return audit_classifier(suspect, request, work=work, progress=Silent())


def run_on_zeros(network: SmallCNN) -> Tensor:
    scores: Tensor = network(torch.zeros(2, *network.sample.shape))
    return scores
