"""One audit: run every inspection of the kind, calibrate, decide, and return the document.

Each finished inspection is recorded in the ledger, so an interrupted audit continues with the next
one. The audit receives the network, its shapes and its hash; the model's provenance stays outside.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from genwarden import __version__
from genwarden.artifacts.limits import MAX_FILE_BYTES
from genwarden.auditing.audit_variants import (
    calibrated_variant,
    judge_variants,
    limits,
    run_variants,
    used_by_own,
)
from genwarden.auditing.budgets import budget as budget_named
from genwarden.auditing.budgets import compression_budget
from genwarden.auditing.calibration import shipped
from genwarden.auditing.candidates import Examined, examine
from genwarden.auditing.document import (
    AuditDocument,
    ModelFacts,
    Refusal,
    UserInputs,
)
from genwarden.auditing.given_references import GivenReferences, stated, unless_doubted
from genwarden.auditing.judging import calibrated
from genwarden.auditing.power import power_sentences
from genwarden.auditing.room import Room, spread
from genwarden.auditing.running import BREAKDOWNS, guarded, run_all
from genwarden.auditing.scanning import scan
from genwarden.auditing.verdict import ALPHA
from genwarden.compression.contract import Compressor
from genwarden.data.images import NamedImages
from genwarden.engine.executor import Executor, InProcess
from genwarden.engine.files import sha256_file
from genwarden.engine.ledger import Ledger
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import noise_fixed
from genwarden.errors import ExitCode, GenwardenError
from genwarden.inspections.compression.rerun import repeated
from genwarden.inspections.finding import Finding, Images, images_of
from genwarden.inspections.workbench import Workbench
from genwarden.models.protocol import LatentGenerator, parameter_count
from genwarden.registry import COMPRESSION_INSPECTIONS, INSPECTIONS, Row

_ORDINARY_SHOWN = 16
LIMITS = [
    "The verdict covers the weights and the inspections listed here, at the budget stated; it is "
    "not a proof that no backdoor exists.",
    "Triggers outside the ordinary latent radius are covered only at the canonical latents and "
    "subspaces listed.",
    "Exact gates (no gradient away from the trigger) are seen by the static and dynamic checks "
    "only.",
    "A hidden output that differs little from what ordinary samples suggest at its latent may stay "
    "below the noise of the twin.",
    "Population p-values assume that clean scores follow a normal law; the clean scores are shown.",
    "The clean reference models are small DCGANs and VAEs of 28x28 and 32x32 images. Scores "
    "against a twin are ratios and carry over to other architectures; the others are an "
    "extrapolation there.",
]


@dataclass(frozen=True)
class Suspect:
    """What the audit is given of a model: network and facts, not what the model says of itself."""

    generator: LatentGenerator
    architecture: str
    settings: dict[str, Any]
    sha256: str
    nonfinite: dict[str, int]
    path: str


@dataclass(frozen=True)
class Request:
    """How to audit.

    Attributes:
        budget: quick, standard or thorough.
        targets: pictures that the user is afraid of.
        training: samples of the training data, float in [-1, 1].
        inputs_sha256: identity of targets and training data for the ledger.
        command: the command line that repeats the audit.
        threads: processor threads that the user asked for, for the ledger; None: as fixed.
        sample_command: the command line that makes a candidate again, but for its number.
        deploy_as: the compressions to inspect the model under.
        variants_only: leave the model as it is uninspected.
        scan_precision: of the brute-force scan, float32 or bfloat16.
        references: clean models of the user's own to judge by, or None.
    """

    budget: str
    seed: int
    device: torch.device
    targets: NamedImages | None = None
    training: torch.Tensor | None = None
    inputs_sha256: str = ""
    command: str = ""
    threads: int | None = None
    sample_command: str = ""
    deploy_as: tuple[Compressor, ...] = ()
    variants_only: bool = False
    scan_precision: str = "float32"
    references: GivenReferences | None = None


def audit(
    suspect: Suspect,
    request: Request,
    *,
    work: Path,
    progress: Progress,
    executor: Executor | None = None,
) -> AuditDocument:
    """Audit one generator.

    Args:
        work: holds the ledger of finished inspections.
        executor: computes what can be split; by default this process.
    """
    executor = executor or InProcess()
    ledger = Ledger(work, _identity(suspect, request))
    generator = suspect.generator.to(request.device).eval().requires_grad_(False)
    room = Room(suspect, request, progress)
    bench, effort = room.bench, room.effort
    if suspect.nonfinite:
        progress.message("The weights hold NaN or infinite values: outputs cannot be inspected.")
        rows = {n: r for n, r in INSPECTIONS.items() if n in {"capacity"}}
    else:
        rows = INSPECTIONS
    if request.variants_only:
        rows = {}
    streamed = {name: row for name, row in rows.items() if row.options.get("stream")}

    def run(row: Row) -> dict[str, Finding]:
        if row.name in streamed:
            return scan(streamed, bench, suspect.settings, executor, ledger, progress)
        return {row.name: guarded(row, partial(room.inspect, row))}

    compressed = _variant_rows(request) if request.deploy_as else {}
    alone = {name: row for name, row in rows.items() if name not in streamed}
    spread(alone, {} if suspect.nonfinite else compressed, room, executor, ledger)
    steps = len(rows) + len(request.deploy_as) * len(compressed)
    whole = progress.task("the whole audit", steps)
    ordered, timing = run_all(rows, run, ledger, progress, whole=whole)
    variants, seconds = run_variants(
        request.deploy_as,
        room.variant,
        compressed,
        room.inspect_variant,
        ledger,
        progress,
        whole=whole,
        untestable="the weights hold NaN or infinite values." if suspect.nonfinite else "",
    )
    timing |= seconds
    # Judged after the ledger, so that a resumed audit uses the references of today.
    model = (suspect.architecture, generator.sample.shape)
    given = request.references
    own = given and given.table
    base = calibrated(ordered, *model, budget=effort.name, table=shipped(), own=own)
    judged = [
        calibrated_variant(v.name, v.findings, *model, budget=effort.name, own=own)
        for v in variants
    ]
    decision, documented = judge_variants(base, variants, judged, suspect.nonfinite)
    used = used_by_own(base, variants, judged)
    decision = unless_doubted(decision, given, used)
    examined = Examined([], [])
    if any(j.flagged for j in decision.judged) and not suspect.nonfinite:
        progress.message("candidates: what they make, how far they reach, what carries them")
        started = time.perf_counter()
        with noise_fixed(bench.device, bench.seed, "candidates-noise"):
            examined = examine(
                bench,
                decision.judged,
                breakdowns=BREAKDOWNS,
                sample_command=request.sample_command,
            )
        timing["candidates"] = round(time.perf_counter() - started, 3)
    timing["total"] = round(sum(timing.values()), 3)
    ordinary = None
    if not suspect.nonfinite and generator.sample.modality == "image":
        ordinary = _ordinary_pictures(bench)
    return AuditDocument(
        genwarden_version=__version__,
        verdict=decision.verdict,
        suspicion=decision.suspicion,
        alpha=ALPHA,
        reasons=decision.reasons,
        model=_facts(suspect),
        inputs=UserInputs(
            targets=request.targets.names if request.targets else [],
            training_images=len(request.training) if request.training is not None else 0,
            references=given.sha256 if given else "",
        ),
        budget=asdict(effort),
        seed=request.seed,
        findings=decision.judged,
        candidates=examined.candidates,
        variants=documented,
        ordinary=ordinary,
        refusal=nonfinite_refusal(suspect.nonfinite) if suspect.nonfinite else None,
        command=request.command,
        power=[] if request.variants_only else power_sentences(request.budget),
        limits=[
            *limits(LIMITS, variants=bool(variants), base=not request.variants_only),
            *stated(given, used),
            *examined.failures,
        ],
        environment=environment(request.device),
        timing=timing,
    )


def refused(
    error: GenwardenError, *, path: Path, budget: str, seed: int, command: str
) -> AuditDocument:
    """The document of a file that was refused before anything was loaded.

    An error that makes no claim about the file (a sound model of a kind that no inspection knows)
    gives ``inconclusive``.
    """
    unknown = error.exit_code == ExitCode.INCONCLUSIVE
    return AuditDocument(
        genwarden_version=__version__,
        verdict="inconclusive" if unknown else "refused",
        suspicion=None,
        alpha=ALPHA,
        reasons=[error.cause],
        model=None,
        inputs=UserInputs(),
        budget={"name": budget},
        seed=seed,
        findings=[],
        refusal=Refusal(
            code=error.code,
            cause=error.cause,
            remedy=error.remedy,
            path=str(path),
            sha256=_hash_of(path),
        ),
        command=command,
        limits=LIMITS,
        environment=environment(torch.device("cpu")),
    )


def _hash_of(path: Path) -> str:
    """Of a file that was refused, for its reports; "" of what cannot be read or is too large."""
    try:
        plain = path.is_file() and path.stat().st_size <= MAX_FILE_BYTES
        return sha256_file(path) if plain else ""
    except OSError:
        return ""


def environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware that can change the last bits of a result."""
    return {
        "genwarden": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": str(torch.get_num_threads()),
        "cores": str(os.cpu_count()),
    }


