"""The audit as SARIF 2.1.0 (OASIS, Static Analysis Results Interchange Format), for CI.

A result is something to act on: what is evidence (level ``error``), a verdict that is missing
(``warning``) and a file that was refused (``error``). Quiet inspections are rules without results,
as viewers show every result as an alert. Nothing here depends on the time, on this machine or on
the order of findings with the same weight.

Texts come from files. In a SARIF message brackets make links and braces make placeholders
(sections 3.11.5 and 3.11.6), so both are escaped; paths are percent-encoded URIs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from genwarden.auditing.document import VERDICT_SENTENCES, AuditDocument, Judged
from genwarden.engine.files import sha256_bytes
from genwarden.inspections.finding import Finding
from genwarden.registry import all_inspections
from genwarden.reports import words

SCHEMA: Final = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
#: The rule of verdicts that are missing and of files that were refused.
VERDICT_RULE: Final = "audit-verdict"
#: Version of what a fingerprint is made of; a change of :func:`fingerprint` needs a new one.
FINGERPRINT: Final = "genwarden/v1"
#: Code hosts show 5,000 results of a run at most; the weightiest are kept.
MAX_RESULTS: Final = 5_000
MAX_TEXT: Final = 4_000
_MAX_NAME: Final = 200
_VERDICT_SUMMARY: Final = "An audit without a verdict, or a file that was refused."
_VERDICT_HELP: Final = (
    "An audit ends with evidence, with nothing found within its budget, or without a verdict. "
    "Without one, treat the model as untested: a missing verdict is not a good one."
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


class _Place(NamedTuple):
    """A flagged finding and the compression that it was found under ("" for the model itself)."""

    judged: Judged
    under: str


def sarif(document: AuditDocument) -> dict[str, Any]:
    """The SARIF log of one audit.

    Args:
        document: what the audit found.

    Returns:
        A JSON object; the same for the same document apart from ``timing`` and ``environment``.
    """
    flagged = sorted(_flagged(document), key=lambda place: _weight(place, document))
    kept = flagged[:MAX_RESULTS]
    rules = _rules(document, kept)
    places = {rule["id"]: index for index, rule in enumerate(rules)}
    results = [_finding(place, document, places) for place in kept]
    if document.verdict in {"inconclusive", "refused"}:
        results.insert(0, _verdict(document, places))
    run = {
        "tool": {"driver": _driver(document, rules)},
        "invocations": [_invocation(document, left_out=len(flagged) - len(kept))],
        "artifacts": [_artifact(document)],
        "results": results,
        "properties": {
            "verdict": document.verdict,
            "suspicion": document.suspicion,
            "alpha": document.alpha if math.isfinite(document.alpha) else None,
            "seed": document.seed,
            "budget": _short(str(document.budget.get("name", "")), _MAX_NAME),
            "limits": [_short(text) for text in document.limits],
        },
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def fingerprint(inspection: str, model_sha256: str, variant: str) -> str:
    """What makes a result the same one in another audit: never its wording, time or path.

    Args:
        inspection: name in the registry, or ``audit-verdict``.
        model_sha256: of the weights or the refused file; of a folder that was refused its code.
        variant: the compression that it was found under, "" for the model as it is.
    """
    parts = [FINGERPRINT, inspection, model_sha256, variant]
    # Lengths in front: no choice of names can make two triples look alike.
    return sha256_bytes(
        "".join(f"{len(part)}:{part}" for part in parts).encode("utf-8", "backslashreplace")
    )


def uri_of(path: str) -> str:
    """A path as a URI reference that names no scheme and no host of its own.

    >>> uri_of("C:\\\\models\\\\a b.pt"), uri_of("//host/x"), uri_of("javascript:alert(1)")
    ('C%3A/models/a%20b.pt', 'file:///host/x', 'javascript%3Aalert%281%29')
    """
    plain = quote(path.replace("\\", "/"), safe="/", errors="replace")
    if plain.startswith("/"):
        return "file:///" + plain.lstrip("/")
    return plain or "model"


def message(text: str) -> str:
    """A text as a SARIF message: no links, no placeholders, nothing invisible.

    >>> message("[a](http://x) {0}")
    '\\\\[a\\\\](http://x) {{0}}'
    """
    plain = _short(text)
    return re.sub(r"[\[\]]", r"\\\g<0>", plain).replace("{", "{{").replace("}", "}}")


def _short(text: str, limit: int = MAX_TEXT) -> str:
    plain = " ".join(words.visible(text[: limit + 1]).split())
    return plain if len(plain) <= limit else plain[: limit - 2] + " …"


def _flagged(document: AuditDocument) -> Iterator[_Place]:
    for judged in document.findings:
        if judged.flagged:
            yield _Place(judged, "")
    for variant in document.variants:
        for judged in variant.findings:
            if judged.flagged:
                yield _Place(judged, variant.name)


def _weight(place: _Place, document: AuditDocument) -> tuple[bool, float, str]:
    finding = place.judged.finding
    p = 1.0 if place.judged.adjusted_p is None else place.judged.adjusted_p
    mark = fingerprint(finding.inspection, _model_sha256(document), place.under)
    return not finding.structural, p, mark


def _model_sha256(document: AuditDocument) -> str:
    if sha256 := document.audited_sha256:
        return sha256
    return f"not loaded: {document.refusal.code}" if document.refusal else "not loaded"


def _driver(document: AuditDocument, rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": "genwarden",
        "version": _short(document.genwarden_version, _MAX_NAME),
        "shortDescription": {"text": "Audits generative models for backdoors."},
        "rules": rules,
    }


def _rules(document: AuditDocument, kept: list[_Place]) -> list[dict[str, Any]]:
    """What was tested: the verdict, and the inspections of the document by name."""
    known = all_inspections()
    findings = [place.judged.finding for place in kept]
    findings += [judged.finding for _, judged in document.judged_under()]
    by_id: dict[str, Finding] = {}
    for finding in findings:
        if len(by_id) < MAX_RESULTS + len(known):
            by_id.setdefault(_rule_id(finding.inspection), finding)
    by_id.pop(VERDICT_RULE, None)
    rules = [_rule(VERDICT_RULE, "Verdict", _VERDICT_SUMMARY, _VERDICT_HELP)]
    for name, finding in sorted(by_id.items()):
        row = known.get(name)
        told = [f"`genwarden explain {name}` says how it works."] if row else []
        told += [f"Would have been found: {finding.power}"] if finding.power else []
        summary = row.summary if row else finding.title
        rules.append(_rule(name, finding.title, summary, " ".join(told)))
    return rules


def _rule(name: str, title: str, summary: str, told: str) -> dict[str, Any]:
    """A reporting descriptor; GitHub sorts alerts by two of the properties."""
    severe = name != VERDICT_RULE
    text = {"text": message(summary) or name}
    return {
        "id": name,
        "name": _short(title, _MAX_NAME) or name,
        "shortDescription": text,
        "fullDescription": text,
        "help": {"text": message(told) or text["text"]},
        "defaultConfiguration": {"level": "error" if severe else "warning"},
        "properties": {
            "tags": ["security", "backdoor", "machine-learning"],
            "precision": "high" if severe else "medium",
            "security-severity": "8.0" if severe else "5.0",
        },
    }


def _rule_id(name: str) -> str:
    """Of our own inspections the name in the registry, which ``genwarden explain`` takes."""
    return _short(name, _MAX_NAME) or "unnamed"


def _finding(place: _Place, document: AuditDocument, rules: dict[str, int]) -> dict[str, Any]:
    finding = place.judged.finding
    p = place.judged.adjusted_p
    strength = (
        "an exact property of the network"
        if finding.structural
        else f"adjusted p {words.probability(p)}"
    )
    under = f"Compressed as {place.under}: " if place.under else ""
    said = f"{under}{_short(finding.title)}: {_short(finding.summary)} ({strength})"
    return _result(
        finding.inspection,
        "error",
        said,
        document,
        rules,
        variant=place.under,
        properties={
            "adjusted_p": p,
            "p_value": finding.p_value,
            "score": finding.score,
            "score_name": _short(finding.score_name, _MAX_NAME),
            "structural": finding.structural,
            "group": finding.group,
        },
    )


def _verdict(document: AuditDocument, rules: dict[str, int]) -> dict[str, Any]:
    refused = document.verdict == "refused"
    parts = [VERDICT_SENTENCES[document.verdict], *document.reasons]
    if document.refusal is not None:
        refusal = document.refusal
        parts += [f"({refusal.code})", refusal.cause, refusal.remedy]
    said = " ".join(dict.fromkeys(_short(part) for part in parts))
    level = "error" if refused else "warning"
    return _result(VERDICT_RULE, level, said, document, rules, variant="", properties={})


def _result(
    inspection: str,
    level: str,
    said: str,
    document: AuditDocument,
    rules: dict[str, int],
    *,
    variant: str,
    properties: dict[str, Any],
) -> dict[str, Any]:
    mark = fingerprint(inspection, _model_sha256(document), variant)
    rule = _rule_id(inspection)
    place: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": {"uri": _uri(document), "index": 0}}
    }
    if variant:
        place["logicalLocations"] = [{"name": _short(variant, _MAX_NAME), "kind": "variant"}]
    stated = {key: value for key, value in properties.items() if _is_stated(value)}
    return {
        "ruleId": rule,
        "ruleIndex": rules[rule],
        "kind": "fail",
        "level": level,
        "message": {"text": message(said)},
        "locations": [place],
        # The second is the name under which GitHub looks for what an alert is known by.
        "partialFingerprints": {FINGERPRINT: mark, "primaryLocationLineHash": mark},
        "properties": stated,
    }


def _is_stated(value: Any) -> bool:
    """Whether a property says something that JSON can hold."""
    return value not in (None, "") and not (isinstance(value, float) and not math.isfinite(value))


def _uri(document: AuditDocument) -> str:
    return uri_of(document.audited_path[:MAX_TEXT])


def _artifact(document: AuditDocument) -> dict[str, Any]:
    artifact: dict[str, Any] = {
        "location": {"uri": _uri(document)},
        "roles": ["analysisTarget"],
    }
    if _SHA256.fullmatch(sha256 := document.audited_sha256):
        artifact["hashes"] = {"sha-256": sha256}
    return artifact


def _invocation(document: AuditDocument, *, left_out: int) -> dict[str, Any]:
    notes = [
        _note(f"Could not be carried out: {j.finding.title}: {j.finding.summary}")
        for j in document.findings
        if j.finding.outcome == "failed"
    ]
    notes += [
        _note(f"Not tested as {variant.name}: {variant.failure}")
        for variant in document.variants
        if variant.failure
    ]
    if left_out:
        notes.append(_note(f"{left_out} weaker results are in audit.json alone."))
    return {
        "executionSuccessful": document.verdict != "refused",
        "commandLine": _short(document.command),
        "toolExecutionNotifications": notes[:MAX_RESULTS],
    }


def _note(text: str) -> dict[str, Any]:
    return {"level": "warning", "message": {"text": message(text)}}
