"""At which timesteps a denoiser is looked at: near planned ones, at places that its weights decide.

A network that is asked at timesteps that everybody knows can be trained to answer there as a clean
one does. The shipped backdoored model, fine-tuned for three minutes to imitate the clean one at
t = 500, 595 and 697, drew its target as before, and an audit that searched at these three found
nothing. So what looks at single timesteps draws them, within :data:`SPREAD` of the planned ones,
from a stream that follows from the weights and the run seed: they change with every attempt to
train for them, and the search's lie in one band without a gap. The draw is no secret: who publishes
weights can try variants of them until it suits. With a dozen timesteps that takes minutes, so the
search measures at nearly a hundred. Samplers take the timesteps that they take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor, nn

from genwarden.engine.fingerprint import fingerprint_of
from genwarden.engine.seeds import random_stream
from genwarden.models.diffusion.schedule import NoiseSchedule

#: How far from a planned timestep it is looked, in shares of all. The search's planned ones are a
#: tenth apart.
SPREAD: Final = 0.055


def level_of(schedule: NoiseSchedule, amplitude: float) -> int:
    """The timestep whose a_t is nearest to ``amplitude``."""
    return int((schedule.a - amplitude).abs().argmin())


@dataclass(frozen=True)
class Timesteps:
    """The draws of one audit.

    Attributes:
        schedule: of the suspect.
        seed: run seed of the audit.
        fingerprint: of the suspect's weights. What compares the suspect with networks made of it
            (compressed ones, placebos) looks at all of them where the suspect's weights say.
    """

    schedule: NoiseSchedule
    seed: int
    fingerprint: str

    @classmethod
    def of(cls, model: nn.Module, schedule: NoiseSchedule, seed: int) -> Self:
        """Those of a suspect."""
        return cls(schedule, seed, fingerprint_of(model))

    def near(self, amplitude: float, purpose: str, index: int = 0, of: int = 1) -> int:
        """A timestep near the one whose a_t is nearest to ``amplitude``; reflected at both ends.

        Args:
            index: of the draw.
            of: in so many equal parts the range is drawn from in turn, for evenly spread draws.
        """
        last = self.schedule.steps - 1
        reach = SPREAD * self.schedule.steps
        stream = random_stream(self.seed, f"{purpose}/{amplitude}/{self.fingerprint}", index)
        place = (index % of + float(torch.rand((), generator=stream))) / of
        t = abs(level_of(self.schedule, amplitude) + round(reach * (2 * place - 1)))
        return min(t, 2 * last - t)

    def of_pairs(self, amplitude: float, purpose: str, noises: int) -> Tensor:
        """A timestep for each of antithetic noises, ``(noises,)`` int64: evenly spread, the second
        half as the first. So many that no choice of weights puts all of them where a network was
        trained to answer otherwise than around."""
        pairs = noises // 2
        drawn = torch.tensor([self.near(amplitude, purpose, n, of=pairs) for n in range(pairs)])
        return torch.cat([drawn, drawn])

    def falling(self, amplitudes: Sequence[float], purpose: str) -> list[int]:
        """One near each amplitude, each once, falling."""
        return sorted({self.near(a, purpose) for a in amplitudes}, reverse=True)
