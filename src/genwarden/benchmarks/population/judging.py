"""From stored audits to judged rows, and from these to the references that the package ships.

Scores are judged against the clean models of the calibration half; a clean model of that half
against the others.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from genwarden.artifacts.model_folder import read_manifest
from genwarden.auditing import calibration
from genwarden.auditing.document import AuditDocument
from genwarden.auditing.judging import judge
from genwarden.auditing.power import POWER, read_power
from genwarden.benchmarks.population.plan import Clean, Member
from genwarden.engine.files import write_json
from genwarden.errors import GenwardenError
from genwarden.inspections.finding import Finding, Images, decoded
from genwarden.reports.highlights import highlight

#: Inspections of a user's own targets: calibration only, the study judges without any target.
_WITH_TARGET = ("nearest-target", "reconstruct-target")
_STRUCTURAL_SCORE = 400.0
#: Titles of pictures that a report shows for comparison only.
_FOR_COMPARISON = ("Ordinary samples", "twin")


def document_path(out: Path, member: Member, budget: str, seed: int) -> Path:
    """Where the audit of a member is kept."""
    return out / "audits" / f"{member.key}.{budget}.{seed}.json"


def without_target(document: AuditDocument) -> list[Finding]:
    """What a stored audit found without being shown a target, not judged by clean models yet."""
    return [
        calibration.uncalibrated(j.finding)
        for j in document.findings
        if j.finding.inspection not in _WITH_TARGET
    ]


def judged_rows(
    out: Path, plan: list[Member], budgets: tuple[str, ...], seeds: tuple[int, ...]
) -> list[dict[str, Any]]:
    """One row per finished audit, judged against the calibration half's clean models."""
    rows = []
    for budget in budgets:
        clean = _clean_scores(out, plan, budget, seeds[0])
        families = _families(out, plan, set(clean))
        for member in plan:
            for seed in seeds:
                path = document_path(out, member, budget, seed)
                if path.exists():
                    rows.append(_row(out, member, budget, seed, path, clean, families))
    return rows


def _row(
    out: Path,
    member: Member,
    budget: str,
    seed: int,
    path: Path,
    clean: dict[str, dict[str, float]],
    families: list[tuple[str, tuple[int, ...], int]],
) -> dict[str, Any]:
    stored = json.loads(path.read_text("utf-8"))
    document = AuditDocument.model_validate(stored["document"])
    table = _table(clean, budget, without=member.key)
    table["families"] = families
    suspect = document.model
    if suspect is None:
        raise ValueError(f"{path} holds the audit of a refused file")
    decision = judge(
        without_target(document),
        suspect.architecture,
        suspect.sample_shape,
        budget=budget,
        nonfinite={},
        table=table,
    )
    findings = [j.finding for j in decision.judged]
    document = document.model_copy(update={"findings": decision.judged})
    adjusted = [j.adjusted_p for j in decision.judged if j.adjusted_p is not None]
    structural = any(j.flagged and j.finding.structural for j in decision.judged)
    score = abs(float(np.log10(max(min(adjusted, default=1.0), 1e-300))))
    row: dict[str, Any] = {
        "key": member.key,
        "half": member.half,
        "clean": isinstance(member, Clean),
        "kind": member.kind.name if isinstance(member, Clean) else member.kind.base,
        "variant": _variant(member),
        "attack": None,
        "trigger": None,
        "target": None,
        "near": False,
        "tardis_sum": None,
        "clean_distance": None,
        "succeeded": None,
        "budget": budget,
        "audit_seed": seed,
        "verdict": decision.verdict,
        "suspicion": decision.suspicion,
        "score": _STRUCTURAL_SCORE if structural else score,
        "p_values": {f.inspection: f.p_value for f in findings if f.p_value is not None},
        "scores": {f.inspection: f.score for f in findings if f.score is not None},
        "flagged": [j.finding.inspection for j in decision.judged if j.flagged],
        "failed": {f.inspection: f.summary for f in findings if f.outcome == "failed"},
        "match": None,
        **stored["spent"],
        "timing": document.timing,
    }
    if not isinstance(member, Clean):
        facts = json.loads((out / "facts" / f"{member.key}.json").read_text("utf-8"))
        row |= {
            "attack": member.kind.attack,
            "trigger": member.kind.trigger,
            "target": member.kind.target,
            "near": member.kind.near,
            "settings": asdict(member.kind)["settings"],
            **facts,
        }
        if facts["targets"] == 1:
            row |= _matches(document, out / "models" / member.key, facts["clean_distance"])
    return row


def _variant(member: Member) -> str:
    if not isinstance(member, Clean):
        return ""
    return member.kind.variant or ("bf16" if member.kind.precision == "bf16" else "")


def _matches(document: AuditDocument, folder: Path, clean_distance: float) -> dict[str, Any]:
    """How near the pictures shown as evidence come to the target.

    ``match``: the first picture that the report opens with; ``match_any``: the nearest of all
    pictures in flagged findings. Both as squared distance over the clean model's nearest.
    """
    target = load_file(folder / "backdoor.safetensors")["target"][0]
    shown = highlight(document)
    if shown is None:
        return {"match": None, "match_any": None}
    first = _distance(shown.images, 1, target)
    if not np.isfinite(first):
        return {"match": None, "match_any": None}
    flagged = [j.finding for j in document.findings if j.flagged]
    names = {f.inspection for f in flagged}
    flagged += [j.finding for j in document.findings if j.finding.follows_from in names]
    every = [first, *(_nearest_shown(finding, target) for finding in flagged)]
    return {
        "match": first / clean_distance,
        "match_any": min(every) / clean_distance,
        "match_from": shown.judged.finding.inspection,
    }


