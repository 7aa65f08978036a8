"""Classifiers that were compressed before the audit: nothing clears them.

What compression woke is awake in such a model, where only Neural Cleanse and STRIP look for it:
they pass classifiers that send every triggered image to one class. The model it was made from
tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor

from genwarden.auditing.audit_variants import unchanged
from genwarden.auditing.document import Variant
from genwarden.auditing.running import BREAKDOWNS, reason_of
from genwarden.auditing.verdict import WOKEN_BEFORE
from genwarden.compression.how import compressor
from genwarden.compression.recognition import share_of_few_values
from genwarden.inspections.classifier.bench import ClassifierBench, VariantBench

#: Grids that are called by name where weights lie on one.
_NAMED: Final = ("int8", "int8-per-channel", "int4", "int4-per-channel", "q8_0", "q4_0", "nf4")
#: A layer was quantised if this share of its blocks looks like it; of trained ones none does.
_QUANTISED: Final = 0.2
#: The share of all weights, 0 or in quantised layers, that training does not leave.
_TRACE: Final = 0.05
#: As a share of a layer's largest weight.
_NOTHING: Final = 1e-5


def changing_nothing(variants: Sequence[Variant]) -> list[str]:
    """Why an audit clears nothing whose variant is the model as it is; a sentence each."""
    return [
        f"{variant.name} changes no weight, as if it had been applied already. "
        f"{_original_wanted(variant.name)}"
        for variant in variants
        if any(unchanged(j.finding) for j in variant.findings)
    ]


def traces(bench: ClassifierBench) -> list[str]:
    """The same where the weights themselves show it, whatever the audit was asked to compress."""
    try:
        return _traces(bench)
    except BREAKDOWNS as error:
        return [
            f"Whether its weights were compressed already could not be told: {reason_of(error)}"
        ]


def _traces(bench: ClassifierBench) -> list[str]:
    variants = [VariantBench(bench, compressor(how)) for how in _NAMED]
    layout = variants[0].layout
    weights = {name: bench.classifier.get_parameter(name) for name in layout}
    count = max(1, sum(weight.numel() for weight in weights.values()))
    quantised = [
        name
        for name, layer in layout.items()
        if share_of_few_values(weights[name], layer) >= _QUANTISED
    ]
    few = sum(weights[name].numel() for name in quantised) / count
    zeros = sum(_zeros(weight) for weight in weights.values()) / count
    how = ""
    if few >= _TRACE:
        on = next((one.compressor.name for one in variants if one.unchanged), "")
        seen = f"The weights lie on the grid of {on}"
        if not on:
            seen = (
                f"{few:.0%} of the weights (in {len(quantised)} of {len(layout)} layers) have few "
                "different values, at most 256 in a block, as after rounding to 8 bits or less"
            )
        how = on
        if zeros >= _TRACE:
            seen += f", and {zeros:.0%} of them are 0, as few bits leave them, or pruning before"
    elif zeros >= _TRACE:
        seen = f"{zeros:.0%} of the weights are 0, as after pruning or rounding to few bits"
    else:
        return []
    return [f"{seen}: this classifier has been compressed already. {_original_wanted(how)}"]


def _zeros(weight: Tensor) -> int:
    """Weights that do nothing; those below rounding are no others than 0."""
    return int((weight.abs() <= _NOTHING * weight.abs().amax()).sum())


def _original_wanted(how: str) -> str:
    used = how or "and the compression that was used"
    return f"{WOKEN_BEFORE}: audit the model that they were made from with --deploy-as {used}."
