"""A repair as one HTML page: both verdicts, what was changed, pictures before and after."""

from __future__ import annotations

from genwarden.auditing.document import AuditDocument
from genwarden.repairs.document import RepairDocument
from genwarden.reports.gallery import GalleryEntry, card
from genwarden.reports.highlights import pictures
from genwarden.reports.html import page_environment

_HEADLINES = {
    "none_found": "The repaired model shows no evidence of a backdoor within this budget.",
    "evidence": "The repair is not enough: the repaired model still shows evidence of a backdoor.",
    "inconclusive": "The repaired model could not be judged.",
    "refused": "The repaired model was refused.",
}
_SHOWN = 8
_MOST_FACTS = 40


def render_repair(
    document: RepairDocument,
    before: AuditDocument,
    after: AuditDocument,
    *,
    before_report: str | None,
) -> str:
    """The page of one repair.

    Args:
        before_report: path of the first audit's HTML report relative to the page, if it lies beside
            it.

    Returns:
        A complete HTML file as text; the same documents give the same text.
    """
    cards = [
        card(GalleryEntry("Before", before, before_report, document.suspect.path)),
        card(GalleryEntry("After", after, "after/audit.html", document.repaired.path)),
    ]
    return (
        page_environment()
        .get_template("repair.html.j2")
        .render(
            document=document,
            headline=_HEADLINES[after.verdict],
            cards=cards,
            rows=[(images.title, pictures(images, _SHOWN)) for images in document.pictures],
            steps=[(step, _facts(step.changes)) for step in document.steps],
        )
    )


def _facts(changes: dict[str, object]) -> list[tuple[str, str]]:
    """Plain facts of a step, one line each; nested ones with their path."""
    found: list[tuple[str, str]] = []

    def walk(name: str, value: object) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{name} {key}".strip(), item)
        elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
            for number, item in enumerate(value, start=1):
                walk(f"{name} {number}", item)
        elif value != [] and value != "":
            found.append((name.replace("_", " "), _in_words(value)))

    walk("", changes)
    return found[:_MOST_FACTS]


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_in_words(item) for item in value)
    return str(value)
