"""A scan comes to the same, bit for bit, in one process and in pieces over several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scan_parts.planted.output import BREAKS_AT, Noisy

from genwarden.artifacts.open_model import ForeignGenerator
from genwarden.auditing import scanning
from genwarden.auditing.audit import _ordinary_pictures
from genwarden.auditing.room import spread
from genwarden.auditing.scanning import scan, scan_pieces
from genwarden.data.images import NamedImages
from genwarden.engine.blocks import blocks
from genwarden.engine.executor import Executor, InProcess, Processes
from genwarden.engine.ledger import Ledger
from genwarden.engine.progress import Silent
from genwarden.engine.seeds import random_stream
from genwarden.inspections.finding import Finding, Table
from genwarden.inspections.workbench import BLOCK_SAMPLES, Effort, Workbench
from genwarden.models.dcgan import DCGAN28
from genwarden.models.protocol import LatentGenerator
from genwarden.registry import INSPECTIONS, Row

_EFFORT = Effort("test", 512, 7 * BLOCK_SAMPLES + 40, 4, 1, 4, 1, 1, 1, 1)
_PLANTED = "scan_parts.planted.output"
_STREAMED = {name: row for name, row in INSPECTIONS.items() if row.options.get("stream")}


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "_LEAST_BLOCKS", 2)
    pieces = scan_pieces(_EFFORT.stream_samples)
    assert [(p.first, p.last, p.samples) for p in pieces] == [
        (0, 2, 512),
        (2, 4, 512),
        (4, 6, 512),
        (6, 8, 296),
    ]


def bench_of(generator: LatentGenerator, architecture: str) -> Workbench:
    spec = generator.sample.shape
    stream = random_stream(0, "scan-test")
    return Workbench(
        generator.eval().requires_grad_(False),
        _EFFORT,
        seed=5,
        architecture=architecture,
        targets=NamedImages(torch.rand(2, *spec, generator=stream) * 2 - 1, ["one", "two"]),
        training=torch.rand(40, *spec, generator=stream) * 2 - 1,
    )


def noisy_bench() -> Workbench:
    return bench_of(ForeignGenerator(Noisy(), "noisy"), f"{_PLANTED}:Noisy")


def scanned(
    bench: Workbench,
    settings: dict[str, Any],
    executor: Executor,
    folder: Path,
    rows: dict[str, Row] = _STREAMED,
) -> dict[str, Finding]:
    torch.manual_seed(len(folder.name))  # whatever was drawn before must not matter
    ledger = Ledger(folder, {"run": 1})
    return scan(rows, bench, settings, executor, ledger, Silent())


def test_pieces_over_two_processes_merge_to_the_scan_of_one(
    tiny_generator: DCGAN28, tmp_path: Path
) -> None:
    settings = {"channels": [4, 4, 4], "latent_dim": 8}
    here, there = (
        scanned(bench_of(tiny_generator, "dcgan28"), settings, executor, tmp_path / name)
        for name, executor in (("here", InProcess()), ("there", Processes(2)))
    )
    assert {f.outcome for f in here.values()} == {"scored"}
    assert len(here) == 3
    assert all(f.budget["samples"] == _EFFORT.stream_samples for f in here.values())
    assert there == here
    # The last piece counts: without it the findings are others.
    short = bench_of(tiny_generator, "dcgan28")
    short.effort = Effort("test", 512, 6 * BLOCK_SAMPLES, 4, 1, 4, 1, 1, 1, 1)
    assert scanned(short, settings, InProcess(), tmp_path / "shorter") != here


def _nearest(finding: Finding) -> dict[str, float]:
    """Distance of the nearest sample by target."""
    (table,) = (shown for shown in finding.evidence if isinstance(shown, Table))
    return {str(row[0]): float(row[1]) for row in table.rows}


def test_a_scan_in_bfloat16_finds_what_it_keeps_in_float32(
    tiny_generator: DCGAN28, tmp_path: Path
) -> None:
    settings = {"channels": [4, 4, 4], "latent_dim": 8}
    found: dict[str, dict[str, Finding]] = {}
    banks = []
    for name, precision, executor in (
        ("exact", "float32", InProcess()),
        ("coarse", "bfloat16", InProcess()),
        ("there", "bfloat16", Processes(2)),
    ):
        bench = bench_of(tiny_generator, "dcgan28")
        bench.scan_precision = precision
        assert precision in bench.computed
        banks.append(bench.ordinary.x)
        found[name] = scanned(bench, settings, executor, tmp_path / name)
    assert found["there"] == found["coarse"]
    assert found["coarse"] != found["exact"]  # the record names the precision
    # Only the scan is coarse, and the nearest sample is the same one, at its distance in float32.
    assert torch.equal(banks[0], banks[1])
    exact, coarse = (_nearest(found[name]["nearest-target"]) for name in ("exact", "coarse"))
    assert coarse == pytest.approx(exact, rel=1e-6)


def test_a_network_that_draws_noise_gives_the_same_scan_anywhere(tmp_path: Path) -> None:
    here = scanned(noisy_bench(), {}, InProcess(), tmp_path / "here")
    again = scanned(noisy_bench(), {}, InProcess(), tmp_path / "again")
    there = scanned(noisy_bench(), {}, Processes(2), tmp_path / "there")
    assert {f.outcome for f in here.values()} == {"scored"}
    assert again == here
    assert there == here


def test_a_collector_that_breaks_in_the_second_piece_breaks_alone(tmp_path: Path) -> None:
    rows = {
        "breaks-later": Row("breaks-later", f"{_PLANTED}:BreaksLater", "breaks"),
        "nearest-target": INSPECTIONS["nearest-target"],
    }
    here = scanned(noisy_bench(), {}, InProcess(), tmp_path / "here", rows)
    there = scanned(noisy_bench(), {}, Processes(2), tmp_path / "there", rows)
    assert here["breaks-later"].outcome == "failed"
    assert here["breaks-later"].summary == f"ValueError: broken at sample {BREAKS_AT}"
    assert here["nearest-target"].outcome == "scored"
    assert here["nearest-target"].budget["samples"] == _EFFORT.stream_samples
    assert there == here


def test_shared_samples_of_a_noisy_network_are_the_same_whoever_asks_first() -> None:
    banks, following = [], []
    for drawn_before in (0, 1, 7):
        bench = noisy_bench()
        torch.manual_seed(11)
        torch.randn(drawn_before)
        before = torch.get_rng_state()
        banks.append(bench.ordinary)
        following.append(torch.equal(torch.get_rng_state(), before))
    assert all(torch.equal(bank.x, banks[0].x) for bank in banks)
    # Whoever asked goes on drawing as if the bank had been there.
    assert all(following)


def test_noise_differs_from_block_to_block_and_is_not_the_latents() -> None:
    bench = noisy_bench()
    first, second = bench.stream_part("brute-force", list(blocks(512, BLOCK_SAMPLES)))
    weight = bench.generator.get_parameter("network.weight")
    noise = [part.x.atanh().flatten(1) - part.z @ weight / 3 for part in (first, second)]
    assert not torch.allclose(noise[0], noise[1], atol=0.1)
    as_latents = torch.randn(256, 36, generator=random_stream(5, "brute-force", 0))
    assert not torch.allclose(noise[0], as_latents, atol=0.1)
    alone = next(bench.stream_part("brute-force", [second.block]))
    assert torch.equal(alone.x, second.x)


def test_pictures_of_a_noisy_network_are_the_same_whatever_was_drawn_before() -> None:
    pictures = []
    for drawn_before in (0, 5):
        torch.manual_seed(11)
        torch.randn(drawn_before)
        pictures.append(_ordinary_pictures(noisy_bench()))
    assert pictures[0] is not None
    assert pictures[0] == pictures[1]


class Recorder:
    """An executor that notes what it is given and does nothing."""

    workers = 2
    here = False

    def __init__(self) -> None:
        self.keys: list[str] = []

    def each(self, do: Any, pieces: Any, common: Any) -> Any:
        del do, common
        self.keys += [piece.key for piece in pieces]
        return iter([])


def test_the_longest_inspection_begins_first(tmp_path: Path) -> None:
    rows = {
        n: INSPECTIONS[n] for n in ("canonical-latents", "novelty-search", "aligned-directions")
    }
    room: Any = type(
        "Bare", (), {"request": type("R", (), {"deploy_as": []}), "progress": Silent()}
    )
    recorder = Recorder()
    spread(rows, {}, room, recorder, Ledger(tmp_path / "ledger", {"run": 1}))
    assert recorder.keys == ["novelty-search", "canonical-latents", "aligned-directions"]
