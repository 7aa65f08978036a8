"""Compressed variants on the page and in the terminal."""

from __future__ import annotations

import io

from rich.console import Console

from genwarden.auditing.document import AuditDocument, Variant, VariantCoverage
from genwarden.inspections.compression.variant import UNCHANGED
from genwarden.inspections.finding import not_applicable
from genwarden.reports import words
from genwarden.reports.html import render_html
from genwarden.reports.summary import summary_renderables
from genwarden.reports.variants import FULL, state_of, variant_matrix

from .documents import judged, quiet_document, searched

COVERAGE = VariantCoverage(
    layers=["a.weight"], left_out=["b.weight"], weights=900, parameters=1000, zeroed=270
)


def variant(name: str, *, found: bool) -> Variant:
    shown = searched(found=found).model_copy(update={"inspection": "differential-search"})
    return Variant(name=name, coverage=COVERAGE, findings=[judged(shown, flagged=found)])


def with_variants() -> AuditDocument:
    nothing = Variant(
        name="prune-filters-0.3",
        coverage=VariantCoverage(layers=[], left_out=["a.weight"], weights=0, parameters=1000),
        failure="it covers nothing: 0 of 2 layers.",
    )
    return quiet_document().model_copy(
        update={"variants": [variant("int8", found=False), variant("int4", found=True), nothing]}
    )


def text_of(audit: AuditDocument) -> str:
    console = Console(file=io.StringIO(), width=300)
    for renderable in summary_renderables(audit):
        console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_matrix_has_a_column_per_variant_and_one_for_the_model_as_it_is() -> None:
    matrix = variant_matrix(with_variants())
    assert matrix.columns == [FULL, "int8", "int4", "prune-filters-0.3"]
    (row,) = matrix.rows
    assert row.inspection == "differential-search"
    assert [cell.kind for cell in row.cells] == ["absent", "quiet", "flagged", "absent"]
    assert row.cells[2].target == "V2F1"


def test_an_inspection_that_was_repeated_stands_beside_the_full_models() -> None:
    full = quiet_document().findings[0]
    again = Variant(name="int8", coverage=COVERAGE, findings=[full])
    matrix = variant_matrix(quiet_document().model_copy(update={"variants": [again]}))
    as_it_is, compressed = matrix.rows[0].cells
    assert as_it_is.text == compressed.text != ""


def test_the_page_shows_matrix_sections_and_the_picture_that_woke() -> None:
    page = render_html(with_variants())
    assert 'id="V2F1"' in page
    assert 'href="#V2F1"' in page
    assert "when compressed: int4" in page
    assert "900 of 1,000 trained parameters (90.0%), of which 30.0% become 0" in page
    assert "it covers nothing" in page
    without = render_html(quiet_document())
    assert "when compressed" not in without
    assert 'id="V1"' not in without


def test_the_terminal_has_one_line_per_variant() -> None:
    text = text_of(with_variants())
    assert "! int4: evidence" in text
    assert "- int8: nothing found" in text
    assert "x prune-filters-0.3: not tested" in text


def test_an_older_document_has_no_variants_and_is_still_shown() -> None:
    content = quiet_document().model_dump(mode="json")
    del content["variants"]
    old = AuditDocument.model_validate(content | {"schema_version": "1.2"})
    assert old.variants == []
    assert "As deployed" not in text_of(old)
    assert render_html(old)


def test_a_verdict_on_compressed_forms_alone_says_so_in_its_headline() -> None:
    both = with_variants()
    alone = both.model_copy(update={"findings": []})
    assert words.headline(alone) == f"{words.headline(both)} {words.ONLY_VARIANTS}"
    assert words.ONLY_VARIANTS in " ".join(render_html(alone).split())
    assert words.ONLY_VARIANTS not in render_html(both)


