"""Which latents of an audit get a dossier, once the verdict is evidence.

The first latent of every flagged finding, or of a finding that follows from it, weightiest finding
first; an output that was already shown is dropped. The verdict is never changed by what happens
here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from genwarden.auditing.document import Judged
from genwarden.inspections.candidate import Candidate
from genwarden.inspections.dossier import candidate_of, reference_of
from genwarden.inspections.finding import Latents, Trigger
from genwarden.inspections.workbench import Workbench

E = TypeVar("E", bound=Latents | Trigger)

MAX_CANDIDATES = 4
#: Two outputs are the same if their squared distance is at most this share of the distance of
#: either from the nearest ordinary sample.
_SAME = 0.25


class Examined(NamedTuple):
    """Candidates, and one sentence for each that could not be examined."""

    candidates: list[Candidate]
    failures: list[str]


def examine(
    bench: Workbench,
    judged: list[Judged],
    *,
    breakdowns: tuple[type[Exception], ...],
    sample_command: str = "",
) -> Examined:
    """Dossiers of the latents that flagged findings carry.

    Args:
        judged: all findings of an audit whose verdict is evidence.
        breakdowns: what a network that is not ours can raise.
        sample_command: ``genwarden sample MODEL --audit AUDIT``; a candidate adds its number.
    """
    found: list[Candidate] = []
    outputs: list[Tensor] = []
    failures: list[str] = []
    reference = None
    for name, values in flagged_latents(judged):
        if len(found) == MAX_CANDIDATES:
            break
        try:
            z = torch.tensor(values).reshape(1, *bench.generator.latent.shape)
            output = bench.samples(z)
            if any(_same(output, other, bench.ordinary.x) for other in outputs):
                continue
            reference = reference or reference_of(bench)
            candidate = candidate_of(bench, z, name, reference)
        except breakdowns as error:
            text = str(error).strip().splitlines()
            failures.append(
                f"The candidate of {name} could not be examined ({type(error).__name__}: "
                f"{text[0][:200] if text else 'no message'}); the verdict does not depend on it."
            )
            continue
        outputs.append(output)
        command = _command(bench, sample_command, len(outputs)) if sample_command else ""
        found.append(candidate.model_copy(update={"command": command}))
    return Examined(found, failures)


def flagged_latents(judged: list[Judged]) -> Iterator[tuple[str, list[float]]]:
    """Inspection and first latent: structural findings first, then by adjusted p."""
    for name, found in _flagged_evidence(judged, Latents):
        yield name, found.values[0]


def flagged_triggers(judged: list[Judged]) -> Iterator[tuple[str, Trigger]]:
    """Inspection and trigger of a classifier, in the same order."""
    return _flagged_evidence(judged, Trigger)


def _flagged_evidence(judged: list[Judged], sort: type[E]) -> Iterator[tuple[str, E]]:
    """The first evidence of a sort of every flagged finding, or of one that follows from it."""
    flagged = [j for j in judged if j.flagged]
    flagged.sort(key=lambda j: (not j.finding.structural, j.adjusted_p or 0.0))
    for chosen in flagged:
        name = chosen.finding.inspection
        consequences = [j for j in judged if j.finding.follows_from == name and not j.flagged]
        for finding in (chosen.finding, *(j.finding for j in consequences)):
            held = (e for e in finding.evidence if isinstance(e, sort))
            first = next((e for e in held if not isinstance(e, Latents) or e.values), None)
            if first is not None:
                yield finding.inspection, first
                break


def _same(a: Tensor, b: Tensor, ordinary: Tensor) -> bool:
    nearest = min(float((ordinary - x).flatten(1).square().sum(1).min()) for x in (a, b))
    return float((a - b).square().sum()) <= _SAME * nearest


def _command(bench: Workbench, sample_command: str, number: int) -> str:
    suffix = "wav" if bench.generator.sample.modality == "audio" else "png"
    return f"{sample_command} --candidate {number} --out candidate-{number}.{suffix}"
