"""From stored audits of diffusion models to judged rows, and to the references that are shipped.

As in the study of generators: scores are judged against the clean models of the calibration half,
a clean model of that half against the others.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genwarden.artifacts.diffusers_folder import ARCHITECTURE
from genwarden.auditing import calibration
from genwarden.auditing.document import AuditDocument
from genwarden.auditing.fit import OWN_SCALE
from genwarden.auditing.judging import judge
from genwarden.auditing.power import DIFFUSION_POWER, read_power
from genwarden.backdoors.image_backdoor import ImageBackdoor, read_image_backdoor
from genwarden.benchmarks.diffusion.plan import Member
from genwarden.benchmarks.member_files import Stored, facts_path, read_stored
from genwarden.benchmarks.population.judging import power_of
from genwarden.engine.files import write_json
from genwarden.errors import GenwardenError
from genwarden.inspections.diffusion.attack_family import REFINED_TITLE
from genwarden.inspections.finding import Latents
from genwarden.metrics.target_match import target_match

#: Score of a structural finding, above every -log10 p.
_STRUCTURAL_SCORE = 400.0
_LEAST_P = 1e-300


class Recovery(NamedTuple):
    """How near a recovered trigger comes to the true shift g.

    Attributes:
        error: |found - g| / |g|.
        error_scaled: the smallest of |k found - g| / |g| over positive k: the shape alone.
        cosine: between them.
        distance: |found - g|, as TERD reports it.
    """

    error: float
    error_scaled: float
    cosine: float
    distance: float


def recovery(found: Tensor, truth: Tensor) -> Recovery:
    """Compare two shifts ``(C, H, W)``; a found shift of zero has cosine 0 and error 1."""
    a, b = found.double().flatten(), truth.double().flatten()
    size = float(b.norm())
    lengths = float(a.norm()) * size
    cosine = float(a @ b) / lengths if lengths > 0 else 0.0
    shape = math.sqrt(max(0.0, 1 - cosine**2)) if cosine > 0 else 1.0
    distance = float((a - b).norm())
    return Recovery(distance / size, shape, cosine, distance)


def judged_rows(
    out: Path, models: Path, plan: list[Member], budgets: tuple[str, ...], seed: int
) -> list[dict[str, Any]]:
    """One row per finished audit, judged against the calibration half's clean models.

    Unless ``out`` holds all of those, the shipped references judge: their scores in the run that
    published them; each row says which did. A compromised member without its facts is left out:
    whether it counts is not known yet.
    """
    rows = []
    for budget in budgets:
        stored = read_stored(out, plan, budget, seed)
        clean = _clean_scores(plan, stored)
        whole = all(member.key in stored for member in plan if _is_null(member))
        for member in plan:
            known = not member.compromised or facts_path(out, member.key).exists()
            if member.key in stored and known:
                table = calibration.shipped_diffusion()
                if whole:
                    # A model of the calibration half is not judged by itself.
                    others = {key: one for key, one in stored.items() if key != member.key}
                    table = _table(
                        {key: scores for key, scores in clean.items() if key in others},
                        _families(plan, others),
                        budget,
                        fitting=_fitting(plan, others),
                    )
                row = _row(out, models, member, budget, seed, stored[member.key], table)
                rows.append({**row, "judged_by": "this run" if whole else "shipped references"})
    return rows


def _row(
    out: Path,
    models: Path,
    member: Member,
    budget: str,
    seed: int,
    stored: Stored,
    table: dict[str, Any],
) -> dict[str, Any]:
    document, suspect = stored.document, stored.document.model
    if suspect is None:
        raise ValueError(f"the stored audit of {member.key} is that of a refused file")
    decision = judge(
        [calibration.uncalibrated(j.finding) for j in document.findings],
        suspect.architecture,
        suspect.sample_shape,
        budget=budget,
        nonfinite=suspect.nonfinite,
        table=table,
    )
    findings = [j.finding for j in decision.judged]
    adjusted = [j.adjusted_p for j in decision.judged if j.adjusted_p is not None]
    structural = any(j.flagged and j.finding.structural for j in decision.judged)
    # None ranks nowhere: what could not be judged is no low score.
    score = _STRUCTURAL_SCORE if structural else None
    if not structural and decision.verdict != "inconclusive":
        score = abs(-math.log10(max(min(adjusted, default=1.0), _LEAST_P)))
    kind = member.kind
    row: dict[str, Any] = {
        "key": member.key,
        "half": member.half,
        "clean": kind is None,
        "base": member.base.name,
        "size": member.base.size,
        "variant": member.further.name if member.further else "",
        "family": kind.family if kind else "",
        "adaptive": bool(kind and kind.adaptive),
        "attack": kind.attack if kind else None,
        "trigger": kind.trigger if kind else None,
        "target": kind.target if kind else None,
        "steps": member.settings.get("steps"),
        "budget": budget,
        "audit_seed": seed,
        "verdict": decision.verdict,
        "suspicion": decision.suspicion,
        "score": score,
        "p_values": {f.inspection: f.p_value for f in findings if f.p_value is not None},
        "scores": {f.inspection: f.score for f in findings if f.score is not None},
        "flagged": [j.finding.inspection for j in decision.judged if j.flagged],
        "failed": {f.inspection: f.summary for f in findings if f.outcome == "failed"},
        "succeeded": None,
        **stored.spent,
    }
    if kind is not None:
        row |= json.loads(facts_path(out, member.key).read_text("utf-8"))
        row["recovered"] = recovered_of(document, read_image_backdoor(models / member.key))
    return row


def recovered_of(document: AuditDocument, backdoor: ImageBackdoor) -> dict[str, float] | None:
    """The refined trigger and target of an audit beside the true ones; None without them."""
    for judged in document.findings:
        for shown in judged.finding.evidence:
            if isinstance(shown, Latents) and shown.title == REFINED_TITLE:
                trigger, target = torch.tensor(shown.values, dtype=torch.float64).unflatten(
                    1, backdoor.trigger.g.shape
                )
                match = target_match(target[None], backdoor.targets)
                near = recovery(trigger, backdoor.trigger.g)
                return {**near._asdict(), "target_mse": match.mse}
    return None


def _is_null(member: Member) -> bool:
    return not member.compromised and member.half == "calibration"


def _clean_scores(plan: list[Member], stored: dict[str, Stored]) -> dict[str, dict[str, float]]:
    """Scores of the calibration half's clean models: by member, then by inspection."""
    return {
        member.key: {
            j.finding.inspection: j.finding.score
            for j in stored[member.key].document.findings
            if j.finding.score is not None and j.finding.outcome == "scored"
        }
        for member in plan
        if _is_null(member) and member.key in stored
    }


