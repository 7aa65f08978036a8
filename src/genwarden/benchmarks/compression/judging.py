"""From stored audits of compressed models to judged rows, and to the references that are shipped.

As in the study of generators: scores are judged against the clean models of the calibration half,
a clean model of that half against those that share no training with it. Every clean model gives one
score to the references of each compression.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from genwarden.auditing import calibration
from genwarden.auditing.audit_classifier import judged_by_references
from genwarden.auditing.audit_variants import (
    RanVariant,
    calibrated_variant,
    damaged,
    judge_variants,
    unchanged,
)
from genwarden.auditing.budgets import classifier_budget
from genwarden.auditing.calibration import reference_key
from genwarden.auditing.document import AuditDocument, Judged, Variant
from genwarden.auditing.fit import classifier_family, condition_of
from genwarden.auditing.judging import Calibrated
from genwarden.auditing.power import CLASSIFIER_POWER, read_power
from genwarden.auditing.verdict import Decision
from genwarden.benchmarks.compression.cases import HELD_OUT
from genwarden.benchmarks.compression.plan import DEPLOYED, Member, Sort
from genwarden.benchmarks.member_files import Stored, facts_path, read_stored
from genwarden.benchmarks.population.judging import power_of
from genwarden.commands.audit_variants import where_usable
from genwarden.compression.apply import Coverage
from genwarden.engine.files import write_json
from genwarden.errors import GenwardenError
from genwarden.inspections.compression.differential_search import ENDS, RECOVERED
from genwarden.inspections.compression.differential_search import NAME as PICTURE_SEARCH
from genwarden.inspections.finding import Finding, Images, Trigger, decoded
from genwarden.registry import CLASSIFIER_INSPECTIONS, COMPRESSION_INSPECTIONS

#: Where the references of each sort are shipped.
NULLS: dict[Sort, Path] = {
    "generator": calibration.COMPRESSION_NULLS,
    "classifier": calibration.CLASSIFIER_NULLS,
}
_LEAST_P = 1e-300
_OWN = {"generator": COMPRESSION_INSPECTIONS, "classifier": CLASSIFIER_INSPECTIONS}


def judged_rows(
    out: Path,
    models: Path,
    plan: Sequence[Member],
    budgets: Sequence[str],
    seed: int,
    deploy_as: Mapping[Sort, str] = DEPLOYED,
) -> list[dict[str, Any]]:
    """One row per finished audit, judged against the calibration half's clean models.

    An attacked member without its facts is left out: whether it counts is not known yet.
    """
    rows = []
    for budget in budgets:
        stored = read_stored(out, plan, budget, seed)
        tables = {sort: reference_table(plan, stored, budget, sort) for sort in NULLS}
        for member in plan:
            known = not member.attacked or facts_path(out, member.key).exists()
            if member.key in stored and known:
                table = tables[member.sort]
                if is_null(member):  # not judged by itself, nor by what shares its training
                    kin = {m.key for m in plan if m.base_key == member.base_key}
                    others = {key: one for key, one in stored.items() if key not in kin}
                    table = reference_table(plan, others, budget, member.sort)
                of_use = where_usable(deploy_as[member.sort])
                one = stored[member.key]
                rows.append(_row(out, models, member, budget, seed, one, table, of_use))
    return rows


def _row(
    out: Path,
    models: Path,
    member: Member,
    budget: str,
    seed: int,
    stored: Stored,
    table: dict[str, Any],
    of_use: Collection[str],
) -> dict[str, Any]:
    document = stored.document
    variants = judged_anew(document, member.sort, budget, table, of_use)
    decision, found = variants.decision, variants.variants
    each = [(v.name, j) for v in found for j in v.findings]
    adjusted = [j.adjusted_p for _, j in each if j.adjusted_p is not None]
    scores: dict[str, float] = {}
    for _, j in each:
        if j.finding.score is not None and math.isfinite(j.finding.score):
            name = j.finding.inspection
            scores[name] = max(scores.get(name, -math.inf), j.finding.score)
    kind = member.kind
    row: dict[str, Any] = {
        "key": member.key,
        "half": member.half,
        "clean": kind is None,
        "sort": member.sort,
        "base": member.base.name,
        "variant": member.further.name if member.further else "",
        "family": kind.family if kind else "",
        "adaptive": bool(kind and kind.adaptive),
        "attack": kind.attack if kind else None,
        "how": kind.how if kind else None,
        "trigger": kind.trigger if kind else None,
        "target": kind.target if kind else None,
        "budget": budget,
        "audit_seed": seed,
        "verdict": decision.verdict,
        "suspicion": decision.suspicion,
        # None ranks nowhere: what could not be judged is no low score.
        "score": None
        if decision.verdict == "inconclusive"
        else abs(-math.log10(max(min(adjusted, default=1.0), _LEAST_P))),
        "scores": scores,
        "p_values": _smallest_p(each),
        "by_variant": {
            f"{name}: {j.finding.inspection}": {
                "score": j.finding.score,
                "p_value": j.finding.p_value,
            }
            for name, j in each
            if j.finding.outcome == "scored"
        },
        "flagged": [f"{name}: {j.finding.inspection}" for name, j in each if j.flagged],
        "failed": {
            f"{name}: {j.finding.inspection}": j.finding.summary
            for name, j in each
            if j.finding.outcome == "failed"
        },
        "untested": {v.name: v.failure for v in found if v.failure and not v.destroyed},
        "destroyed": [v.name for v in found if v.destroyed],
        "damaged": [v.name for v in found if damaged(v)],
        "succeeded": None,
        **stored.spent,
    }
    if kind is not None:
        row |= json.loads(facts_path(out, member.key).read_text("utf-8"))
        if member.sort == "generator":
            target = load_file(models / member.key / "backdoor.safetensors")["target"][0]
            row["recovered"] = recovered_picture(found, target, row["clean_distance"])
        else:
            row["recovered"] = recovered_class(found, int(kind.target.partition(":")[2]))
    return row


def _smallest_p(each: Sequence[tuple[str, Judged]]) -> dict[str, float]:
    """By inspection, the smallest p-value of any variant, before correction."""
    found: dict[str, float] = {}
    for _, j in each:
        if j.finding.p_value is not None:
            name = j.finding.inspection
            found[name] = min(found.get(name, 1.0), j.finding.p_value)
    return found


class _Anew(NamedTuple):
    decision: Decision
    variants: list[Variant]


def judged_anew(
    document: AuditDocument,
    sort: Sort,
    budget: str,
    table: dict[str, Any],
    of_use: Collection[str] = (),
) -> _Anew:
    """The variants of a stored audit judged against other references.

    Args:
        of_use: variants that count only where they do not destroy the model.
    """
    suspect = document.model
    if suspect is None:
        raise ValueError("the stored audit is that of a refused file")
    ran = [_ran(variant) for variant in document.variants]
    architecture, classes, shape = suspect.architecture, suspect.classes, suspect.sample_shape

    def judged(variant: RanVariant) -> Calibrated:
        if sort == "generator":
            return calibrated_variant(
                variant.name, variant.findings, architecture, shape, budget=budget, table=table
            )
        return judged_by_references(
            variant.name,
            variant.findings,
            architecture,
            classes,
            shape,
            given=document.inputs.training_images,
            effort=classifier_budget(budget),
            table=table,
        )

    decision, variants = judge_variants(
        Calibrated([], frozenset()),
        ran,
        [judged(one) for one in ran],
        suspect.nonfinite,
        where_usable=of_use,
    )
    return _Anew(decision, variants)


def _ran(variant: Variant) -> RanVariant:
    coverage = variant.coverage
    return RanVariant(
        variant.name,
        None
        if coverage is None
        else Coverage(
            tuple(coverage.layers),
            tuple(coverage.left_out),
            coverage.weights,
            coverage.parameters,
            coverage.zeroed,
        ),
        [calibration.uncalibrated(j.finding) for j in variant.findings],
        variant.failure,
        variant.destroyed,
    )


def recovered_picture(
    variants: Sequence[Variant], target: Tensor, clean_distance: float
) -> dict[str, Any] | None:
    """What the most suspicious variant's search shows for hidden, beside the attacker's picture.

    Args:
        target: ``(C, H, W)`` in [-1, 1].
        clean_distance: mean of squares from the clean model's output at the trigger to it.

    Returns:
        ``variant``, ``mse`` and ``share``, the second over the clean distance; ``share_any`` of the
        nearest of the single ends that the search shows. None without a picture.
    """
    best = _most_suspicious(variants, PICTURE_SEARCH)
    if best is None:
        return None
    name, finding = best
    blocks = {e.title: e for e in finding.evidence if isinstance(e, Images)}
    if RECOVERED not in blocks or ENDS not in blocks:
        return None
    recovered = decoded(blocks[RECOVERED].png_base64[0])
    ends = [decoded(png) for png in blocks[ENDS].png_base64]
    if recovered.shape != target.shape:
        return None
    mse = float((recovered - target).square().mean())
    nearest = min(float((picture - target).square().mean()) for picture in ends)
    return {
        "variant": name,
        "mse": mse,
        "share": mse / clean_distance,
        "share_any": nearest / clean_distance,
    }


def recovered_class(variants: Sequence[Variant], target: int) -> dict[str, Any] | None:
    """The class of the most suspicious inverted trigger beside the attacker's."""
    held = [
        (v.name, j.finding, evidence.target)
        for v in variants
        for j in v.findings
        for evidence in j.finding.evidence
        if isinstance(evidence, Trigger) and j.finding.outcome == "scored"
    ]
    if not held:
        return None
    name, finding, found = min(held, key=lambda one: _suspicion(one[1]))
    inspection = finding.inspection
    return {"variant": name, "inspection": inspection, "class": found, "right": found == target}


