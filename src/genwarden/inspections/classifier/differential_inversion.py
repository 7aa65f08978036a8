"""A trigger that the compressed network sees and the full one does not (section 4.3c).

For each class t, with y = f(x), over masks m and patterns p

    objective_t(C) = min  CE(C(f)(x'), t) + CE(f(x'), y) + 0.02 |m|_1

That some image separates the two networks says nothing: where they differ at all, an adversarial
one does. What counts is how easily it is done, and that depends on the class and on the size of the
errors. So the same inversion, from the same starts and with the same images, separates the full
network from *placebos* (errors of the same sizes with random signs, see
:mod:`genwarden.inspections.compression.bench`), all on images that the compressed network answers
as the full one, and with logits brought to the same scale there (:mod:`.recalibration`). Per class

    gap_t = mean over placebos ln(objective_t(placebo)) - ln(objective_t(C))

    differential-inversion:  score = largest gap; 0 is expected of every class of an honest model,
                             give or take as much as such errors move the logits
    differential-gap:        the same score, beside those of clean networks under this compression
    differential-mask:       the anomaly of the smallest |m|_1 among the classes (MAD), the
                             published score; it survives an attacker who trained over jittered
                             quantisers, in whose model the placebos are awake, too

What wakes may lift the logit of its class on every image, and recalibration then takes the lift for
damage and the trigger's strength with it: of two models with the paper's joint loss, whose trigger
takes all images once rounded, it left a third. So the inversion is made once more with the
compressed network as it is, and *guarded*: placebos must not see the trigger, either. An input at
which any damage of that size shows is then no way out. (What random signs do not do remains: under
pruning, which only shrinks weights, honest networks lean towards a class with guards as without,
and the references of that compression have to bear it.) How far one class stands before all others
counts, o_1 <= o_2 <= ... being the objectives of the classes:

    guarded-lead:       score = ln(o_2 / o_1) / (s + 0.15),  s: standard deviation of ln o_i,
                             i >= 2; beside those of clean networks under this compression

The 0.15 keep networks whose other classes happen to be equally hard from a large score. Form and
unit were chosen among six on the calibration half of the study. Guards answer for the full
network's answers: where errors break them, too (pruning of half), all objectives rise, and the
score says less. Whoever gives a second class a backdoor as easy as the first takes the lead away.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from scipy.special import stdtr
from torch import Tensor

from genwarden.inspections.classifier.bench import VariantBench
from genwarden.inspections.classifier.inversion import Inverted
from genwarden.inspections.classifier.neural_cleanse import (
    judged_norms,
    norm_null,
    trigger_evidence,
)
from genwarden.inspections.compression.variant import UNCHANGED
from genwarden.inspections.finding import Finding, Null, Table, not_applicable

NAME = "differential-inversion"
TITLE = "Trigger that only the compressed network sees"
GAP = "differential-gap"
GAP_TITLE = "Trigger that only the compressed network sees, beside clean networks"
MASK = "differential-mask"
MASK_TITLE = "Smallest trigger that only the compressed network sees"
LEAD = "guarded-lead"
LEAD_TITLE = "Class that the compressed network gives away before all others"

#: Spread of the gaps between classes of a clean network, over how far placebos move its logits: of
#: the lower halves of the classes, 1.35 in the nine clean classifiers of the study's calibration
#: half (1.44 of all classes), from rounding to four bits (0.14) to pruning of half (0.36).
SPREAD_PER_MOVEMENT: Final = 1.35
#: Below which no spread is believed: errors that move hardly anything (int8: 0.01) leave gaps of
#: 0.02, but single classes of clean networks stray farther.
LEAST_SPREAD: Final = 0.15
#: Beyond which nothing is judged: in the clean classifiers it is 0.4 at most (pruning of half).
MOST_MOVEMENT: Final = 0.5
#: What the expectation weighs, in classes.
PRIOR_WORTH: Final = 8
_TINY: Final = 1e-6
_SHOWN: Final = 100


def inspect(bench: VariantBench) -> Finding:
    """The class that the variant separates more easily than the placebos do."""
    if why := bench.damaged:
        return not_applicable(NAME, "classifier", TITLE, why)
    if bench.unchanged:
        return not_applicable(NAME, "classifier", TITLE, UNCHANGED)
    found, placebos = bench.differential, bench.placebo_differentials
    gaps = _gaps(bench)
    suspect = int(gaps.argmax())
    effort = bench.effort
    placebo_count = f"{len(placebos)} placebo{'' if len(placebos) == 1 else 's'}"
    return Finding(
        inspection=NAME,
        group="classifier",
        title=TITLE,
        outcome="scored",
        score=float(gaps[suspect]),
        score_name="largest ln(objective with errors of random signs / objective)",
        summary=f"Class {suspect} is separated with an objective of "
        f"{float(found.objective[suspect]):.2f} (mask of {float(found.norm[suspect]):.1f} pixels); "
        f"with errors of the same size and random signs it takes "
        f"{math.exp(float(_log(placebos).mean(0)[suspect])):.2f}. The median class has a gap of "
        f"{float(gaps.quantile(0.5)):.2f}.",
        **_judged(gaps, bench.placebo_movement, placebo_count, bench.no_placebo),
        budget={
            "images": len(bench.alone.shown.images),
            "steps": effort.inversion_steps,
            "placebos": len(placebos),
        },
        power=f"Finds triggers that a gradient leads to from {bench.alone.whence}, if the full "
        "network is blind to them and compressions with errors in other directions do not wake "
        f"them; not under other compressions than {bench.compressor.name}.",
        evidence=[
            *trigger_evidence(
                bench.classifier.sample, bench.alone.shown.images, found, MASK_TITLE, suspect
            ),
            _table(found, placebos, gaps),
        ],
    )


def inspect_gap(bench: VariantBench) -> Finding:
    """The largest gap, for references of clean networks under the same compression."""
    if why := bench.damaged:
        return not_applicable(GAP, "classifier", GAP_TITLE, why)
    if bench.unchanged:
        return not_applicable(GAP, "classifier", GAP_TITLE, UNCHANGED)
    gaps = _gaps(bench)
    suspect = int(gaps.argmax())
    return Finding(
        inspection=GAP,
        group="classifier",
        title=GAP_TITLE,
        outcome="scored",
        score=float(gaps[suspect]),
        score_name="largest ln(objective with errors of random signs / objective)",
        summary=f"The gap of class {suspect} is {float(gaps[suspect]):.2f}.",
        p_value_reason="needs the scores of clean reference models",
        budget={
            "images": len(bench.alone.shown.images),
            "steps": bench.effort.inversion_steps,
            "placebos": len(bench.placebo_differentials),
        },
        power="Finds what the inversion above finds, more sharply, where clean networks of this "
        "family were measured under this compression.",
        follows_from=NAME,
    )


def inspect_mask(bench: VariantBench) -> Finding:
    """The published score: the smallest mask among those of all classes."""
    if bench.unchanged:
        return not_applicable(MASK, "classifier", MASK_TITLE, UNCHANGED)
    found = bench.differential
    score, suspect, p_value = judged_norms(found)
    return Finding(
        inspection=MASK,
        group="classifier",
        title=MASK_TITLE,
        outcome="scored",
        score=score,
        score_name="largest anomaly of a mask norm, below the median, over 1.4826 MAD",
        summary=f"Class {suspect} is separated with a mask of {float(found.norm[suspect]):.1f} "
        f"pixels; the median of the classes is {float(found.norm.quantile(0.5)):.1f}.",
        **norm_null(p_value, found),
        budget={
            "images": len(bench.alone.shown.images),
            "steps": bench.effort.inversion_steps,
        },
        power="Finds what the inversion above finds if one class stands out from many, also where "
        "any errors of this size wake it.",
        follows_from=NAME,
    )


def inspect_lead(bench: VariantBench) -> Finding:
    """How far the easiest class stands before all others where placebos are blind, too."""
    if bench.unchanged:
        return not_applicable(LEAD, "classifier", LEAD_TITLE, UNCHANGED)
    if bench.no_placebo:
        return not_applicable(
            LEAD, "classifier", LEAD_TITLE, f"Nothing to guard with: {bench.no_placebo}."
        )
    found = bench.guarded_differential
    suspect, second = found.objective.argsort(stable=True)[:2].tolist()
    guards = bench.effort.guards
    return Finding(
        inspection=LEAD,
        group="classifier",
        title=LEAD_TITLE,
        outcome="scored",
        score=lead(found),
        score_name="ln(objective of the second easiest class / of the easiest), over the scatter "
        "of the others",
        summary=f"Class {suspect} is separated from the full network and from {guards} with errors "
        f"of random signs with an objective of {float(found.objective[suspect]):.2f} (mask of "
        f"{float(found.norm[suspect]):.1f} pixels), the next, {second}, with "
        f"{float(found.objective[second]):.2f}.",
        p_value_reason="needs the scores of clean reference models",
        budget={
            "images": len(bench.alone.shown.images),
            "steps": bench.effort.inversion_steps,
            "guards": guards,
        },
        power="Finds a trigger of one class that errors in other directions do not wake, also "
        "where what wakes shows on every image, if clean networks of this family were measured "
        "under this compression; not backdoors of several classes.",
        evidence=trigger_evidence(
            bench.classifier.sample, bench.alone.shown.images, found, LEAD_TITLE, suspect
        ),
    )


def lead(found: Inverted) -> float:
    """How far the smallest of the objectives ``(classes,)``, at least two, lies before the rest."""
    logs = _log([found])[0].sort().values
    scatter = float(logs[1:].std(correction=0))
    return float(logs[1] - logs[0]) / (scatter + LEAST_SPREAD)


def gap_p(gaps: Tensor, movement: float) -> float:
    """Probability of a gap as large as the largest of ``(classes,)`` in an honest model.

    The gaps of an honest model scatter around 0. How widely is read off the lower half of the
    classes, so that several attacked ones do not hide each other, and from how far placebos move
    the logits (:attr:`.VariantBench.placebo_movement`).
    """
    values = gaps.double()
    median = values.quantile(0.5)
    lower = values[values <= median] - median
    squares = float(lower.square().sum()) + PRIOR_WORTH * expected_spread(movement) ** 2
    freedom = len(lower) + PRIOR_WORTH
    t = float(values.max()) / math.sqrt(squares / freedom)
    return min(1.0, max(len(values) * float(stdtr(freedom, -t)), 1e-300))


def _judged(gaps: Tensor, movement: float, placebos: str, no_placebo: str) -> dict[str, Any]:
    """The p-value and its null; none where placebos are none, or no clean network was measured."""
    if no_placebo:
        return {"p_value_reason": f"nothing to compare with: {no_placebo}"}
    if not movement <= MOST_MOVEMENT:
        return {
            "p_value_reason": f"errors of this size move the logits by {movement:.2f} of their "
            f"spread; how widely honest classes scatter is known up to {MOST_MOVEMENT:g}"
        }
    suspect = int(gaps.argmax())
    return {
        "p_value": gap_p(gaps, movement),
        "null": Null(
            source="self",
            description=f"the same inversion in {placebos}, this model with errors "
            "of the same sizes and random signs in its weights, class by class; Student-t with the "
            "spread of the lower half of the classes, moderated by what is expected where "
            f"such errors move the logits by {movement:.2f} of their spread "
            f"({expected_spread(movement):.2f}, worth {PRIOR_WORTH} classes), "
            f"Bonferroni over {len(gaps)} classes",
            values=[round(float(g), 6) for i, g in enumerate(gaps) if i != suspect],
        ),
    }


def expected_spread(movement: float) -> float:
    """Standard deviation of the gaps of an honest model whose logits move so far."""
    return max(LEAST_SPREAD, SPREAD_PER_MOVEMENT * movement)


def _gaps(bench: VariantBench) -> Tensor:
    """By class, how much more easily the variant is separated than the placebos."""
    return _log(bench.placebo_differentials).mean(0) - _log([bench.differential])[0]


def _log(found: list[Inverted]) -> Tensor:
    """Logarithms of the objectives ``(networks, classes)``."""
    return torch.stack([one.objective for one in found]).clamp_min(_TINY).log()


def _table(found: Inverted, placebos: list[Inverted], gaps: Tensor) -> Table:
    usual = _log(placebos).mean(0).exp()
    mask = torch.stack([one.norm for one in placebos]).mean(0)
    return Table(
        title="How hard it is to separate the networks, by class",
        caption="Widest gap first.",
        columns=["class", "objective", "placebo", "gap", "mask (pixels)", "mask of placebo"],
        rows=[
            [
                str(int(t)),
                round(float(found.objective[t]), 3),
                round(float(usual[t]), 3),
                round(float(gaps[t]), 3),
                round(float(found.norm[t]), 2),
                round(float(mask[t]), 2),
            ]
            for t in gaps.argsort(descending=True, stable=True)[:_SHOWN]
        ],
    )
