"""Tables of ours beside the paper's: one description, shown in the terminal or as markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from genwarden.benchmarks.store import summary_of

#: What stands where nothing was measured or printed.
NOTHING = "-"


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        columns: titles.
        rows: one list per row, as long as ``columns``.
        notes: sentences below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=tuple)

    def markdown(self, level: int = 3) -> str:
        """GitHub's markdown, ending with an empty line."""
        lines = [f"{'#' * level} {self.title}", ""]
        lines += [_line(self.columns), _line(["---"] * len(self.columns))]
        lines += [_line(row) for row in self.rows]
        lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join([*lines, ""] if self.notes else lines)

    def renderable(self) -> Group:
        """For a rich console."""
        table = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
        for column in self.columns:
            table.add_column(column, overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(text) for text in row))
        notes = [Padding(Text(note, style="dim"), (0, 0, 0, 1)) for note in self.notes]
        return Group(Text(self.title, style="bold"), table, *notes, Text())


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def figure(value: float | None) -> str:
    """A number with four significant digits."""
    return NOTHING if value is None else f"{value:.4g}"


def answer(met: bool | None) -> str:
    """Whether an aim was reached, in a table; nothing if it was not measured."""
    return NOTHING if met is None else "yes" if met else "no"


def spread(values: Sequence[float]) -> str:
    """Mean +- standard error, the error only where there are repeats."""
    if not values:
        return NOTHING
    summary = summary_of(list(values))
    mean = figure(summary["mean"])
    return mean if len(values) == 1 else f"{mean} +- {summary['standard_error']:.2g}"


def mean_of(summary: dict[str, Any], key: str) -> str:
    """The same for a figure that a result file holds summarised over its repeats."""
    if key not in summary:
        return NOTHING
    error = summary[key]["standard_error"]
    mean = figure(summary[key]["mean"])
    return f"{mean} +- {error:.2g}" if summary[key]["repeats"] > 1 else mean


def worst(values: Sequence[float]) -> str:
    """The largest value, as the paper reports ReconD, with the mean beside it."""
    if len(values) < 2:
        return spread(values)
    return f"{figure(max(values))} (mean {figure(summary_of(list(values))['mean'])})"


def beside(ours: str, printed: float | None) -> str:
    """``ours / printed``."""
    return f"{ours} / {figure(printed)}"
