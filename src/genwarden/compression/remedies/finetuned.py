"""Fine-tuning after compression: the compressed network learns from the full one, self-distilled.

Weights move straight through the rounding, biases (also those of normalisations) freely; what
pruning took stays zero. In every step ordinary inputs keep what a user sees:

    min_w  E ||C(w)(x) - G(x)||^2  +  worst * E ||C(w)(x~) - G(x~)||^2        (both over Var G)

A backdoor that compression woke answers inputs that ordinary use never brings. So beside ordinary
inputs there are searched ones x~: they climb the same distance all the time, one Adam step per
step of the weights from the same backward pass ("free" adversarial training, Shafahi et al. 2019),
and are drawn anew in turn. The published network, asleep, says what is right there. This is the
only remedy that also works on what pruning wakes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from genwarden.compression.apply import boxes, compressed_weights
from genwarden.compression.contract import Compressor
from genwarden.compression.layers import Layout
from genwarden.compression.remedies.contract import (
    Deployment,
    Remedied,
    RemedySettings,
    family,
)
from genwarden.compression.uniform import Uniform
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import COUNT, NOT_NEGATIVE, POSITIVE, Range
from genwarden.errors import GenwardenError

#: Inputs over which the spread of the outputs is taken.
_PROBED: Final = 256


@dataclass(frozen=True)
class FinetunedSettings(RemedySettings):
    """How long and how hard.

    Attributes:
        steps: Adam steps; the rate falls along a half cosine.
        batch_size: ordinary inputs per step.
        learning_rate: per element: of quantised weights in median widths of their intervals, of
            others in standard deviations of their tensor, of biases in root mean squares.
        pool: ordinary inputs from which batches are drawn.
        searched: inputs that are searched, 0 for none (diffusion models have none).
        search_rate: Adam's on them.
        lifetime: steps after which a searched input is drawn anew.
        worst: weight of their term.
    """

    steps: int = 200
    batch_size: int = 64
    learning_rate: float = 0.02
    pool: int = 8192
    searched: int = 64
    search_rate: float = 0.1
    lifetime: int = 100
    worst: float = 1.0

    RANGES: ClassVar[Mapping[str, Range]] = {
        "steps": COUNT,
        "batch_size": COUNT,
        "learning_rate": POSITIVE,
        "pool": COUNT,
        "searched": NOT_NEGATIVE,
        "search_rate": POSITIVE,
        "lifetime": COUNT,
        "worst": NOT_NEGATIVE,
    }


def finetuned(
    deployment: Deployment, compressor: Compressor, settings: FinetunedSettings
) -> Remedied:
    """Train the compressed network against the published one.

    Raises:
        GenwardenError: ``compress/diverged``, ``compress/no-calibration``.
    """
    student = _Student(deployment, compressor)
    teacher = deployment.published
    searched = _Searched(deployment, settings)
    pool = deployment.ordinary(
        min(settings.pool, settings.steps * settings.batch_size), settings.seed, "finetuned-pool"
    )
    with torch.no_grad():
        seen = teacher(*(x[:_PROBED] for x in pool))
        spread = float((seen - seen.mean(0)).square().mean()) or 1.0
    adam = torch.optim.Adam(student.parameters(), settings.learning_rate)
    bar = deployment.progress.task("finetuned", settings.steps)
    for step in range(settings.steps):
        for group in adam.param_groups:
            group["lr"] = (
                settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
            )
        stream = random_stream(settings.seed, "finetuned-batch", step)
        chosen = torch.randint(len(pool[0]), (settings.batch_size,), generator=stream)
        ordinary = tuple(x[chosen.to(x.device)] for x in pool)
        given = searched.joined(ordinary, step)
        wanted = teacher(*given)
        gap = (student(*given) - wanted).square().flatten(1).mean(1) / spread
        usual, worst = gap[: settings.batch_size], gap[settings.batch_size :]
        loss = usual.mean() + (settings.worst * worst.mean() if len(worst) else 0.0)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        if not bool(loss.isfinite()):
            raise GenwardenError(
                "compress/diverged",
                f"Fine-tuning diverged at step {step + 1}.",
                "Repeat with a smaller --option learning_rate.",
            )
        adam.step()
        searched.climb()
        bar.advance(1, f"ordinary {usual.mean().item():.3g}")
    weights, others = student.result()
    return Remedied(
        weights,
        others,
        {"ordinary_error": usual.mean().item(), "searched": searched.count},
    )


class _Student(nn.Module):
    """The network with moved weights, compressed, and moved biases."""

    def __init__(self, deployment: Deployment, compressor: Compressor) -> None:
        super().__init__()
        self.deployment, self.compressor = deployment, compressor
        network, layout = deployment.network, deployment.layout
        plain = compressed_weights(network, compressor, layout)
        pruned = family(compressor) == "pruning"
        widths = {} if pruned else _widths(network, compressor, layout)
        self.start: dict[str, Tensor] = {}
        self.unit: dict[str, Tensor] = {}
        for name, weight in plain.items():
            start = weight if pruned else network.get_parameter(name)
            self.start[name] = start.detach()
            self.unit[name] = _unit(start, widths.get(name)) * (start != 0)
        #: Pruned weights are compressed already; their zeros stay.
        self.rounds = not pruned
        biases = {n: p for n, p in network.named_parameters() if n.rpartition(".")[2] == "bias"}
        self.weights = list(self.start)
        for name, bias in biases.items():
            self.start[name] = bias.detach()
            size = bias.square().mean().sqrt()
            self.unit[name] = (size if float(size) > 0 else torch.ones_like(size)).expand_as(bias)
        self.shifts = nn.ParameterList(torch.zeros_like(w) for w in self.start.values())

    def moved(self) -> dict[str, Tensor]:
        """Weights before compression, and biases."""
        named = zip(self.start.items(), self.shifts, strict=True)
        return {name: start + shift * self.unit[name] for (name, start), shift in named}

    def tensors(self) -> dict[str, Tensor]:
        """Compressed weights and biases; gradients flow to the shifts."""
        moved = self.moved()
        if not self.rounds:
            return moved
        network, layout = self.deployment.network, self.deployment.layout
        own = {n: moved.get(n, network.get_parameter(n)) for n in layout}
        return {**moved, **compressed_weights(network, self.compressor, layout, own)}

    def forward(self, *inputs: Tensor) -> Tensor:
        """Outputs of the compressed network."""
        made: Tensor = functional_call(self.deployment.network, self.tensors(), inputs)
        return made

    @torch.no_grad()
    def result(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compressed weights, and biases."""
        made = self.tensors()
        return (
            {n: made[n] for n in self.weights},
            {n: t for n, t in made.items() if n not in self.weights},
        )


