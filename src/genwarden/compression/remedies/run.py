"""From a network and the name of a remedy to the compressed network."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from genwarden.compression.apply import Coverage, compressed_weights, coverage_of
from genwarden.compression.chain import Chain, stages_of
from genwarden.compression.contract import Compressor
from genwarden.compression.layers import Layout
from genwarden.compression.remedies.contract import (
    Confine,
    Deployment,
    Inputs,
    Remedied,
    RemedySettings,
    require_applicable,
)
from genwarden.engine.progress import Progress, Silent
from genwarden.engine.settings import filled
from genwarden.registry import COMPRESSION_REMEDIES, find

Network = TypeVar("Network", bound=nn.Module)


class Cured(NamedTuple):
    """A compressed network.

    Attributes:
        network: in evaluation mode.
        coverage: of the compression.
        changes: see :class:`genwarden.compression.remedies.contract.Remedied`.
    """

    network: Any
    coverage: Coverage
    changes: dict[str, Any]


def remedy_settings(name: str, given: Mapping[str, Any]) -> RemedySettings:
    """The defaults of a remedy with what the user gave in their place.

    Raises:
        GenwardenError: ``usage/unknown-name``, ``compress/unknown-setting``, ``compress/setting``.
    """
    kind: type[RemedySettings] = find(COMPRESSION_REMEDIES, name, "remedy").load_option("settings")
    return filled(kind, given, method=name, what="compress")


def compress_with(
    network: nn.Module,
    compressor: Compressor,
    layout: Layout,
    name: str,
    settings: RemedySettings,
    inputs: Inputs,
    *,
    confine: Confine | None = None,
    progress: Progress | None = None,
) -> Cured:
    """A copy of ``network``, compressed by ``compressor`` with remedy ``name`` in the last stage.

    Args:
        network: in evaluation mode, frozen; stays as it is.
        layout: its layers (:func:`genwarden.compression.layers.layout_of`).
        inputs: ordinary inputs.
        confine: bounds for a search of inputs.

    Raises:
        GenwardenError: ``compress/remedy-not-applicable`` and those of the remedy.
    """
    require_applicable(name, compressor)
    *before, last = stages_of(compressor)
    base = copy.deepcopy(network).eval().requires_grad_(False)
    earlier: set[str] = set()
    if before:
        stages = before[0] if len(before) == 1 else Chain(tuple(before))
        earlier = _store(base, compressed_weights(base, stages, layout))
    deployment = Deployment(network, base, layout, inputs, confine, progress or Silent())
    remedy = COMPRESSION_REMEDIES[name].load()
    made: Remedied = remedy(deployment, last, settings)
    small = copy.deepcopy(base)
    covered = _store(small, made.weights) | earlier
    _store(small, made.others)
    coverage = coverage_of(
        network, layout, {n: small.get_parameter(n) for n in layout if n in covered}
    )
    return Cured(small, coverage, made.changes)


@torch.no_grad()
def _store(network: nn.Module, tensors: Mapping[str, Any]) -> set[str]:
    for name, tensor in tensors.items():
        network.get_parameter(name).copy_(tensor)
    return set(tensors)
