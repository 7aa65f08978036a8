"""A generator behind a latent guard and unit clips: what repairs add where weights cannot tell.

As our repairs make it, the guard moves latents back to where ordinary ones lie and a clip bounds
a unit to the range of ordinary use; on ordinary latents both do almost nothing. A file that says
it is guarded may hold other numbers there: :meth:`Guarded.load_state_dict` refuses those that could
carry more than a bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from genwarden.models.protocol import LatentGenerator
from genwarden.registry import ARCHITECTURES

NAME = "guarded"
_INNER = "inner_"
_WRAPPERS = (NAME, "bypass")
#: How steeply the fold falls behind its limit: from limit c it is zero again at 1.5 c.
STEEPNESS = 2.0
#: How far a block of zeros is moved along its anchor, as a share of its lowest ordinary norm,
#: before it is lengthened.
_NUDGE = 0.05
#: Keeps the gradient of a square root finite where nothing is folded.
_TINY = 1e-12
#: Weight of a new batch in the running statistics of a clip.
_MOMENTUM = 0.02
#: How far the norm of a unit vector may be from 1 (float16 storage).
_UNIT = 1e-2
#: Rows of ``(U U^T + 0.1 I)^-1 U`` for unit rows U are no longer than 1 / (2 sqrt(0.1)).
_LONGEST_DUAL = 1.6
#: A clip keeps one range per element up to this size, above it one per channel.
_MOST_ELEMENTS = 1 << 20


class LatentGuard(nn.Module):
    """Turns latents back that lie where ordinary sampling never goes.

    In this order, each the identity on ordinary latents:

    1. *radius*: latents longer than any ordinary one are shortened.
    2. *shells*: a block of the latent whose norm is below what it ordinarily is gets lengthened to
       that norm: pieces of the latent first, then the latent as a whole. A block of zeros gets the
       direction of its anchor.
    3. *folds*: a component y along a direction u beyond the limit c comes back as
       ``max(0, c - STEEPNESS (y - c))``. A bound would leave the component at c, which is often
       enough for half of a backdoor; folded back, nearly nothing is left from ``1.5 c`` on. As
       much as is taken away is added along a neutral direction, so that the latent keeps an
       ordinary length.

    Args:
        size: elements of a latent.
        directions: number of fold directions.
        shells: number of blocks: the whole latent, then pieces that do not overlap.
    """

    directions: Tensor | None
    duals: Tensor | None
    neutral: Tensor | None
    limit: Tensor
    blocks: Tensor | None
    lowest: Tensor | None
    anchors: Tensor | None
    radius: Tensor

    def __init__(self, size: int, directions: int, shells: int) -> None:
        super().__init__()
        self.count, self.shells = directions, shells

        def zeros(count: int, *shape: int) -> Tensor | None:
            return torch.zeros(shape) if count else None  # a file holds no empty tensors

        self.register_buffer("directions", zeros(directions, directions, size))
        self.register_buffer("duals", zeros(directions, directions, size))
        self.register_buffer("neutral", zeros(directions, size))
        self.register_buffer("limit", torch.tensor(3.0))
        self.register_buffer("blocks", zeros(shells, shells, size))
        self.register_buffer("lowest", zeros(shells, shells))
        self.register_buffer("anchors", zeros(shells, shells, size))
        self.register_buffer("radius", torch.tensor(1e30))

    def forward(self, z: Tensor) -> Tensor:
        """``(batch, *latent.shape)`` to the same shape."""
        flat = z.flatten(1)
        length = flat.norm(dim=1, keepdim=True).clamp_min(1e-12)
        flat = flat * (self.radius / length).clamp_max(1.0)
        if self.blocks is not None and self.lowest is not None and self.anchors is not None:
            if self.shells > 1:
                flat = _lengthened(flat, self.blocks[1:], self.lowest[1:], self.anchors[1:])
            flat = _lengthened(flat, self.blocks[:1], self.lowest[:1], self.anchors[:1])
        if self.directions is not None and self.duals is not None and self.neutral is not None:
            along = flat @ self.directions.T
            beyond = (along - self.limit).clamp_min(0)
            folded = (self.limit - STEEPNESS * beyond).clamp_min(0)
            taken = torch.where(beyond > 0, along - folded, 0.0) @ self.duals
            flat = (
                flat - taken + taken.square().sum(1, keepdim=True).add(_TINY).sqrt() * self.neutral
            )
        guarded: Tensor = flat.view(z.shape)
        return guarded


def _lengthened(flat: Tensor, blocks: Tensor, lowest: Tensor, anchors: Tensor) -> Tensor:
    """Blocks that do not overlap, each at least as long as its lowest ordinary norm."""
    norm = (flat.square() @ blocks.T).sqrt()
    lacking = (1 - norm / lowest).clamp_min(0)
    flat = flat + (_NUDGE * lacking * lowest) @ anchors
    norm = (flat.square() @ blocks.T).sqrt().clamp_min(1e-12)
    stretch = (lowest / norm).clamp_min(1.0)
    return flat * (1 + (stretch - 1) @ blocks)


class UnitClip(nn.Module):
    """Bounds every unit to ``mean +- limit * spread`` of ordinary use.

    In training mode it clips nothing and follows mean and spread as a batch normalisation does.

    Args:
        shape: units, without the batch axis; an axis of 1 shares one range.
    """

    mean: Tensor
    spread: Tensor
    limit: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("spread", torch.ones(shape))
        self.register_buffer("limit", torch.tensor(4.0))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, *units)`` to the same shape."""
        if self.training:
            self._follow(x.detach())
            return x
        reach = self.limit * self.spread
        bounded: Tensor = torch.minimum(torch.maximum(x, self.mean - reach), self.mean + reach)
        return bounded

    @torch.no_grad()
    def set_from(self, mean: Tensor, spread: Tensor, limit: float) -> None:
        """Take statistics of ordinary use, shapes as the clip's own."""
        self.mean.copy_(mean)
        self.spread.copy_(spread)
        self.limit.fill_(limit)

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        shared = [axis + 1 for axis, size in enumerate(self.mean.shape) if size == 1]
        axes = [0, *(axis for axis in shared if x.shape[axis] > 1)]
        mean, spread = x.mean(axes), x.std(axes)
        self.mean.lerp_(mean.view(self.mean.shape), _MOMENTUM)
        self.spread.lerp_(spread.view(self.spread.shape), _MOMENTUM)


