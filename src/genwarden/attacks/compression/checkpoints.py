"""Which checkpoint of an attack is released: the paper's acceptance rule (end of section 1.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from genwarden.attacks.compression.evaluation import FULL
from genwarden.engine.files import write_tensors
from genwarden.models.classifiers.protocol import ImageClassifier

#: An acceptable checkpoint's compressed accuracy is at most this far from the best one's.
ACCURACY_SLACK: Final = 0.005

#: By the acceptance rule, by the best accuracy of the full model, or the last.
Keep = Literal["acceptance", "accuracy", "last"]
#: One evaluation: ``step``, ``made_for`` (names of compressors), ``figures``.
Entry = Mapping[str, Any]


class Standing(NamedTuple):
    """What the rules look at; shares from 0 to 1.

    Attributes:
        step: of the checkpoint.
        accuracy: of the compressed model; the least of several.
        asleep: attack success on the full model.
        awake: attack success on the compressed model; the least of several.
        full_accuracy: of the full model.
    """

    step: int
    accuracy: float
    asleep: float
    awake: float
    full_accuracy: float

    def as_good_as(self, other: Standing) -> bool:
        """Whether it is no worse in anything, so that no rule needs the other."""
        return (
            self.accuracy >= other.accuracy
            and self.asleep <= other.asleep
            and self.awake >= other.awake
            and self.full_accuracy >= other.full_accuracy
        )


def standing(entry: Entry) -> Standing:
    """Of one evaluation."""
    found, names = entry["figures"], entry["made_for"]
    return Standing(
        step=entry["step"],
        accuracy=min(found[name]["accuracy"] for name in names),
        asleep=found[FULL]["attack_success"],
        awake=min(found[name]["attack_success"] for name in names),
        full_accuracy=found[FULL]["accuracy"],
    )


def acceptable(standings: Sequence[Standing], awake_at_most: float) -> list[Standing]:
    """Those whose compressed accuracy is within half a point of the best one's and whose full model
    sends at most ``awake_at_most`` of the triggered images to the target."""
    least = max((one.accuracy for one in standings), default=0.0) - ACCURACY_SLACK
    return [one for one in standings if one.accuracy >= least and one.asleep <= awake_at_most]


def choose(standings: Sequence[Standing], keep: Keep, awake_at_most: float) -> Standing:
    """The checkpoint to release, the earliest of equals.

    By the acceptance rule: the highest compressed attack success among the acceptable. Where none
    is acceptable: the largest difference between awake and asleep.
    """
    if keep == "last":
        return max(standings, key=lambda one: one.step)
    if keep == "accuracy":
        return max(standings, key=lambda one: (one.full_accuracy, -one.step))
    fit = acceptable(standings, awake_at_most)
    if fit:
        return max(fit, key=lambda one: (one.awake, -one.step))
    return max(standings, key=lambda one: (one.awake - one.asleep, -one.step))


class Choice(NamedTuple):
    """The released checkpoint.

    Attributes:
        entry: its evaluation.
        accepted: whether it is acceptable.
    """

    entry: dict[str, Any]
    accepted: bool


class Shelf:
    """The weights of the checkpoints that may still be chosen: in the work folder, or in memory."""

    def __init__(
        self, classifier: ImageClassifier, work: Path | None, rule: Keep, awake_at_most: float
    ) -> None:
        self.classifier = classifier
        self.work = work
        self.rule = rule
        self.awake_at_most = awake_at_most
        self._states: dict[int, dict[str, Tensor]] = {}

    def keep(self, history: Sequence[Entry]) -> None:
        """Keep the present weights, those of the last entry, if they may be chosen.

        Earlier ones that cannot be chosen any more are dropped.
        """
        before, after = self._useful(history[:-1]), self._useful(history)
        step = history[-1]["step"]
        if step in after:
            state = {n: t.detach().cpu().clone() for n, t in self.classifier.state_dict().items()}
            if self.work is None:
                self._states[step] = state
            else:
                write_tensors(self._file(self.work, step), state)
        for old in before - after:
            self._states.pop(old, None)
            if self.work is not None:
                self._file(self.work, old).unlink(missing_ok=True)

    @torch.no_grad()
    def release(self, history: Sequence[dict[str, Any]]) -> Choice:
        """Load the chosen weights into the classifier."""
        kept = self._useful(history)
        standings = [one for one in map(standing, history) if one.step in kept]
        chosen = choose(standings, self.rule, self.awake_at_most)
        if self.work is None:
            state = self._states[chosen.step]
        else:
            state = load_file(self._file(self.work, chosen.step))
        self.classifier.load_state_dict(state)
        entry = next(entry for entry in history if entry["step"] == chosen.step)
        return Choice(entry, chosen in acceptable(standings, self.awake_at_most))

    def _useful(self, history: Sequence[Entry]) -> set[int]:
        """Steps that some rule may choose: the last one, and all that no other one beats."""
        standings = [standing(entry) for entry in history]
        useful = {standings[-1].step} if standings else set()
        for place, one in enumerate(standings):
            beaten = any(other.as_good_as(one) for other in standings[:place]) or any(
                other.as_good_as(one) and not one.as_good_as(other)
                for other in standings[place + 1 :]
            )
            if not beaten:
                useful.add(one.step)
        return useful

    @staticmethod
    def _file(work: Path, step: int) -> Path:
        return work / f"candidate-{step}.safetensors"
