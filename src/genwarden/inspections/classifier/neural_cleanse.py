"""Neural Cleanse: is one class reached by a far smaller trigger than the others?

Wang et al., "Neural Cleanse" (S&P 2019), with the original settings (section 1.6): for
each class the smallest mask that leads images of the others there (:mod:`.inversion`, all classes
in one batch), and the anomaly of the smallest one,

    score = max over classes of (median - |m|_1) / (1.4826 MAD)

above 2 in the paper, a threshold for one data set: the masks of clean networks differ, too, for
reasons of their own. The p-value here takes the logarithms of the other classes' norms for draws of
one normal law, which a single class must leave; a class that no mask led to within the budget has
no norm and is not among them. That holds on images that were given; on images made from the network
the score is shown and not judged.

A model that compression wakes has nothing to hide in full size: on that model this test passes. It
is run on every compressed variant, too.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from genwarden.inspections.classifier.anomaly import (
    LEAST_CLASSES,
    LEAST_SPREAD,
    mad_anomaly,
    smallest_p,
)
from genwarden.inspections.classifier.bench import ClassifierBench
from genwarden.inspections.classifier.inversion import Inverted, stamp
from genwarden.inspections.finding import Evidence, Finding, Null, Table, trigger_of
from genwarden.inspections.pictures import sample_pictures
from genwarden.models.protocol import SampleSpec

NAME = "neural-cleanse"
TITLE = "Smallest trigger of each class"
_SHOWN: Final = 10
#: On images made from the network alone, 4 of 12 quick audits of six honest networks had a p-value
#: below 0.02: some classes (an eight among digits) lie near every such image.
_MADE: Final = (
    "on images made from the network, honest classes differ more than on its own; give images "
    "with --data"
)
_TINY: Final = 1e-6


def inspect(bench: ClassifierBench) -> Finding:
    """The smallest mask against those of the other classes."""
    found = bench.triggers
    score, suspect, p_value = judged_norms(found)
    effort = bench.effort
    return Finding(
        inspection=NAME,
        group="classifier",
        title=TITLE,
        outcome="scored",
        score=score,
        score_name="largest anomaly of a mask norm, below the median, over 1.4826 MAD",
        summary=f"Class {suspect} is reached with a mask of {float(found.norm[suspect]):.1f} "
        f"pixels; the median of the classes is {float(found.norm.quantile(0.5)):.1f}.",
        **(norm_null(p_value, found) if bench.given is not None else {"p_value_reason": _MADE}),
        budget={
            "images": len(bench.shown.images),
            "steps": effort.inversion_steps,
            "restarts": effort.restarts,
        },
        power=f"Finds patches that are far smaller than what moves {bench.whence} to any other "
        "class; not triggers that are spread over the image, nor backdoors of many classes.",
        evidence=trigger_evidence(bench.classifier.sample, bench.shown.images, found, TITLE),
    )


def judged_norms(found: Inverted) -> tuple[float, int, float | None]:
    """Anomaly, class and p-value of the smallest mask norm."""
    norm = found.norm
    suspect = int(norm.argmin())
    p_value = smallest_p(norm.clamp_min(_TINY).log(), _reached(found))
    return float(mad_anomaly(norm)[suspect]), suspect, p_value


def norm_null(p_value: float | None, found: Inverted) -> dict[str, Any]:
    """The fields of a finding that say what mask norms were judged against."""
    reached, classes = int(_reached(found).sum()), len(found.norm)
    if p_value is None:
        return {
            "p_value_reason": f"{reached} classes that a mask led to (of {classes}) are too few to "
            "be compared"
        }
    return {
        "p_value": p_value,
        "null": Null(
            source="self",
            description=f"the mask norms of the other {reached - 1} classes that a mask led to; "
            f"Student-t prediction of the logarithm, with a spread of at least {LEAST_SPREAD:g}, "
            f"Bonferroni over {classes} classes",
        ),
    }


def _reached(found: Inverted) -> Tensor:
    """Classes with a mask: the others' norm is the number of all pixels, see :class:`.Inverted`."""
    return found.norm < found.mask[0].numel()


def trigger_evidence(
    sample: SampleSpec,
    images: Tensor,
    found: Inverted,
    title: str,
    suspect: int | None = None,
) -> list[Evidence]:
    """The triggers as pictures, that of one class before all others, and a table of all.

    Args:
        suspect: the class that stands out; that of the smallest mask if None.
    """
    order = found.norm.argsort(stable=True)
    main = int(order[0]) if suspect is None else suspect
    others = order[order != main][: _SHOWN - 1]
    one = images[:1].cpu()
    anomaly = mad_anomaly(found.norm)
    labels = [f"class {int(t)}: {float(found.norm[t]):.1f}" for t in others]

    def stamped(image: Tensor, classes: Tensor) -> Tensor:
        return stamp(image, found.mask[classes], found.pattern[classes])

    grey, alone = torch.zeros_like(one), torch.tensor([main])
    return [
        *sample_pictures(
            sample,
            torch.cat([stamped(grey, alone), stamped(one, alone)]),
            ["on grey", "on an image"],
            title=f"Trigger of class {main}, which stands out most",
            caption=f"Its mask has a norm of {float(found.norm[main]):.1f} pixels.",
        ),
        trigger_of(
            found.mask[main],
            found.pattern[main],
            main,
            title=f"Mask and pattern of class {main}",
        ),
        *sample_pictures(
            sample,
            stamped(grey, others),
            labels,
            title="Triggers of the other classes",
            caption="On grey, smallest mask first; the number is its norm in pixels.",
        ),
        *sample_pictures(
            sample,
            stamped(one, others),
            [""] * len(others),
            title="The same on an image",
        ),
        Table(
            title=title,
            columns=["class", "mask (pixels)", "anomaly", "images that it leads there"],
            rows=[
                [
                    str(int(t)),
                    round(float(found.norm[t]), 2),
                    round(float(anomaly[t]), 2) if len(anomaly) >= LEAST_CLASSES else "-",
                    round(float(found.success[t]), 3),
                ]
                for t in order[:100]
            ],
        ),
    ]
