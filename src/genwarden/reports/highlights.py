"""What a report shows first: findings by weight, and the picture that says most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from genwarden.auditing.document import AuditDocument, Judged
from genwarden.inspections.finding import Images

#: Inspections that estimate trigger and target from what a search found. They are never flagged
#: themselves, and stand in where the flagged finding of that search has no picture.
ESTIMATES: Final = ("attack-family",)
_PNG_START = "iVBORw0KGgo"  # base64 of the PNG signature


class Placed(NamedTuple):
    """A finding and where it stands: its anchor on the page, and the compression ("" for none)."""

    judged: Judged
    anchor: str
    under: str = ""


class Picture(NamedTuple):
    """One picture; ``source`` is a data URI, empty if the document holds no PNG there."""

    label: str
    source: str


class Highlight(NamedTuple):
    """The pictures that a report opens with, and the flagged finding that they belong to.

    Attributes:
        judged: the flagged finding.
        source: the finding whose pictures they are, mostly the same.
        under: the compression under which it was found, "" for the model as it is.
    """

    judged: Judged
    source: Judged
    images: Images
    under: str = ""


def flagged_first(findings: Sequence[Judged]) -> list[Judged]:
    """Flagged (structural, then by adjusted p), scored, failed, not applicable."""
    return sorted(findings, key=_weight)


def every_finding(document: AuditDocument) -> list[Placed]:
    """The findings of the model as it is and of all its variants, ordered as one list."""
    placed = [Placed(j, f"F{n}") for n, j in enumerate(flagged_first(document.findings), start=1)]
    for number, variant in enumerate(document.variants, start=1):
        placed += [
            Placed(judged, f"V{number}F{place}", variant.name)
            for place, judged in enumerate(variant.findings, start=1)
        ]
    return sorted(placed, key=lambda found: _weight(found.judged))


def _weight(judged: Judged) -> tuple[int, bool, float]:
    rank = {"scored": 1, "failed": 2, "not_applicable": 3}[judged.finding.outcome]
    p = 2.0 if judged.adjusted_p is None else judged.adjusted_p
    return 0 if judged.flagged else rank, not judged.finding.structural, p


def highlight(document: AuditDocument) -> Highlight | None:
    """The first pictures of the weightiest flagged finding, or of one that belongs to it.

    What was found in the model as it is comes before what was found in a compressed one.
    """
    variants = sorted(
        ((v.name, v.findings) for v in document.variants if v.findings),
        key=lambda named: min(_weight(judged) for judged in named[1]),
    )
    for under, findings in [("", document.findings), *variants]:
        for flagged in flagged_first(findings):
            if not flagged.flagged:
                break
            for judged in _belonging(flagged, findings):
                for evidence in judged.finding.evidence:
                    if isinstance(evidence, Images) and evidence.png_base64:
                        return Highlight(flagged, judged, evidence, under)
    return None


def _belonging(flagged: Judged, findings: Sequence[Judged]) -> list[Judged]:
    """A finding, what follows from it, and what estimates trigger and target from its search."""
    found = flagged.finding
    root = found.follows_from or found.inspection
    follows = [j for j in findings if j.finding.follows_from == found.inspection]
    estimates = [
        j for j in findings if j.finding.inspection in ESTIMATES and j.finding.follows_from == root
    ]
    return [flagged, *(j for j in follows if j not in estimates), *estimates]


def pictures(images: Images, limit: int) -> list[Picture]:
    """The first ``limit`` pictures with their labels; labels may be fewer than pictures."""
    labels = images.labels + [""] * len(images.png_base64)
    return [
        Picture(name, f"data:image/png;base64,{png}" if png.startswith(_PNG_START) else "")
        for name, png in list(zip(labels, images.png_base64, strict=False))[:limit]
    ]
