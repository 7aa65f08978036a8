"""The noise schedule of a diffusion model: x_t = a_t x_0 + s_t eps, a^2 + s^2 = 1.

Notation of section 1 of the BadDiffusion reference: beta_t, alpha_t = 1 - beta_t, abar_t the
product of the alphas, a_t = sqrt(abar_t), s_t = sqrt(1 - abar_t). Everything is float64: small
differences of these numbers decide whether a backdoor follows its marginal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from genwarden.errors import GenwardenError

#: What the network is trained to return: the noise, v = a eps - s x_0, or x_0.
Prediction = Literal["epsilon", "v_prediction", "sample"]
BetaLawName = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]

#: The cosine law keeps every beta below this ("Improved DDPM", section 3.2).
_LARGEST_COSINE_BETA = 0.999
#: End points of the logistic curve of the sigmoid law.
_SIGMOID_SPAN = 6.0


class BetaLaw(NamedTuple):
    """How the betas were computed, by the names that diffusers uses."""

    name: BetaLawName
    steps: int
    beta_start: float
    beta_end: float


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The noise level of every training step; compared by value.

    Attributes:
        alphas_cumprod: abar_t, float64 ``(T,)``, strictly decreasing inside (0, 1).
        prediction: what the network returns.
        law: the formula behind the numbers where there is one; only used to write it down again.
    """

    alphas_cumprod: Tensor
    prediction: Prediction = "epsilon"
    law: BetaLaw | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        abar = self.alphas_cumprod.detach().to("cpu", torch.float64)
        object.__setattr__(self, "alphas_cumprod", abar)
        # NaN fails every comparison, so the conditions are stated positively.
        falls = bool((abar[1:] < abar[:-1]).all())
        if (
            abar.ndim != 1
            or not len(abar)
            or not falls
            or not bool(((abar > 0) & (abar < 1)).all())
        ):
            raise GenwardenError(
                "usage/noise-schedule",
                "The cumulative alphas of a noise schedule must fall strictly inside (0, 1).",
                "Check the betas: each must lie inside (0, 1).",
            )

    @classmethod
    def from_betas(
        cls, betas: Tensor, prediction: Prediction = "epsilon", law: BetaLaw | None = None
    ) -> NoiseSchedule:
        """abar_t = prod_{u <= t} (1 - beta_u), from ``(T,)`` betas inside (0, 1)."""
        return cls(torch.cumprod(1 - betas.double(), 0), prediction, law)

    @classmethod
    def from_law(cls, law: BetaLaw, prediction: Prediction = "epsilon") -> NoiseSchedule:
        """The schedule of a named law."""
        return cls.from_betas(_betas(law), prediction, law)

    @classmethod
    def linear(
        cls,
        steps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        prediction: Prediction = "epsilon",
    ) -> NoiseSchedule:
        """Betas on a line (DDPM, section 4; every result of BadDiffusion)."""
        return cls.from_law(BetaLaw("linear", steps, beta_start, beta_end), prediction)

    @classmethod
    def scaled_linear(
        cls,
        steps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        prediction: Prediction = "epsilon",
    ) -> NoiseSchedule:
        """Square roots of the betas on a line (latent diffusion)."""
        return cls.from_law(BetaLaw("scaled_linear", steps, beta_start, beta_end), prediction)

    @classmethod
    def cosine(cls, steps: int = 1000, prediction: Prediction = "epsilon") -> NoiseSchedule:
        """abar(u) = cos^2((u + 0.008) / 1.008 pi / 2), u = t / T ("Improved DDPM", Eq. 17)."""
        return cls.from_law(BetaLaw("squaredcos_cap_v2", steps, 1e-4, 0.02), prediction)

    @classmethod
    def sigmoid(
        cls,
        steps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        prediction: Prediction = "epsilon",
    ) -> NoiseSchedule:
        """Betas on a logistic curve from ``beta_start`` to ``beta_end`` (GeoDiff)."""
        return cls.from_law(BetaLaw("sigmoid", steps, beta_start, beta_end), prediction)

    @property
    def steps(self) -> int:
        """T, the number of training steps; t runs from 0 (little noise) to T - 1."""
        return len(self.alphas_cumprod)

    @cached_property
    def a(self) -> Tensor:
        """Signal amplitude sqrt(abar_t), float64 ``(T,)``."""
        return self.alphas_cumprod.sqrt()

    @cached_property
    def s(self) -> Tensor:
        """Noise amplitude sqrt(1 - abar_t), float64 ``(T,)``."""
        return (1 - self.alphas_cumprod).sqrt()

    @cached_property
    def alphas(self) -> Tensor:
        """alpha_t = abar_t / abar_{t-1} with abar_{-1} = 1, float64 ``(T,)``."""
        return self.alphas_cumprod / torch.cat([torch.ones(1).double(), self.alphas_cumprod[:-1]])

    @cached_property
    def betas(self) -> Tensor:
        """beta_t = 1 - alpha_t, float64 ``(T,)``."""
        return 1 - self.alphas

    def a_at(self, t: int) -> float:
        """a_t; t = -1 is the clean image, a = 1."""
        return 1.0 if self._is_clean(t) else float(self.a[t])

    def s_at(self, t: int) -> float:
        """s_t; t = -1 is the clean image, s = 0."""
        return 0.0 if self._is_clean(t) else float(self.s[t])

    def a_of(self, t: Tensor, like: Tensor) -> Tensor:
        """a_t for ``(batch,)`` steps, shaped to multiply ``like`` ``(batch, ...)``."""
        return at_steps(self.a, t, like)

    def s_of(self, t: Tensor, like: Tensor) -> Tensor:
        """s_t for ``(batch,)`` steps, shaped to multiply ``like`` ``(batch, ...)``."""
        return at_steps(self.s, t, like)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = a_t x_0 + s_t eps for ``(batch, C, H, W)`` images and ``(batch,)`` steps."""
        return self.a_of(t, x0) * x0 + self.s_of(t, x0) * noise

    def _is_clean(self, t: int) -> bool:
        if not -1 <= t < self.steps:
            raise GenwardenError(
                "usage/timestep",
                f"There is no timestep {t} in a schedule of {self.steps}.",
                f"Timesteps run from 0 to {self.steps - 1}; -1 stands for the clean image.",
            )
        return t == -1

    def like(self, other: NoiseSchedule) -> bool:
        """Whether networks of the other one would find nothing changed: equal but for rounding, as
        of betas that a folder lists in single precision."""
        same = self.prediction == other.prediction and self.steps == other.steps
        return same and torch.allclose(self.alphas_cumprod, other.alphas_cumprod, rtol=1e-3, atol=0)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NoiseSchedule):
            return NotImplemented
        return self.prediction == other.prediction and torch.equal(
            self.alphas_cumprod, other.alphas_cumprod
        )

    def __hash__(self) -> int:
        return hash((self.prediction, tuple(self.alphas_cumprod.tolist())))


def _betas(law: BetaLaw) -> Tensor:
    """The betas of a named law as diffusers defines them, float64 ``(T,)``."""
    if law.name == "linear":
        return torch.linspace(law.beta_start, law.beta_end, law.steps, dtype=torch.float64)
    if law.name == "scaled_linear":
        ends = math.sqrt(law.beta_start), math.sqrt(law.beta_end)
        return torch.linspace(*ends, law.steps, dtype=torch.float64) ** 2
    if law.name == "sigmoid":
        span = torch.linspace(-_SIGMOID_SPAN, _SIGMOID_SPAN, law.steps, dtype=torch.float64)
        return torch.sigmoid(span) * (law.beta_end - law.beta_start) + law.beta_start
    u = torch.arange(law.steps + 1, dtype=torch.float64) / law.steps
    abar = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - abar[1:] / abar[:-1]).clamp(max=_LARGEST_COSINE_BETA)


def at_steps(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Entries of a ``(T,)`` table for ``(batch,)`` steps, shaped to multiply ``like``."""
    picked = table.to(t.device)[t].to(like.device, like.dtype)
    return picked.reshape(-1, *[1] * (like.ndim - 1))
