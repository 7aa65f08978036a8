"""Several audits on one page, side by side: what ``genwarden demo`` opens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote

from genwarden.auditing.document import AuditDocument
from genwarden.reports.highlights import ESTIMATES, Highlight, Picture, highlight, pictures
from genwarden.reports.html import page_environment

_SMALL_PICTURES = 8

#: What stands in the picture's place if no flagged finding has one.
_NOTHING_TO_SHOW = {
    "evidence": "The evidence is not a picture; the report shows it.",
    "none_found": "No foreign output was found.",
    "inconclusive": "No verdict was reached.",
    "refused": "The file was not loaded.",
}


@dataclass(frozen=True)
class GalleryEntry:
    """One audit on the page.

    Attributes:
        title: the model's name for the reader.
        document: its audit.
        report: path of its HTML report, relative to the page, with forward slashes; None where
            none lies beside it.
        note: what was done to this model, if that is known (as in the demo).
    """

    title: str
    document: AuditDocument
    report: str | None
    note: str = ""


class Card(NamedTuple):
    """One audit on a page of several; ``link`` is empty where no report lies beside the page."""

    entry: GalleryEntry
    main: Picture | None
    caption: str
    ordinary: list[Picture]
    flagged: int
    link: str


def render_gallery(entries: Sequence[GalleryEntry]) -> str:
    """The page of several audits.

    Args:
        entries: in the order in which they are shown.

    Returns:
        A complete HTML file as text; the same entries give the same text.

    Raises:
        ValueError: a report's path is not relative.
    """
    return (
        page_environment()
        .get_template("demo.html.j2")
        .render(
            entries=list(entries),
            cards=[card(entry) for entry in entries],
            headline=_headline([entry.document for entry in entries]),
        )
    )


def card(entry: GalleryEntry) -> Card:
    """What a card shows of one audit."""
    document = entry.document
    found = highlight(document)
    main, caption = _main(found) if found else (None, _NOTHING_TO_SHOW[document.verdict])
    return Card(
        entry,
        main=main,
        caption=caption,
        ordinary=pictures(document.ordinary, _SMALL_PICTURES) if document.ordinary else [],
        flagged=sum(judged.flagged for judged in document.findings),
        link="" if entry.report is None else relative_link(entry.report),
    )


def _main(found: Highlight) -> tuple[Picture, str]:
    """The first picture; of an estimated trigger and target the target, which comes last."""
    every = pictures(found.images, len(found.images.png_base64))
    if found.source.finding.inspection in ESTIMATES:
        return every[-1], f"{found.images.title}, estimated: {every[-1].label}"
    return every[0], found.images.title


def relative_link(path: str) -> str:
    """A relative path as a link; a colon is quoted, so that it cannot name a scheme.

    >>> relative_link("red model/audit.html")
    'red%20model/audit.html'
    """
    if not path or path.startswith("/"):
        raise ValueError(f"the report's path must be relative: {path!r}")
    return quote(path, safe="/", errors="replace")


def _headline(documents: Sequence[AuditDocument]) -> str:
    count = sum(document.verdict == "evidence" for document in documents)
    if not documents:
        return "No model was audited."
    if len(documents) == 1:
        return (
            "Evidence of a backdoor was found." if count else "No evidence of a backdoor was found."
        )
    return f"Evidence of a backdoor in {count or 'none'} of {len(documents)} models."
