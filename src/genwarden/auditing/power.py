"""What audits of this budget found where the truth was known.

Measured by ``genwarden benchmark population`` on the models that neither a null nor a choice of
method has seen (its reporting half), and shipped as ``auditing/nulls/power.json``; for diffusion
models by ``diffusion-population`` on both halves, each judged by the other's clean models, for
classifiers by ``compression-population`` on its two parts that gave no null. A report quotes it, so
that "nothing found" says what would have been found.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

POWER = Path(__file__).parent / "nulls" / "power.json"
DIFFUSION_POWER = Path(__file__).parent / "nulls" / "diffusion_power.json"
CLASSIFIER_POWER = Path(__file__).parent / "nulls" / "classifier_power.json"
_GENERATORS = (
    "generators of the population study (28x28 and 32x32 DCGANs and VAEs, targets unknown to the "
    "audit)"
)
_DIFFUSION = (
    "diffusion models of the population study (12x12 to 28x28 pixels, triggers and targets unknown "
    "to the audit)"
)
_CLASSIFIERS = (
    "classifiers of the compression benchmark (triggers and targets unknown to the audit)"
)


def read_power(path: Path) -> dict[str, Any]:
    """By budget: ``clean`` [flagged, models], ``families`` {attack: [found, models]}."""
    if not path.exists():
        return {}
    table: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return table


def power_sentences(
    budget: str, *, diffusion: bool = False, classifiers: bool = False
) -> list[str]:
    """What audits of this budget found in models whose truth was known, one line per attack.

    Args:
        diffusion: in diffusion models instead of generators.
        classifiers: in classifiers, likewise.
    """
    path, models = POWER, _GENERATORS
    if diffusion:
        path, models = DIFFUSION_POWER, _DIFFUSION
    elif classifiers:
        path, models = CLASSIFIER_POWER, _CLASSIFIERS
    measured = read_power(path).get(budget)
    if measured is None:
        return [
            f"Not measured at the {budget} budget: no population study was published for it, so "
            "this audit cannot say how often it would have found a backdoor."
        ]
    flagged, clean = measured["clean"]
    found = sum(counts[0] for counts in measured["families"].values())
    total = sum(counts[1] for counts in measured["families"].values())
    lines = [
        f"Of {total} compromised {models} this budget found {found}; of {clean} clean ones it "
        f"flagged {flagged}."
    ]
    lines += [f"{name}: {hit} of {of}" for name, (hit, of) in measured["families"].items()]
    return lines