def _ordinary_pictures(bench: Workbench) -> Images | None:
    """Ordinary samples for the reports; None if the network cannot make them (findings say so)."""
    z = bench.generator.latent.sample(
        _ORDINARY_SHOWN, generator=torch.Generator().manual_seed(bench.seed)
    )
    try:
        with noise_fixed(bench.device, bench.seed, "pictures-noise"):
            shown = bench.samples(z)
    except BREAKDOWNS:
        return None
    return images_of(shown, [""] * len(shown), title="Ordinary samples")


def _variant_rows(request: Request) -> dict[str, Row]:
    """The inspections of compressed generators, and those of generators that are repeated."""
    reruns = compression_budget(request.budget).reruns
    again = repeated(reruns, with_target=request.targets is not None)
    return {**COMPRESSION_INSPECTIONS, **{name: INSPECTIONS[name] for name in again}}


def _identity(suspect: Suspect, request: Request) -> dict[str, Any]:
    return {
        "model": suspect.sha256,
        "architecture": suspect.architecture,
        "settings": suspect.settings,
        "budget": asdict(budget_named(request.budget)),
        "compression_budget": asdict(compression_budget(request.budget)),
        "seed": request.seed,
        "inputs": request.inputs_sha256,
        "device": request.device.type,
        "version": __version__,
        **({} if request.threads is None else {"threads": request.threads}),
        "deploy_as": [compressor.name for compressor in request.deploy_as],
        "variants_only": request.variants_only,
        **(
            {}
            if request.scan_precision == "float32"
            else {"scan_precision": request.scan_precision}
        ),
    }


def _facts(suspect: Suspect) -> ModelFacts:
    generator = suspect.generator
    return ModelFacts(
        path=suspect.path,
        sha256=suspect.sha256,
        architecture=suspect.architecture,
        settings=suspect.settings,
        parameters=parameter_count(generator),
        latent_shape=list(generator.latent.shape),
        latent_distribution=generator.latent.distribution,
        sample_shape=list(generator.sample.shape),
        modality=generator.sample.modality,
        nonfinite=suspect.nonfinite,
    )


def nonfinite_refusal(nonfinite: dict[str, int]) -> Refusal:
    """Why there is no verdict on weights that hold NaN or infinity, by tensor."""
    names = ", ".join(sorted(nonfinite)[:3])
    return Refusal(
        code="model/nonfinite-weights",
        cause=f"{sum(nonfinite.values())} weights are NaN or infinite (in {names}).",
        remedy="Ask for a sound copy of the model; outputs of this one cannot be judged.",
    )
