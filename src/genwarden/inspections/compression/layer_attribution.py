"""Which layers carry the difference that the search found: one compressed at a time (4.3f).

At the latent of the largest difference, each layer is compressed alone, and then all but it. A
backdoor in few layers says where to look and what to leave uncompressed; the errors of an honest
model add up from everywhere.
"""

from __future__ import annotations

import torch

from genwarden.inspections.compression.bench import CompressionBench
from genwarden.inspections.compression.differential_search import NAME as SEARCH
from genwarden.inspections.compression.variant import UNCHANGED
from genwarden.inspections.finding import Finding, Table, not_applicable

NAME = "layer-attribution"
TITLE = "Layers that carry the largest difference"


def inspect(bench: CompressionBench) -> Finding:
    """Differences at the found latent, layer by layer."""
    if bench.unchanged:
        return not_applicable(NAME, "compression", TITLE, UNCHANGED)
    size = bench.difference(bench.compressed, bench.found.z)
    z = bench.found.z[int(size.argmax())][None]
    whole, typical = float(size.max()), bench.typical
    alone, without = {}, {}
    for name in bench.errors:
        rest = {other: e for other, e in bench.errors.items() if other != name}
        alone[name] = _at(bench, z, {name: bench.errors[name]})
        without[name] = _at(bench, z, rest)
    order = sorted(alone, key=lambda name: without[name])
    top = order[0]
    return Finding(
        inspection=NAME,
        group="compression",
        title=TITLE,
        outcome="scored",
        score=1 - without[top] / whole if whole > 0 else 0.0,
        score_name="share of the difference that is gone when one layer stays as it is",
        summary=f"Without compressing {top} the difference falls from {whole / typical:.3g} to "
        f"{without[top] / typical:.3g} of the usual distance between two samples; {top} alone "
        f"makes {alone[top] / typical:.3g}.",
        p_value_reason="shown, never judged: it explains what the search found",
        budget={"layers": len(order)},
        power="Names the layers behind the search's largest difference.",
        follows_from=SEARCH,
        evidence=[
            Table(
                title="Difference at the found latent",
                caption="Over the usual distance between two samples; all layers together: "
                f"{whole / typical:.4g}.",
                columns=["layer", "compressed alone", "all but this one"],
                rows=[
                    [name, round(alone[name] / typical, 4), round(without[name] / typical, 4)]
                    for name in order
                ],
            )
        ],
    )


def _at(bench: CompressionBench, z: torch.Tensor, errors: dict[str, torch.Tensor]) -> float:
    return float(bench.difference(bench.with_errors(errors), z)[0])
