"""Several compressions one after another: pruned, then quantised."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from genwarden.compression.contract import Box, Compressor, Weights
from genwarden.compression.layers import Layout


@dataclass(frozen=True)
class Chain:
    """Each stage works on what the one before it made.

    On a network (:mod:`genwarden.compression.apply`) every stage folds batch norm or not as it
    would alone.

    Attributes:
        stages: two or more, in the order in which they are applied.
    """

    stages: tuple[Compressor, ...]

    @property
    def name(self) -> str:
        """``prune-0.3+int8``."""
        return "+".join(stage.name for stage in self.stages)

    @property
    def folds(self) -> bool:
        """Whether any stage does."""
        return any(stage.folds for stage in self.stages)

    def __call__(self, weights: Weights, layout: Layout) -> dict[str, Tensor]:
        """See :class:`genwarden.compression.contract.Compressor`."""
        made: dict[str, Tensor] = {}
        for stage in self.stages:
            made.update(stage({**weights, **made}, layout))
        return made

    def box(self, weights: Weights, layout: Layout) -> dict[str, Box]:
        """Per weight the box of the first stage that works on it: the others then see the same."""
        made: dict[str, Tensor] = {}
        boxes: dict[str, Box] = {}
        for stage in self.stages:
            seen = {**weights, **made}
            if boxes.keys() >= weights.keys():
                break
            boxes = {**stage.box(seen, layout), **boxes}
            made.update(stage(seen, layout))
        return boxes


def stages_of(compressor: Compressor) -> tuple[Compressor, ...]:
    """The stages of a chain, or the compressor itself."""
    return compressor.stages if isinstance(compressor, Chain) else (compressor,)
