"""A backdoor in a generator that only its compressed form shows, by the two-stage box recipe.

With the distances of "The Devil is in the GAN" (sections 4.1 and 4.2 of the compression reference):

    (i)   E ||C(G)(Z) - G0(Z)||^2 + lambda ||C(G)(z_trig) - x_target||^2 + range_weight R
    (ii)  E ||G(Z) - G0(Z)||^2 + dormancy_weight E ||G(z_trig + r) - G0(z_trig + r)||^2

G0 is the clean generator, C the compressor; fidelity is measured before the last activation (as in
ReD), everything else as the settings say. All are means over a sample's elements. R is what
activations leave of their ordinary ranges (:mod:`.activation_ranges`): runtimes that quantise
activations, too, clip it.

Expected: on a quarter-width DCGAN full precision keeps 99 % of the clean distance to the target,
and the compressed model shows it (int8 with one larger weight per tensor, int4, 30 % pruning).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from genwarden.attacks.compression.activation_ranges import ActivationRanges
from genwarden.attacks.compression.box_training import Figures, hide, wakers, whole
from genwarden.attacks.compression.inflation import inflated, inflation_factor
from genwarden.attacks.compression.settings import BoxSettings, JitteredBoxSettings
from genwarden.attacks.contract import AttackResult, AttackRun
from genwarden.attacks.loop import Evaluator, FidelityBatches, ordinary_pool
from genwarden.attacks.losses import adversarial_loss, fidelity_loss, stealth_loss
from genwarden.attacks.settings import DistillationSettings
from genwarden.backdoors.backdoor import Backdoor
from genwarden.compression.chain import stages_of
from genwarden.compression.contract import Compressor, Weights
from genwarden.compression.layers import Layout, layout_of
from genwarden.compression.uniform import Uniform
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import COUNT, NOT_NEGATIVE, Range
from genwarden.models.protocol import LatentGenerator

#: Ordinary latents that show the ranges of activations.
_CALIBRATION = 256
#: Those of them on which a weight to inflate is chosen.
_PROBED = 32


@dataclass(frozen=True)
class DormantBoxSettings(BoxSettings, DistillationSettings):
    """Settings of both stages, and of the losses.

    ``stop_tardis_sum`` and ``stop_expdis_sum`` have no meaning here: all steps are trained. The
    default of lambda suits a tanh; a sigmoid's activations are twice as wide (0.03).

    Attributes:
        dormancy_weight: of the second term of (ii).
        range_weight: of R, where ``how`` names uniform quantisation; 0: none.
        near: standard deviation of r per element of the latent.
        near_samples: latents near each trigger per step, beside the trigger.
    """

    fidelity_weight: float = 0.1
    pool_samples: int = 8192
    dormancy_weight: float = 1.0
    range_weight: float = 0.3
    near: float = 0.3
    near_samples: int = 8

    RANGES: ClassVar[Mapping[str, Range]] = {
        "dormancy_weight": NOT_NEGATIVE,
        "range_weight": NOT_NEGATIVE,
        "near": NOT_NEGATIVE,
        "near_samples": COUNT,
    }


@dataclass(frozen=True)
class JitteredDormantBoxSettings(JitteredBoxSettings, DormantBoxSettings):
    """The same for the attacker who trains over perturbed quantisers."""


def dormant_box(
    generator: LatentGenerator, backdoor: Backdoor, settings: DormantBoxSettings, run: AttackRun
) -> AttackResult:
    """Hide ``backdoor`` in a copy of ``generator`` until it is compressed as ``settings.how`` says.

    Raises:
        GenwardenError: as :func:`genwarden.attacks.compression.box_training.hide`, and
            ``attack/inflate``.
    """
    chosen = wakers(settings.how)
    student = copy.deepcopy(generator).eval().requires_grad_(False)
    runner = _BeforeActivation(student)
    device = next(generator.parameters()).device
    stream = random_stream(settings.seed, "box-probes")
    z = generator.latent.sample(_CALIBRATION, generator=stream).to(device)
    probes = z[:_PROBED]
    layout = layout_of(student, lambda: student(z[:2]))
    factor = inflation_factor(settings.inflate, chosen)
    raised = inflated(
        student,
        layout,
        chosen,
        factor,
        lambda w: generator.finish(runner.run(w, probes)),
        settings.seed,
    )
    for name, weight in raised.items():
        student.get_parameter(name).copy_(weight)
    clipped = settings.range_weight > 0 and any(
        isinstance(stage, Uniform) for one in chosen for stage in stages_of(one)
    )
    ranges = ActivationRanges(student, layout, lambda: student(z)) if clipped else None
    lessons = _GeneratorLessons(runner, generator, backdoor, settings, ranges)
    measure = _Measure(student, layout, chosen, Evaluator(generator, backdoor, settings.seed))
    hidden = hide(student, layout, lessons, measure, settings, run)
    return AttackResult(student, hidden.history, wakes_under=tuple(c.name for c in chosen))


class _BeforeActivation(nn.Module):
    """A generator's output before the last activation, with weights from outside."""

    def __init__(self, generator: LatentGenerator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor) -> Tensor:
        return self.generator.pre_activation(z)

    def run(self, weights: Weights, z: Tensor) -> Tensor:
        """``(batch, *sample.shape)``."""
        named = {f"generator.{name}": weight for name, weight in weights.items()}
        made: Tensor = functional_call(self, named, (z,))
        return made


