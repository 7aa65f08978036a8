"""Candidates in the reports: the picture, the figures, the channels, and the command."""

from __future__ import annotations

import io

import pytest
from pydantic import ValidationError
from rich.console import Console

from genwarden.auditing.document import AuditDocument
from genwarden.reports.html import render_html
from genwarden.reports.summary import summary_renderables

from .documents import candidate, devil, document
from .page_reader import PageReader


def test_candidates_stand_between_the_verdict_and_the_key_facts() -> None:
    page = render_html(document(candidates=[candidate(), candidate("other")]))
    text = PageReader(page).text
    assert text.index("What decides it") < text.index("Candidate 1") < text.index("Candidate 2")
    assert text.index("Candidate 2") < text.index("Key facts")
    first = page.split('id="C1"')[1].split("</article>")[0]
    assert devil(0) in first
    assert "genwarden sample models/mnist-generator-v3 --audit latent-search" in first
    assert "238.3" in first
    assert "36.3" in first
    assert "3.1 ordinary distances" in first


def test_without_candidates_the_page_does_not_speak_of_any() -> None:
    assert "Candidate triggers" not in PageReader(render_html(document())).text


def test_what_was_not_measured_is_not_shown_as_a_number() -> None:
    basin = candidate().basin.model_copy(update={"lipschitz": None, "wall_lipschitz": None})
    bare = candidate(basin=basin, output=None, strips=[], carriers=[], command="")
    text = PageReader(render_html(document(candidates=[bare]))).text
    assert "no gradient" in text
    assert "Layers and channels" not in text
    assert "Make this output again" not in text


def test_terminal_shows_one_sentence_and_one_command_per_candidate() -> None:
    out = io.StringIO()
    for part in summary_renderables(document(candidates=[candidate(), candidate("other")])):
        Console(file=out, width=400, highlight=False).print(part)
    lines = out.getvalue().splitlines()
    start = lines.index("Candidate triggers:")
    assert lines[start + 1].startswith(
        "    1 (latent-search): its output is 3.1 ordinary distances"
    )
    assert "channel 26 of latent-search lies 238 standard deviations out" in lines[start + 1]
    assert lines[start + 2].startswith("    -> genwarden sample")
    assert lines[start + 3].startswith("    2 (other): ")


def test_document_of_version_one_without_candidates_is_still_read() -> None:
    content = document().model_dump(mode="json")
    del content["candidates"]
    content["schema_version"] = "1.0"
    assert AuditDocument.model_validate(content).candidates == []
    with pytest.raises(ValidationError):
        AuditDocument.model_validate(content | {"schema_version": "2.0"})


def test_numbers_that_are_not_finite_are_no_candidate() -> None:
    with pytest.raises(ValidationError):
        candidate(latent=[float("nan")])
