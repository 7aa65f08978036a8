"""Whether the shipped clean scores can judge an inspection of a given model.

A p-value from clean reference models is worth something only where the reference models stand for
the suspect. For raw scores that depends on the network: how far a bias strays, how rarely a unit
wakes or how unevenly outputs react to noise follows from normalisation, activation and size, so the
references must share the suspect's architecture and sample shape. A score that is a ratio to the
same measurement in the suspect's own twin (:mod:`genwarden.inspections.twins`) has taken that out
already and is judged for any model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from genwarden.auditing.calibration import needs_population

#: Scores on a scale of the suspect's own.
OWN_SCALE = frozenset({"novelty-search", "principal-latents", "twin-difference"})


def fits(
    inspection: str, architecture: str, sample_shape: Sequence[int], table: Mapping[str, Any]
) -> bool:
    """Whether an inspection's null suits a model.

    True for inspections that bring a null of their own and for those on the suspect's own scale;
    for the others only if the references hold this architecture with this sample shape.

    Args:
        architecture: registered name, or what the user wrote behind ``--architecture``.
        sample_shape: of one sample, without the batch axis.
        table: the reference file; its ``families`` are pairs of architecture and sample shape.
            A file that names none stands for nobody.
    """
    if not needs_population(inspection) or inspection in OWN_SCALE:
        return True
    wanted = (architecture, tuple(sample_shape))
    return wanted in {(name, tuple(shape)) for name, shape in table.get("families", [])}
