"""A candidate trigger and what is known about it; part of ``audit.json``.

:mod:`genwarden.inspections.dossier` measures it. Distances between latents are in typical norms
(``sqrt(d)`` for N(0, I)), squared distances between outputs in ordinary distances (the median
between two ordinary samples) unless the name ends in ``_sum``.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from genwarden.inspections.finding import Chart, Images

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Basin(_Strict):
    """How far around the latent the output stays what it is, and how steeply it changes.

    Attributes:
        ways: great circles to ordinary latents along which the radii are measured; the radii are
            means over them.
        half_width: distance at which the output has gone half of the way to the nearest ordinary
            sample (half of that squared distance).
        step_radius: distance at which the output has moved by half an ordinary distance.
        ordinary_radius: the same yardstick as ``step_radius``, at ordinary latents.
        lipschitz: largest singular value of the Jacobian at the latent; None if the network passes
            no gradient to its latent.
        wall_lipschitz: the mean of the same where the output has gone half of the way.
        ordinary_lipschitz: the median over ordinary latents.
    """

    ways: int
    half_width: Finite
    step_radius: Finite
    ordinary_radius: Finite
    lipschitz: Finite | None
    wall_lipschitz: Finite | None
    ordinary_lipschitz: Finite | None


class Carrier(_Strict):
    """A channel whose activation at the candidate lies far outside its ordinary range.

    Attributes:
        layer: name in the state dict; read behind the normalisation that follows it.
        channel: feature (dense) or channel (convolution).
        value: largest pre-activation over space at the candidate.
        ordinary_low: smallest such value over ordinary latents.
        ordinary_high: largest such value over ordinary latents.
        deviation: (value - ordinary mean) / ordinary standard deviation.
        usual_deviation: 99 % of ordinary latents have no channel in this layer further out.
    """

    layer: str
    channel: int
    value: Finite
    ordinary_low: Finite
    ordinary_high: Finite
    deviation: Finite
    usual_deviation: Finite


class Candidate(_Strict):
    """One latent that may be a trigger.

    Attributes:
        inspection: name of the inspection that found it.
        latent: flattened, rounded to 6 decimals; everything here was measured at these numbers.
        latent_norm: its norm in typical norms.
        output: the picture; None where a sample cannot be drawn.
        isolation: squared distance of the output from the nearest ordinary sample.
        isolation_sum: the same as a sum of squares.
        strips: outputs around the candidate.
        profile: how far the output moves on the way to ordinary latents.
        carriers: the channels that stand out most, layer by layer in the order of execution.
        command: makes the output again from the model and this document; "" where it was not
            known under what names they would be kept.
    """

    inspection: str
    latent: list[Finite]
    latent_norm: Finite
    output: Images | None
    isolation: Finite
    isolation_sum: Finite
    basin: Basin
    strips: list[Images]
    profile: Chart
    carriers: list[Carrier]
    command: str = ""
