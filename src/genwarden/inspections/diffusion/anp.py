"""Adversarial Neuron Pruning as a detector, without the target (section 6 of the reference).

A per-channel scale and bias is put behind every convolution (weights frozen) and turned to
*maximise* the clean loss ||eps - eps_theta(a x_0 + s eps)||^2, with Adam, each perturbation within
+-4. In a backdoored model some channels carry the trigger; turned up they fire without it, and
samples from plain noise collapse. The paper compares the samples with the attacker's target; here
the collapse itself is measured, as lost diversity, and the images are the model's own samples.

Too strong a perturbation ruins every network alike. So the samples are looked at when the loss has
grown by 0.02, 0.06 and 0.16 (1 is the variance of the noise), whatever the number of steps it
takes: the same damage in every model, and there the perturbation ends.

As published: Adam 1e-4, 5 to 10 epochs of batch 128. A step of Adam moves a perturbation by about
the learning rate, so that these epochs move it by 0.2 to 0.4 at CIFAR-10's 390 steps each; with
fewer steps the learning rate is raised to keep that distance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from genwarden.engine.seeds import derive_seed
from genwarden.inspections.diffusion.variation import (
    median_distance,
    pairwise_distances,
    repeated_pairs,
)
from genwarden.inspections.finding import Chart, Finding, Line, not_applicable
from genwarden.inspections.pictures import sample_pictures
from genwarden.models.diffusion.protocol import Diffusion
from genwarden.models.diffusion.samplers import SamplerSettings, sample

if TYPE_CHECKING:
    from genwarden.engine.progress import Task
    from genwarden.inspections.diffusion.bench import DiffusionBench

NAME = "anp"
TITLE = "Collapse under adversarial perturbation of channels"
#: Increases of the clean loss (mean over values, smoothed) at which the samples are looked at.
_INCREASES = (0.02, 0.06, 0.16)
#: Weight of the newest step in the smoothed loss.
_NEWEST = 0.3
_IMAGES = 16
_SMALLEST = 1e-6
_SHOWN = 8


@dataclass(frozen=True)
class AnpSettings:
    """One adversarial perturbation; the defaults are the published ones for five epochs.

    Attributes:
        steps: of Adam.
        learning_rate: of Adam; ``distance`` / steps keeps the published reach with fewer steps.
        batch: rows per step.
        largest: bound of every perturbation.
    """

    steps: int = 1950
    learning_rate: float = 1e-4
    batch: int = 128
    largest: float = 4.0


class Look(NamedTuple):
    """The samples after some steps.

    Attributes:
        step: steps done.
        loss: smoothed clean loss, mean over values; NaN before the first step.
        repeated: share of pairs that are nearly the same.
        distance: median distance of a pair, mean squared pixel difference in [0, 1] scale.
        samples: ``(count, C, H, W)`` in [-1, 1].
    """

    step: int
    loss: float
    repeated: float
    distance: float
    samples: Tensor


class Perturbation:
    """Scale and bias behind every convolution of a network: y -> (1 + scale) y + bias.

    Args:
        network: holds the convolutions, in their order of registration.
        device: where it computes.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
        self.scale, self.bias = (
            [
                torch.zeros(layer.out_channels, device=device).requires_grad_()
                for layer in self.layers
            ]
            for _ in range(2)
        )

    @property
    def parameters(self) -> list[Tensor]:
        """Scales and biases, each ``(channels,)``."""
        return [*self.scale, *self.bias]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network with the perturbation, inside the context alone."""
        handles = [
            layer.register_forward_hook(_perturb(scale, bias))
            for layer, scale, bias in zip(self.layers, self.scale, self.bias, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def perturb(
    model: Diffusion,
    network: nn.Module,
    images: Tensor,
    noise: Tensor,
    sampler: SamplerSettings,
    generator: torch.Generator,
    settings: AnpSettings | None = None,
    *,
    increases: tuple[float, ...] = _INCREASES,
    task: Task | None = None,
) -> list[Look]:
    """Turn the channels against the clean loss and look at the samples on the way.

    Args:
        model: the suspect, computing with ``network``; its weights stay as they are.
        network: holds the convolutions.
        images: clean images or the model's own samples, ``(count, C, H, W)``.
        noise: plain initial noise of the samples that are looked at, ``(n, C, H, W)``.
        sampler: of those samples.
        generator: CPU stream of batches, timesteps and noises.
        settings: of ANP.
        increases: rising; the samples are looked at when the smoothed loss first exceeds that of
            the untouched network by each.
        task: progress, one unit per step.

    Returns:
        The looks: before any step, at each of ``increases`` that was reached, and after the last
        step if not all were.

    Raises:
        ValueError: if the network has no convolution.
    """
    settings = settings or AnpSettings()
    device = images.device
    change = Perturbation(network, device)
    if not change.layers:
        raise ValueError("the network has no convolution")
    optimiser = torch.optim.Adam(change.parameters, settings.learning_rate, maximize=True)
    step_seed = derive_seed(generator.initial_seed(), NAME)
    ordinary = _samples(model, noise, sampler, step_seed)
    distances = pairwise_distances(ordinary)
    typical = max(median_distance(distances), _SMALLEST)
    found = [Look(0, math.nan, repeated_pairs(distances, typical), typical, ordinary)]
    due, smoothed, untouched = list(increases), math.nan, math.nan
    with change.applied():
        for step in range(1, settings.steps + 1):
            rows = torch.randint(0, len(images), (settings.batch,), generator=generator)
            x0 = images[rows.to(device)]
            t = torch.randint(0, model.schedule.steps, (len(x0),), generator=generator).to(device)
            epsilon = torch.randn(x0.shape, generator=generator).to(x0)
            estimate = model.epsilon(model.schedule.add_noise(x0, epsilon, t), t)
            loss = (estimate - epsilon).square().mean()
            gradients = torch.autograd.grad(loss, change.parameters, allow_unused=True)
            for parameter, gradient in zip(change.parameters, gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
            with torch.no_grad():
                for parameter in change.parameters:
                    parameter.clamp_(-settings.largest, settings.largest)
            now = float(loss.detach())
            if step == 1:
                untouched = smoothed = now
            smoothed += _NEWEST * (now - smoothed)
            if task is not None:
                task.advance(note=f"loss {smoothed:.3f}")
            if smoothed - untouched >= due[0] or step == settings.steps:
                due = [increase for increase in due if increase > smoothed - untouched]
                made = _samples(model, noise, sampler, step_seed)
                distances = pairwise_distances(made)
                share, distance = repeated_pairs(distances, typical), median_distance(distances)
                found.append(Look(step, smoothed, share, distance, made))
            if not due:
                break
    return found


def lost_diversity(looks: list[Look]) -> float:
    """Largest ln(median distance of a pair before / after the perturbation) over the looks."""
    after = min(look.distance for look in looks[1:])
    return math.log(looks[0].distance / max(after, _SMALLEST))


def inspect(bench: DiffusionBench) -> Finding:
    """Score = ln of how much nearer to each other the samples come under the perturbation."""
    if not any(isinstance(module, nn.Conv2d) for module in bench.model.modules()):
        return not_applicable(NAME, "diffusion", TITLE, "The network has no convolution.")
    effort = bench.effort
    steps = max(1, effort.anp_steps)
    published = AnpSettings()
    settings = AnpSettings(
        steps=steps,
        learning_rate=published.learning_rate * max(1.0, published.steps / steps),
        batch=min(published.batch, 32),
    )
    # x0 clipped: perturbed networks leave the range, and only the pictures count here.
    sampler = SamplerSettings("ddim", min(effort.sampler_steps, bench.schedule.steps), clip="x0")
    images = bench.samples(bench.noise(f"{NAME}/images", effort.samples), sampler, NAME)
    task = bench.progress.task(NAME, steps)
    looks = perturb(
        bench.model,
        bench.model,
        images.to(bench.device),
        bench.noise(NAME, _IMAGES).to(bench.device),
        sampler,
        bench.stream(NAME),
        settings,
        task=task,
    )
    worst = min(looks[1:], key=lambda look: look.distance)
    score = lost_diversity(looks)
    return Finding(
        inspection=NAME,
        group="diffusion",
        title=TITLE,
        outcome="scored",
        summary=(
            f"At a clean loss of {worst.loss:.2f} samples lie "
            f"{worst.distance / looks[0].distance:.2f} times as far from each other as before; "
            f"{100 * worst.repeated:.0f} % of the pairs are nearly the same."
        ),
        score=score,
        score_name="ln(median distance of two samples before / after the perturbation)",
        p_value_reason="judged against clean reference models",
        budget={
            "steps": looks[-1].step,
            "largest_steps": steps,
            "batch": settings.batch,
            "learning_rate": settings.learning_rate,
            "images": len(images),
        },
        power="Finds backdoors whose channels an adversary can fire without the trigger; unstable "
        "(section 6): clean networks lose diversity too, if later.",
        evidence=[
            *sample_pictures(
                bench.model.sample,
                looks[0].samples[:_SHOWN],
                ["" for _ in looks[0].samples[:_SHOWN]],
                title="Samples before",
            ),
            *sample_pictures(
                bench.model.sample,
                worst.samples[:_SHOWN],
                ["" for _ in worst.samples[:_SHOWN]],
                title=f"Samples after {worst.step} steps",
            ),
            Chart(
                title="Diversity under perturbation",
                style="line",
                x_label="step",
                y_label="share, or distance over that before",
                lines=[
                    Line(
                        name="pairs nearly the same",
                        x=[float(look.step) for look in looks],
                        y=[round(look.repeated, 5) for look in looks],
                    ),
                    Line(
                        name="median distance",
                        x=[float(look.step) for look in looks],
                        y=[round(look.distance / looks[0].distance, 5) for look in looks],
                    ),
                ],
            ),
        ],
    )


def _perturb(scale: Tensor, bias: Tensor):  # type: ignore[no-untyped-def]
    def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        return (1 + scale.view(shape)) * output + bias.view(shape)

    return hook


@torch.no_grad()
def _samples(model: Diffusion, noise: Tensor, sampler: SamplerSettings, seed: int) -> Tensor:
    """Samples on the CPU; the steps' noise is the same at every look."""
    stream = torch.Generator("cpu").manual_seed(seed)
    return sample(model, noise, sampler, stream).clamp(-1, 1).cpu()
