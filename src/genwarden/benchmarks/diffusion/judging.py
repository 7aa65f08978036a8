"""From stored audits of diffusion models to judged rows, and to the references that are shipped.

As in the study of generators: scores are judged against the clean models of the calibration half,
a clean model of that half against the others. Everything of that half is also judged with the
halves exchanged, against the clean models of the reporting half, with which it shares no weights:
its attacks are held out from every choice that was made after looking at the reporting half.

Measuring and judging are two steps, so that rows of an earlier run
(:mod:`genwarden.benchmarks.diffusion.earlier`), whose models are gone, are judged by the references
of today.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genwarden.artifacts.diffusers_folder import ARCHITECTURE
from genwarden.auditing import calibration
from genwarden.auditing.fit import OWN_SCALE
from genwarden.auditing.judging import judge
from genwarden.auditing.power import DIFFUSION_POWER, read_power
from genwarden.auditing.verdict import Decision
from genwarden.backdoors.image_backdoor import read_image_backdoor
from genwarden.benchmarks.diffusion.cases import swapped
from genwarden.benchmarks.diffusion.plan import Half, Member
from genwarden.benchmarks.diffusion.recovery import recovered_of
from genwarden.benchmarks.member_files import Stored, facts_path, read_stored
from genwarden.benchmarks.population.judging import power_of
from genwarden.engine.files import write_json
from genwarden.errors import GenwardenError
from genwarden.inspections.finding import Finding

Row = dict[str, Any]
_LEAST_P = 1e-300
_SHIPPED = "shipped references"


def measured_rows(
    out: Path, models: Path, plan: Sequence[Member], budgets: Sequence[str], seed: int
) -> list[Row]:
    """One row per finished audit, with its scores and without a verdict.

    A compromised member without its facts is left out: whether it counts is not known yet.
    """
    rows = []
    for budget in budgets:
        stored = read_stored(out, plan, budget, seed)
        for member in plan:
            known = not member.compromised or facts_path(out, member.key).exists()
            if member.key in stored and known:
                rows.append(_measured(out, models, member, budget, seed, stored[member.key]))
    return rows


def _measured(
    out: Path, models: Path, member: Member, budget: str, seed: int, stored: Stored
) -> Row:
    document, suspect = stored.document, stored.document.model
    if suspect is None:
        raise ValueError(f"the stored audit of {member.key} is that of a refused file")
    findings = [j.finding for j in document.findings]
    for finding in findings:
        # The study gives no base and no noise, which alone have other nulls.
        if finding.score is not None and not calibration.needs_population(finding.inspection):
            raise ValueError(f"{finding.inspection} is not judged against clean models")
    kind = member.kind
    row: Row = {
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
        "scores": {f.inspection: f.score for f in findings if f.score is not None},
        "failed": {f.inspection: f.summary for f in findings if f.outcome == "failed"},
        "nonfinite": suspect.nonfinite,
        "succeeded": None,
        **stored.spent,
    }
    if kind is not None:
        row |= json.loads(facts_path(out, member.key).read_text("utf-8"))
        row["recovered"] = recovered_of(document, read_image_backdoor(models / member.key))
    return row


def judged_rows(rows: Sequence[Row], plan: Sequence[Member], *, mixed: bool = False) -> list[Row]:
    """The rows with verdicts: ``verdict``, ``suspicion``, ``score``, ``p_values``, ``flagged``.

    Unless all clean models of the calibration half are among the rows of a budget, the shipped
    references judge: their scores in the run that published them. ``judged_by`` says which did.
    Rows of the calibration half have the same once more in ``exchanged``, judged by the clean
    models of the reporting half; None unless all of those are among the rows. These judge no user's
    model, so they may stem from an earlier run, which the row says.

    Args:
        mixed: whether clean models of an earlier run may be among those that judge.
    """
    members = {member.key: member for member in plan}
    budgets = {row["budget"] for row in rows}
    judges = {b: _judges(rows, plan, b, "calibration", mixed) for b in budgets}
    others = {
        b: (reference_table(rows, plan, b, half="reporting"), whose)
        for b in budgets
        if (whose := _judges(rows, plan, b, "reporting", mixed=True)) != _SHIPPED
    }
    judged = []
    for row in rows:
        member, budget = members[row["key"]], row["budget"]
        by = judges[budget]
        table = calibration.shipped_diffusion()
        if by != _SHIPPED:
            # A model of the calibration half is not judged by itself.
            table = reference_table(rows, plan, budget, without=row["key"])
        made = {**row, **_verdict(_decision(row, member, table)), "judged_by": by}
        if member.half == "calibration":
            made["exchanged"] = None
            if budget in others:
                table, by = others[budget]
                made["exchanged"] = {**_verdict(_decision(row, member, table)), "judged_by": by}
        judged.append(made)
    return judged


def _judges(
    rows: Sequence[Row], plan: Sequence[Member], budget: str, half: Half, mixed: bool
) -> str:
    if _absent(rows, plan, budget, half):
        return _SHIPPED
    nulls = {member.key for member in plan if _is_null(member, half)}
    if not any("made_by" in r for r in rows if r["budget"] == budget and r["key"] in nulls):
        return "this run"
    return "this run and an earlier one" if mixed else _SHIPPED


def _decision(row: Row, member: Member, table: dict[str, Any]) -> Decision:
    scored = [
        _finding(name, score=score, p_value_reason="not judged yet")
        for name, score in row["scores"].items()
    ]
    failed = [_finding(name, summary) for name, summary in row["failed"].items()]
    return judge(
        [*scored, *failed],
        ARCHITECTURE,
        _shape(member),
        budget=row["budget"],
        nonfinite=row.get("nonfinite", {}),
        table=table,
    )


def _finding(name: str, failure: str = "", **scored: Any) -> Finding:
    """As much of a finding as a row keeps of it."""
    return Finding(
        inspection=name,
        group="diffusion",
        title=name,
        outcome="failed" if failure else "scored",
        summary=failure,
        **scored,
    )


def _verdict(decision: Decision) -> dict[str, Any]:
    findings = [j.finding for j in decision.judged]
    adjusted = [j.adjusted_p for j in decision.judged if j.adjusted_p is not None]
    score = None
    # None ranks nowhere: what could not be judged is no low score.
    if decision.verdict != "inconclusive":
        score = abs(-math.log10(max(min(adjusted, default=1.0), _LEAST_P)))
    return {
        "verdict": decision.verdict,
        "suspicion": decision.suspicion,
        "score": score,
        "p_values": {f.inspection: f.p_value for f in findings if f.p_value is not None},
        "flagged": [j.finding.inspection for j in decision.judged if j.flagged],
    }


def _shape(member: Member) -> tuple[int, int, int]:
    return member.base.channels, member.base.size, member.base.size


def _is_null(member: Member, half: Half) -> bool:
    return not member.compromised and member.half == half


def _absent(rows: Sequence[Row], plan: Sequence[Member], budget: str, half: Half) -> list[str]:
    """Clean models of a half without a row."""
    there = {row["key"] for row in rows if row["budget"] == budget}
    return [member.key for member in plan if _is_null(member, half) and member.key not in there]


def reference_table(
    rows: Sequence[Row],
    plan: Sequence[Member],
    budget: str,
    *,
    half: Half = "calibration",
    without: str = "",
) -> dict[str, Any]:
    """The reference table of a budget: scores of the clean models of one half.

    Raw scores enter from models of a sample shape that enough of them share
    (:data:`genwarden.auditing.calibration.MIN_REFERENCES`), in a group for each such shape.

    Args:
        without: key of a model whose scores are left out, though it counts for its shape.
    """
    nulls = {member.key: member for member in plan if _is_null(member, half)}
    mine: Mapping[str, Row] = {
        row["key"]: row for row in rows if row["budget"] == budget and row["key"] in nulls
    }
    shapes = Counter(_shape(nulls[key]) for key in mine)
    enough = {shape for shape, count in shapes.items() if count >= calibration.MIN_REFERENCES}
    scores: dict[str, list[float]] = {}
    groups: dict[str, dict[str, list[float]]] = {}
    for key, row in mine.items():
        if key == without:
            continue
        shape = _shape(nulls[key])
        for name, score in row["scores"].items():
            if name in row["failed"]:
                continue
            kept = scores.setdefault(name, [])
            if name in OWN_SCALE or shape in enough:
                kept.append(score)
            if shape in enough:
                groups.setdefault(name, {}).setdefault(calibration.group_key(shape), []).append(
                    score
                )
    return {
        "descriptions": {budget: f"the clean models of the study's {half} half"},
        "families": [(ARCHITECTURE, shape, count) for shape, count in sorted(shapes.items())],
        "scores": {budget: dict(sorted(scores.items()))},
        "groups": {budget: dict(sorted(groups.items()))},
    }


def taken_null(row: Row) -> bool:
    """Whether a row is of a reference, and was taken from an earlier run."""
    return "made_by" in row and row["clean"] and row["half"] == "calibration"


def publish_nulls(rows: Sequence[Row], plan: Sequence[Member], budget: str) -> None:
    """Write the reference file for diffusion models (:mod:`genwarden.auditing.calibration`).

    Raises:
        GenwardenError: ``benchmark/incomplete`` unless every clean model of the calibration half
            was audited: references are published of all or none.
    """
    wanted = [member for member in plan if _is_null(member, "calibration")]
    if absent := _absent(rows, plan, budget, "calibration"):
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
    table = reference_table(rows, plan, budget)
    described = f"the calibration half of the diffusion study: {', '.join(names)}"
    write_json(
        calibration.DIFFUSION_NULLS,
        {
            "made_by": "genwarden benchmark run diffusion-population --option publish=true",
            "descriptions": {**previous["descriptions"], budget: described},
            "families": table["families"],
            "scores": {**previous["scores"], **table["scores"]},
            "groups": {**previous.get("groups", {}), **table["groups"]},
        },
    )


def publish_power(rows: Sequence[Row]) -> None:
    """Write what audits found (:mod:`genwarden.auditing.power`).

    In models that share no weights with those that judged them: of the reporting half, and of the
    other one with the halves exchanged.
    """
    found: dict[str, Any] = read_power(DIFFUSION_POWER)
    for budget in sorted({row["budget"] for row in rows}):
        mine = [row for row in rows if row["budget"] == budget]
        held_out = [row for row in mine if row["half"] == "reporting" or row.get("exchanged")]
        found[budget] = power_of([swapped(row) for row in held_out], _family)
    write_json(DIFFUSION_POWER, found)


def _family(row: Row) -> str:
    return f"{row['family']} (adaptive)" if row["adaptive"] else row["family"]
