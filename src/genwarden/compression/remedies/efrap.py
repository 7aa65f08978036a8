"""EFRAP: learned rounding that flips the roundings an attack relies on.

Li et al., "Nearest is Not Dearest: Towards Practical Defense against Quantization-conditioned
Backdoor Attacks" (CVPR 2024, 2405.12725; compression reference, section 2b). Per layer, with h the
rounding of each weight (0 down, 1 up) and f its fraction between the two neighbours,

    L = ||W_h x - W x||^2 + flip * sum_i e_i BCE(h_i, 1 - round(f_i)) + binary * sum_i 1 - |2 h_i - 1|^2

where e_i = |w_i - w_i^q| is the error of rounding to nearest: the larger it is, the harder the push
to the other neighbour, while the reconstruction keeps what the layer makes of ordinary inputs x.

The loop is that of AdaRound (:mod:`genwarden.compression.learned_rounding`): the reconstruction is
relative to that of rounding to nearest, e is in steps, and both regularisers are means over a
layer's weights, so that one setting fits layers of every size.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genwarden.compression.apply import compressed_weights
from genwarden.compression.contract import Compressor
from genwarden.compression.learned_rounding import (
    RoundingSettings,
    SoftRounding,
    learned_rounding,
)
from genwarden.compression.remedies.contract import Deployment, Remedied, RemedySettings
from genwarden.compression.remedies.noise import changed_share
from genwarden.compression.uniform import Uniform
from genwarden.engine.settings import COUNT, NOT_NEGATIVE, POSITIVE, Range

_BLOCK: Final = 64
#: Keeps the cross entropy of a decided weight finite.
_UNDECIDED: Final = 1e-3


@dataclass(frozen=True)
class EfrapSettings(RemedySettings):
    """How long each layer learns, and what pushes its roundings.

    Attributes:
        steps: Adam steps per layer (published: 10,000).
        calibration: ordinary inputs (published: 32 batches).
        batch_size: of them per step.
        learning_rate: Adam's.
        flip: weight of the push to the other neighbour.
        binary: weight of the regulariser that wants decisions.
    """

    steps: int = 200
    calibration: int = 256
    batch_size: int = 32
    learning_rate: float = 2e-2
    flip: float = 0.3
    binary: float = 1.0

    RANGES: ClassVar[Mapping[str, Range]] = {
        "steps": COUNT,
        "calibration": COUNT,
        "batch_size": COUNT,
        "learning_rate": POSITIVE,
        "flip": NOT_NEGATIVE,
        "binary": NOT_NEGATIVE,
    }


def efrap(deployment: Deployment, compressor: Compressor, settings: EfrapSettings) -> Remedied:
    """Learn the rounding of every layer from what reaches it in full precision."""
    assert isinstance(compressor, Uniform)  # noqa: S101 (the registry's families)
    network, layout = deployment.network, deployment.layout
    inputs = deployment.ordinary(settings.calibration, settings.seed, "efrap")

    def forward(one: nn.Module) -> Any:
        for parts in zip(*(x.split(_BLOCK) for x in inputs), strict=True):
            one(*parts)

    def push(rounding: SoftRounding) -> Tensor:
        h = rounding.h.clamp(_UNDECIDED, 1 - _UNDECIDED)
        nearest = (rounding.fraction > 0.5).to(h)
        error = (rounding.fraction - nearest).abs()
        flip = (error * F.binary_cross_entropy(h, 1 - nearest, reduction="none")).mean()
        undecided = (1 - (2 * rounding.h - 1).square()).mean()
        return settings.flip * flip + settings.binary * undecided

    loop = RoundingSettings(
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight=1.0,
        warm_up=0.0,
        seed=settings.seed,
    )
    made = learned_rounding(
        network, compressor, layout, forward, loop, regulariser=push, progress=deployment.progress
    )
    plain = compressed_weights(network, compressor, layout)
    with torch.no_grad():
        for name in made:  # what pruning removed stays removed
            made[name] = torch.where(network.get_parameter(name) == 0, 0.0, made[name])
    return Remedied(made, {}, {"changed_share": changed_share(plain, made)})