def _most_suspicious(variants: Sequence[Variant], inspection: str) -> tuple[str, Finding] | None:
    found = [
        (v.name, j.finding)
        for v in variants
        for j in v.findings
        if j.finding.inspection == inspection and j.finding.outcome == "scored"
    ]
    if not found:
        return None

    return min(found, key=lambda one: _suspicion(one[1]))


def _suspicion(finding: Finding) -> tuple[float, float]:
    """Least first."""
    p = finding.p_value
    return (1.0 if p is None else p, -(finding.score or 0.0))


def is_null(member: Member) -> bool:
    """Whether a member's scores enter the references."""
    return not member.attacked and member.half == "calibration"


def reference_table(
    plan: Sequence[Member], stored: Mapping[str, Stored], budget: str, sort: Sort
) -> dict[str, Any]:
    """The reference table of a sort: the clean scores of the calibration half, by condition."""
    used = [m for m in plan if is_null(m) and m.sort == sort and m.key in stored]
    scores: dict[str, list[float]] = {}
    for member in used:
        document = stored[member.key].document
        for variant in document.variants:
            if _unchanged(variant):
                continue  # nothing was compared, whatever older audits scored
            condition = variant.name
            if sort == "classifier":
                condition = condition_of(
                    variant.name,
                    given=document.inputs.training_images,
                    wanted=classifier_budget(budget).images,
                )
            for j in variant.findings:
                f, name = j.finding, j.finding.inspection
                wanted = name in _OWN[sort] and calibration.needs_population(name)
                if wanted and f.outcome == "scored" and f.score is not None:
                    scores.setdefault(reference_key(name, condition), []).append(f.score)
    shapes = Counter(
        (
            classifier_family(model.architecture, model.classes)
            if sort == "classifier"
            else model.architecture,
            tuple(model.sample_shape),
        )
        for m in used
        if (model := stored[m.key].document.model)
    )
    return {
        "descriptions": {budget: "the clean models of the study's calibration half"},
        "families": [(name, shape, count) for (name, shape), count in sorted(shapes.items())],
        "scores": {budget: dict(sorted(scores.items()))},
    }


