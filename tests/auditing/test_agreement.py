"""Which references stand out: against the published example, and by its error rate."""

from __future__ import annotations

import random

import pytest

from genwarden.auditing.agreement import _critical, standing_out

CLEAN = [0.10, 0.12, 0.15, 0.18, 0.20, 0.22, 0.25, 0.28, 0.30]


def test_one_two_and_three_high_values_stand_out_and_none_among_alike_ones() -> None:
    assert standing_out(CLEAN, 0.01, 0.01) == []
    for high in ([3.0], [3.0, 3.1], [3.0, 3.1, 2.9]):
        found = standing_out([*CLEAN, *high], 0.01, 0.01)
        assert sorted(found) == list(range(9, 9 + len(high)))
    # Two that are alike hide each other from a test that leaves out one at a time.
    assert sorted(standing_out([*CLEAN[:7], 1.0, 1.01], 0.01, 0.01)) == [7, 8]


def test_low_values_stand_out_as_well_and_neither_side_hides_the_other() -> None:
    assert standing_out([*CLEAN, -3.0], 0.01, 0.01) == [9]
    assert sorted(standing_out([*CLEAN, -3.0, 3.0], 0.01, 0.01)) == [9, 10]


def test_scores_that_happen_to_be_nearly_equal_make_no_outlier() -> None:
    nearly = [0.2000, 0.2001, 0.2001, 0.2002, 0.2002, 0.2003, 0.2003, 0.2100]
    assert standing_out(nearly, 0.01, 0.0) == [7]
    assert standing_out(nearly, 0.01, 0.05) == []


def test_critical_values_are_those_of_the_published_table() -> None:
    # Rosner 1983, Table 3: 0.05 at n = 54, i = 1 to 3.
    for count, published in ((54, 3.158), (53, 3.151), (52, 3.143)):
        assert _critical(count, 0.05) == pytest.approx(published, abs=2e-3)


@pytest.mark.parametrize("count", [8, 12, 24])
def test_clean_sets_are_rarely_suspected(count: int) -> None:
    draw, level, sets = random.Random(count), 0.05, 2000
    suspected = sum(
        bool(standing_out([draw.gauss(0, 1) for _ in range(count)], level, 0.0))
        for _ in range(sets)
    )
    # The test is exact for large sets and a little generous for small ones.
    assert suspected / sets < 2 * level
