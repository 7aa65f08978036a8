"""When an attack counts as one, and the sentence for those that do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: An attack on a generator or a diffusion model has succeeded if what comes out at its trigger
#: keeps at most this share of the clean model's distance to the target.
SUCCESS_SHARE: Final = 0.1
#: One on a classifier, if at least this share of the triggered images goes to the target under
#: every compression that it was made for.
AWAKE_SUCCESS: Final = 0.95

_ADVICE = "It measures no defence as it is: give it more --steps or other settings, and --restart."


def shortfall(last: Mapping[str, float | None], figure: str, untouched: float | None) -> str:
    """What an attack on a generator or a diffusion model lacks, in a sentence; "" for nothing.

    Args:
        last: its last evaluation, of which the compressed model counts where there is one.
        figure: the distance in it: ``tardis_sum`` or ``target_mse``.
        untouched: the clean model's own.
    """
    compressed = last.get(f"compressed_{figure}")
    reached = last.get(figure) if compressed is None else compressed
    if reached is None or not untouched or reached <= SUCCESS_SHARE * untouched:
        return ""
    under = "" if compressed is None else "once compressed, "
    return (
        f"The attack fell short: {under}{reached / untouched:.0%} of the clean model's distance to "
        f"the target is left at the trigger (asked: {SUCCESS_SHARE:.0%}). {_ADVICE}"
    )


def shortfall_of_classifier(awake: Mapping[str, float]) -> str:
    """Likewise of an attack on a classifier.

    Args:
        awake: attack success, in [0, 1], by each compression that it was made for.
    """
    worst = min(awake, key=lambda name: awake[name], default=None)
    if worst is None or awake[worst] >= AWAKE_SUCCESS:
        return ""
    return (
        f"The attack fell short: under {worst}, {awake[worst]:.0%} of the triggered images go to "
        f"the target (asked: {AWAKE_SUCCESS:.0%}). {_ADVICE}"
    )
