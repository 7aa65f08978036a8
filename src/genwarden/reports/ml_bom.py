"""The audited model as a CycloneDX 1.6 ML-BOM: what it is, and what was found in it.

One component of type ``machine-learning-model``: the hash of its weights, a model card, and the
audit as properties named ``genwarden:...`` (a taxonomy of our own, as the standard asks for). The
audit itself is an external reference with the hash of the file, so that a reader can tell whether
an ``audit.json`` is the one that the BOM speaks of. There is no timestamp: the same audit gives the
same bytes.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

from genwarden.auditing.document import VERDICT_SENTENCES, AuditDocument, ModelFacts
from genwarden.reports import words
from genwarden.reports.html import model_name

SCHEMA: Final = "http://cyclonedx.org/schema/bom-1.6.schema.json"
MAX_TEXT: Final = 4_000
_MAX_VERSION: Final = 1024  # the standard's
#: Properties of a kind that may be many (evidence, what failed).
MAX_LISTED: Final = 500
_NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_URL, "urn:genwarden:ml-bom")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HASHED: Final = (
    "The sha256 that the audit took: of a bare weights file its bytes, as genwarden check prints "
    "them; of a diffusers folder the names and hashes of all files that were read."
)


def ml_bom(document: AuditDocument, *, audit_name: str, audit_sha256: str) -> dict[str, Any]:
    """The BOM of one audited model.

    Args:
        document: what the audit found.
        audit_name: name of the audit's file, without folders.
        audit_sha256: of the file's bytes.

    Returns:
        A JSON object; the same for the same file.
    """
    tool = {
        "type": "application",
        "name": "genwarden",
        "version": _short(document.genwarden_version, _MAX_VERSION) or "unknown",
    }
    return {
        "$schema": SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, audit_sha256)}",
        "version": 1,
        "metadata": {"tools": {"components": [tool]}},
        "components": [_component(document, audit_name, audit_sha256)],
    }


def _component(document: AuditDocument, audit_name: str, audit_sha256: str) -> dict[str, Any]:
    sha256 = document.audited_sha256
    known = _SHA256.fullmatch(sha256) is not None
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": f"model:{sha256}" if known else "model",
        "name": _short(model_name(document)) or "model",
    }
    if known:
        component["version"] = f"sha256:{sha256[:12]}"
        component["hashes"] = [{"alg": "SHA-256", "content": sha256}]
        component["evidence"] = {"identity": [_identity(sha256)]}
    component["description"] = VERDICT_SENTENCES[document.verdict]
    component["externalReferences"] = [
        {
            "type": "evidence",
            "url": quote(audit_name, safe="", errors="replace") or "audit.json",
            "comment": "The audit, with its evidence.",
            "hashes": [{"alg": "SHA-256", "content": audit_sha256}],
        }
    ]
    component["modelCard"] = _card(document, document.model)
    component["properties"] = [
        {"name": f"genwarden:{name}", "value": value}
        for name, value in _properties(document, audit_sha256)
    ]
    return component


def _identity(sha256: str) -> dict[str, Any]:
    """How we know which model it is."""
    method = {"technique": "hash-comparison", "confidence": 1, "value": _HASHED}
    return {"field": "hash", "confidence": 1, "concludedValue": sha256, "methods": [method]}


def _card(document: AuditDocument, facts: ModelFacts | None) -> dict[str, Any]:
    limits = [_short(text) for text in document.limits[:MAX_LISTED]]
    card: dict[str, Any] = {"considerations": {"technicalLimitations": limits}}
    if facts is not None:
        shape = "x".join(map(str, facts.sample_shape))
        sample = {"format": _short(f"{facts.modality} {shape}")}
        latent = {
            "format": _short(
                f"{facts.latent_distribution} {'x'.join(map(str, facts.latent_shape))}"
            )
        }
        card["modelParameters"] = {
            "task": "classification" if facts.classes else "generation",
            "modelArchitecture": _short(facts.architecture),
            "inputs": [sample if facts.classes else latent],
            "outputs": [{"format": f"{facts.classes} classes"} if facts.classes else sample],
        }
    return card


def _properties(document: AuditDocument, audit_sha256: str) -> Iterator[tuple[str, str]]:
    yield "verdict", document.verdict
    yield "verdict:in-words", words.headline(document)
    if document.suspicion is not None:
        yield "suspicion", repr(document.suspicion)
        yield "alpha", repr(document.alpha)
    yield "budget", _short(str(document.budget.get("name", "")))
    yield "seed", str(document.seed)
    yield "command", _short(document.command)
    yield "audit:schema-version", document.schema_version
    yield "audit:sha256", audit_sha256
    yield "audit:content-sha256", document.content_sha256()
    if document.model is not None:
        yield "model:parameters", str(document.model.parameters)
    evidence = [(name and f" as {name}", j) for name, j in document.judged_under()]
    flagged = [(under, j) for under, j in evidence if j.flagged]
    for under, judged in flagged[:MAX_LISTED]:
        strength = "exact" if judged.finding.structural else words.probability(judged.adjusted_p)
        yield "evidence", _short(f"{judged.finding.inspection}{under} (adjusted p {strength})")
    failed = [(under, j) for under, j in evidence if j.finding.outcome == "failed"]
    for under, judged in failed[:MAX_LISTED]:
        yield "not-tested", _short(f"{judged.finding.inspection}{under}: {judged.finding.summary}")
    for variant in document.variants[:MAX_LISTED]:
        if variant.failure:
            yield "not-tested", _short(f"as {variant.name}: {variant.failure}")
    if document.refusal is not None:
        yield "refusal", _short(f"{document.refusal.code}: {document.refusal.cause}")


def _short(text: str, limit: int = MAX_TEXT) -> str:
    plain = " ".join(words.visible(text[: limit + 1]).split())
    return plain if len(plain) <= limit else plain[: limit - 2] + " …"
