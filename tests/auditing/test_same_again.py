"""The same audit, byte for byte: over thread counts and over the order in which blocks arrive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from few_inspections import keep_only
from genwarden.auditing import budgets
from genwarden.auditing.document import AuditDocument
from genwarden.benchmarks.robustness.one_run import shuffle_streams
from genwarden.commands.audit import audit_model
from genwarden.commands.audit_options import AuditOptions
from genwarden.engine.progress import Silent
from genwarden.engine.threads import (
    DENOISER_THREADS,
    LARGE_THREADS,
    SMALL_DENOISER,
    SMALL_PARAMETERS,
    fixed_threads,
    threads,
)
from genwarden.inspections.output.brute_force import Bulk, Extremes, among_first
from genwarden.inspections.workbench import Effort, Workbench

_TINY = Effort("quick", 1024, 1024, 4, 1, 4, 1, 1, 1, 1)


@pytest.fixture(autouse=True)
def streams_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stream of samples goes into, and a small budget."""
    monkeypatch.setitem(budgets.BUDGETS, "quick", _TINY)
    names = {"capacity", "cluster-outliers", "repeated-outputs", "nearest-target"}
    keep_only(monkeypatch, names)


def audited(model: Path, out: Path, **more: Any) -> AuditDocument:
    options = AuditOptions(model=model, out=out, budget="quick", **more)
    return audit_model(options, progress=Silent()).document


def test_any_number_of_threads_gives_the_same_audit(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    found = set()
    for count in (1, 2, 4):
        with threads(count):
            document = audited(tiny_model_folder, tmp_path / "out")
            assert torch.get_num_threads() == count
        assert document.environment["threads"] == "1"
        found.add(document.content_sha256())
    assert len(found) == 1


def test_a_number_of_threads_that_the_user_names_is_used_and_repeated(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    document = audited(tiny_model_folder, tmp_path / "out", threads=2)
    assert document.environment["threads"] == "2"
    assert "--threads 2" in document.command


def test_threads_follow_from_the_size_of_the_network_alone() -> None:
    with threads(1):
        assert fixed_threads(SMALL_PARAMETERS - 1) == 1
        assert fixed_threads(SMALL_PARAMETERS) == LARGE_THREADS
        assert fixed_threads(SMALL_DENOISER - 1, denoiser=True) == 1
        assert fixed_threads(SMALL_DENOISER, denoiser=True) == DENOISER_THREADS
        assert fixed_threads(SMALL_PARAMETERS, denoiser=True) == LARGE_THREADS


def test_blocks_in_another_order_give_the_same_audit(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordered = audited(tiny_model_folder, tmp_path / "out")
    monkeypatch.setattr(Workbench, "stream_part", Workbench.stream_part)  # put back in the end
    shuffle_streams(0)
    orders = []
    shuffled = Workbench.stream

    def seen(self: Workbench, purpose: str, total: int) -> Iterator[Any]:
        parts = list(shuffled(self, purpose, total))
        orders.append([part.block.number for part in parts])
        return iter(parts)

    monkeypatch.setattr(Workbench, "stream", seen)
    again = audited(tiny_model_folder, tmp_path / "out")
    assert any(order != sorted(order) for order in orders)
    assert again.content_sha256() == ordered.content_sha256()


def test_of_equal_scores_the_first_in_the_stream_are_kept_in_any_order() -> None:
    scores = torch.ones(12, dtype=torch.float64)
    z = torch.arange(12.0)[:, None]
    kept = []
    for starts in ((0, 4, 8), (8, 0, 4), (4, 8, 0)):
        extremes = Extremes(samples=5)
        for start in starts:
            part = slice(start, start + 4)
            extremes.update(torch.arange(start, start + 4), scores[part], z[part], z[part])
        extremes.settle(None, lambda x: x[:, 0])
        kept.append(extremes.positions.tolist())
    assert kept == [[0, 1, 2, 3, 4]] * 3


def test_the_histogram_holds_the_first_places_of_the_stream_in_any_order() -> None:
    counts = []
    for starts in ((0, 6000), (6000, 0)):
        bulk = Bulk()
        for start in starts:
            places = torch.arange(start, start + 6000)
            bulk.take(places.float()[among_first(places)])
        chart = bulk.chart(title="t", x_label="x", mark=1.0)
        counts.append((bulk.count, chart.lines[0].y))
    assert counts[0] == counts[1]
    assert counts[0][0] == 8192