def test_the_terminal_has_a_row_per_inspection_and_variant_worst_first() -> None:
    both = with_variants()
    full = both.findings[0]
    assert full.adjusted_p is not None and not full.flagged  # noqa: PT018
    text = text_of(both)
    table = text[: text.index("As deployed:")]
    assert table.count("differential-search") == 2
    assert table.index("int4") < table.index("int8")
    assert table.index("differential-search") < table.index(full.finding.inspection)
    assert FULL in table
    assert FULL not in text_of(quiet_document())


def test_the_terminal_promises_first_what_was_searched_in_variants() -> None:
    promised = text_of(with_variants()).split("Would have been found:")[1]
    assert promised.lstrip().startswith("differential-search (int8, int4): ")


def test_twelve_rows_are_shown_of_all_variants_together() -> None:
    base = quiet_document()
    many = [variant(f"prune-0.{n}", found=n == 9) for n in range(1, 10)]
    text = text_of(base.model_copy(update={"variants": many, "findings": base.findings[:5]}))
    table = text[: text.index("As deployed:")]
    assert table.count("differential-search") + table.count(f"{FULL} ") == 12
    assert table.index("prune-0.9") < table.index("prune-0.1")
    assert "and 2 more: see the report" in table


def test_flagged_findings_of_variants_come_before_quiet_ones_of_the_full_model() -> None:
    page = render_html(with_variants())
    assert page.index('id="V2F1"') < page.index('id="F1"')
    for anchor in ("V1F1", "V2F1", "F1"):
        assert page.count(f'id="{anchor}"') == 1
    alone = render_html(with_variants().model_copy(update={"findings": []}))
    assert alone.index("Findings in detail") < alone.index('id="V2F1"') < alone.index('id="V1"')


def test_what_was_tested_names_the_inspections_of_variants_and_links_each_result() -> None:
    page = render_html(with_variants())
    tested = page[page.index("What was tested") : page.index("Findings in detail")]
    assert "differential-search" in tested
    assert 'href="#V1F1">int8</a>' in tested
    assert 'href="#V2F1">int4</a>: ! ' in tested
    assert "Under int4: " in tested
    without = render_html(quiet_document())
    assert "Result by compressed form" not in without


def test_stored_numbers_are_not_taken_for_the_parameters_that_coverage_counts() -> None:
    page = " ".join(render_html(with_variants()).split())
    assert "Stored numbers" in page
    assert "statistics that batch norms keep" in page
    assert "900 of 1,000 trained parameters" in page


def test_what_failed_in_a_variant_is_named() -> None:
    broken = (
        quiet_document()
        .findings[0]
        .finding.model_copy(
            update={
                "outcome": "failed",
                "p_value": None,
                "score": None,
                "p_value_reason": "it broke",
            }
        )
    )
    state = state_of(Variant(name="int8", coverage=COVERAGE, findings=[judged(broken)]))
    assert state.word == f"failed: {broken.inspection}"
    assert state_of(variant("int8", found=False)).word == "nothing found"


def test_a_compression_that_was_applied_already_found_nothing_because_it_tested_nothing() -> None:
    same = not_applicable("differential-search", "compression", "Search", UNCHANGED)
    awake = quiet_document().findings[0]
    shown = Variant(name="int8", coverage=COVERAGE, findings=[judged(same), awake])
    assert state_of(shown).word == "not tested: it changes no weight"
    assert state_of(variant("int8", found=True)).word == "evidence"


def test_what_is_shown_by_choice_neither_found_nothing_nor_promises_to() -> None:
    tested = quiet_document().findings[0]
    assert tested.finding.p_value is not None
    aside = tested.model_copy(update={"adjusted_p": None})
    assert words.result_of(aside).word == "shown, not tested"
    assert words.result_of(tested).word == "nothing found"
    both = quiet_document().model_copy(
        update={"variants": [Variant(name="int8", coverage=COVERAGE, findings=[aside])]}
    )
    promises = text_of(both).split("Would have been found:")[1]
    name = tested.finding.inspection
    assert f"{name} (int8" not in promises
    assert name in promises
