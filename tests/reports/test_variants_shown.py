"""Compressed variants on the page and in the terminal."""

from __future__ import annotations

import io

from rich.console import Console

from genwarden.auditing.document import AuditDocument, Variant, VariantCoverage
from genwarden.reports import words
from genwarden.reports.html import render_html
from genwarden.reports.summary import summary_renderables
from genwarden.reports.variants import FULL, variant_matrix

from .documents import judged, quiet_document, searched

COVERAGE = VariantCoverage(layers=["a.weight"], left_out=["b.weight"], weights=900, parameters=1000)


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
    assert "900 of 1,000 parameters" in page
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
