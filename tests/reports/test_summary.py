"""The terminal: the sentence, at most twelve rows, no colour needed, no escapes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from genwarden.auditing.document import VERDICT_SENTENCES, AuditDocument
from genwarden.inspections.finding import Null, not_applicable
from genwarden.reports.summary import MAX_ROWS, summary_renderables
from genwarden.reports.words import VERDICT_MARKS, strength_sentence

from .documents import document, hostile_document, judged, quiet_document, searched


def shown(audit: AuditDocument, *, width: int = 80, color: bool = False) -> str:
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
    )
    for part in summary_renderables(audit):
        console.print(part)
    return out.getvalue()


@pytest.mark.parametrize("verdict", VERDICT_SENTENCES)
def test_the_verdict_comes_first_with_a_mark_of_its_own(
    verdict: str, by_verdict: dict[str, AuditDocument]
) -> None:
    text = " ".join(shown(by_verdict[verdict]).split())
    assert text.startswith(f"{VERDICT_MARKS[verdict]} {VERDICT_SENTENCES[verdict]}")
    assert "clean" not in text
    assert len(set(VERDICT_MARKS.values())) == len(VERDICT_MARKS)


@pytest.mark.parametrize("verdict", VERDICT_SENTENCES)
def test_no_line_is_longer_than_eighty_columns(
    verdict: str, by_verdict: dict[str, AuditDocument]
) -> None:
    assert max(len(line) for line in shown(by_verdict[verdict]).splitlines()) <= 80


def test_the_words_are_the_same_without_colour() -> None:
    colored = shown(document(), color=True)
    assert "\x1b[" in colored
    console = Console(file=io.StringIO())
    plain = "".join(
        segment.text for segment in console.render(Text.from_ansi(colored)) if not segment.control
    )
    assert plain.split() == shown(document()).split()


def test_flagged_findings_come_first_and_say_so_in_a_word() -> None:
    text = shown(document())
    assert text.index("partition") < text.index("latent-search") < text.index("stream")
    assert text.count("evidence ") >= 2
    assert "exact" in text
    assert "0.00075" in text
    assert "nothing found" in text
    assert "not tested" in text
    assert "failed" in text


def test_at_most_twelve_rows_are_shown_and_the_rest_is_counted() -> None:
    findings = [judged(not_applicable(f"row-{i:02d}", "static", "t", "No.")) for i in range(20)]
    flagged = judged(searched(found=True).model_copy(update={"inspection": "late"}), flagged=True)
    text = shown(document(findings=[*findings, flagged]))
    assert text.count("row-") == MAX_ROWS - 1
    assert "late" in text
    assert "and 9 more: see the report" in text


def test_no_sentence_is_cut_off_but_long_ones_end_at_a_clause() -> None:
    long = "One thing was measured at length in every layer; " + "another too, " * 30 + "and so on."
    many = (
        "A first sentence. " * 4 + "A last sentence that no longer fits into the room it has here."
    )
    findings = [
        judged(searched(found=False).model_copy(update={"summary": text, "power": text}))
        for text in (long, many)
    ]
    text = " ".join(shown(document(findings=findings), width=400).split())
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert "One thing was measured at length in every layer. " in text
    assert "another too" not in text
    assert text.count("A first sentence. A first sentence. ") >= 1


def test_a_promise_reads_on_from_its_heading() -> None:
    finds = searched(found=False).model_copy(update={"power": "Finds small patches; not maps."})
    text = " ".join(shown(document(findings=[judged(finds)])).split())
    assert "Would have been found: latent-search: Small patches; not maps." in text


def test_an_extrapolated_p_names_what_it_assumes_where_it_decides() -> None:
    null = Null(source="self", description="the same search in 1 placebo: x; Student-t, wide")
    found = searched(found=True).model_copy(update={"null": null})
    decided = document(findings=[judged(found, flagged=True)])
    said = "extrapolated from the same search in 1 placebo, assuming a Student-t."
    assert said in strength_sentence(decided)
    assert said in " ".join(shown(decided, width=200).split())
    assert "assuming" not in strength_sentence(document(findings=[judged(found)]))
    counted = found.model_copy(update={"null": Null(source="permutation", description="counted")})
    assert "assuming" not in strength_sentence(document(findings=[judged(counted, flagged=True)]))


def test_a_quiet_audit_says_what_would_have_been_found() -> None:
    text = " ".join(shown(quiet_document()).split())
    assert "Would have been found:" in text
    assert "latent-search: A single hidden output" in text


def test_no_escape_sequence_and_no_markup_of_a_document_reaches_the_terminal() -> None:
    text = shown(hostile_document(), width=400)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\x1b[31m" in text
    assert "[bold]loud[/bold]" in text
