"""Several audits side by side."""

from __future__ import annotations

import pytest

from genwarden.reports.gallery import GalleryEntry, render_gallery
from genwarden.reports.words import VERDICT_WORDS

from .documents import (
    HOSTILE,
    devil,
    digits,
    document,
    estimated,
    hostile_document,
    inconclusive_document,
    judged,
    quiet_document,
    refused_document,
    searched,
)
from .page_reader import PageReader


def entries() -> list[GalleryEntry]:
    return [
        GalleryEntry("untouched", quiet_document(), "untouched/audit.html"),
        GalleryEntry("backdoored", document(), "backdoored/audit.html", "widened with ReX"),
        GalleryEntry("stopped", inconclusive_document(), "stopped/audit.html"),
        GalleryEntry("pickle", refused_document(), "pickle/audit.html"),
    ]


def test_every_audit_has_a_card_with_its_verdict_and_a_link_to_its_report() -> None:
    page = PageReader(render_gallery(entries()))
    assert [a["href"] for t, a in page.elements if t == "a"] == [e.report for e in entries()]
    assert all(word in page.text for word in VERDICT_WORDS.values())
    assert "Evidence of a backdoor in 1 of 4 models." in page.text
    assert page.open == []


def test_the_key_picture_is_the_recovered_output_and_only_where_there_is_one() -> None:
    page = render_gallery(entries())
    assert page.count('class="big"') == 1
    assert page.count(devil(0)) == 1
    assert page.count(digits(20)[0]) == 3
    assert "No foreign output was found." in page


def test_of_an_estimated_pair_a_card_shows_the_target() -> None:
    contrast = searched(found=True).model_copy(
        update={"evidence": [], "follows_from": "trigger-search"}
    )
    found = [*estimated(), judged(contrast, flagged=True)]
    page = render_gallery([GalleryEntry("model", document(findings=found), None)])
    assert page.count(devil(5)) == 1
    assert "Estimated pair, estimated: target" in page


def test_the_same_entries_give_the_same_page() -> None:
    assert render_gallery(entries()) == render_gallery(entries())


def test_hostile_titles_and_links_stay_text() -> None:
    entry = GalleryEntry(HOSTILE, hostile_document(), "javascript:alert(1)", HOSTILE)
    page = PageReader(render_gallery([entry]))
    assert "script" not in page.tags()
    assert not any(name.startswith("on") for name in page.attributes())
    assert [a["href"] for t, a in page.elements if t == "a"] == ["javascript%3Aalert%281%29"]
    assert page.open == []


@pytest.mark.parametrize("report", ["/etc/passwd", "//example.org/x", ""])
def test_a_link_that_is_not_relative_is_an_error(report: str) -> None:
    with pytest.raises(ValueError, match="must be relative"):
        render_gallery([GalleryEntry("t", document(), report)])


def test_an_empty_gallery_says_that_nothing_was_audited() -> None:
    assert "No model was audited." in render_gallery([])
