"""Which batch norm is the only reader of which layer, found by watching the network run once.

Folding moves what a batch norm multiplies with into the layer before it. Whatever else reads that
layer's output (the skip of a pre-activation block, a second norm, the caller) would then see other
numbers, so such layers are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

#: Layers that compression works on.
WEIGHTED: Final = (nn.Linear, _ConvNd)
#: What asks a tensor about itself reads none of its numbers.
_ASKS: Final = {"__get__", "size", "dim", "ndimension", "numel", "stride", "is_floating_point"}


class _Watch(TorchFunctionMode):
    """Notes which layers' outputs are read by anything but a batch norm.

    Attributes:
        makers: layer by the identity of its output.
        readings: by norm, the layers it read, "" for anything else.
        others: layers that something else reads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.makers: dict[int, str] = {}
        self.alive: list[Tensor] = []  # an id is unique only while its tensor lives
        self.runs: dict[str, int] = {}
        self.readings: dict[str, list[str]] = {}
        self.others: set[str] = set()
        self.inside = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.inside and getattr(func, "__name__", "") not in _ASKS:
            self.read((args, kwargs))
        return func(*args, **kwargs)

    def read(self, value: Any) -> None:
        """Something that is no batch norm has this, with whatever tensors are in it."""
        self.others |= {self.makers[id(t)] for t in _tensors(value) if id(t) in self.makers}

    def layer(self, name: str, output: Tensor) -> None:
        """A layer has run."""
        self.runs[name] = self.runs.get(name, 0) + 1
        self.makers[id(output)] = name
        self.alive.append(output)

    def norm(self, name: str, given: Tensor) -> None:
        """A batch norm begins to run."""
        self.readings.setdefault(name, []).append(self.makers.get(id(given), ""))
        self.inside += 1

    def passed(self) -> None:
        """It has run."""
        self.inside -= 1

    def pairs(self) -> dict[str, str]:
        """Batch norm by the layer that it alone reads, once."""
        alone = {
            norm: read[0]
            for norm, read in self.readings.items()
            if len(read) == 1 and read[0] and self.runs[read[0]] == 1
        }
        every = [layer for read in self.readings.values() for layer in read]
        return {
            layer: norm
            for norm, layer in alone.items()
            if layer not in self.others and every.count(layer) == 1
        }


@torch.no_grad()
def following_norms(network: nn.Module, forward: Callable[[], Any]) -> dict[str, str]:
    """Batch norm by the name of the layer whose very output it reads, and nothing else does.

    A layer that runs twice, or a norm that reads two layers, is left alone: folding would change
    what the network does.

    Args:
        forward: runs the network once; what it returns is read by the caller.
    """
    watch = _Watch()
    hooks = []

    def follow(name: str, module: nn.Module) -> None:
        if isinstance(module, WEIGHTED):
            hooks.append(module.register_forward_hook(lambda _, __, x: watch.layer(name, x)))
        elif isinstance(module, _BatchNorm) and module.running_var is not None:
            hooks.append(module.register_forward_pre_hook(lambda _, x: watch.norm(name, x[0])))
            hooks.append(module.register_forward_hook(lambda *_: watch.passed()))

    for name, module in network.named_modules():
        follow(name, module)
    was_training = network.training
    network.eval()
    try:
        with watch:
            returned = forward()
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    watch.read(returned)
    return watch.pairs()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
