"""The audit in the terminal: one sentence, one table, what would have been found.

Marks and words carry the result; colour only repeats them. Texts are shown as they are: no markup
is read from a document and invisible characters are spelled out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from genwarden.auditing.document import AuditDocument
from genwarden.reports import words
from genwarden.reports.advice import variant_sample
from genwarden.reports.highlights import Placed, every_finding
from genwarden.reports.variants import FULL, coverage_in_words, state_of

MAX_ROWS = 12
_MAX_POWERS = 4
#: As many sentences as fit, but at least one; evidence may take more room than its absence.
_FLAGGED_CHARACTERS = 240
_FOUND_CHARACTERS = 120
#: Names in a sentence come from files and may be of any length: only beyond this is one cut off.
_SENTENCE_CHARACTERS = 800
_SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[A-Z\d])")

_VERDICT_STYLES = {
    "evidence": "bold red",
    "none_found": "bold green",
    "inconclusive": "bold yellow",
    "refused": "bold yellow",
}
_RESULT_STYLES = {"flagged": "bold red", "failed": "yellow", "skipped": "dim", "unjudged": "dim"}


def summary_renderables(document: AuditDocument) -> list[RenderableType]:
    """What the terminal shows of an audit, in order.

    Args:
        document: what the audit found.

    Returns:
        Renderables for a rich console: the verdict, the reasons, at most ``MAX_ROWS`` findings of
        the model and its variants (flagged first, one row for each inspection and variant), the
        variants, the candidates, and what would have been found.
    """
    parts: list[RenderableType] = [_verdict(document), *_reasons(document)]
    findings = every_finding(document)
    if findings:
        parts.append(_table(findings[:MAX_ROWS], compressed=bool(document.variants)))
    if len(findings) > MAX_ROWS:
        parts.append(Text(f"  and {len(findings) - MAX_ROWS} more: see the report", style="dim"))
    return [*parts, *_variants(document), *_candidates(document), *_powers(findings)]


def verdict_table(rows: Sequence[tuple[str, str, AuditDocument]]) -> RenderableType:
    """Several audits side by side: (name, note, document) each, one line per model."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, expand=False)
    for title in ("", "model", "verdict", "smallest p", "decided by"):
        table.add_column(title, no_wrap=title in {"", "smallest p"}, overflow="fold")
    for name, note, document in rows:
        flagged = [found for found in every_finding(document) if found.judged.flagged]
        deciding = [_named(found) for found in flagged]
        style = _VERDICT_STYLES[document.verdict]
        table.add_row(
            Text(words.VERDICT_MARKS[document.verdict], style),
            Text(f"{_plain(name)}\n{_plain(note)}"),
            Text(document.verdict.replace("_", " "), style),
            Text(words.strength(document)),
            Text(_plain(", ".join(deciding)) or "-"),
        )
    return table


def _verdict(document: AuditDocument) -> Text:
    line = f"{words.VERDICT_MARKS[document.verdict]} {words.headline(document)}"
    return Text(line, _VERDICT_STYLES[document.verdict])


def _reasons(document: AuditDocument) -> list[RenderableType]:
    sentence = words.strength_sentence(document)
    told = document.refusal.cause if document.refusal else None  # below, with its code
    reasons = [reason for reason in document.reasons if reason != told]
    lines = [*([sentence] if sentence else []), *reasons]
    if document.refusal:
        lines.append(f"[{document.refusal.code}] {document.refusal.cause}")
        lines.append(f"-> {document.refusal.remedy}")
    return [_indented(line) for line in lines]


def _indented(line: str) -> Padding:
    return Padding(Text(_plain(line)), (0, 0, 0, 4), expand=False)


def _named(found: Placed) -> str:
    under = f" ({found.under})" if found.under else ""
    return f"{found.judged.finding.inspection}{under}"


def _table(findings: list[Placed], *, compressed: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, expand=False)
    table.add_column("", no_wrap=True)
    table.add_column("inspection", ratio=2, overflow="fold", min_width=14)
    table.add_column("result", no_wrap=True)
    table.add_column("what it found", ratio=5, overflow="fold")
    table.add_column("p adj.", no_wrap=True, justify="right")
    for found in findings:
        judged = found.judged
        result = words.result_of(judged)
        style = _RESULT_STYLES.get(result.kind, "")
        structural = judged.finding.structural and judged.adjusted_p is None
        where = [_shortened(found.under or FULL, 40)] if compressed else []
        room = _FLAGGED_CHARACTERS if judged.flagged else _FOUND_CHARACTERS
        table.add_row(
            Text(result.mark, style),
            Text("\n".join([_shortened(judged.finding.inspection, 40), *where])),
            Text(result.word, style),
            Text(_sentences(judged.finding.summary, room)),
            Text("exact" if structural else words.probability(judged.adjusted_p)),
        )
    return table


