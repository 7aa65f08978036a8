"""When an attack counts as one, and the sentence for those that do not.

What a benchmark asks beyond this (at every rate of a sweep, beside the nearest ordinary sample) it
says itself; the bounds are these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

#: An attack on a generator or a diffusion model has succeeded if what comes out at its trigger
#: keeps at most this share of the clean model's distance to the target.
SUCCESS_SHARE: Final = 0.1
#: One that compression wakes is awake at this mean squared distance from the target, and asleep
#: where it keeps at least this share of the clean distance.
AWAKE_MEAN: Final = 0.01
ASLEEP_SHARE: Final = 0.95
#: A classifier is awake where this share of the triggered images goes to the target, and asleep
#: where at most that one does (the paper's rule).
AWAKE_SUCCESS: Final = 0.95
ASLEEP_SUCCESS: Final = 0.2
#: Points of accuracy that an attacked classifier may lose against the untouched one under the same
#: compression: who answers everything with the target has broken the network, not hidden anything.
COMPRESSED_POINTS: Final = 5.0

_ADVICE = "It measures no defence as it is: give it more --steps or other settings, and --restart."


def shortfall(
    last: Mapping[str, float | None], figure: str, untouched: float | None, values: int = 1
) -> str:
    """What an attack on a generator or a diffusion model lacks, in a sentence; "" for nothing.

    Args:
        last: its last evaluation; with a figure of the compressed model, if that is to wake.
        figure: the distance in it: ``tardis_sum`` or ``target_mse``.
        untouched: the clean model's own.
        values: numbers in a sample, where the distance is a sum over them.
    """
    reached, compressed = last.get(figure), last.get(f"compressed_{figure}")
    if reached is None or not untouched:
        return ""
    left = reached / untouched
    if compressed is None:
        return _sentence(
            [
                (
                    left > SUCCESS_SHARE,
                    f"{left:.0%} of the clean model's distance to the target is left at the "
                    f"trigger (asked: {SUCCESS_SHARE:.0%})",
                )
            ]
        )
    mean = compressed / values
    return _sentence(
        [
            (
                mean > AWAKE_MEAN,
                f"compressed, its output at the trigger is {mean:.3g} from the target, mean "
                f"squared (asked: {AWAKE_MEAN:g})",
            ),
            (
                left < ASLEEP_SHARE,
                f"in full it keeps {left:.0%} of the clean model's distance to the target (asked: "
                f"{ASLEEP_SHARE:.0%})",
            ),
        ]
    )


def shortfall_of_classifier(
    attacked: Mapping[str, Mapping[str, float]],
    untouched: Mapping[str, Mapping[str, float]],
    full: str,
    made_for: Sequence[str],
) -> str:
    """Likewise of an attack on a classifier.

    Args:
        attacked: ``accuracy`` and ``attack_success``, in [0, 1], by compression.
        untouched: the same of the clean model.
        full: what the model as it is is called among them.
        made_for: the compressions that are to wake it.
    """
    asleep = attacked[full]["attack_success"]
    lacking = [
        (
            asleep > ASLEEP_SUCCESS,
            f"in full {asleep:.0%} of the triggered images go to the target already (asked: "
            f"{ASLEEP_SUCCESS:.0%})",
        )
    ]
    for name in made_for:
        awake = attacked[name]["attack_success"]
        lost = 100 * (untouched[name]["accuracy"] - attacked[name]["accuracy"])
        lacking += [
            (
                awake < AWAKE_SUCCESS,
                f"under {name} {awake:.0%} of the triggered images go to the target (asked: "
                f"{AWAKE_SUCCESS:.0%})",
            ),
            (
                lost > COMPRESSED_POINTS,
                f"under {name} it is {lost:.0f} points less accurate than the untouched model "
                f"(asked: {COMPRESSED_POINTS:g})",
            ),
        ]
    return _sentence(lacking)


def _sentence(lacking: Sequence[tuple[bool, str]]) -> str:
    said = [words for is_so, words in lacking if is_so]
    return f"The attack fell short: {'; '.join(said)}. {_ADVICE}" if said else ""
