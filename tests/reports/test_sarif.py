"""SARIF: valid, with results only where something is to be done, and with lasting fingerprints."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genwarden.auditing.document import AuditDocument, Variant
from genwarden.engine.files import json_bytes
from genwarden.registry import all_inspections
from genwarden.reports import sarif as module
from genwarden.reports.sarif import fingerprint, sarif, uri_of

from .documents import (
    document,
    hostile_document,
    judged,
    model_facts,
    partitioned,
    searched,
)
from .hostile_strings import hostile_strings, is_visible, packed
from .sarif_model import Result, Run, validated


def run_of(audit: AuditDocument) -> Run:
    return validated(json.loads(json_bytes(sarif(audit))))


def marks(run: Run) -> set[str]:
    return {mark for result in run.results for mark in result.partialFingerprints.values()}


def texts(value: Any) -> Iterator[str]:
    """Every string of a JSON value, keys included."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, str):
        yield value


def test_each_verdict_has_the_level_that_a_reader_needs(
    by_verdict: dict[str, AuditDocument],
) -> None:
    def seen(result: Result) -> tuple[str, str]:
        return result.ruleId, result.level

    found = {verdict: [seen(r) for r in run_of(d).results] for verdict, d in by_verdict.items()}
    assert found == {
        "evidence": [("partition", "error"), ("latent-search", "error")],
        "none_found": [],
        "inconclusive": [("audit-verdict", "warning")],
        "refused": [("audit-verdict", "error")],
    }


def test_the_verdict_itself_is_in_the_run_even_where_there_is_no_result(
    by_verdict: dict[str, AuditDocument],
) -> None:
    for verdict, audit in by_verdict.items():
        run = run_of(audit)
        assert run.properties["verdict"] == verdict
        assert run.invocations[0].executionSuccessful is (verdict != "refused")


def test_what_could_not_be_tested_is_a_notification_and_never_silence() -> None:
    audit = document(variants=[Variant(name="int4", failure="it covers nothing.")])
    said = [n.message.text for n in run_of(audit).invocations[0].toolExecutionNotifications]
    assert any("ran out after 12" in text for text in said)
    assert any("int4: it covers nothing" in text for text in said)


def test_a_fingerprint_outlives_wording_time_path_and_score() -> None:
    before = run_of(document())
    finding = searched(found=True).model_copy(
        update={"title": "Other", "summary": "words", "score": 3.0, "p_value": 0.0001}
    )
    again = document(
        findings=[judged(finding, flagged=True), judged(partitioned(), flagged=True)],
        model=model_facts(path="elsewhere/renamed"),
        timing={},
        environment={},
        command="",
    )
    assert marks(run_of(again)) == marks(before)


def test_a_fingerprint_changes_with_inspection_weights_and_variant() -> None:
    base = ("partition", "a" * 64, "")
    others = [("partition2", "a" * 64, ""), ("partition", "b" * 64, ""), (*base[:2], "int4")]
    assert len({fingerprint(*base), *(fingerprint(*other) for other in others)}) == 4
    assert fingerprint("ab", "c", "") != fingerprint("a", "bc", "")


def test_what_wakes_under_a_compression_is_a_result_of_its_own() -> None:
    found = judged(searched(found=True), flagged=True)
    audit = document(findings=[found], variants=[Variant(name="int4", findings=[found])])
    run = run_of(audit)
    assert len(run.results) == 2
    assert len(marks(run)) == 2
    places = [r.locations[0].logicalLocations for r in run.results]
    assert sorted(place[0].name if place else "" for place in places) == ["", "int4"]


def test_rules_come_from_the_registry_with_help() -> None:
    known = all_inspections()
    name = "novelty-search"
    finding = searched(found=True).model_copy(update={"inspection": name})
    rules = {r.id: r for r in run_of(document(findings=[judged(finding)])).tool.driver.rules}
    assert known[name].summary.split()[0] in rules[name].shortDescription.text
    assert f"genwarden explain {name}" in rules[name].help.text
    assert set(rules) == {name, "audit-verdict"}


def test_the_same_audit_gives_the_same_bytes_whatever_it_took() -> None:
    again = document(timing={"total": 5.0}, environment={"python": "4"})
    assert json_bytes(sarif(document())) == json_bytes(sarif(again))


def test_of_too_many_results_the_weightiest_are_kept_and_the_others_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_RESULTS", 50)
    weak, strong = judged(searched(found=True), flagged=True), judged(partitioned(), flagged=True)
    names = [f"n{i}" for i in range(57)]
    many = [
        weak.model_copy(update={"finding": weak.finding.model_copy(update={"inspection": name})})
        for name in names
    ]
    run = run_of(document(findings=[*many, strong]))
    assert len(run.results) == 50
    assert run.results[0].ruleId == "partition"
    assert "8 weaker" in run.invocations[0].toolExecutionNotifications[-1].message.text


@pytest.mark.parametrize("text", packed())
def test_hostile_names_stay_text(text: str) -> None:
    log = sarif(hostile_document(text))
    content = json_bytes(log).decode()
    validated(json.loads(content))
    for found in texts(log):
        assert is_visible(found)
    assert len(content) < 1_000_000


def test_every_hostile_path_becomes_a_reference_without_scheme_and_host() -> None:
    for path in hostile_strings():
        uri = uri_of(path)
        assert uri
        assert not uri.startswith("//")
        assert ":" not in uri.removeprefix("file:///")
        assert uri.isascii()


@pytest.mark.skipif("SARIF_SCHEMA" not in os.environ, reason="SARIF_SCHEMA names no schema file")
def test_logs_are_valid_by_the_schema_of_the_standard(
    by_verdict: dict[str, AuditDocument],
) -> None:
    from jsonschema.validators import validator_for

    schema = json.loads(Path(os.environ["SARIF_SCHEMA"]).read_text("utf-8"))
    validator = validator_for(schema)(schema)
    for audit in [*by_verdict.values(), *map(hostile_document, packed())]:
        assert not list(validator.iter_errors(sarif(audit)))
    assert list(validator.iter_errors({"version": "2.1.0", "runs": [{}]}))
