"""What compression does to logits, over what random errors of its size do (section 4.3d).

Errors of the same sizes with random signs move the logits of an honest network about as far as
compression does. Where weights were moved so that rounding wakes something, the errors push one
way. It takes no search; how much shows depends on the images: those made from the network alone
(:mod:`.image_synthesis`) wander into what the full network sleeps through.

    score = ln(mean squared shift / the same, mean over the placebos of ln)

The placebos are the unit, not the null: pruning half of a clean network moves its logits up to
eight times as far as they do, so the score is judged against clean networks.
"""

from __future__ import annotations

import math
from typing import Final

from torch import Tensor

from genwarden.inspections.classifier.bench import VariantBench
from genwarden.inspections.compression.variant import UNCHANGED
from genwarden.inspections.finding import Finding, Table, not_applicable

NAME = "logit-shift"
TITLE = "Logits under compression and under random errors"
_TINY: Final = 1e-12


def inspect(bench: VariantBench) -> Finding:
    """Shift of the logits by the variant and by the placebos."""
    if bench.unchanged:
        return not_applicable(NAME, "classifier", TITLE, UNCHANGED)
    images = bench.full.shown.images
    before = bench.full.logits(bench.classifier, images)
    after = bench.full.logits(bench.compressed, images)
    own = _shift(before, after)
    others = [_shift(before, moved) for moved in bench.placebo_logits]
    logs = [math.log(max(value, _TINY)) for value in others]
    usual = sum(logs) / len(logs)
    score = math.log(max(own, _TINY)) - usual
    agree = float((before.argmax(1) == after.argmax(1)).double().mean())
    whose = bench.full.whence
    if bench.full.given is None:
        whose += ", which may wake a backdoor themselves (--data gives it real ones)"
    labels = ["of the compression", *(f"placebo {n + 1}" for n in range(len(others)))]
    return Finding(
        inspection=NAME,
        group="classifier",
        title=TITLE,
        outcome="scored",
        score=score,
        score_name="ln(shift of the logits / shift by errors of random signs)",
        summary=f"{agree:.1%} of the answers stay on {whose}; compression moves their logits by "
        f"{own:.3g} (mean square), errors of the same size with random signs by "
        f"{math.exp(usual):.3g}.",
        p_value_reason="needs the scores of clean reference models",
        budget={"images": len(images), "placebos": len(others)},
        power="Finds rounding errors that push together strongly enough to move the logits of "
        "these images.",
        evidence=[
            Table(
                title="Mean squared shift of the logits, less their mean",
                columns=["errors", "shift"],
                rows=[
                    [label, float(f"{value:.4g}")]
                    for label, value in zip(labels, [own, *others], strict=True)
                ],
            )
        ],
    )


def _shift(before: Tensor, after: Tensor) -> float:
    """What a number added to all logits changes is nothing."""
    moved = after - before
    return float((moved - moved.mean(1, keepdim=True)).square().sum(1).mean())
