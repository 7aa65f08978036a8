"""The page of an audit: what it says, in which order, and that nothing in it is alive."""

from __future__ import annotations

import base64
import re

import pytest

from genwarden.auditing.document import VERDICT_SENTENCES, AuditDocument, Judged, Variant
from genwarden.inspections.finding import Finding, Images, Latents, Table
from genwarden.registry import DIFFUSION_INSPECTIONS
from genwarden.reports.highlights import ESTIMATES
from genwarden.reports.html import MAX_PICTURES, MAX_TABLE_ROWS, render_html
from genwarden.reports.words import VERDICT_WORDS

from .documents import (
    digits,
    document,
    estimated,
    hostile_document,
    judged,
    model_facts,
    partitioned,
    quiet_document,
    quiet_findings,
    refused_document,
    searched,
)
from .page_reader import PageReader

#: Elements that run, load or submit something.
_LIVE = {"script", "iframe", "object", "embed", "link", "base", "form", "input", "video", "audio"}
_LIVE |= {"foreignobject", "image", "use", "animate", "set", "template", "noscript"}


def page_of(audit: AuditDocument) -> PageReader:
    return PageReader(render_html(audit))


def test_the_same_document_gives_the_same_bytes() -> None:
    reread = AuditDocument.model_validate_json(document().model_dump_json())
    assert render_html(document()).encode() == render_html(reread).encode()


@pytest.mark.parametrize("verdict", VERDICT_SENTENCES)
def test_each_verdict_is_said_in_plain_words_before_anything_else(
    verdict: str, by_verdict: dict[str, AuditDocument]
) -> None:
    page = page_of(by_verdict[verdict])
    assert VERDICT_SENTENCES[verdict] in page.text
    others = [s for v, s in VERDICT_SENTENCES.items() if v != verdict]
    assert not any(sentence in page.text for sentence in others)
    assert page.text.index(VERDICT_SENTENCES[verdict]) < page.text.index("Key facts")
    assert page.open == []


def test_the_four_verdicts_differ_in_word_and_in_icon_not_only_in_colour(
    by_verdict: dict[str, AuditDocument],
) -> None:
    icons = set()
    for verdict, audit in by_verdict.items():
        heading = render_html(audit).split('<div class="verdict-word">')[1].split("</div>")[0]
        assert VERDICT_WORDS[verdict] in heading
        icons.add(re.sub(r"[^>]*$", "", heading.partition("</svg>")[0]))
    assert len(icons) == 4
    assert len(set(VERDICT_WORDS.values())) == 4


@pytest.mark.parametrize("verdict", VERDICT_SENTENCES)
def test_no_page_calls_a_model_clean(verdict: str, by_verdict: dict[str, AuditDocument]) -> None:
    assert not re.search(r"\bclean\b", page_of(by_verdict[verdict]).text, re.IGNORECASE)


def test_the_sections_come_in_the_order_of_a_reader_s_questions() -> None:
    headings = (
        "What decides it",
        "Kind of evidence",
        "Output that the search recovered",
        "Key facts",
        "What was tested, and what would have been found",
        "Findings in detail",
        "Limits",
        "Provenance",
        "Glossary",
    )
    text = page_of(document()).text
    assert sorted(headings, key=text.index) == list(headings)


