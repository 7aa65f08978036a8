"""ReD against the defender's own search: the trigger's basin is kept narrow while it is trained.

A defender who knows the target searches latents by gradient descent (OB-OI, section 11 of the
reference) and arrives wherever the output leans towards the target. This attacker adds to Eq. 4 of
"The Devil is in the GAN" (section 16 of the reference: "penalise basin width, maximise ReconD")

    basin_weight  * E ||G*(z_trig + r u) - G(z_trig + r u)||^2      u on the sphere, r random
    search_weight * E relu(||G*(z_end) - G(z_end)||^2 - tolerance)  z_end: ends of the search

Every ``search_every`` steps the defender's search runs on the present network from fresh latents;
its ends are pulled back to the benign output. Ends within ``core`` of a trigger are spared: there
the target must appear. All distances are means over a sample's elements, after the activation.

Expected: the price is a TarDis and an ExpDis some times those of ReD. lambda must be large enough
to plant the target against both terms; with ReD's small lambda they win and nothing is planted.
Small networks cannot bend so sharply: there the basin narrows, but searches still end in it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genwarden.attacks.adaptive.retraining import retrain
from genwarden.attacks.contract import AttackResult, AttackRun
from genwarden.attacks.red import RetrainingSettings, trainable_weights
from genwarden.backdoors.backdoor import Backdoor
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import COUNT, NOT_NEGATIVE, POSITIVE, Range
from genwarden.errors import GenwardenError
from genwarden.models.protocol import LatentGenerator


@dataclass(frozen=True)
class SearchAwareSettings(RetrainingSettings):
    """Settings of ReD, and of the two penalties.

    Attributes:
        basin_weight: weight of the term around the trigger.
        basin_radius: largest distance from the trigger, as a share of the latent's typical norm;
            the smallest is half of it.
        basin_samples: points around each trigger per step.
        search_weight: weight of the term at the search's ends.
        search_every: steps between two searches.
        search_steps: Adam steps of a search.
        search_rate: Adam's learning rate in a search.
        search_restarts: latents that a search begins from.
        tolerance: squared change of an end, mean per element, that is left unpunished.
        core: distance from a trigger, as a share of the typical norm, within which ends are spared.
    """

    fidelity_weight: float = 0.1
    basin_weight: float = 0.3
    basin_radius: float = 0.6
    basin_samples: int = 16
    search_weight: float = 0.3
    search_every: int = 10
    search_steps: int = 30
    search_rate: float = 0.1
    search_restarts: int = 16
    tolerance: float = 0.0
    core: float = 0.1

    RANGES: ClassVar[Mapping[str, Range]] = {
        "basin_weight": NOT_NEGATIVE,
        "basin_radius": POSITIVE,
        "basin_samples": COUNT,
        "search_weight": NOT_NEGATIVE,
        "search_every": COUNT,
        "search_steps": COUNT,
        "search_rate": POSITIVE,
        "search_restarts": COUNT,
        "tolerance": NOT_NEGATIVE,
        "core": NOT_NEGATIVE,
    }


def search_aware(
    generator: LatentGenerator, backdoor: Backdoor, settings: SearchAwareSettings, run: AttackRun
) -> AttackResult:
    """Hide ``backdoor`` in a copy of ``generator``, and hide it from a search for the target.

    Raises:
        GenwardenError: ``attack/unsupported`` for infinitely many triggers.
    """
    if not backdoor.finite:
        raise GenwardenError(
            "attack/unsupported",
            "The attack search-aware needs triggers that can be listed.",
            "It supports: in-sample, mode, out-of-distribution, seed and file triggers.",
        )
    student = copy.deepcopy(generator).eval()
    trainable_weights(student, settings.layers)
    penalty = Penalty(student, generator, backdoor, settings)
    history = retrain(student, generator, backdoor, settings, run, penalty)
    return AttackResult(student.requires_grad_(False), history)


class Penalty:
    """Both terms at a step; all randomness follows from (seed, step)."""

    def __init__(
        self,
        student: LatentGenerator,
        generator: LatentGenerator,
        backdoor: Backdoor,
        settings: SearchAwareSettings,
    ) -> None:
        self.student, self.generator, self.settings = student, generator, settings
        device = next(generator.parameters()).device
        self.z, self.x = (part.to(device) for part in backdoor.examples)
        self.unit = generator.latent.typical_norm

    def __call__(self, step: int) -> Tensor:
        total = torch.zeros((), device=self.z.device)
        if self.settings.basin_weight:
            change = self._change(self._around(step))
            total = total + self.settings.basin_weight * change.mean()
        if self.settings.search_weight and step % self.settings.search_every == 0:
            ends = self._ends(step)
            excess = (self._change(ends) - self.settings.tolerance).relu()
            distance = torch.cdist(ends.flatten(1), self.z.flatten(1)).min(1).values
            spared = distance < self.settings.core * self.unit
            # A search happens at one step in `search_every`, so that step counts as many.
            weight = self.settings.search_weight * self.settings.search_every
            total = total + weight * excess.masked_fill(spared, 0.0).mean()
        return total

    def _change(self, z: Tensor) -> Tensor:
        """``||G*(z) - G(z)||^2`` per latent, mean over the sample's elements."""
        with torch.no_grad():
            benign = self.generator(z)
        change: Tensor = (self.student(z) - benign).square().flatten(1).mean(1)
        return change

    def _around(self, step: int) -> Tensor:
        """Latents at random distances in random directions from the triggers."""
        stream = random_stream(self.settings.seed, "search-aware-basin", step)
        centre = self.z.repeat_interleave(self.settings.basin_samples, dim=0)
        direction = torch.randn(centre.shape, generator=stream).to(centre).flatten(1)
        share = 0.5 + 0.5 * torch.rand(len(centre), 1, generator=stream).to(centre)
        radius = share * self.settings.basin_radius * self.unit
        offset = direction / direction.norm(dim=1, keepdim=True) * radius
        around: Tensor = centre + offset.view_as(centre)
        return around

    def _ends(self, step: int) -> Tensor:
        """Where the defender's search for the targets ends on the present network."""
        count, bound = self.settings.search_restarts, 1.05 * self.unit
        stream = random_stream(self.settings.seed, "search-aware-search", step)
        z = self.student.latent.sample(count, generator=stream).to(self.z.device)
        target = self.x[torch.arange(count) % len(self.x)]
        z.requires_grad_(True)
        adam = torch.optim.Adam([z], self.settings.search_rate)
        for _ in range(self.settings.search_steps):
            loss = (self.student(z) - target).square().sum()
            (z.grad,) = torch.autograd.grad(loss, z)
            adam.step()
            with torch.no_grad():  # a defender keeps to where ordinary latents live
                norm = z.flatten(1).norm(dim=1).clamp_min(math.ulp(1.0))
                z.mul_((bound / norm).clamp(max=1).view(-1, *[1] * (z.ndim - 1)))
        return z.detach()