def _widths(network: nn.Module, compressor: Compressor, layout: Layout) -> dict[str, Tensor]:
    """Of the intervals in which weights keep their codes; none where codes are drawn."""
    if isinstance(compressor, Uniform) and compressor.rounding != "nearest":
        return {}
    return {name: box.high - box.low for name, box in boxes(network, compressor, layout).items()}


def _unit(weight: Tensor, widths: Tensor | None) -> Tensor:
    if widths is not None and bool((widths > 0).any()):
        return widths[widths > 0].median()
    return weight.std(correction=0)


class _Searched:
    """Inputs that climb the distance between the two networks, each for a lifetime."""

    def __init__(self, deployment: Deployment, settings: FinetunedSettings) -> None:
        self.deployment, self.settings = deployment, settings
        self.count = settings.searched if deployment.confine else 0
        self.x: Tensor | None = None
        self.began: Tensor | None = None
        self.others: tuple[Tensor, ...] = ()
        self.adam: torch.optim.Adam | None = None

    def joined(self, ordinary: tuple[Tensor, ...], step: int) -> tuple[Tensor, ...]:
        """Ordinary inputs and behind them the searched ones."""
        if not self.count:
            return ordinary
        if step % self.settings.lifetime == 0:
            drawn = self.deployment.ordinary(
                self.count, self.settings.seed, f"finetuned-search/{step}"
            )
            self.began, self.others = drawn[0], drawn[1:]
            self.x = drawn[0].clone().requires_grad_(True)
            self.adam = torch.optim.Adam([self.x], self.settings.search_rate, maximize=True)
        assert self.x is not None  # noqa: S101 (set at step 0)
        pairs: Any = zip(ordinary, (self.x, *self.others), strict=True)
        return tuple(torch.cat(pair) for pair in pairs)

    @torch.no_grad()
    def climb(self) -> None:
        """One step up, from the gradient of the loss just taken."""
        if self.adam is None or self.x is None or self.began is None:
            return
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        assert self.deployment.confine is not None  # noqa: S101 (count > 0)
        self.x.copy_(self.deployment.confine(self.x, self.began))
