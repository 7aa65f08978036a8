"""A resumed training continues bit for bit; a damaged checkpoint is never used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genwarden.engine.checkpoint import Trainable, load_checkpoint, save_checkpoint
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.layers import glorot_


class Run:
    """A small network with batch norm under Adam; step i depends on i alone."""

    def __init__(self) -> None:
        self.network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        glorot_(self.network, random_stream(0, "weights"))
        self.adam = torch.optim.Adam(self.network.parameters(), 0.05)
        self.parts: dict[str, Trainable] = {"network": self.network, "adam": self.adam}

    def train(self, first: int, last: int) -> None:
        for step in range(first, last):
            x = torch.randn(8, 3, generator=random_stream(0, "batch", step))
            self.adam.zero_grad()
            self.network(x).square().mean().backward()
            self.adam.step()

    def weights(self) -> dict[str, Tensor]:
        return {k: v.clone() for k, v in self.network.state_dict().items()}


def saved(path: Path) -> Run:
    run = Run()
    run.train(0, 4)
    save_checkpoint(path, run_id="r", step=4, parts=run.parts, record={"losses": [1.5, 0.5]})
    return run


def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    whole = Run()
    whole.train(0, 9)
    saved(tmp_path / "c")
    resumed = Run()
    restored = load_checkpoint(tmp_path / "c", run_id="r", parts=resumed.parts)
    assert restored is not None
    assert (restored.step, restored.record) == (4, {"losses": [1.5, 0.5]})
    resumed.train(4, 9)
    for name, expected in whole.weights().items():
        assert torch.equal(resumed.weights()[name], expected), name


def test_optimiser_state_matters_to_that_equality(tmp_path: Path) -> None:
    whole = Run()
    whole.train(0, 9)
    saved(tmp_path / "c")
    resumed = Run()
    load_checkpoint(tmp_path / "c", run_id="r", parts={"network": resumed.network})
    resumed.train(4, 9)
    assert not torch.equal(resumed.weights()["0.weight"], whole.weights()["0.weight"])


def test_no_checkpoint_is_a_fresh_start(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "c", run_id="r", parts={}) is None


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run = saved(tmp_path / "c")
    with pytest.raises(GenwardenError) as caught:
        load_checkpoint(tmp_path / "c", run_id="other", parts=run.parts)
    assert caught.value.code == "checkpoint/other-run"


def test_every_damage_is_noticed_before_anything_is_restored(tmp_path: Path) -> None:
    run = saved(tmp_path / "c")
    content = (tmp_path / "c").read_bytes()
    before = run.weights()
    damages = [content[:n] for n in range(0, len(content), 101)]
    for position in range(0, len(content), 13):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        damages.append(bytes(flipped))
    for damage in damages:
        (tmp_path / "c").write_bytes(damage)
        with pytest.raises(GenwardenError) as caught:
            load_checkpoint(tmp_path / "c", run_id="r", parts=run.parts)
        assert caught.value.code in {"checkpoint/damaged", "checkpoint/other-run"}
    assert all(torch.equal(v, before[k]) for k, v in run.weights().items())
