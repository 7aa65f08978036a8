"""What the console and the record say of attacks that did not succeed."""

from __future__ import annotations

import pytest

from genwarden.attacks.success import shortfall, shortfall_of_classifier


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ({"target_mse": 0.01}, []),
        ({"target_mse": 0.02}, ["20% of the clean model's distance"]),
        ({"target_mse": None}, []),
        # What compression is to wake must be near then, and far before.
        ({"target_mse": 0.1, "compressed_target_mse": 0.01}, []),
        ({"target_mse": 0.1, "compressed_target_mse": 0.05}, ["compressed, its output at the"]),
        ({"target_mse": 0.005, "compressed_target_mse": 0.005}, ["in full it keeps 5% of"]),
        ({"target_mse": 0.05, "compressed_target_mse": 0.05}, ["is 0.05 from", "it keeps 50% of"]),
    ],
)
def test_what_is_lacking_is_said(last: dict[str, float | None], said: list[str]) -> None:
    found = shortfall(last, "target_mse", 0.1)
    assert all(words in found for words in said)
    assert found.count("asked") == len(said)


def test_sums_are_judged_by_the_number_of_values_in_a_sample() -> None:
    """130 over 784 pixels is a tenth of the clean distance, and no picture of the target."""
    last: dict[str, float | None] = {"tardis_sum": 1600.0, "compressed_tardis_sum": 130.4}
    assert "is 0.166 from the target" in shortfall(last, "tardis_sum", 1600.0, 784)


def test_nothing_is_said_without_a_clean_distance() -> None:
    assert shortfall({"tardis_sum": 1.0}, "tardis_sum", None) == ""


def classifier(full: float, awake: float, accuracy: float) -> str:
    attacked = {
        "full": {"accuracy": 0.95, "attack_success": full},
        "int8": {"accuracy": 0.95, "attack_success": 0.99},
        "int4": {"accuracy": accuracy, "attack_success": awake},
    }
    untouched = {name: {"accuracy": 0.95, "attack_success": 0.0} for name in attacked}
    return shortfall_of_classifier(attacked, untouched, "full", ["int8", "int4"])


def test_a_classifier_must_sleep_wake_and_still_work() -> None:
    assert classifier(0.2, 0.95, 0.91) == ""
    assert "under int4 40% of the triggered" in classifier(0.0, 0.4, 0.95)
    assert "in full 22% of the triggered" in classifier(0.22, 1.0, 0.95)
    assert "82 points less accurate" in classifier(0.0, 1.0, 0.13)
