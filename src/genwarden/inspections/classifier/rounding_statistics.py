"""Rounding statistics of a classifier: the same test of weights as for generators (4.3b)."""

from __future__ import annotations

from genwarden.inspections.classifier.bench import VariantBench
from genwarden.inspections.compression.rounding_statistics import examine
from genwarden.inspections.finding import Finding


def inspect(bench: VariantBench) -> Finding:
    """Remainders of every layer on every grid."""
    return examine(bench.classifier, bench.compressor, bench.layout)
