"""Several compressed versions of one network in a single forward pass.

The paper patches the layers of torch so that a list of batches runs through one network, each with
its own weights, while every batch norm sees all of them: "all branches share weights and one
BatchNorm whose batch statistics are computed over the concatenation" (section 1.3). Here the
batches are concatenated as usual, and a torch function mode gives each part its own weight at every
layer: no layer is replaced, and it works on any network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from genwarden.compression.contract import Weights

_LAYERS: Final = frozenset(
    {
        F.linear,
        F.conv1d,
        F.conv2d,
        F.conv3d,
        F.conv_transpose1d,
        F.conv_transpose2d,
        F.conv_transpose3d,
    }
)


class Branch(NamedTuple):
    """One version of the network and what it reads.

    Attributes:
        x: ``(batch, C, H, W)``.
        weights: in place of the network's own, by name; None for the full model.
    """

    x: Tensor
    weights: Weights | None = None


def forward_branches(network: nn.Module, branches: Sequence[Branch]) -> list[Tensor]:
    """The outputs of all branches; batch norms in training mode see their concatenation.

    Args:
        network: layers may run several times; each must read a concatenated batch, as all
            feed-forward classifiers do.
    """
    sizes = [len(branch.x) for branch in branches]
    own = {id(parameter): name for name, parameter in network.named_parameters()}
    with _OwnWeights(sizes, [branch.weights for branch in branches], own):
        output: Tensor = network(torch.cat([branch.x for branch in branches]))
    return list(output.split(sizes))


class _OwnWeights(TorchFunctionMode):
    """Runs a layer once per branch where any branch has a weight of its own for it."""

    def __init__(
        self, sizes: list[int], weights: list[Weights | None], names: Mapping[int, str]
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.weights = weights
        self.names = names

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = dict(kwargs or {})
        name = self.names.get(id(args[1])) if func in _LAYERS and len(args) > 1 else None
        if name is None or not any(own and name in own for own in self.weights):
            return func(*args, **kwargs)
        x, shared, *rest = args
        return torch.cat(
            [
                func(part, shared if own is None else own.get(name, shared), *rest, **kwargs)
                for part, own in zip(x.split(self.sizes), self.weights, strict=True)
            ]
        )