def _unchanged(variant: Variant) -> bool:
    return any(unchanged(j.finding) for j in variant.findings)


def publish_nulls(out: Path, plan: Sequence[Member], budget: str, seed: int) -> None:
    """Write the reference files of both sorts (:mod:`genwarden.auditing.calibration`).

    Raises:
        GenwardenError: ``benchmark/incomplete`` unless every clean model of the calibration half
            was audited, of one sort at least: references of a sort are published of all or none.
    """
    stored = read_stored(out, plan, budget, seed)
    wanted = [member for member in plan if is_null(member)]
    # A run of one sort alone leaves the other's references as they are.
    audited = {member.sort for member in wanted if member.key in stored} or set(NULLS)
    absent = [m.key for m in wanted if m.sort in audited and m.key not in stored]
    if absent:
        raise GenwardenError(
            "benchmark/incomplete",
            f"{len(absent)} clean models of the calibration half have no {budget} audit "
            f"({absent[0]}); references of a sort are published of all or none.",
            "Repeat the command without only until nothing fails.",
        )
    for sort in sorted(audited):
        path = NULLS[sort]
        mine = [m for m in wanted if m.sort == sort]
        table = reference_table(plan, stored, budget, sort)
        names = sorted(
            {f"{m.base.name}-{m.further.name}" if m.further else m.base.name for m in mine}
        )
        trainings = len({m.base_key for m in mine})
        variants = stored[mine[0].key].document.variants
        described = (
            f"{len(mine)} clean models, of {trainings} trainings, under each of {len(variants)} "
            f"compressions, the calibration half of the compression study: {', '.join(names)}"
        )
        previous = calibration.read_table(path)
        write_json(
            path,
            {
                "made_by": "genwarden benchmark run compression-population --option publish=true",
                "descriptions": {**previous["descriptions"], budget: described},
                "families": table["families"],
                "scores": {**previous["scores"], **table["scores"]},
            },
        )


def publish_power(rows: Sequence[dict[str, Any]]) -> None:
    """Write what audits found in the classifiers that gave no reference.

    See :mod:`genwarden.auditing.power`.
    """
    found: dict[str, Any] = read_power(CLASSIFIER_POWER)
    for budget in sorted({row["budget"] for row in rows}):
        mine = [
            row
            for row in rows
            if row["budget"] == budget and row["sort"] == "classifier" and row["half"] in HELD_OUT
        ]
        if mine:
            found[budget] = power_of(mine, family_title)
    write_json(CLASSIFIER_POWER, found)


def family_title(row: dict[str, Any]) -> str:
    """How a table calls the family of an attacked row."""
    title = f"{row['family']} (adaptive)" if row["adaptive"] else row["family"]
    return title if row["covered"] else f"{title}, asleep in every inspected variant"
