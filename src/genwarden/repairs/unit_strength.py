"""How strongly each unit of a layer answers: its activation as the network really applies it.

The activation is read behind the layer's normalisation and non-linearity. Non-linearities are
often plain function calls, which no module hook sees, so the executed operations are watched
instead: what the layer's reader (:class:`genwarden.inspections.activations.Site`) gives out is
followed through operations on each element up to the first non-linearity. A layer without one is
read at its own output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from genwarden.engine.seeds import random_stream
from genwarden.inspections.activations import Site
from genwarden.inspections.graph import POINTWISE, names
from genwarden.models.protocol import LatentGenerator

_NON_LINEARITIES = names(
    "relu relu6 leaky_relu prelu _prelu_kernel elu selu celu gelu silu mish softplus hardtanh "
    "hardswish hardsigmoid tanh sigmoid sin clamp_min"
)
_BLOCK = 250

#: From an activation, units first ``(units, values)``, to one number per unit ``(units,)``.
Reduction = Callable[[Tensor], Tensor]


def mean_absolute(values: Tensor) -> Tensor:
    """Mean |activation| per unit; absolute, since a LeakyReLU's output has both signs."""
    return values.abs().double().mean(1)


def largest_absolute(values: Tensor) -> Tensor:
    """Largest |activation| per unit."""
    return values.abs().amax(1)


@torch.no_grad()
def mean_activation(
    generator: LatentGenerator, sites: Sequence[Site], *, samples: int, seed: int
) -> dict[str, Tensor]:
    """Mean |activation| of every unit over ordinary latents and space, ``(units,)`` per site.

    Args:
        sites: of this generator (their readers are its modules).
        samples: number of ordinary latents; the paper takes 10,000.
    """
    device = next(generator.parameters()).device
    stream = random_stream(seed, "repair-activation")
    totals: dict[str, Tensor] = {}
    for part in generator.latent.sample(samples, generator=stream).split(_BLOCK):
        for name, values in activations(generator, sites, part.to(device), mean_absolute).items():
            totals[name] = totals.get(name, torch.zeros_like(values)) + len(part) * values
    return {name: total / samples for name, total in totals.items()}


@torch.no_grad()
def activations(
    generator: LatentGenerator, sites: Sequence[Site], z: Tensor, reduce: Reduction
) -> dict[str, Tensor]:
    """The reduced activation of each site for latents ``(batch, *latent.shape)``, on the CPU.

    Where a layer runs several times in one pass, the results of its calls are averaged.
    """
    follower = _Follower(reduce)
    with ExitStack() as open_hooks:
        for site in sites:

            def hook(_m: nn.Module, _i: object, output: Tensor, site: Site = site) -> None:
                follower.begin(site, output)

            open_hooks.callback(site.reader.register_forward_hook(hook).remove)
        with follower:
            generator(z)
    return {name: torch.stack(calls).mean(0).cpu() for name, calls in follower.found.items()}


class _Follower(TorchDispatchMode):
    """Follows tensors from the readers to their first non-linearity."""

    def __init__(self, reduce: Reduction) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reduce = reduce
        self.found: dict[str, list[Tensor]] = {}
        # A followed tensor by its storage: site, number of the call, version, and the tensor
        # itself, since a freed one could lend its address to another.
        self._followed: dict[int, tuple[Site, int, int, Tensor]] = {}

    def begin(self, site: Site, output: Tensor) -> None:
        calls = self.found.setdefault(site.name, [])
        calls.append(self._reduced(site, output))
        self._follow(site, len(calls) - 1, output)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        source = self._source(args)
        output = func(*args, **(kwargs or {}))
        if source is None or not isinstance(output, Tensor):
            return output
        site, call, shape = source
        name = func.overloadpacket.__name__.rstrip("_")
        if output.shape == shape and name in _NON_LINEARITIES:
            self.found[site.name][call] = self._reduced(site, output)
            self._followed = {k: v for k, v in self._followed.items() if v[:2] != (site, call)}
        elif output.shape == shape and name in POINTWISE:
            self._follow(site, call, output)
        return output

    def _follow(self, site: Site, call: int, tensor: Tensor) -> None:
        self._followed[_storage(tensor)] = (site, call, tensor._version, tensor)

    def _source(self, args: tuple[Any, ...]) -> tuple[Site, int, torch.Size] | None:
        for argument in args:
            if not isinstance(argument, Tensor) or argument.is_meta:
                continue
            known = self._followed.get(_storage(argument))
            if known and known[2] == argument._version and known[3].shape == argument.shape:
                return known[0], known[1], argument.shape
        return None

    def _reduced(self, site: Site, output: Tensor) -> Tensor:
        return self.reduce(output.detach().movedim(site.unit_axis, 0).flatten(1))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
