"""Compressed variants in reports: the matrix inspection x variant, and one word per variant."""

from __future__ import annotations

from typing import NamedTuple

from genwarden.auditing.document import AuditDocument, Judged, Variant, VariantCoverage
from genwarden.reports import words

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


def state_of(variant: Variant) -> words.Result:
    """What a variant amounts to."""
    if any(j.flagged for j in variant.findings):
        return words.Result("flagged", "!", "evidence")
    if variant.failure:
        return words.Result("failed", "x", "not tested")
    if any(j.finding.outcome == "failed" for j in variant.findings):
        return words.Result("failed", "x", "partly failed")
    if all(j.adjusted_p is None for j in variant.findings):
        return words.Result("failed", "x", "not judged")
    return words.Result("quiet", "-", "nothing found")


def strongest(variant: Variant) -> Judged | None:
    """The flagged finding of a variant that weighs most."""
    flagged = [j for j in variant.findings if j.flagged]
    return min(flagged, key=lambda j: (not j.finding.structural, j.adjusted_p or 0.0), default=None)


def coverage_in_words(coverage: VariantCoverage | None) -> str:
    """What a compression worked on, in one sentence."""
    if coverage is None:
        return "The compression could not be carried out."
    whole = len(coverage.layers) + len(coverage.left_out)
    text = (
        f"{len(coverage.layers)} of {whole} layers are compressed, {coverage.weights:,} of "
        f"{coverage.parameters:,} parameters ({coverage.share:.1%})"
    )
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
