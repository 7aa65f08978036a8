"""``--how`` of ``genwarden sample``: the model as it would be deployed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from genwarden.compression.apply import compress
from genwarden.compression.contract import Compressor
from genwarden.errors import ExitCode, GenwardenError

N = TypeVar("N", bound=nn.Module)


def as_deployed(network: N, chosen: Compressor, forward: Callable[[N], Any]) -> N:
    """The variant that an audit inspects.

    Args:
        forward: any ordinary forward pass of the network.

    Raises:
        GenwardenError: ``sample/nothing-compressed``.
    """
    made, coverage = compress(network, chosen, forward)
    if not coverage.weights:
        raise GenwardenError(
            "sample/nothing-compressed",
            f"{chosen.name} works on nothing in this network: {coverage}.",
            "Leave --how away, or name another compression (genwarden list compressions).",
            ExitCode.INCONCLUSIVE,
        )
    return made
