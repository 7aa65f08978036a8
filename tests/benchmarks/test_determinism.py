"""The recipe `determinism` compares ways that differ: scans are split, and pieces are shuffled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from genwarden.auditing.scanning import scan_pieces
from genwarden.benchmarks.robustness import determinism, one_run
from genwarden.benchmarks.robustness.determinism import AUDITS, WORKERS, require_several_pieces
from genwarden.engine.executor import InProcess, Nothing, Processes
from genwarden.engine.progress import Silent
from genwarden.errors import GenwardenError


class Recorded(Processes):
    """Takes its pieces without starting a process."""

    def _until_broken(self, pool: Any, do: Any, left: list[Any], suspects: list[Any]) -> Any:
        del pool, suspects
        while left:
            piece = left.pop(0)
            yield piece, do(None, piece)


def number(_: None, piece: int) -> int:
    return piece


def test_every_stream_of_the_recipe_has_pieces_for_two_workers_and_more() -> None:
    streams = {name: stream for name, (_, stream) in AUDITS.items() if stream is not None}
    assert set(streams) == {"audit", "audit-threads"}
    assert all(len(scan_pieces(stream)) >= 3 for stream in streams.values())
    assert max(WORKERS) > 1


def test_a_stream_of_one_piece_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GenwardenError, match=r"benchmark/one-piece.*8192 samples"):
        require_several_pieces("audit", 8_192)
    require_several_pieces("audit-diffusion", None)
    monkeypatch.setitem(determinism.AUDITS, "audit", (("audit", "MODEL"), 8_192))

    def run(*_: Any, **__: Any) -> Any:
        raise AssertionError("a command was run")

    monkeypatch.setattr("subprocess.run", run)
    device = torch.device("cpu")
    with pytest.raises(GenwardenError, match="benchmark/one-piece"):
        determinism.run(tmp_path, data=None, seed=0, device=device, progress=Silent())


def test_shuffled_ways_begin_the_pieces_of_a_scan_in_another_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, stream = AUDITS["audit"]
    assert stream is not None
    pieces = range(len(scan_pieces(stream)))
    ways = determinism._ways(1, stream)
    seeds = {more[more.index("--shuffle") + 1] for _, _, more in ways if "--shuffle" in more}
    assert seeds
    for seed in seeds:
        with monkeypatch.context() as patch:
            for kind in (InProcess, Processes):
                patch.setattr(kind, "each", kind.each)  # put back in the end
            one_run.shuffle_pieces(int(seed))
            begun = [piece for piece, _ in InProcess().each(number, pieces, Nothing())]
            assert begun != list(pieces)
            assert sorted(begun) == list(pieces)
            split = [piece for piece, _ in Recorded(1).each(number, pieces, Nothing())]
            assert split == begun
