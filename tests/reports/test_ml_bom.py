"""The ML-BOM: valid CycloneDX 1.6, the weights' hash, the audit's hash and verdict."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from genwarden.auditing.document import AuditDocument, Variant
from genwarden.engine.files import json_bytes
from genwarden.reports.ml_bom import ml_bom

from .documents import (
    document,
    hostile_document,
    judged,
    quiet_document,
    refused_document,
    searched,
)
from .hostile_strings import is_visible, packed

AUDIT = "c" * 64


@pytest.fixture(scope="module")
def validator() -> JsonStrictValidator:
    """The official schema, as the CycloneDX project ships it; fields that it lacks are errors."""
    return JsonStrictValidator(SchemaVersion.V1_6)


def bom_of(audit: AuditDocument, audit_sha256: str = AUDIT) -> dict[str, Any]:
    return ml_bom(audit, audit_name="audit.json", audit_sha256=audit_sha256)


def properties(bom: dict[str, Any]) -> list[tuple[str, str]]:
    return [(p["name"], p["value"]) for p in bom["components"][0]["properties"]]


def test_a_bom_of_every_verdict_is_valid(
    by_verdict: dict[str, AuditDocument], validator: JsonStrictValidator
) -> None:
    for verdict, audit in by_verdict.items():
        bom = bom_of(audit)
        assert validator.validate_str(json_bytes(bom).decode()) is None
        assert ("genwarden:verdict", verdict) in properties(bom)


def test_the_validator_notices_what_is_not_in_the_standard(validator: JsonStrictValidator) -> None:
    bom = bom_of(document())
    bom["components"][0]["verdict"] = "evidence"
    assert validator.validate_str(json.dumps(bom)) is not None


def test_the_component_carries_the_hash_of_the_weights_and_of_the_audit() -> None:
    audit = document()
    component = bom_of(audit)["components"][0]
    assert audit.model is not None
    assert component["type"] == "machine-learning-model"
    assert component["hashes"] == [{"alg": "SHA-256", "content": audit.model.sha256}]
    assert component["externalReferences"][0]["hashes"] == [{"alg": "SHA-256", "content": AUDIT}]
    found = properties(bom_of(audit))
    assert ("genwarden:audit:sha256", AUDIT) in found
    assert ("genwarden:audit:content-sha256", audit.content_sha256()) in found


def test_evidence_and_what_was_not_tested_are_named() -> None:
    found = judged(searched(found=True), flagged=True)
    woken = [Variant(name="int4", findings=[found]), Variant(name="nf4", failure="no layer")]
    said = properties(bom_of(document(variants=woken)))
    evidence = [value for name, value in said if name == "genwarden:evidence"]
    assert any(value.startswith("partition (adjusted p exact") for value in evidence)
    assert any(value.startswith("latent-search as int4") for value in evidence)
    untested = [value for name, value in said if name == "genwarden:not-tested"]
    assert any("12 of 1,000 seeds" in value for value in untested)
    assert "as nf4: no layer" in untested
    assert not [n for n, _ in properties(bom_of(quiet_document())) if n == "genwarden:evidence"]


def test_no_bom_calls_a_model_clean(by_verdict: dict[str, AuditDocument]) -> None:
    assert not any("clean" in json.dumps(bom_of(d)).lower() for d in by_verdict.values())


def test_content_hash_ignores_time_machine_and_folders_and_nothing_else() -> None:
    audit = document()
    assert document(timing={}, environment={}).content_sha256() == audit.content_sha256()
    elsewhere = document(command="genwarden audit m --out /elsewhere")
    assert elsewhere.command != audit.command
    assert elsewhere.content_sha256() == audit.content_sha256()
    assert document(seed=1).content_sha256() != audit.content_sha256()
    assert document(reasons=[]).content_sha256() != audit.content_sha256()


def test_the_same_file_gives_the_same_bom_and_another_one_another_serial_number() -> None:
    assert bom_of(document()) == bom_of(document())
    assert bom_of(document())["serialNumber"] != bom_of(document(), "d" * 64)["serialNumber"]


def test_a_refused_file_has_no_hash_and_says_why() -> None:
    component = bom_of(refused_document())["components"][0]
    assert "hashes" not in component
    assert any("artifact/pickle" in p["value"] for p in component["properties"])


@pytest.mark.parametrize("text", packed())
def test_hostile_names_stay_text_and_the_bom_valid(
    text: str, validator: JsonStrictValidator
) -> None:
    content = json_bytes(bom_of(hostile_document(text))).decode()
    assert validator.validate_str(content) is None
    assert is_visible(content.replace("\n", ""))
