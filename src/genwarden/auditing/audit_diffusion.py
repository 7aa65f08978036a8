"""The audit of a diffusion model: as for generators, with inspections and references of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genwarden import __version__
from genwarden.auditing.audit import environment, nonfinite_refusal
from genwarden.auditing.audit_variants import judge_variants, limits, run_variants, used_by_own
from genwarden.auditing.budgets import diffusion_budget, diffusion_variant_budget
from genwarden.auditing.calibration import shipped_diffusion
from genwarden.auditing.document import AuditDocument, ModelFacts, UserInputs, Variant
from genwarden.auditing.fit import CARRYING, diffusion_family, unlike_study
from genwarden.auditing.given_references import GivenReferences, stated, unless_doubted
from genwarden.auditing.judging import Calibrated, calibrated, carried
from genwarden.auditing.power import power_sentences
from genwarden.auditing.running import BREAKDOWNS, guarded, run_all, seeded
from genwarden.auditing.verdict import ALPHA, Decision, unless
from genwarden.compression.contract import Compressor
from genwarden.engine.ledger import Ledger
from genwarden.engine.progress import Progress
from genwarden.inspections.compression.diffusion_bench import (
    DiffusionVariantBench,
    VariantSearch,
)
from genwarden.inspections.diffusion.bench import DiffusionBench, DiffusionEffort
from genwarden.inspections.diffusion.input_check import NAME as INPUT_CHECK
from genwarden.inspections.diffusion.responses import epsilons
from genwarden.inspections.diffusion.trigger_search import NAME as TRIGGER_SEARCH
from genwarden.inspections.finding import Finding, Images, images_of, not_applicable
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.protocol import parameter_count
from genwarden.registry import DIFFUSION_INSPECTIONS, Row

_ORDINARY_SHOWN = 16
#: In a picture: colour of 256x256. The search differentiates 128 of them at once, and what a folder
#: says of its size costs its writer nothing.
MOST_VALUES = 3 * 256 * 256
#: Noises on which a network must show that it is a denoiser, and how badly it may do that.
_DENOISED = 16
_LEAST_DENOISING = 0.5
#: What clean models that are not compressed say nothing of in a compressed one.
_NOT_COMPRESSED: dict[str, Any] = {
    "p_value": None,
    "null": None,
    "p_value_reason": "the clean reference models are not compressed",
}
_UNLIKE = (
    "References of your own, of models like this one ({}), would judge it (genwarden calibrate)."
)
LIMITS = [
    "The verdict covers the weights and the inspections listed here, at the budget stated; it is "
    "not a proof that no backdoor exists.",
    "Triggers are looked for as shifts of the initial noise, by inverting the network. Class "
    "labels, prompts and images to be completed are not searched as triggers; a backdoor that "
    "answers with many pictures (a class, any image of another set) in place of one is not found "
    "by the search, which asks for the same answer to every noise.",
    "Shifts are searched up to one standard deviation of the noise per pixel, and at the middle "
    "noise levels: a backdoor that is asleep at all of them is left to the other inspections.",
    "A backdoor that answers only with a sampler of the attacker's own is seen by the search in "
    "the weights, and may not show in the samples of this report.",
    "A model of very few different pictures makes one of them wherever a shift tells them apart, "
    "which the search cannot tell from a backdoor.",
    "Population p-values assume that clean scores follow a normal law; the clean scores are shown.",
    "The shipped clean reference models are small pixel-space UNets that predict the noise of the "
    "linear schedule of 1,000 steps: grey of 12x12, 16x16 and 28x28 pixels, colour of 16x16. Of "
    "others, scores of the search are shown and not judged.",
]


@dataclass(frozen=True)
class DiffusionSuspect:
    """What the audit is given of a model: network and facts, not what the model says of itself.

    ``notes`` are the reader's: what in the folder is done otherwise than it says.
    """

    model: DiffusionModel
    architecture: str
    settings: dict[str, Any]
    sha256: str
    nonfinite: dict[str, int]
    path: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DiffusionRequest:
    """How to audit.

    Attributes:
        budget: quick, standard or thorough.
        base: a clean model of the same shape that the user trusts; ``base_sha256`` is its hash.
        noise: initial noise ``(count, C, H, W)`` that the user was told to use.
        inputs_sha256: identity of base and noise for the ledger.
        command: the command line that repeats the audit.
        threads: processor threads that the user asked for, for the ledger; None: as fixed.
        deploy_as: the compressions to inspect the model under.
        variants_only: leave the model as it is uninspected.
        only: run these inspections and no others (for benchmarks); all if empty.
        references: clean models of the user's own to judge by, or None.
    """

    budget: str
    seed: int
    device: torch.device
    base: DiffusionModel | None = None
    base_sha256: str = ""
    noise: Tensor | None = None
    inputs_sha256: str = ""
    command: str = ""
    threads: int | None = None
    deploy_as: tuple[Compressor, ...] = ()
    variants_only: bool = False
    only: tuple[str, ...] = ()
    references: GivenReferences | None = None


def audit_diffusion(
    suspect: DiffusionSuspect, request: DiffusionRequest, *, work: Path, progress: Progress
) -> AuditDocument:
    """Audit one diffusion model; ``work`` holds the ledger of finished inspections."""
    effort = diffusion_budget(request.budget)
    ledger = Ledger(work, _identity(suspect, request))
    model = suspect.model.to(request.device).eval().requires_grad_(False)
    bench = DiffusionBench(
        model=model,
        effort=effort,
        seed=request.seed,
        device=request.device,
        base=_ready(request.base, request.device),
        given_noise=request.noise,
        progress=progress,
    )
    rows = {
        name: row
        for name, row in DIFFUSION_INSPECTIONS.items()
        if (not request.only or name in request.only)
        and (effort.published or name in request.only or not row.options.get("published"))
    }
    spent = diffusion_variant_budget(request.budget)
    compressed = {
        name: row
        for name, row in rows.items()
        if row.options.get("needs") == "variant" or name in spent.reruns
    }
    rows = {name: row for name, row in rows.items() if row.options.get("needs") != "variant"}
    if suspect.nonfinite:
        progress.message("The weights hold NaN or infinite values: the model cannot be inspected.")
    untestable = "the weights hold NaN or infinite values." if suspect.nonfinite else ""
    if math.prod(model.sample.shape) > MOST_VALUES:
        untestable = (
            f"pictures of {'x'.join(map(str, model.sample.shape))} are larger than the search can "
            f"hold in memory ({MOST_VALUES:,} values)."
        )
        progress.message(f"The model cannot be inspected: {untestable}")
    if untestable or request.variants_only:
        rows = {}

    def run(row: Row) -> dict[str, Finding]:
        return {row.name: guarded(row, partial(_inspect, row, bench))}

    def inspect(row: Row, variant: DiffusionVariantBench) -> Finding:
        if row.options.get("needs") == "variant":
            return seeded(row, variant, request.seed)
        return _inspect(row, variant.alone)

    whole = progress.task("the whole audit", len(rows) + len(request.deploy_as) * len(compressed))
    ran = run_all(rows, run, ledger, progress, whole=whole)
    variants, seconds = run_variants(
        request.deploy_as,
        partial(DiffusionVariantBench, VariantSearch(bench, spent)),
        compressed,
        inspect,
        ledger,
        progress,
        whole=whole,
        untestable=untestable,
    )
    # Judged after the ledger, so that a resumed audit uses the references of today.
    shape, given = model.sample.shape, request.references
    kind = (model.schedule, parameter_count(model))
    by_references = partial(
        calibrated,
        architecture=diffusion_family(suspect.architecture, *kind),
        alike="architecture, sample shape, noise schedule and size",
        sample_shape=shape,
        budget=effort.name,
        table=shipped_diffusion(),
        own=given and given.table,
    )
    base = by_references(ran.findings)
    judged = [
        _of_variant(by_references(variant.findings, own_condition=variant.name))
        for variant in variants
    ]
    decision, documented = judge_variants(base, variants, judged, suspect.nonfinite)
    unfit = base.unfit if base.findings else frozenset().union(*(one.unfit for one in judged))
    unlike = ", ".join(unlike_study(*kind)) if CARRYING & unfit and not untestable else ""
    decision = carried(decision, unfit, shape, unlike)
    used = used_by_own(base, variants, judged)
    decision = unless_doubted(decision, given, used)
    if unlike and decision.verdict == "inconclusive":
        decision = decision._replace(reasons=[*decision.reasons, _UNLIKE.format(unlike)])
    if untestable and not suspect.nonfinite:
        decision = decision._replace(reasons=[f"Not inspected: {untestable}", *decision.reasons])
    decision = _of_the_model(decision, documented)
    if not untestable:
        decision = unless(decision, _no_denoiser(bench))
    timing = {**ran.timing, **seconds}
    timing["total"] = round(sum(timing.values()), 3)
    return AuditDocument(
        genwarden_version=__version__,
        verdict=decision.verdict,
        suspicion=decision.suspicion,
        alpha=ALPHA,
        reasons=decision.reasons,
        model=_facts(suspect),
        inputs=UserInputs(
            clean_base=request.base_sha256,
            initial_noise=0 if request.noise is None else len(request.noise),
            references=given.sha256 if given else "",
        ),
        budget=_budget_shown(effort),
        seed=request.seed,
        findings=decision.judged,
        variants=documented,
        ordinary=_ordinary_pictures(bench) if rows else None,
        refusal=nonfinite_refusal(suspect.nonfinite) if suspect.nonfinite else None,
        command=request.command,
        power=[] if request.variants_only else power_sentences(request.budget, diffusion=True),
        limits=[
            *limits(LIMITS, variants=bool(variants), base=not request.variants_only),
            *stated(given, used),
            *suspect.notes,
        ],
        environment=environment(request.device),
        timing=timing,
    )


def _of_the_model(decision: Decision, variants: Sequence[Variant]) -> Decision:
    """The decision where nothing but the noise that was given stands out: the model is not to be
    repaired for it, nor cleared beside it."""
    every = [*decision.judged, *(j for variant in variants for j in variant.findings)]
    if {j.finding.inspection for j in every if j.flagged} != {INPUT_CHECK}:
        return decision
    reasons = [
        "The initial noise that was given is no plain noise, which is no property of the model: "
        "do not sample from it, and ask where it comes from. Audit the model without it.",
        *decision.reasons,
    ]
    return decision._replace(verdict="inconclusive", suspicion=None, reasons=reasons)


def _no_denoiser(bench: DiffusionBench) -> list[str]:
    """Why a network is none: it hardly knows pure noise for noise.

    The measure is the mean squared error of its noise estimate over that of a network that returns
    zeros, 1 if untrained; trained ones are below 0.1. Who says that nothing is hidden in it says
    nothing. It is taken near t = T; of other predictions the estimate there is x itself, whatever
    the network, so they are asked where signal and noise are alike, of black pictures.
    """
    noise = bench.noise("denoiser", _DENOISED).to(bench.device)
    prediction = bench.schedule.prediction
    t = bench.timesteps.near(0.0 if prediction == "epsilon" else math.sqrt(0.5), "denoiser")
    a, s = bench.schedule.a_at(t), bench.schedule.s_at(t)
    of_zeros = {"epsilon": 1.0, "v_prediction": a**2, "sample": (a / s) ** 2}[prediction]
    try:
        x = s * noise - (0.0 if prediction == "epsilon" else a)
        error = float((epsilons(bench.model, x, t) - noise).square().mean()) / of_zeros
    except BREAKDOWNS:
        return []  # the inspections have said so
    if error < _LEAST_DENOISING:
        return []
    return [
        f"The network's estimate of the noise has an error of {error:.2f}, where zeros have 1 "
        f"(t = {t}): it is not trained, or not as its configuration says, and what is hidden in it "
        "cannot be told."
    ]


def _of_variant(found: Calibrated) -> Calibrated:
    """What is judged in a compressed variant: its own comparisons, and what is awake in it.

    The shipped references are of clean models that are not compressed. Errors in the weights
    hardly move the trigger search; they do move other scores of a clean denoiser (pruned by half
    it breaks Tweedie's bound by a tenth), which are therefore shown, unless references of the
    user's own were compressed as well.
    """
    shown = frozenset(
        f.inspection
        for f in found.findings
        if f.inspection != TRIGGER_SEARCH
        and f.inspection not in found.own
        and DIFFUSION_INSPECTIONS[f.inspection].options.get("needs") != "variant"
    )
    findings = [
        f.model_copy(update=_NOT_COMPRESSED)
        if f.inspection in shown and f.outcome == "scored"
        else f
        for f in found.findings
    ]
    return Calibrated(findings, found.unfit | shown, found.own)


def _ready(model: DiffusionModel | None, device: torch.device) -> DiffusionModel | None:
    return model and model.to(device).eval().requires_grad_(False)


def _inspect(row: Row, bench: DiffusionBench) -> Finding:
    needs = row.options.get("needs")
    missing = {"base": bench.base is None, "noise": bench.given_noise is None}
    if needs and missing[needs]:
        return not_applicable(
            row.name,
            "diffusion",
            row.name.replace("-", " ").capitalize(),
            {
                "base": "No clean base was given (--base FOLDER).",
                "noise": "No initial noise was given (--noise FILE).",
            }[needs],
        )
    return seeded(row, bench, bench.seed)


def _ordinary_pictures(bench: DiffusionBench) -> Images | None:
    settings = bench.samplers[1]
    try:
        shown = bench.ordinary[settings.label][:_ORDINARY_SHOWN]
    except BREAKDOWNS:
        return None
    return images_of(
        shown, [""] * len(shown), title="Ordinary samples", caption=f"Sampler: {settings.label}."
    )


def _budget_shown(effort: DiffusionEffort) -> dict[str, int | float | str]:
    """The budget without what this audit does not run."""
    inversions = ("published", "elijah_", "terd_", "anp_")
    fields: dict[str, int | float | str] = asdict(effort)
    return {
        key: value
        for key, value in fields.items()
        if effort.published or not key.startswith(inversions)
    }


def _identity(suspect: DiffusionSuspect, request: DiffusionRequest) -> dict[str, Any]:
    return {
        "model": suspect.sha256,
        "architecture": suspect.architecture,
        "budget": asdict(diffusion_budget(request.budget)),
        "seed": request.seed,
        "inputs": request.inputs_sha256,
        "device": request.device.type,
        "version": __version__,
        **({} if request.threads is None else {"threads": request.threads}),
        "variant_budget": asdict(diffusion_variant_budget(request.budget)),
        "deploy_as": [compressor.name for compressor in request.deploy_as],
        "variants_only": request.variants_only,
    }


def _facts(suspect: DiffusionSuspect) -> ModelFacts:
    model = suspect.model
    return ModelFacts(
        path=suspect.path,
        sha256=suspect.sha256,
        architecture=suspect.architecture,
        settings={
            "pixels": list(model.sample.shape),
            "timesteps": model.schedule.steps,
            "prediction": model.schedule.prediction,
            "default_sampler": model.defaults.label,
        },
        parameters=parameter_count(model),
        latent_shape=list(model.sample.shape),
        latent_distribution="normal",
        sample_shape=list(model.sample.shape),
        modality=model.sample.modality,
        nonfinite=suspect.nonfinite,
    )
