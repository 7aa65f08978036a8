"""The audit in the terminal: one sentence, one table, what would have been found.

Marks and words carry the result; colour only repeats them. Texts are shown as they are: no markup
is read from a document and invisible characters are spelled out.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from genwarden.auditing.document import AuditDocument, Judged
from genwarden.reports import words
from genwarden.reports.advice import variant_sample
from genwarden.reports.highlights import flagged_first
from genwarden.reports.variants import coverage_in_words, state_of, strongest

MAX_ROWS = 12
_MAX_POWERS = 3
_FOUND_CHARACTERS = 120

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
        Renderables for a rich console: the verdict, the reasons, at most ``MAX_ROWS`` findings
        (flagged first), the candidates, and what would have been found.
    """
    parts: list[RenderableType] = [_verdict(document), *_reasons(document)]
    findings = flagged_first(document.findings)
    if findings:
        parts.append(_table(findings[:MAX_ROWS]))
    if len(findings) > MAX_ROWS:
        parts.append(Text(f"  and {len(findings) - MAX_ROWS} more in the report", style="dim"))
    return [*parts, *_variants(document), *_candidates(document), *_powers(findings)]


def verdict_table(rows: Sequence[tuple[str, str, AuditDocument]]) -> RenderableType:
    """Several audits side by side: (name, note, document) each, one line per model."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, expand=False)
    for title in ("", "model", "verdict", "smallest p", "decided by"):
        table.add_column(title, no_wrap=title in {"", "smallest p"}, overflow="fold")
    for name, note, document in rows:
        flagged = [j for j in flagged_first(document.findings) if j.flagged]
        style = _VERDICT_STYLES[document.verdict]
        table.add_row(
            Text(words.VERDICT_MARKS[document.verdict], style),
            Text(f"{_plain(name)}\n{_plain(note)}"),
            Text(document.verdict.replace("_", " "), style),
            Text(words.strength(document)),
            Text(_plain(", ".join(j.finding.inspection for j in flagged)) or "-"),
        )
    return table


def _verdict(document: AuditDocument) -> Text:
    line = f"{words.VERDICT_MARKS[document.verdict]} {words.headline(document)}"
    return Text(line, _VERDICT_STYLES[document.verdict])


def _reasons(document: AuditDocument) -> list[RenderableType]:
    sentence = words.strength_sentence(document)
    lines = [*([sentence] if sentence else []), *document.reasons]
    if document.refusal:
        lines.append(f"[{document.refusal.code}] {document.refusal.cause}")
        lines.append(f"-> {document.refusal.remedy}")
    return [_indented(line) for line in lines]


def _indented(line: str) -> Padding:
    return Padding(Text(_plain(line)), (0, 0, 0, 4), expand=False)


def _table(findings: list[Judged]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, expand=False)
    table.add_column("", no_wrap=True)
    table.add_column("inspection", ratio=2, overflow="fold", min_width=14)
    table.add_column("result", no_wrap=True)
    table.add_column("what it found", ratio=5, overflow="fold")
    table.add_column("p adj.", no_wrap=True, justify="right")
    for judged in findings:
        result = words.result_of(judged)
        style = _RESULT_STYLES.get(result.kind, "")
        structural = judged.finding.structural and judged.adjusted_p is None
        table.add_row(
            Text(result.mark, style),
            Text(_shortened(judged.finding.inspection, 40)),
            Text(result.word, style),
            Text(_shortened(judged.finding.summary, _FOUND_CHARACTERS)),
            Text("exact" if structural else words.probability(judged.adjusted_p)),
        )
    return table


def _variants(document: AuditDocument) -> list[RenderableType]:
    """One line for each compressed variant."""
    lines = []
    for variant in document.variants:
        state, found = state_of(variant), strongest(variant)
        said = variant.failure or (
            found.finding.summary if found else coverage_in_words(variant.coverage)
        )
        text = f"{state.mark} {variant.name}: {state.word}. {_shortened(said, _FOUND_CHARACTERS)}"
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


def _powers(findings: list[Judged]) -> list[RenderableType]:
    """What would have been found: the promise behind a quiet result, so quiet ones come first."""
    tested = [judged for judged in findings if judged.finding.outcome == "scored"]
    quiet_first = sorted(tested, key=lambda judged: judged.flagged)
    stated = [judged.finding for judged in quiet_first if judged.finding.power]
    if not stated:
        return [Text("Would have been found: nothing is stated; see the report.")] if tested else []
    lines: list[RenderableType] = [
        _indented(f"{finding.inspection}: {_shortened(finding.power, _FOUND_CHARACTERS)}")
        for finding in stated[:_MAX_POWERS]
    ]
    if len(stated) > _MAX_POWERS:
        lines.append(Text(f"    and {len(stated) - _MAX_POWERS} more in the report", style="dim"))
    return [Group(Text("Would have been found:", style="bold"), *lines)]


def _plain(text: str) -> str:
    return " ".join(words.visible(text).split())


def _shortened(text: str, limit: int) -> str:
    plain = _plain(text)
    if len(plain) <= limit:
        return plain
    cut = plain[:limit].rpartition(" ")[0] or plain[: limit - 1]
    return cut.rstrip(" ,;:.") + " …"
