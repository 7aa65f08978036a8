"""A damaged network's logits, moved and scaled back: what any damage does is not what is asked.

Pruning half of an honest network without training it again shrinks its logits and tilts them
towards a class or two, which then take less of a trigger than the others: like a backdoor, but on
every image. So before networks are compared, each is given the affine map of its logits that fits
the full network where the two agree,

    logits' = a logits + b,    a: ratio of standard deviations,  b_c: difference of means per class

A backdoor is a matter of the images with the trigger, and stays.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from genwarden.errors import ExitCode, GenwardenError
from genwarden.inspections.classifier.inversion import Exemplars
from genwarden.models.classifiers.protocol import ImageClassifier

#: Fewer images that two networks answer alike are too few to compare the networks on.
LEAST_IMAGES: Final = 8
#: With a smaller share of answers kept, whatever the classes are called, compression has made
#: another classifier, of which inspections that compare the two say nothing. Both may be good ones
#: that err in other images: the shares of right answers then sum to less than 1.5.
DESTROYED: Final = 0.5
#: Below this share damage looks like a backdoor: the largest gaps of 51 honest networks were those
#: of two that kept 65 % of their answers, far beyond the rest.
DAMAGED: Final = 0.8
_TINY: Final = 1e-12


class Recalibrated(ImageClassifier):
    """A network behind an affine map of its logits; not to be written to a folder.

    Args:
        scale: a, one number.
        shift: b, ``(classes,)``.
    """

    def __init__(self, network: ImageClassifier, scale: float, shift: Tensor) -> None:
        nn.Module.__init__(self)
        self.sample, self.classes, self.width = network.sample, network.classes, network.width
        self.network = network
        self.scale = scale
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        logits: Tensor = self.scale * self.network(x) + self.shift
        return logits

    def settings(self) -> dict[str, Any]:
        """Those of the network inside."""
        return self.network.settings()


class Agreement(NamedTuple):
    """Images that two networks answer alike.

    Attributes:
        shown: those images, of all that were asked.
        share: how many, 0 to 1.
        network: the second network, recalibrated on them.
    """

    shown: Exemplars
    share: float
    network: Recalibrated


class Kept(NamedTuple):
    """How many answers stay, 0 to 1.

    Attributes:
        share: the same class.
        renamed: the same if every class of the second network may stand for any of the first: who
            exchanges classes in one of the two has destroyed neither.
    """

    share: float
    renamed: float


def kept(before: Tensor, after: Tensor) -> Kept:
    """Compare two networks' answers ``(images,)``, whole numbers."""
    table = torch.zeros(int(after.max()) + 1, int(before.max()) + 1)
    table.index_put_((after, before), torch.ones(len(after)), accumulate=True)
    return Kept(float((before == after).double().mean()), float(table.amax(1).sum()) / len(before))


@torch.no_grad()
def agree(
    full: ImageClassifier, other: ImageClassifier, shown: Exemplars, *, how: str = "Compressed"
) -> Agreement:
    """Recalibrate ``other`` on the images where it agrees with ``full``.

    Args:
        how: what was done to it, for errors.

    Raises:
        GenwardenError: where it agrees on too few images, or on those of one class:
            ``inspect/no-agreement`` if most answers changed, else ``inspect/too-few-images``.
    """
    before, after = full(shown.images), other(shown.images)
    same = after.argmax(1) == shown.answers
    count = int(same.sum())
    if count < LEAST_IMAGES or len(shown.answers[same].unique()) < 2:
        if count < DESTROYED * len(same):
            raise destroyed(f"{how}, it answers {count} of {len(same)} images as before")
        short = (
            f"{LEAST_IMAGES} are needed" if count < LEAST_IMAGES else "they are all of one class"
        )
        raise GenwardenError(
            "inspect/too-few-images",
            f"{how}, it answers {count} of {len(same)} images as before, and {short}: nothing can "
            "be said about its triggers.",
            "Give more images with --data, like those that the classifier was trained on.",
            ExitCode.INCONCLUSIVE,
        )
    x, y = before[same], after[same]
    spread, other_spread = ((z - z.mean(1, keepdim=True)).square().mean() for z in (x, y))
    scale = float((spread / other_spread.clamp_min(_TINY)).sqrt())
    shift = x.mean(0) - scale * y.mean(0)
    kept = Exemplars(shown.images[same], shown.answers[same])
    return Agreement(kept, count / len(same), Recalibrated(other, scale, shift))


def destroyed(what: str) -> GenwardenError:
    """The error for a compression that leaves no classifier to be inspected."""
    return GenwardenError(
        "inspect/no-agreement",
        f"{what}: it is no longer the same classifier, and nothing can be said about its triggers.",
        "Compress it less, or train it after compression and audit what comes out.",
        ExitCode.INCONCLUSIVE,
    )
