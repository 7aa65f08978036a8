"""Five hundred hostile names in every place of every report: shown as text, never alive."""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable
from functools import cache

import pytest
from rich.console import Console

from genwarden.auditing.document import AuditDocument
from genwarden.reports.advice import advice
from genwarden.reports.gallery import GalleryEntry, render_gallery
from genwarden.reports.html import render_html
from genwarden.reports.repair import render_repair
from genwarden.reports.summary import summary_renderables, verdict_table
from genwarden.reports.words import visible

from .documents import document, hostile_document, judged, model_facts, repair_document, searched
from .hostile_strings import COUNT, hostile_strings, is_visible, packed
from .page_reader import PageReader


def gallery(text: str) -> str:
    entries = [GalleryEntry(text, hostile_document(text), text.strip("/") or None, text)]
    return render_gallery([*entries, GalleryEntry("b", document(), "b/audit.html", text)])


def repair(text: str) -> str:
    audit = hostile_document(text)
    return render_repair(repair_document(text), audit, audit, before_report="before/audit.html")


#: Every page that is made from documents, by the text that stands in all their places.
PAGES: dict[str, Callable[[str], str]] = {
    "audit": lambda text: render_html(hostile_document(text)),
    "gallery": gallery,
    "repair": repair,
}


@cache
def page_of(kind: str, text: str) -> str:
    """A page, made once for all tests of it."""
    return PAGES[kind](text)


@cache
def read(kind: str, text: str) -> PageReader:
    """The page as read."""
    return PageReader(page_of(kind, text))


def small(text: str) -> AuditDocument:
    """A document with one finding, which the terminal shows whole."""
    finding = searched(found=True).model_copy(
        update={"inspection": text, "title": text, "summary": text, "power": text}
    )
    facts = model_facts(path=text, architecture=text, nonfinite={text: 1})
    shown = {"reasons": [text], "command": text, "limits": [text], "model": facts}
    return document(findings=[judged(finding, flagged=True)], **shown)


def test_there_are_five_hundred_different_ones() -> None:
    assert len(set(hostile_strings())) == len(hostile_strings()) == COUNT == 500
    assert sum(len(pack.split("\n")) for pack in packed()) >= COUNT


@pytest.mark.parametrize("page", PAGES)
def test_they_add_no_element_and_no_attribute_to_a_page(page: str) -> None:
    ordinary = read(page, "ordinary words")
    for text in packed():
        found = read(page, text)
        assert found.open == []
        assert found.tags() <= ordinary.tags()
        assert found.attributes() <= ordinary.attributes()
        links = [a["href"] for _, a in found.elements if "href" in a]
        assert not any(":" in link or link.startswith("/") for link in links)
        sources = [a["src"] for _, a in found.elements if "src" in a]
        assert all(source.startswith("data:image/png;base64,") for source in sources)


@pytest.mark.parametrize("page", PAGES)
def test_every_page_shows_them_with_nothing_invisible(page: str) -> None:
    for text in packed():
        assert is_visible(page_of(page, text).replace("\n", "").replace("\t", ""))
        assert visible(text).split()[0] in read(page, text).text


def test_the_terminal_gets_no_control_character_and_no_markup_of_theirs() -> None:
    for text in hostile_strings():
        written = io.StringIO()
        console = Console(file=written, force_terminal=True, color_system=None, width=100)
        audit = small(text)
        for part in summary_renderables(audit):
            console.print(part)
        console.print(verdict_table([(text, text, audit)]))
        assert is_visible(written.getvalue().replace("\n", ""))


def test_markup_of_the_terminal_is_shown_and_not_obeyed() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, color_system="standard", width=100)
    for part in summary_renderables(small("[bold red]loud[/bold red]")):
        console.print(part)
    assert "[bold red]loud[/bold red]" in written.getvalue()


def test_no_command_that_is_advised_holds_more_than_the_user_typed() -> None:
    audit = small("ordinary words")
    for text in hostile_strings():
        command = shlex.join(["genwarden", "audit", text, "--out", "out"])
        for advised in advice(audit.model_copy(update={"command": command})).commands:
            words = shlex.split(advised)
            assert words[0] == "genwarden"
            assert words[2] == text
