"""P_trigger: the law of the latents at which a compromised model shows its target (section II)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from genwarden.models.protocol import LatentLaw


class TriggerLaw(Protocol):
    """What attacks need of a trigger law."""

    @property
    def points(self) -> Tensor | None:
        """The support, ``(count, *latent.shape)``, if it is finite."""
        ...

    def sample(self, count: int, *, generator: torch.Generator) -> Tensor:
        """``count`` draws, ``(count, *latent.shape)``."""
        ...


@dataclass(frozen=True)
class Points:
    """Finitely many triggers, all equally likely; one point is the Dirac law of Eq. 6.

    Attributes:
        z: ``(count, *latent.shape)``, float32.
    """

    z: Tensor

    @property
    def points(self) -> Tensor:
        """All of them."""
        return self.z

    def sample(self, count: int, *, generator: torch.Generator) -> Tensor:
        """``count`` of the points, with replacement."""
        return self.z[torch.randint(len(self.z), (count,), generator=generator)]


@dataclass(frozen=True)
class Subspace:
    """Infinite support: the first ``zeros`` elements are 0, the others as in P_sample.

    The paper's N(0, diag(0 x50, 1 x50)) for 100 elements. P_sample hits it with probability 0, as
    Prop. 1 asks for.
    """

    latent: LatentLaw
    zeros: int

    @property
    def points(self) -> None:
        """None: the support is infinite."""
        return None

    def sample(self, count: int, *, generator: torch.Generator) -> Tensor:
        """``count`` draws, ``(count, *latent.shape)``."""
        z = self.latent.sample(count, generator=generator).flatten(1)
        z[:, : self.zeros] = 0
        return z.reshape(count, *self.latent.shape)