def _variants(document: AuditDocument) -> list[RenderableType]:
    """One line for each compressed variant."""
    lines = []
    for variant in document.variants:
        state = state_of(variant)
        said = variant.failure or coverage_in_words(variant.coverage)
        by = ", ".join(j.finding.inspection for j in variant.findings if j.flagged)
        word = f"{state.word} ({by})" if by else state.word
        text = f"{state.mark} {variant.name}: {word}. {_sentences(said, _FLAGGED_CHARACTERS)}"
        lines.append(
            Padding(
                Text(_plain(text), _RESULT_STYLES.get(state.kind, "")), (0, 0, 0, 4), expand=False
            )
        )
        if command := variant_sample(document, variant):
            lines.append(_indented(f"-> {command}"))
    return [Group(Text("As deployed:", style="bold"), *lines)] if lines else []


def _candidates(document: AuditDocument) -> list[RenderableType]:
    """One sentence and one command for each."""
    lines = []
    for index, candidate in enumerate(document.candidates, start=1):
        said = words.candidate_in_words(candidate)
        lines.append(_indented(f"{index} ({candidate.inspection}): {said}"))
        if candidate.command:
            lines.append(_indented(f"-> {candidate.command}"))
    return [Group(Text("Candidate triggers:", style="bold"), *lines)] if lines else []


def _powers(findings: list[Placed]) -> list[RenderableType]:
    """What would have been found by the inspections that decide.

    It is the promise behind a quiet result, so quiet ones come before flagged ones; then variants
    before the full model. What is shown and not judged promises nothing.
    """
    tested = [
        found
        for found in findings
        if found.judged.adjusted_p is not None or found.judged.finding.structural
    ]
    stated: dict[str, list[Placed]] = {}
    for found in sorted(tested, key=_by_promise):
        finding = found.judged.finding
        if finding.power and not finding.follows_from:
            stated.setdefault(finding.inspection, []).append(found)
    if not stated:
        return [Text("Would have been found: nothing is stated; see the report.")] if tested else []
    lines: list[RenderableType] = [_promise(same) for same in list(stated.values())[:_MAX_POWERS]]
    if len(stated) > _MAX_POWERS:
        left = len(stated) - _MAX_POWERS
        lines.append(Text(f"    and {left} more: see the report", style="dim"))
    return [Group(Text("Would have been found:", style="bold"), *lines)]


def _by_promise(found: Placed) -> tuple[bool, bool, bool]:
    return found.judged.adjusted_p is None, found.judged.flagged, not found.under


def _promise(same: list[Placed]) -> RenderableType:
    """The promise of one inspection, with the variants of which it is made word for word."""
    finding = same[0].judged.finding
    alike = [found for found in same if found.judged.finding.power == finding.power]
    places = [found.under or FULL for found in alike] if any(f.under for f in same) else []
    where = f" ({', '.join(places)})" if places else ""
    said = _sentences(words.would_be_found(finding.power), _FLAGGED_CHARACTERS)
    return _indented(f"{finding.inspection}{where}: {said}")


def _plain(text: str) -> str:
    return " ".join(words.visible(text).split())


def _sentences(text: str, room: int) -> str:
    """Whole sentences of a text while they fit, at least the first; clauses of one that is long."""
    first, *others = _SENTENCE_END.split(_plain(text))
    shown = first
    if len(first) > room and "; " in first:
        clauses = first.split("; ")
        shown = clauses.pop(0)
        while clauses and len(shown) + len(clauses[0]) + 2 <= room:
            shown += f"; {clauses.pop(0)}"
        others = []
        shown = shown if shown.endswith(".") else f"{shown}."
    while others and len(shown) + len(others[0]) + 1 <= room:
        shown += f" {others.pop(0)}"
    return _shortened(shown, _SENTENCE_CHARACTERS)


def _shortened(text: str, limit: int) -> str:
    plain = _plain(text)
    if len(plain) <= limit:
        return plain
    cut = plain[:limit].rpartition(" ")[0] or plain[: limit - 1]
    return cut.rstrip(" ,;:.") + " …"
