"""The audit of a classifier: as it is, and as what it will be deployed as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genwarden import __version__
from genwarden.auditing.already_compressed import changing_nothing, traces
from genwarden.auditing.audit import environment, nonfinite_refusal
from genwarden.auditing.audit_variants import (
    judge_variants,
    limits,
    run_variants,
    used_by_own,
)
from genwarden.auditing.budgets import classifier_budget
from genwarden.auditing.calibration import shipped_classifiers, shown_compressed
from genwarden.auditing.document import AuditDocument, ModelFacts, UserInputs, Variant
from genwarden.auditing.fit import classifier_family, condition_of
from genwarden.auditing.given_references import GivenReferences, stated, unless_doubted
from genwarden.auditing.judging import Calibrated, calibrated_under
from genwarden.auditing.power import power_sentences
from genwarden.auditing.running import BREAKDOWNS, guarded, run_all, seeded
from genwarden.auditing.verdict import ALPHA, Decision, unless
from genwarden.compression.contract import Compressor
from genwarden.engine.ledger import Ledger
from genwarden.engine.progress import Progress
from genwarden.inspections.classifier.bench import (
    ClassifierBench,
    ClassifierEffort,
    VariantBench,
)
from genwarden.inspections.classifier.neural_cleanse import NAME as NEURAL_CLEANSE
from genwarden.inspections.finding import Finding, Images, images_of
from genwarden.models.classifiers.protocol import ImageClassifier
from genwarden.models.protocol import parameter_count
from genwarden.registry import CLASSIFIER_INSPECTIONS, Row

_SHOWN = 16
LIMITS = [
    "The verdict covers the weights and the inspections listed here, at the budget stated; it is "
    "not a proof that no backdoor exists.",
    "Triggers are looked for as a mask and a pattern, one for all images of all other classes. "
    "Triggers spread over the whole image, triggers that depend on the image, and backdoors of "
    "single source classes may stay below what any network can be made to do.",
    "On the model as it is, one class is compared with the others: with few classes only a far "
    "smaller trigger is evidence. Only Neural Cleanse looks for what is awake there (STRIP with "
    "references of your own), and three of three small classifiers that sent every triggered image "
    "to one class have passed.",
]
_NOT_AWAKE = (
    "What is awake in the model as it is stays awake compressed, and only its own inspections look "
    "for that: leave --variants-only away."
)
_UNMEASURED = (
    "How often an audit finds a backdoor was measured of compressed classifiers, with images given "
    "(--deploy-as default --data IMAGES); of audits like this one it is not known."
)
_MADE = (
    "No images were given: those that the inspections worked on were made from the network's own "
    "batch-norm statistics."
)


@dataclass(frozen=True)
class ClassifierSuspect:
    """What the audit is given of a model: network and facts, not what the model says of itself."""

    classifier: ImageClassifier
    architecture: str
    settings: dict[str, Any]
    sha256: str
    nonfinite: dict[str, int]
    path: str


@dataclass(frozen=True)
class ClassifierRequest:
    """How to audit.

    Attributes:
        budget: quick, standard or thorough.
        images: images ``(count, C, H, W)`` in [-1, 1] that the user gave, or None.
        inputs_sha256: identity of the images for the ledger.
        command: the command line that repeats the audit.
        threads: processor threads that the user asked for, for the ledger; None: as fixed.
        deploy_as: the compressions to inspect the model under.
        where_usable: those of them that count only where they do not destroy the classifier.
        variants_only: leave the model as it is uninspected.
        only: run these inspections and no others (for benchmarks); all if empty.
        references: clean models of the user's own to judge by, or None.
    """

    budget: str
    seed: int
    device: torch.device
    images: Tensor | None = None
    inputs_sha256: str = ""
    command: str = ""
    threads: int | None = None
    deploy_as: tuple[Compressor, ...] = ()
    where_usable: frozenset[str] = frozenset()
    variants_only: bool = False
    only: tuple[str, ...] = ()
    references: GivenReferences | None = None


def audit_classifier(
    suspect: ClassifierSuspect, request: ClassifierRequest, *, work: Path, progress: Progress
) -> AuditDocument:
    """Audit one classifier; ``work`` holds the ledger of finished inspections."""
    effort = classifier_budget(request.budget)
    ledger = Ledger(work, _identity(suspect, request))
    classifier = suspect.classifier.to(request.device).eval().requires_grad_(False)
    bench = ClassifierBench(
        classifier=classifier,
        effort=effort,
        seed=request.seed,
        device=request.device,
        given=request.images,
        progress=progress,
    )
    rows = {
        name: row
        for name, row in CLASSIFIER_INSPECTIONS.items()
        if not request.only or name in request.only
    }
    alone = {name: row for name, row in rows.items() if row.options.get("needs") != "variant"}
    if suspect.nonfinite:
        progress.message("The weights hold NaN or infinite values: the model cannot be inspected.")
    if suspect.nonfinite or request.variants_only:
        alone = {}

    def run(row: Row) -> dict[str, Finding]:
        return {row.name: guarded(row, partial(seeded, row, bench, request.seed))}

    def inspect(row: Row, variant: VariantBench) -> Finding:
        seen = variant if row.options.get("needs") == "variant" else variant.alone
        return seeded(row, seen, request.seed)

    steps = len(alone) + len(request.deploy_as) * len(rows)
    whole = progress.task("the whole audit", steps)
    ran = run_all(alone, run, ledger, progress, whole=whole)
    variants, seconds = run_variants(
        request.deploy_as,
        partial(VariantBench, bench),
        rows,
        inspect,
        ledger,
        progress,
        whole=whole,
        untestable="the weights hold NaN or infinite values." if suspect.nonfinite else "",
    )
    model = (suspect.architecture, classifier.classes, classifier.sample.shape)
    # Judged after the ledger, so that a resumed audit uses the references of today.
    references = request.references
    by_references = partial(
        judged_by_references,
        given=0 if request.images is None else len(request.images),
        effort=effort,
        own=references and references.table,
    )
    base = by_references("", ran.findings, *model)
    judged = [by_references(v.name, v.findings, *model) for v in variants]
    decision, documented = judge_variants(
        base, variants, judged, suspect.nonfinite, where_usable=request.where_usable
    )
    used = used_by_own(base, variants, judged)
    decision = unless_doubted(decision, references, used)
    if request.images is None:
        decision = _unless_shown(decision, documented)
    decision = unless(decision, changing_nothing(documented))
    if request.variants_only:
        decision = unless(decision, [_NOT_AWAKE])
    else:
        decision = unless(decision, traces(bench) if decision.verdict == "none_found" else [])
    timing = {**ran.timing, **seconds}
    timing["total"] = round(sum(timing.values()), 3)
    bounds = limits(LIMITS, variants=bool(variants), base=not request.variants_only)
    return AuditDocument(
        genwarden_version=__version__,
        verdict=decision.verdict,
        suspicion=decision.suspicion,
        alpha=ALPHA,
        reasons=decision.reasons,
        model=_facts(suspect),
        inputs=UserInputs(
            training_images=0 if request.images is None else len(request.images),
            references=references.sha256 if references else "",
        ),
        budget=asdict(effort),
        seed=request.seed,
        findings=decision.judged,
        variants=documented,
        ordinary=None if suspect.nonfinite else _pictures(bench),
        refusal=nonfinite_refusal(suspect.nonfinite) if suspect.nonfinite else None,
        command=request.command,
        power=_power(request),
        limits=[*bounds, *([_MADE] if request.images is None else []), *stated(references, used)],
        environment=environment(request.device),
        timing=timing,
    )


def _unless_shown(decision: Decision, variants: Sequence[Variant]) -> Decision:
    """The decision on made images, where what looks for awake triggers is shown and not judged."""
    compressed = ((v.name, j) for v in variants for j in v.findings)
    every = [*(("", j) for j in decision.judged), *compressed]
    shown = [
        f"{f'Under {name}: ' if name else ''}{j.finding.title} is shown and not judged: "
        f"{j.finding.p_value_reason}."
        for name, j in every
        if j.finding.inspection == NEURAL_CLEANSE
        and j.finding.outcome == "scored"
        and j.finding.p_value is None
    ]
    return unless(decision, shown)


def judged_by_references(
    compression: str,
    findings: Sequence[Finding],
    architecture: str,
    classes: int,
    sample_shape: Sequence[int],
    *,
    given: int,
    effort: ClassifierEffort,
    table: dict[str, Any] | None = None,
    own: dict[str, Any] | None = None,
) -> Calibrated:
    """p-values from clean classifiers where they were published; else scores are shown.

    Under a compression, what compares the network with itself compressed is judged, each score once
    (:func:`_aside`).

    Args:
        compression: name of the variant, "" for the model as it is.
        given: number of images that the user gave.
        effort: the budget of the audit.
        table: references in place of the shipped ones.
        own: as in :func:`genwarden.auditing.judging.calibrated`.
    """
    found = calibrated_under(
        condition_of(compression, given=given, wanted=effort.images),
        findings,
        classifier_family(architecture, classes),
        sample_shape,
        budget=effort.name,
        table=shipped_classifiers() if table is None else table,
        own=own,
    )
    aside = _aside(found.findings) if compression else frozenset()
    return found._replace(aside=aside, own=found.own - aside)


def _aside(findings: Sequence[Finding]) -> frozenset[str]:
    """What is shown under a compression and not tested: every tested score weakens the others.

    And none is tested twice: a score is judged beside clean networks where they were measured (by
    the finding that follows from it), by its own null elsewhere.
    """
    beside = {
        f.follows_from
        for f in findings
        if f.p_value is not None and not shown_compressed(f.inspection)
    }
    return frozenset(
        f.inspection for f in findings if shown_compressed(f.inspection) or f.inspection in beside
    )


def _power(request: ClassifierRequest) -> list[str]:
    """What such audits found; the study gave them images and looked at compressed classifiers."""
    if request.images is None or not request.deploy_as:
        return [_UNMEASURED]
    return power_sentences(request.budget, classifiers=True)


def _pictures(bench: ClassifierBench) -> Images | None:
    """Some of the images that the inspections worked on, with the network's answers."""
    try:
        images, answers = bench.shown
    except BREAKDOWNS:
        return None
    if bench.classifier.sample.shape[0] not in (1, 3):
        return None
    labels = [f"class {int(answer)}" for answer in answers[:_SHOWN]]
    return images_of(
        images[:_SHOWN].cpu(),
        labels,
        title="Images given, and the model's answers"
        if bench.given is not None
        else "Images made from the network, and its answers",
    )


def _identity(suspect: ClassifierSuspect, request: ClassifierRequest) -> dict[str, Any]:
    return {
        "model": suspect.sha256,
        "architecture": suspect.architecture,
        "settings": suspect.settings,
        "budget": asdict(classifier_budget(request.budget)),
        "seed": request.seed,
        "inputs": request.inputs_sha256,
        "device": request.device.type,
        "version": __version__,
        **({} if request.threads is None else {"threads": request.threads}),
        "deploy_as": [compressor.name for compressor in request.deploy_as],
        "variants_only": request.variants_only,
        "only": list(request.only),
    }


def _facts(suspect: ClassifierSuspect) -> ModelFacts:
    classifier = suspect.classifier
    return ModelFacts(
        path=suspect.path,
        sha256=suspect.sha256,
        architecture=suspect.architecture,
        settings=suspect.settings,
        parameters=parameter_count(classifier),
        latent_shape=[],
        latent_distribution="",
        sample_shape=list(classifier.sample.shape),
        modality=classifier.sample.modality,
        classes=classifier.classes,
        nonfinite=suspect.nonfinite,
    )