def _nearest_shown(finding: Finding, target: Tensor) -> float:
    pictures = [
        e
        for e in finding.evidence
        if isinstance(e, Images) and not any(word in e.title for word in _FOR_COMPARISON)
    ]
    return min((_distance(p, None, target) for p in pictures), default=float("inf"))


def _distance(images: Images, first: int | None, target: Tensor) -> float:
    """Smallest squared distance of the first pictures (all for None) from the target."""
    distances = [float("inf")]
    for encoded in images.png_base64[:first]:
        picture = decoded(encoded)
        if picture.shape == target.shape:
            distances.append(float((picture - target).square().sum()))
    return min(distances)


def _clean_scores(
    out: Path, plan: list[Member], budget: str, seed: int
) -> dict[str, dict[str, float]]:
    """Scores of the calibration half's clean models: by member, then by inspection."""
    scores: dict[str, dict[str, float]] = {}
    for member in plan:
        path = document_path(out, member, budget, seed)
        if not isinstance(member, Clean) or member.half != "calibration" or not path.exists():
            continue
        document = AuditDocument.model_validate(json.loads(path.read_text("utf-8"))["document"])
        scores[member.key] = {
            j.finding.inspection: j.finding.score
            for j in document.findings
            if j.finding.score is not None and j.finding.outcome == "scored"
        }
    return scores


def _table(clean: dict[str, dict[str, float]], budget: str, *, without: str = "") -> dict[str, Any]:
    names = sorted({name for scores in clean.values() for name in scores})
    judged = [name for name in names if calibration.needs_population(name)]
    return {
        "descriptions": {budget: "the clean models of the study's calibration half"},
        "scores": {
            budget: {
                name: [s[name] for key, s in clean.items() if key != without and name in s]
                for name in judged
            }
        },
    }


def publish_power(rows: list[dict[str, Any]]) -> None:
    """Write what audits found in the reporting half (:mod:`genwarden.auditing.power`)."""
    found: dict[str, Any] = read_power(POWER)
    for budget in sorted({row["budget"] for row in rows}):
        mine = [r for r in rows if r["budget"] == budget and r["half"] == "reporting"]
        first = min((r["audit_seed"] for r in mine), default=0)
        mine = [r for r in mine if r["audit_seed"] == first]  # one audit per model
        found[budget] = power_of(mine, _family)
    write_json(POWER, found)


def _family(row: dict[str, Any]) -> str:
    """Targets near the data are a family of their own: they are harder to find."""
    return f"{row['attack']}, target near the data" if row["near"] else row["attack"]


def power_of(rows: list[dict[str, Any]], family: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """What audits of one budget found: ``clean`` [flagged, models], ``families`` {name: [found,
    models]} of the attacks that succeeded."""
    clean = [r for r in rows if r["clean"]]
    families: dict[str, list[int]] = {}
    for row in rows:
        if row["succeeded"]:
            count = families.setdefault(family(row), [0, 0])
            count[0] += row["verdict"] == "evidence"
            count[1] += 1
    return {
        "clean": [sum(r["verdict"] == "evidence" for r in clean), len(clean)],
        "families": dict(sorted(families.items())),
    }


def publish_nulls(out: Path, plan: list[Member], budget: str, seed: int) -> None:
    """Write the reference file of :mod:`genwarden.auditing.calibration`."""
    clean = _clean_scores(out, plan, budget, seed)
    wanted = [m for m in plan if isinstance(m, Clean) and m.half == "calibration"]
    if len(clean) < len(wanted):
        raise GenwardenError(
            "benchmark/incomplete",
            f"{len(wanted) - len(clean)} of {len(wanted)} clean models of the calibration half "
            f"have no {budget} audit; references are published of all or none.",
            "Repeat the command without --only until nothing fails.",
        )
    previous = calibration.read_table(calibration.NULLS)
    kinds = sorted({m.kind.name for m in plan if isinstance(m, Clean) and m.key in clean})
    write_json(
        calibration.NULLS,
        {
            "made_by": "genwarden benchmark population --option publish=true",
            "descriptions": {
                **previous["descriptions"],
                budget: f"the calibration half of the population study: {', '.join(kinds)}",
            },
            "families": _families(out, plan, set(clean)),
            "scores": {**previous["scores"], **_table(clean, budget)["scores"]},
        },
    )


def _families(
    out: Path, plan: list[Member], keys: set[str]
) -> list[tuple[str, tuple[int, ...], int]]:
    """Architecture, sample shape and number of the clean models named by their keys."""
    kinds = Counter(
        (m.kind.architecture, tuple(read_manifest(out / "models" / m.key).sample.shape))
        for m in plan
        if isinstance(m, Clean) and m.key in keys
    )
    return [(name, shape, count) for (name, shape), count in sorted(kinds.items())]
