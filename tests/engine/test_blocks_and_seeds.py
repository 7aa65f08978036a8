"""Blocks cover a run exactly; streams depend on seed, purpose and index alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genwarden.engine.blocks import blocks
from genwarden.engine.device import pick_device
from genwarden.engine.seeds import derive_seed, random_stream
from genwarden.errors import GenwardenError


@given(total=st.integers(0, 500), size=st.integers(1, 70))
def test_blocks_cover_every_sample_once_in_order(total: int, size: int) -> None:
    found = list(blocks(total, size))
    assert [i for b in found for i in range(b.start, b.start + b.size)] == list(range(total))
    assert [b.number for b in found] == list(range(len(found)))
    assert all(b.size == size for b in found[:-1])


def test_block_size_of_zero_is_an_error() -> None:
    with pytest.raises(ValueError, match="positive"):
        list(blocks(10, 0))


def test_derived_seeds_never_change_between_versions() -> None:
    assert derive_seed(0, "trigger", 0) == 4_063_443_179_798_977_160
    assert derive_seed(7, "grid", 3) == 400_458_102_412_457_919


def test_streams_differ_by_seed_purpose_and_index() -> None:
    seeds = {
        derive_seed(run, purpose, index)
        for run in range(20)
        for purpose in ("a", "b", "a\x1f1")
        for index in range(20)
    }
    assert len(seeds) == 20 * 3 * 20


def test_stream_repeats() -> None:
    draws = [torch.randn(5, generator=random_stream(3, "x", 1)) for _ in range(2)]
    assert torch.equal(*draws)


def test_absent_device_is_an_error_with_a_remedy() -> None:
    assert pick_device("cpu").type == "cpu"
    for name in ("cuda:99", "no-such-device"):
        with pytest.raises(GenwardenError) as caught:
            pick_device(name)
        assert caught.value.code == "usage/device"
