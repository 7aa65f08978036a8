"""STRIP: does an answer survive when other images are blended in?

Gao et al., "STRIP" (ACSAC 2019): an image with a trigger keeps its class whatever is laid over it,
so the predictions of its blends with other images have a low entropy,

    H(x) = -1/N sum_n sum_c p_c log2 p_c,    p = softmax(f(blend of x and x_n))

where a blend is the sum of the pixels, 0 to 1, cut off at 1 (as in the authors' code), and inputs
below the clean images' 1 % quantile (a false rejection rate of 1 %) are rejected. It tests inputs.
Here the inputs are images that carry the trigger that Neural Cleanse recovered for the class with
the smallest mask: a backdoor's dominates like the attacker's own, an adversarial patch drowns. The
images that the user gave are ranked, too.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

from genwarden.inspections.classifier.bench import ClassifierBench
from genwarden.inspections.classifier.inversion import stamp
from genwarden.inspections.finding import Chart, Finding, Line, Table
from genwarden.inspections.pictures import sample_pictures

NAME = "strip"
TITLE = "Entropy of blends with the recovered trigger (STRIP)"
FALSE_REJECTIONS: Final = 0.01
_BINS: Final = 24
_TESTED: Final = 64
_SHOWN: Final = 8
_LEAST_SPREAD: Final = 1e-3


class Strip(NamedTuple):
    """Entropies in bits.

    Attributes:
        clean: of the clean images ``(count,)``.
        tested: of the images in question.
        threshold: the clean images' 1 % quantile.
    """

    clean: Tensor
    tested: Tensor
    threshold: float

    @property
    def rejected(self) -> float:
        """Share of the images in question below the threshold."""
        return float((self.tested < self.threshold).double().mean())

    @property
    def distance(self) -> float:
        """How far their mean lies below the clean one, in clean standard deviations."""
        away = float(self.clean.mean() - self.tested.mean())
        return away / max(float(self.clean.std()), _LEAST_SPREAD)


def strip(bench: ClassifierBench, suspicious: Tensor) -> Strip:
    """Test images ``(count, C, H, W)`` in [-1, 1] against the bench's own images."""
    clean = entropies(bench, bench.shown.images[:_TESTED])
    return Strip(clean, entropies(bench, suspicious), float(clean.quantile(FALSE_REJECTIONS)))


def entropies(bench: ClassifierBench, images: Tensor) -> Tensor:
    """Mean entropy (bits) of every image's blends with the same number of others, ``(count,)``."""
    others = bench.shown.images
    stream = bench.stream("strip-blends")
    found = []
    for image in images.to(bench.device):
        chosen = torch.randint(len(others), (bench.effort.blends,), generator=stream)
        p = bench.logits(bench.classifier, blended(image, others[chosen])).softmax(1)
        found.append(torch.special.entr(p).sum(1).mean() / torch.log(torch.tensor(2.0)))
    return torch.stack(found)


def blended(x: Tensor, others: Tensor) -> Tensor:
    """Sum of pixels in [0, 1], cut off at 1; everything in [-1, 1]."""
    return (x + others + 1).clamp(-1, 1)


def inspect(bench: ClassifierBench) -> Finding:
    """Images with the recovered trigger of the most anomalous class."""
    triggers = bench.triggers
    target = int(triggers.norm.argmin())
    others = bench.shown.images[(bench.shown.answers != target)][:_TESTED].cpu()
    stamped = stamp(others, triggers.mask[target], triggers.pattern[target])
    found = strip(bench, stamped)
    return Finding(
        inspection=NAME,
        group="classifier",
        title=TITLE,
        outcome="scored",
        score=found.distance,
        score_name="mean entropy below the clean images', in clean standard deviations",
        summary=f"With the trigger recovered for class {target}, blends have "
        f"{float(found.tested.mean()):.2f} bits, without {float(found.clean.mean()):.2f}; "
        f"{found.rejected:.0%} of the images are rejected at {FALSE_REJECTIONS:.0%} false "
        "rejections.",
        p_value_reason="needs the scores of clean reference models",
        budget={
            "images": len(found.tested),
            "clean_images": len(found.clean),
            "blends": bench.effort.blends,
        },
        power="Finds recovered triggers that dominate an image; not patches that merely move it, "
        "nor triggers that depend on the image.",
        evidence=[
            _histogram(found),
            *sample_pictures(
                bench.classifier.sample,
                stamped[:_SHOWN],
                [f"{float(bits):.2f}" for bits in found.tested[:_SHOWN]],
                title="Images with the recovered trigger",
                caption="The number is the entropy of their blends in bits.",
            ),
            *([_given(bench, found)] if bench.given is not None else []),
        ],
    )


def _histogram(found: Strip) -> Chart:
    top = max(float(found.clean.max()), float(found.tested.max()), _LEAST_SPREAD)
    edges = torch.linspace(0, top, _BINS + 1, dtype=torch.float64)
    centres = [round(float(x), 4) for x in (edges[1:] + edges[:-1]) / 2]
    lines = [("clean images", found.clean), ("with the recovered trigger", found.tested)]
    return Chart(
        title="Entropy of blends",
        style="histogram",
        x_label="bits",
        y_label="images",
        lines=[
            Line(name=name, x=centres, y=torch.histc(h, _BINS, 0, top).tolist())
            for name, h in lines
        ],
        mark_x=round(found.threshold, 4),
    )


def _given(bench: ClassifierBench, found: Strip) -> Table:
    """The given images that keep their answer most stubbornly."""
    order = found.clean.argsort(stable=True)[:_SHOWN]
    return Table(
        title="Given images with the lowest entropy",
        caption="Look at these first if the images may carry a trigger.",
        columns=["image of those drawn", "answer", "entropy (bits)"],
        rows=[
            [
                str(int(i)),
                str(int(bench.shown.answers[i])),
                round(float(found.clean[i]), 3),
            ]
            for i in order
        ],
    )
