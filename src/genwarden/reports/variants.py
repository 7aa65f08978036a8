"""Compressed variants in reports: the matrix inspection x variant, and one word per variant."""

from __future__ import annotations

from typing import NamedTuple

from genwarden.auditing.audit_variants import damaged, unchanged
from genwarden.auditing.document import AuditDocument, Judged, Variant, VariantCoverage
from genwarden.compression.apply import becoming_zero
from genwarden.reports import words
from genwarden.reports.highlights import every_finding

#: Column of the model as it is.
FULL = "as it is"


class Cell(NamedTuple):
    """One inspection under one variant.

    Attributes:
        kind: as in :class:`genwarden.reports.words.Result`; ``absent`` where it was not run.
        text: adjusted p-value, or the score in brackets where there is none; marked where it is
            evidence.
        target: anchor of the finding on the page, or "".
    """

    kind: str
    text: str
    target: str = ""


class Row(NamedTuple):
    """One inspection under all variants."""

    inspection: str
    title: str
    cells: list[Cell]


class Tested(NamedTuple):
    """One inspection of the variants: its result under each, and what it would have found.

    Attributes:
        results: name of the variant and its cell, in the order of the document.
        power: of the variant where the inspection scored worst, whose name ``under`` is; "" where
            nothing could be tested.
        why_not: why, then.
    """

    inspection: str
    title: str
    results: list[tuple[str, Cell]]
    under: str
    power: str
    why_not: str


class VariantMatrix(NamedTuple):
    """Inspections by variants; the first column is the model as it is, if it was inspected."""

    columns: list[str]
    rows: list[Row]


def variant_matrix(document: AuditDocument) -> VariantMatrix:
    """The matrix of every inspection that was made under any variant."""
    full = {j.finding.inspection: j for j in document.findings}
    found = [{j.finding.inspection: j for j in v.findings} for v in document.variants]
    titles = {name: j.finding.title for by_name in found for name, j in by_name.items()}
    rows = []
    for name, title in titles.items():
        alone = full.get(name)
        cells = [Cell("absent", "") if alone is None else _cell(alone)] if full else []
        for number, by_name in enumerate(found, start=1):
            place = list(by_name).index(name) + 1 if name in by_name else 0
            nothing = Cell("absent", "" if by_name else "not tested")
            target = f"V{number}F{place}"
            cells.append(_cell(by_name[name], target) if place else nothing)
        rows.append(Row(name, title, cells))
    columns = [FULL] * bool(full) + [v.name for v in document.variants]
    return VariantMatrix(columns, rows)


def tested_variants(document: AuditDocument) -> list[Tested]:
    """The inspections of the variants, each once, those with evidence first."""
    cells = {
        row.inspection: row.cells[-len(document.variants) :]
        for row in variant_matrix(document).rows
    }
    worst_first = [found for found in every_finding(document) if found.under]
    rows = []
    for name in dict.fromkeys(found.judged.finding.inspection for found in worst_first):
        worst = next(f for f in worst_first if f.judged.finding.inspection == name)
        finding = worst.judged.finding
        named = zip((v.name for v in document.variants), cells[name], strict=True)
        scored = finding.outcome == "scored"
        rows.append(
            Tested(
                name,
                finding.title,
                [(variant, cell) for variant, cell in named if cell.target],
                worst.under,
                words.promise(worst.judged) if scored else "",
                "" if scored else finding.summary,
            )
        )
    return rows


def state_of(variant: Variant) -> words.Result:
    """What a variant amounts to."""
    if any(j.flagged for j in variant.findings):
        return words.Result("flagged", "!", "evidence")
    if variant.destroyed:
        return words.Result("failed", "x", "destroys the model")
    if variant.failure:
        return words.Result("failed", "x", "not tested")
    failed = [j.finding.inspection for j in variant.findings if j.finding.outcome == "failed"]
    if failed:
        return words.Result("failed", "x", f"failed: {', '.join(failed)}")
    if any(unchanged(j.finding) for j in variant.findings):
        return words.Result("failed", "x", "not tested: it changes no weight")
    if damaged(variant):
        return words.Result("failed", "x", "too much damage to tell")
    if all(j.adjusted_p is None for j in variant.findings):
        return words.Result("failed", "x", "not judged")
    return words.Result("quiet", "-", "nothing found")


def coverage_in_words(coverage: VariantCoverage | None) -> str:
    """What a compression worked on, in one sentence."""
    if coverage is None:
        return "The compression could not be carried out."
    whole = len(coverage.layers) + len(coverage.left_out)
    text = (
        f"{len(coverage.layers)} of {whole} layers are compressed, {coverage.weights:,} of "
        f"{coverage.parameters:,} trained parameters ({coverage.share:.1%})"
    )
    text += becoming_zero(coverage.zeroed, coverage.weights)
    left = f"; left as they are: {', '.join(coverage.left_out)}." if coverage.left_out else "."
    return text + left


def _cell(judged: Judged, target: str = "") -> Cell:
    result = words.result_of(judged)
    if judged.adjusted_p is not None:
        text = f"p {words.probability(judged.adjusted_p)}"
    elif judged.flagged:
        text = "structural"
    elif judged.finding.score is not None:
        text = f"({words.number(judged.finding.score)})"
    else:
        text = result.word
    return Cell(result.kind, f"! {text}" if judged.flagged else text, target)