class Guarded(LatentGenerator):
    """A generator with a latent guard in front and clips behind some of its modules.

    Args:
        inner: registered name of the architecture; its settings follow with the prefix ``inner_``.
        directions: fold directions of the guard.
        shells: blocks of the guard.
        clipped: names of the inner modules whose outputs are clipped, joined by commas.
    """

    def __init__(
        self, inner: str, directions: int = 0, shells: int = 0, clipped: str = "", **settings: Any
    ):
        super().__init__()
        unknown = [key for key in settings if not key.startswith(_INNER)]
        if unknown:
            raise TypeError(f"unexpected setting {unknown[0]!r}")
        if not isinstance(clipped, str) or not isinstance(inner, str):
            raise TypeError("inner and clipped are names")
        if inner in _WRAPPERS or inner not in ARCHITECTURES:
            raise ValueError(f"no generator of the architecture {inner!r} can be guarded")
        if min(directions, shells) < 0:
            raise ValueError("directions and shells are counts")
        own = {key.removeprefix(_INNER): value for key, value in settings.items()}
        built: LatentGenerator = ARCHITECTURES[inner].load()(**own)
        self.names = (inner, clipped)
        self.latent, self.sample = built.latent, built.sample
        self.final_activation = built.final_activation
        self.inner = built.eval()
        self.guard = LatentGuard(built.latent.size, directions, shells)
        self._clip(tuple(clipped.split(",")) if clipped else ())

    def pre_activation(self, z: Tensor) -> Tensor:
        """As the inner generator's, for the guarded latent."""
        pre: Tensor = self.inner.pre_activation(self.guard(z))
        return pre

    def finish(self, pre: Tensor) -> Tensor:
        """As the inner generator's."""
        return self.inner.finish(pre)

    def pre_activation_of(self, sample: Tensor) -> Tensor:
        """As the inner generator's."""
        return self.inner.pre_activation_of(sample)

    def settings(self) -> dict[str, Any]:
        """Constructor arguments."""
        inner, clipped = self.names
        given: dict[str, Any] = {
            "inner": inner,
            "directions": self.guard.count,
            "shells": self.guard.shells,
            "clipped": clipped,
        }
        return given | {_INNER + key: value for key, value in self.inner.settings().items()}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As any module's, and refuses a guard or clip that no repair would make.

        Raises:
            ValueError: directions that are no unit vectors, duals, anchors or neutral longer than
                those of unit vectors can be, spreads or limits that are not positive.
        """
        done = super().load_state_dict(state_dict, strict, assign)
        guard = self.guard
        unit = [t for t in (guard.directions, guard.anchors) if t is not None]
        short = [t for t in (guard.duals, guard.neutral) if t is not None]
        sound = (
            all(bool(((t.norm(dim=1) - 1).abs() < _UNIT).all()) for t in unit)
            and all(float(t.norm(dim=-1).max()) <= _LONGEST_DUAL for t in short)
            and float(guard.limit) > 0
            and float(guard.radius) > 0
            and all(float(c.limit) > 0 and bool((c.spread >= 0).all()) for c in self.clips())
        )
        if not sound:
            raise ValueError("the guard or a clip holds numbers that no repair writes")
        return done

    def clips(self) -> list[UnitClip]:
        """The clips in the order of ``clipped``."""
        return [module for module in self.inner.modules() if isinstance(module, UnitClip)]

    def _clip(self, names: tuple[str, ...]) -> None:
        if not names:
            return
        modules = dict(self.inner.named_modules())
        missing = [
            name
            for name in names
            if not name or name not in modules or next(modules[name].children(), None) is not None
        ]
        if missing or len(set(names)) < len(names):
            raise ValueError(f"the inner generator has no single module {(missing or names)[0]!r}")
        shapes = output_shapes(self.inner, names)
        for name in names:
            self.inner.set_submodule(name, nn.Sequential(modules[name], UnitClip(shapes[name])))


@torch.no_grad()
def output_shapes(generator: LatentGenerator, names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Shape of one range per unit behind the named modules, without the batch axis.

    Raises:
        ValueError: a module does not run, runs twice, or gives no tensor per latent.
    """
    modules = dict(generator.named_modules())
    found: dict[str, tuple[int, ...]] = {}
    hooks = []
    for name in names:

        def hook(_m: nn.Module, _i: object, output: object, name: str = name) -> None:
            if name in found or not isinstance(output, Tensor) or output.ndim < 2:
                raise ValueError(f"the output of {name!r} cannot be clipped")
            units = tuple(output.shape[1:])
            whole = math.prod(units) <= _MOST_ELEMENTS
            found[name] = units if whole else (units[0], *(1 for _ in units[1:]))

        hooks.append(modules[name].register_forward_hook(hook))
    probe = next(generator.parameters())
    try:
        generator(torch.zeros(2, *generator.latent.shape, device=probe.device, dtype=probe.dtype))
    finally:
        for handle in hooks:
            handle.remove()
    if set(found) != set(names):
        raise ValueError(f"module {sorted(set(names) - set(found))[0]!r} does not run")
    return found
