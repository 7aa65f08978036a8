"""A network and what one compressor makes of it: what all benches of compressed variants share.

A compressor writes errors into the weights. In honest weights nothing is in the signs of these
errors: the network that lies as far from the suspect in every single weight, on sides drawn at
random, is as good a stand-in for the compressed one as any. Such *placebos* are the null of this
room, and they exist for every compressor (rounding, block formats, pruning, chains). In a model
that was trained so that compression wakes a backdoor, the errors themselves carry it: half of them
turned around, it is gone (section 4.3 of the reference; there stochastic rounding on the same grid
plays this part, whose errors are larger by a factor of sqrt(2) than those of rounding to nearest).

The signs follow from the suspect's weights as well as from the run seed, which everybody may know:
who trained the placebos of a seed to be awake, too, would have trained those of other weights.

Where whole filters go, errors belong together in honest models, too, and no signs stand in for them
(the shipped clean DCGAN would be flagged under ``prune-filters-0.5``): nothing is judged by
placebos there (:attr:`VariantBase.no_placebo`).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Final, Generic, TypeVar

import torch
from torch import Tensor, nn

from genwarden.compression.apply import (
    Coverage,
    compress,
    compressed_weights,
    coverage_of,
    idle_stage,
)
from genwarden.compression.chain import stages_of
from genwarden.compression.contract import Compressor
from genwarden.compression.layers import Layout, layout_of
from genwarden.compression.pruning import FilterPruning
from genwarden.engine.fingerprint import fingerprint_of

#: Errors below this share of the largest weight are float32's, from folding and unfolding.
_ROUNDING: Final = 1e-5
#: Why nothing is compared where compression changes nothing.
UNCHANGED: Final = (
    "This compression changes no weight: they lie on its grid already. There is no second model to "
    "compare with, so a backdoor that is awake here is awake in the model as it is; its own audit "
    "looks for that."
)

N = TypeVar("N", bound=nn.Module)


class VariantBase(ABC, Generic[N]):
    """A suspect network, and one way to compress it.

    Attributes:
        compressor: what a deployer will do to it.
    """

    compressor: Compressor

    @property
    @abstractmethod
    def network(self) -> N:
        """The suspect in evaluation mode, parameters without gradients."""

    @abstractmethod
    def stream(self, purpose: str) -> torch.Generator:
        """Randomness of one purpose, from the run seed alone."""

    @abstractmethod
    def forward(self, network: N) -> Tensor:
        """Any ordinary forward pass, which shows the order of the layers."""

    @cached_property
    def layout(self) -> Layout:
        """The suspect's layers, with the batch norms behind them."""
        return layout_of(self.network, lambda: self.forward(self.network))

    @cached_property
    def coverage(self) -> Coverage:
        """How much of the suspect the compressor works on."""
        made = compressed_weights(self.network, self.compressor, self.layout)
        return coverage_of(self.network, self.layout, made)

    @cached_property
    def idle_stage(self) -> str:
        """The stage of a chain that works on no weight, if any."""
        return idle_stage(self.network, self.compressor, self.layout)

    @cached_property
    def compressed(self) -> N:
        """The variant: a copy with compressed weights."""
        return compress(self.network, self.compressor, self.forward)[0].requires_grad_(False)

    @cached_property
    def errors(self) -> dict[str, Tensor]:
        """By weight: compressed minus full."""
        return {
            name: self.compressed.get_parameter(name) - self.network.get_parameter(name)
            for name in self.coverage.layers
        }

    @cached_property
    def unchanged(self) -> bool:
        """Whether the suspect's weights lie on this compressor's grid already."""
        return all(
            float(error.abs().amax())
            <= _ROUNDING * float(self.network.get_parameter(name).abs().amax())
            for name, error in self.errors.items()
        )

    @property
    def destroyed(self) -> str:
        """Why nothing can be said of what compression leaves; "" where that is still the model."""
        return ""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the suspect's weights."""
        return fingerprint_of(self.network)

    def placebo(self, number: int) -> N:
        """A copy whose weights have errors of the same sizes with random signs."""
        return self.with_errors(
            {
                name: error
                * _signs(error, self.stream(f"placebo/{number}/{name}/{self.fingerprint}"))
                for name, error in self.errors.items()
            }
        )

    @property
    def no_placebo(self) -> str:
        """Why placebos are no stand-ins under this compression; "" where they are."""
        if any(isinstance(stage, FilterPruning) for stage in stages_of(self.compressor)):
            return "whole filters go, and errors of random signs in every weight are not like that"
        return ""

    def with_errors(self, errors: Mapping[str, Tensor]) -> N:
        """A copy of the suspect with something added to its weights."""
        changed = copy.deepcopy(self.network)
        with torch.no_grad():
            for name, error in errors.items():
                changed.get_parameter(name).add_(error)
        return changed


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return (2 * torch.randint(0, 2, like.shape, generator=generator) - 1).to(like)
