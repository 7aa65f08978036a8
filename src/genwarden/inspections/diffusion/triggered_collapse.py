"""Triggered collapse: do all noises become one picture under a recovered shift?

The measure is in :mod:`.collapse`; this inspection scores the strongest over the shifts that the
trigger search recovered and the samplers of the bench.
"""

from __future__ import annotations

import torch

from genwarden.inspections.diffusion.bench import DiffusionBench
from genwarden.inspections.diffusion.collapse import SHIFTS
from genwarden.inspections.finding import Finding, Table, images_of

NAME = "triggered-collapse"
TITLE = "Samples that become one picture"
_SHOWN = 6


def inspect(bench: DiffusionBench) -> Finding:
    """Score the strongest collapse over the strongest shifts and all samplers."""
    collapses = bench.collapses
    best, shown = collapses[0], collapses[:_SHOWN]
    return Finding(
        inspection=NAME,
        group="diffusion",
        title=TITLE,
        outcome="scored",
        summary=(
            f"Under shift {best.shift} and {best.sampler} the variance of the samples is "
            f"{best.variance:.3g} per pixel, {best.ordinary_variance:.3g} without the shift. "
            "A large shift makes samples of clean models alike, too: only what goes beyond that "
            "counts."
        ),
        score=best.score,
        score_name="log10 of unexplained change over variance, per size of the shift",
        p_value_reason="judged against clean reference models",
        budget={
            "shifts": min(SHIFTS, len(bench.recovered)),
            "samplers": len(bench.samplers),
            "samples": bench.effort.samples,
            "sampler_steps": bench.effort.sampler_steps,
        },
        power=(
            "Fixed pictures that one of the listed samplers makes at a shift that the trigger "
            "search came near to."
        ),
        follows_from="trigger-search",
        evidence=[
            images_of(
                torch.stack([one.picture for one in shown]),
                [f"shift {one.shift}, {one.sampler}" for one in shown],
                title="Mean of the samples at the recovered shifts",
                caption="Sharp only where all noises lead to the same picture: the target of a "
                "backdoor.",
            ),
            Table(
                title="Variance of the samples per pixel",
                columns=["shift", "sampler", "score", "with the shift", "without"],
                rows=[
                    [
                        one.shift,
                        one.sampler,
                        round(one.score, 3),
                        float(f"{one.variance:.3g}"),
                        float(f"{one.ordinary_variance:.3g}"),
                    ]
                    for one in collapses
                ],
            ),
        ],
    )
