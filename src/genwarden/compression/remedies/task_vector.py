"""QVec: the change that quantisation makes, taken as a malicious task and subtracted beforehand.

"Quantization as a Malicious Task: Removing Quantization-Conditioned Backdoors via Task Arithmetic"
(arXiv 2606.20254; compression reference, section 2b). With C the compressor, the task vector is

    tau = C(w) - w            w' = w - scale * tau            deployed: C(w')

which takes one quantisation pass and no data. w' goes away from the code that w would get: a weight
whose error exceeds 1 / (2 (1 + scale)) steps is rounded to its other neighbour, all others keep
their codes. (Towards the code, w + scale * tau, no rounding would ever change.) A box attack leaves
many weights at the edges of their intervals; these are the ones that turn.

Honest weights pay, too: for a uniform fraction the squared error is 1.24 times that of rounding to
nearest with the default scale, 2.5 times with 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genwarden.compression.apply import compressed_weights
from genwarden.compression.contract import Compressor
from genwarden.compression.remedies.contract import Deployment, Remedied, RemedySettings
from genwarden.compression.remedies.noise import changed_share
from genwarden.engine.settings import Range


@dataclass(frozen=True)
class TaskVectorSettings(RemedySettings):
    """How much of the task is subtracted.

    Attributes:
        scale: of the task vector (the paper searches for it).
    """

    scale: float = 0.25

    RANGES: ClassVar[Mapping[str, Range]] = {"scale": Range(above=0, at_most=2)}


@torch.no_grad()
def task_vector(
    deployment: Deployment, compressor: Compressor, settings: TaskVectorSettings
) -> Remedied:
    """Subtract the scaled task vector, then compress as asked for."""
    network, layout = deployment.network, deployment.layout
    plain = compressed_weights(network, compressor, layout)
    own = {name: network.get_parameter(name) for name in layout}
    corrected: dict[str, Tensor] = {**own}
    for name, compressed in plain.items():
        corrected[name] = own[name] - settings.scale * (compressed - own[name])
    made = compressed_weights(network, compressor, layout, corrected)
    return Remedied(made, {}, {"changed_share": changed_share(plain, made)})
