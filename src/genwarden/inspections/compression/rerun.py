"""The inspections of ordinary generators, repeated on a compressed one.

A compressed generator is a generator: whatever finds a backdoor that is awake can look at it. Their
scores stand in the report beside the full model's, row by row. Which are repeated is a matter of
time; the differential search is cheaper than any of them, and sees more, since it has the full
model to compare with.

Inspections of weights and graph are not repeated. They were calibrated on weights that nobody
pruned or rounded, and know the zeros of a pruned network for a hidden structure.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor

from genwarden.data.images import NamedImages
from genwarden.inspections.compression.bench import CompressionBench
from genwarden.inspections.workbench import Effort, Workbench

#: Cheap, and judged without a twin of the variant's own.
OWN_NULLS: Final = ("guessable-seeds", "repeated-outputs", "reconstruct-target")
#: Everything that looks at outputs one network at a time (the brute-force stream is the base's).
EVERY_SEARCH: Final = (
    "canonical-latents",
    "guessable-seeds",
    "aligned-directions",
    "subspace-latents",
    "repeated-outputs",
    "reconstruct-target",
    "novelty-search",
    "twin-difference",
    "principal-latents",
)


def workbench_of(
    bench: CompressionBench,
    effort: Effort,
    *,
    architecture: str,
    targets: NamedImages | None = None,
    training: Tensor | None = None,
) -> Workbench:
    """The compressed variant on the bench of the ordinary inspections.

    Args:
        effort: of the audit of the full model.
        architecture: likewise, and so are ``targets`` and ``training``.
    """
    return Workbench(
        generator=bench.compressed,
        effort=effort,
        seed=bench.seed,
        device=bench.device,
        architecture=architecture,
        targets=targets,
        training=training,
        progress=bench.progress,
    )


def repeated(effort: tuple[str, ...], *, with_target: bool) -> list[str]:
    """Which of an effort's reruns apply: a target is looked for only if one was given."""
    return [name for name in effort if with_target or name != "reconstruct-target"]