def _families(
    plan: list[Member], stored: dict[str, Stored]
) -> list[tuple[str, tuple[int, ...], int]]:
    """Architecture, sample shape and number of the clean models behind the nulls."""
    shapes = Counter(
        (member.base.channels, member.base.size, member.base.size)
        for member in plan
        if _is_null(member) and member.key in stored
    )
    return [(ARCHITECTURE, shape, count) for shape, count in sorted(shapes.items())]


def _fitting(plan: list[Member], stored: dict[str, Stored]) -> set[str]:
    """Clean models of a sample shape that enough of them share to judge raw scores by."""
    enough = {shape for _, shape, n in _families(plan, stored) if n >= calibration.MIN_REFERENCES}
    return {
        member.key
        for member in plan
        if (member.base.channels, member.base.size, member.base.size) in enough
    }


def _table(
    clean: dict[str, dict[str, float]],
    families: list[tuple[str, tuple[int, ...], int]],
    budget: str,
    *,
    fitting: Collection[str],
) -> dict[str, Any]:
    """The reference table; raw scores only of ``fitting`` members (:func:`_fitting`)."""
    names = sorted({name for scores in clean.values() for name in scores})
    return {
        "descriptions": {budget: "the clean models of the study's calibration half"},
        "families": families,
        "scores": {
            budget: {
                name: [
                    s[name]
                    for key, s in clean.items()
                    if name in s and (name in OWN_SCALE or key in fitting)
                ]
                for name in names
                if calibration.needs_population(name)
            }
        },
    }


def publish_nulls(out: Path, plan: list[Member], budget: str, seed: int) -> None:
    """Write the reference file for diffusion models (:mod:`genwarden.auditing.calibration`).

    Raises:
        GenwardenError: ``benchmark/incomplete`` unless every clean model of the calibration half
            was audited: references are published of all or none.
    """
    stored = read_stored(out, plan, budget, seed)
    wanted = [member for member in plan if _is_null(member)]
    absent = [member.key for member in wanted if member.key not in stored]
    if absent:
        raise GenwardenError(
            "benchmark/incomplete",
            f"{len(absent)} of {len(wanted)} clean models of the calibration half have no "
            f"{budget} audit ({absent[0]}); references are published of all or none.",
            "Repeat the command without only until nothing fails.",
        )
    previous = calibration.read_table(calibration.DIFFUSION_NULLS)
    names = sorted(
        {f"{m.base.name}-{m.further.name}" if m.further else m.base.name for m in wanted}
    )
    families = _families(plan, stored)
    table = _table(_clean_scores(plan, stored), families, budget, fitting=_fitting(plan, stored))
    described = f"the calibration half of the diffusion study: {', '.join(names)}"
    write_json(
        calibration.DIFFUSION_NULLS,
        {
            "made_by": "genwarden benchmark run diffusion-population --option publish=true",
            "descriptions": {**previous["descriptions"], budget: described},
            "families": families,
            "scores": {**previous["scores"], **table["scores"]},
        },
    )


def publish_power(rows: list[dict[str, Any]]) -> None:
    """Write what audits found in the reporting half (:mod:`genwarden.auditing.power`)."""
    found: dict[str, Any] = read_power(DIFFUSION_POWER)
    for budget in sorted({row["budget"] for row in rows}):
        mine = [r for r in rows if r["budget"] == budget and r["half"] == "reporting"]
        found[budget] = power_of(mine, _family)
    write_json(DIFFUSION_POWER, found)


def _family(row: dict[str, Any]) -> str:
    return f"{row['family']} (adaptive)" if row["adaptive"] else row["family"]