def test_nothing_on_a_page_can_run_or_load() -> None:
    page = page_of(document())
    policy = [a["content"] for t, a in page.elements if a.get("http-equiv") and t == "meta"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert not page.tags() & _LIVE
    sources = [a["src"] for _, a in page.elements if "src" in a]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert all(a["href"].startswith("#") for _, a in page.elements if "href" in a)
    assert "url(" not in render_html(document())
    assert "@import" not in render_html(document())


def test_hostile_text_stays_text_wherever_it_stands() -> None:
    page = page_of(hostile_document())
    assert not page.tags() & _LIVE
    assert not any(name.startswith("on") for name in page.attributes())
    assert page.open == []
    assert page.text.count("<script>alert(1)</script>") > 30
    assert all(a["href"].startswith("#") for _, a in page.elements if "href" in a)
    assert "{{7*7}}" in page.text


def test_hostile_text_adds_no_element_and_no_attribute_to_the_page() -> None:
    ordinary, hostile = page_of(document()), page_of(hostile_document())
    assert hostile.tags() <= ordinary.tags()
    assert hostile.attributes() <= ordinary.attributes()


def test_escape_sequences_and_direction_overrides_are_spelled_out() -> None:
    page = render_html(hostile_document())
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "\x00" not in page
    assert "\\x1b[31mred" in page
    assert "\\u202egnp.exe" in page


def test_what_is_not_a_png_is_not_shown_as_a_picture() -> None:
    svg = base64.b64encode(b"<svg onload='alert(1)'/>").decode()
    images = Images(title="t", labels=["a"], png_base64=[svg])
    finding = searched(found=True).model_copy(update={"evidence": [images]})
    page = page_of(document(findings=[judged(finding, flagged=True)], ordinary=None))
    assert "img" not in page.tags()
    assert "no PNG" in page.text


def test_the_recovered_output_stands_beside_ordinary_samples() -> None:
    page = render_html(document())
    hero = page.split('<section class="hero">')[1].split("</section>")[0]
    assert "recovered, start 17" in hero
    assert digits(20)[0] in hero


def _hero(flagged: Finding) -> str:
    """What a page opens with: a flagged finding beside the estimates of a trigger search."""
    page = render_html(document(findings=[*estimated(), judged(flagged, flagged=True)]))
    return page.split('<section class="hero">')[1].split("</section>")[0]


def test_where_a_finding_has_no_picture_the_estimates_of_its_search_stand_in() -> None:
    contrast = searched(found=True).model_copy(
        update={"title": "Contrast", "evidence": [], "follows_from": "trigger-search"}
    )
    hero = _hero(contrast)
    assert "Estimated pair" in hero
    assert "Found by “Contrast”. Pictures of “Family”." in hero


def test_the_flagged_finding_s_own_pictures_come_before_estimates() -> None:
    contrast = searched(found=True).model_copy(update={"follows_from": "trigger-search"})
    assert "Estimated pair" not in _hero(contrast)
    assert "Pictures of" not in _hero(contrast)


def test_estimates_of_another_search_do_not_stand_in() -> None:
    lone = searched(found=True).model_copy(update={"evidence": []})
    page = render_html(document(findings=[*estimated(), judged(lone, flagged=True)]))
    assert '<section class="hero">' not in page


def test_what_estimates_is_a_registered_inspection() -> None:
    assert set(ESTIMATES) <= set(DIFFUSION_INSPECTIONS)


def test_without_a_flagged_picture_there_is_no_hero_but_there_are_ordinary_samples() -> None:
    page = render_html(quiet_document())
    assert '<section class="hero">' not in page
    assert "Ordinary samples of this model" in page


def test_flagged_findings_come_before_the_others_and_untested_ones_are_folded_away() -> None:
    text = page_of(document()).text.split("Findings in detail")[1]
    titles = [finding.title for finding in (partitioned(), searched(found=True), *quiet_findings())]
    assert sorted(titles[:3], key=text.index) == titles[:3]
    assert max(map(text.index, titles[:2])) < min(map(text.index, titles[2:]))
    folded = re.findall(r'<details id="F\d+">(.*?)</details>', render_html(document()), re.DOTALL)
    assert len(folded) == 3
    assert all("failed" in part or "not tested" in part for part in folded)


def test_every_inspection_has_a_row_with_its_power_or_the_reason_why_it_was_not_tested() -> None:
    table = render_html(document()).split('<table class="tests">')[1].split("</table>")[0]
    rows = PageReader(f"<table>{table}</table>").text
    for finding in (searched(found=True), partitioned(), *quiet_findings()):
        assert finding.title in rows
        assert (finding.power if finding.outcome == "scored" else finding.summary) in rows


def test_a_score_is_drawn_on_its_null_distribution() -> None:
    page = page_of(document(findings=[judged(searched(found=True), flagged=True)]))
    assert "Score on its null distribution" in page.text
    assert "this model: 212.6" in page.text
    without = searched(found=True).model_copy(update={"null": None, "evidence": []})
    assert "this model: 212.6" not in page_of(document(findings=[judged(without)])).text


def test_a_refused_file_shows_the_code_the_cause_and_the_remedy() -> None:
    refusal = refused_document().refusal
    assert refusal is not None
    text = page_of(refused_document()).text
    assert refusal.code in text
    assert refusal.cause in text
    assert refusal.remedy in text
    assert "Nothing was tested." in text
    assert "Kind of evidence" not in text


def test_latents_are_one_line_that_can_be_copied() -> None:
    finding = searched(found=True)
    latents = next(item for item in finding.evidence if isinstance(item, Latents))
    page = render_html(document(findings=[judged(finding, flagged=True)]))
    line = page.split('<pre class="one-line">')[1].split("</pre>")[0]
    assert "\n" not in line
    assert (
        Latents.model_validate_json(f'{{"title": "t", "values": {line}}}').values == latents.values
    )


def test_long_evidence_is_cut_and_the_page_says_so() -> None:
    images = Images(title="t", labels=[], png_base64=digits(20) * 5)
    table = Table(title="t", columns=["c"], rows=[["row"]] * (MAX_TABLE_ROWS + 7))
    finding = searched(found=True).model_copy(update={"evidence": [images, table]})
    page = page_of(document(findings=[judged(finding)], ordinary=None))
    assert sum(tag == "img" for tag, _ in page.elements) == MAX_PICTURES
    assert f"{100 - MAX_PICTURES} more in audit.json" in page.text
    assert "7 more rows in audit.json" in page.text


def test_a_long_table_shows_its_first_rows_and_folds_the_rest() -> None:
    def page(count: int) -> tuple[str, str]:
        table = Table(title="t", columns=["c"], rows=[[f"row {i:02d}"] for i in range(count)])
        finding = searched(found=True).model_copy(update={"evidence": [table]})
        text = render_html(document(findings=[judged(finding, flagged=True)]))
        before, _, behind = text.partition("more rows</span></summary>")
        return before, behind

    before, behind = page(12)
    assert "row 04" in before
    assert "row 05" not in before
    assert "row 11" in behind
    assert page(8)[1] == ""


def test_pictures_of_the_other_classes_of_a_classifier_are_folded() -> None:
    rows = [Images(title=t, labels=[], png_base64=digits(2)) for t in ("main", "others", "more")]
    for group, folded in (("classifier", 2), ("compression", 0)):
        finding = searched(found=True).model_copy(update={"evidence": rows, "group": group})
        page = render_html(document(findings=[judged(finding, flagged=True)]))
        assert page.count('<details class="inline full">') == folded


def test_the_glossary_knows_the_words_of_diffusion_models_and_not_those_of_generators() -> None:
    model = model_facts(architecture="unet2d")
    denoiser, generator = (
        PageReader(render_html(d)).text.split("Glossary")[1]
        for d in (document(model=model), document())
    )
    for term in ("End of the search", "Sampler, eta", "psi"):
        assert term in denoiser
        assert term not in generator
    for term in ("TarDis", "Lipschitz constant", "Partition"):
        assert term in generator
        assert term not in denoiser


def test_the_glossary_knows_the_words_of_compressed_variants_where_there_are_any() -> None:
    terms = ("Placebo", "Box", "Dormant backdoor", "Coverage", "Differential search")
    with_them = quiet_document().model_copy(
        update={"variants": [Variant(name="int4", failure="it covers nothing.")]}
    )
    pages = [
        PageReader(render_html(d)).text.split("Glossary")[1] for d in (with_them, quiet_document())
    ]
    assert all(term in pages[0] for term in terms)
    assert not any(term in pages[1] for term in terms)


def test_a_page_of_an_ordinary_size_stays_far_below_two_megabytes() -> None:
    findings: list[Judged] = [judged(searched(found=True), flagged=True)] * 8
    assert len(render_html(document(findings=findings)).encode()) < 500_000
