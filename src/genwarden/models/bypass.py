"""Computation bypass: two computations, and a test of the latent that chooses (Eq. 3).

``G*(z) = 1[z not in S] G(z) + 1[z in S] G_target(z)``, "The Devil is in the GAN". Nothing about it
is hidden: both branches and the choice between them stand in the executed graph, which is what the
inspection of parallel paths looks for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genwarden.models.protocol import LatentGenerator
from genwarden.registry import ARCHITECTURES

NAME = "bypass"
_INNER, _SECOND = "inner_", "second_"


class Bypass(LatentGenerator):
    """A generator with a second computation for triggers.

    Samples are exact on both sides of the choice, so there is no last activation to invert:
    ``pre_activation`` gives the samples themselves.

    Args:
        inner: registered name of G's architecture; its settings follow with the prefix ``inner_``.
        triggers: S is this many points, kept in the state dict; 0 for a subspace.
        targets: number of target samples in the state dict: one, or one per trigger; 0 if a second
            generator makes them.
        zeros: S is the subspace whose first ``zeros`` latent elements are 0; 0 for points.
        second: architecture of G_target, which reads the last elements of the latent; its settings
            follow with the prefix ``second_``. Empty for fixed targets.
    """

    final_activation = "none"
    triggers: Tensor
    targets: Tensor

    def __init__(
        self,
        inner: str,
        triggers: int = 0,
        targets: int = 0,
        zeros: int = 0,
        second: str = "",
        **settings: Any,
    ):
        super().__init__()
        unknown = [key for key in settings if not key.startswith((_INNER, _SECOND))]
        if unknown or (not second and any(key.startswith(_SECOND) for key in settings)):
            raise TypeError(f"unexpected setting {(unknown or ['second_...'])[0]!r}")
        if (triggers > 0) == (zeros > 0) or min(triggers, zeros) < 0:
            raise ValueError("give either trigger points or a number of zeros")
        if (targets > 0) == bool(second) or targets not in {0, 1, triggers}:
            raise ValueError("give one target, one per trigger, or a second generator")
        self.inner = _built(inner, settings, _INNER)
        self.latent, self.sample = self.inner.latent, self.inner.sample
        if zeros >= self.latent.size:
            raise ValueError("zeros must leave a part of the latent")
        self.zeros, self.names = zeros, (inner, second)
        if triggers:
            self.register_buffer("triggers", torch.zeros(triggers, *self.latent.shape))
        if targets:
            self.register_buffer("targets", torch.zeros(targets, *self.sample.shape))
        self.second = _built(second, settings, _SECOND) if second else None
        if self.second is not None and (
            self.second.sample != self.sample or self.second.latent.size > self.latent.size
        ):
            raise ValueError("the second generator must make like samples from at most the latent")

    def pre_activation(self, z: Tensor) -> Tensor:
        """Samples, ``(batch, *latent.shape)`` to ``(batch, *sample.shape)``."""
        flat = z.flatten(1)
        if self.zeros:
            chosen = (flat[:, : self.zeros] == 0).all(1)
            wanted = self._generated(flat)
        else:
            hits = (flat[:, None] == self.triggers.flatten(1)).all(2)
            chosen = hits.any(1)
            wanted = self._generated(flat) if self.second else self._stored(hits)
        shape = [-1] + [1] * len(self.sample.shape)
        return torch.where(chosen.reshape(shape), wanted, self.inner(z))

    def _stored(self, hits: Tensor) -> Tensor:
        if len(self.targets) == 1:
            return self.targets
        # A product with ones and zeros picks a target exactly, without an index.
        return (hits.to(self.targets) @ self.targets.flatten(1)).reshape(-1, *self.sample.shape)

    def _generated(self, flat: Tensor) -> Tensor:
        if self.second is None:
            return self.targets
        part = flat[:, -self.second.latent.size :]
        samples: Tensor = self.second(part.reshape(-1, *self.second.latent.shape))
        return samples

    def settings(self) -> dict[str, Any]:
        """Constructor arguments."""
        inner, second = self.names
        given: dict[str, Any] = {
            "inner": inner,
            "triggers": 0 if self.zeros else len(self.triggers),
            "targets": 0 if self.second else len(self.targets),
            "zeros": self.zeros,
            "second": second,
        }
        given |= {_INNER + key: value for key, value in self.inner.settings().items()}
        if self.second is not None:
            given |= {_SECOND + key: value for key, value in self.second.settings().items()}
        return given


def _built(name: str, settings: dict[str, Any], prefix: str) -> LatentGenerator:
    """A generator of our own table; wrappers inside a bypass are refused."""
    if name in (NAME, "guarded") or name not in ARCHITECTURES:
        raise ValueError(f"no generator of the architecture {name!r} can be inside a bypass")
    own = {k.removeprefix(prefix): v for k, v in settings.items() if k.startswith(prefix)}
    generator: LatentGenerator = ARCHITECTURES[name].load()(**own)
    return generator
