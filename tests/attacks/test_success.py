"""What the console says of attacks that did not succeed."""

from __future__ import annotations

import pytest

from genwarden.attacks.success import shortfall, shortfall_of_classifier


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ({"target_mse": 0.01}, ""),
        ({"target_mse": 0.02}, "20% of the clean model's distance"),
        # A dormant attack is judged by what wakes: in full size it is to be far away.
        ({"target_mse": 0.1, "compressed_target_mse": 0.01}, ""),
        ({"target_mse": 0.0, "compressed_target_mse": 0.05}, "once compressed, 50% of the clean"),
        ({"target_mse": None}, ""),
    ],
)
def test_more_than_a_tenth_of_the_clean_distance_is_said(
    last: dict[str, float | None], said: str
) -> None:
    found = shortfall(last, "target_mse", 0.1)
    assert said in found
    assert bool(said) == bool(found)


def test_nothing_is_said_without_a_clean_distance() -> None:
    assert shortfall({"tardis_sum": 1.0}, "tardis_sum", None) == ""


def test_the_compression_that_wakes_a_classifier_least_is_said() -> None:
    assert shortfall_of_classifier({"int8": 0.99, "int4": 0.95}) == ""
    assert "under int4, 40% of" in shortfall_of_classifier({"int8": 0.99, "int4": 0.4})
    assert shortfall_of_classifier({}) == ""