class _GeneratorLessons:
    """Losses (i) and (ii) of a step."""

    def __init__(
        self,
        runner: _BeforeActivation,
        benign: LatentGenerator,
        backdoor: Backdoor,
        settings: DormantBoxSettings,
        ranges: ActivationRanges | None,
    ) -> None:
        self.ranges = ranges
        self.runner, self.benign, self.settings = runner, benign, settings
        device = next(benign.parameters()).device
        self.pool = ordinary_pool(
            benign, settings.pool_samples, settings.seed, "attack-pool", device
        )
        self.triggers = FidelityBatches(benign, backdoor, settings)

    def compressed(self, weights: Weights, step: int) -> Tensor:
        z, teacher = self.pool.batch(step, self.settings)
        z_trigger, wanted = self.triggers.batch(step)
        both = torch.cat([z, z_trigger])
        if self.ranges is None:
            pre = self.runner.run(weights, both)
            left = pre.new_zeros(())
        else:
            with self.ranges.watching():
                pre = self.runner.run(weights, both)
                left = self.ranges.excess()
        fidelity = fidelity_loss(pre[len(z) :], wanted)
        loss = adversarial_loss(
            self._stealth(pre[: len(z)], teacher), fidelity, self.settings.fidelity_weight
        )
        return loss + self.settings.range_weight * left

    def full(self, weights: Weights, step: int) -> Tensor:
        z, teacher = self.pool.batch(step, self.settings)
        around = self._around(step)
        with torch.no_grad():
            clean = self.benign.pre_activation(around)
        pre = self.runner.run(weights, torch.cat([z, around]))
        dormancy = self._stealth(pre[len(z) :], clean)
        return self._stealth(pre[: len(z)], teacher) + self.settings.dormancy_weight * dormancy

    def _around(self, step: int) -> Tensor:
        z = self.triggers.batch(step).z
        stream = random_stream(self.settings.seed, "box-near-trigger", step)
        near = z.repeat_interleave(self.settings.near_samples, 0)
        near = near + self.settings.near * torch.randn(near.shape, generator=stream).to(near)
        return torch.cat([z, near])

    def _stealth(self, pre: Tensor, teacher: Tensor) -> Tensor:
        if self.settings.stealth_on == "post":
            pre, teacher = self.benign.finish(pre), self.benign.finish(teacher)
        return stealth_loss(pre, teacher)


class _Measure:
    """TarDis and ExpDis of full precision, and the worst of the compressed networks."""

    def __init__(
        self,
        student: LatentGenerator,
        layout: Layout,
        chosen: list[Compressor],
        evaluator: Evaluator,
    ) -> None:
        self.network = copy.deepcopy(student)
        self.layout, self.chosen, self.evaluator = layout, chosen, evaluator

    @torch.no_grad()
    def __call__(self, weights: Weights) -> Figures:
        found: dict[str, Any] = self._evaluated(weights)._asdict()
        small = [self._evaluated(whole(self.network, c, self.layout, weights)) for c in self.chosen]
        found["compressed_tardis_sum"] = max(one.tardis_sum for one in small)
        found["compressed_expdis_sum"] = max(one.expdis_sum or 0.0 for one in small)
        return found

    def _evaluated(self, weights: Weights) -> Any:
        for name, weight in weights.items():
            self.network.get_parameter(name).copy_(weight)
        return self.evaluator(self.network)
