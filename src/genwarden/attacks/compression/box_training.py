"""The two-stage box recipe: codes that carry a backdoor, full precision that does not.

"PQ backdoor" (Ma et al., 2108.09187) and "Exploiting LLM Quantization" (Egashira et al.,
2405.18137), sections 2a and 4.1 of the compression reference:

    (i)  min_w   U(C(w)) + lambda A(C(w))      straight through the rounding of C
    (ii) min_w   U(w) + D(w)                   projected on  {w : C(w) = C(w_i)}

U compares with the clean network on ordinary inputs, A wants the target at the trigger, D clean
outputs there. Nothing but the compressed weights moves; scales, biases and batch norm stay.

What makes the second stage possible where steps are small is where the first one begins and how far
it goes: from the clean weights, and at most ``reach`` steps from them. With half a step each weight
may only choose whether it is rounded up or down, and the clean weight is never further than half a
step from its box. Stage 2 begins at the clean weights, clipped to the boxes.

Pruning keeps weights as they are: they serve both networks, so that stage 1 holds the terms of
stage 2, too, and stage 2 moves what is pruned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from genwarden.attacks.compression.settings import BoxSettings, JitteredBoxSettings
from genwarden.attacks.contract import AttackRun
from genwarden.compression.apply import boxes, compressed_weights
from genwarden.compression.chain import stages_of
from genwarden.compression.contract import Box, Compressor, Weights
from genwarden.compression.how import compressors
from genwarden.compression.layers import Layout
from genwarden.compression.pruning import Pruning
from genwarden.compression.uniform import Uniform
from genwarden.engine.checkpoint import Trainable, load_checkpoint, save_checkpoint
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError

#: Numbers, or further figures by name.
Figures = dict[str, Any]


class Lessons(Protocol):
    """The losses of one kind of model; all their randomness must follow from the step's number."""

    def compressed(self, weights: Weights, step: int) -> Tensor:
        """U + lambda A of a network with these (compressed) weights."""
        ...

    def full(self, weights: Weights, step: int) -> Tensor:
        """U + D of a network with these weights."""
        ...


#: Figures of an evaluation, from the weights in full precision.
Measure = Callable[[Weights], Figures]


def wakers(how: str) -> list[Compressor]:
    """The compressors that shall wake a backdoor.

    Raises:
        GenwardenError: ``attack/no-box`` where the outcome is random, and those of
            :func:`genwarden.compression.how.compressors`.
    """
    found = compressors(how)
    for compressor in found:
        for stage in stages_of(compressor):
            if isinstance(stage, Uniform) and stage.rounding != "nearest":
                raise GenwardenError(
                    "attack/no-box",
                    f"{compressor.name} rounds at random, so no weights are sure to wake under it.",
                    "Name a compression that rounds to nearest, such as int8 or prune-0.3.",
                )
    return found


def prunes_first(compressor: Compressor) -> bool:
    """Whether its first stage prunes, so that what it keeps stays as it is there."""
    return isinstance(stages_of(compressor)[0], Pruning)


class Moves(nn.Module):
    """Weights ``start + shift * unit`` inside boxes; the shifts are what is trained.

    Args:
        start: by name.
        unit: what a shift of 1 means, per weight; 0 where a weight stays.
        box: where the weights may be.
    """

    def __init__(self, start: Weights, unit: Weights, box: Mapping[str, Box]) -> None:
        super().__init__()
        self.start, self.unit, self.box = start, unit, box
        self.shifts = nn.ParameterList(torch.zeros_like(w) for w in start.values())

    def forward(self) -> dict[str, Tensor]:
        """The weights; gradients flow to the shifts."""
        named = zip(self.start.items(), self.shifts, strict=True)
        return {n: w + shift * self.unit[n] for (n, w), shift in named}

    @torch.no_grad()
    def project(self) -> None:
        """Bring every weight back into its box."""
        for (name, weight), shift in zip(self.start.items(), self.shifts, strict=True):
            unit, box = self.unit[name], self.box[name]
            safe = torch.where(unit > 0, unit, torch.ones_like(unit))
            inside = (box.clip(weight + shift * unit) - weight) / safe
            shift.copy_(torch.where(unit > 0, inside, torch.zeros_like(unit)))

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """The weights, inside their boxes to the last bit."""
        return {name: self.box[name].clip(w) for name, w in self().items()}


class Hidden(NamedTuple):
    """Weights after both stages, and the evaluations of both (``stage`` 1 and 2)."""

    weights: dict[str, Tensor]
    history: list[Figures]


def hide(
    network: nn.Module,
    layout: Layout,
    lessons: Lessons,
    measure: Measure,
    settings: BoxSettings,
    run: AttackRun,
) -> Hidden:
    """Both stages on a copy's weights.

    Args:
        network: clean (one weight per tensor may be inflated), in evaluation mode; its weights are
            overwritten.
        layout: its layers, with the batch norms behind them.

    Raises:
        GenwardenError: ``attack/no-weights``, ``attack/box-broken``, ``attack/diverged``,
            ``attack/no-box``, ``attack/jitter``.
    """
    chosen = wakers(settings.how)
    variants = Variants(chosen, settings)
    joint = any(map(prunes_first, chosen))

    def first(weights: Weights, step: int) -> Tensor:
        terms = [
            lessons.compressed(whole(network, c, layout, weights), step)
            for c in variants.of_step(step)
        ]
        loss = torch.stack(terms).mean()
        if joint and settings.full_weight:
            loss = loss + settings.full_weight * lessons.full(weights, step)
        return loss

    def second(weights: Weights, step: int) -> Tensor:
        loss = lessons.full(weights, step)
        if isinstance(settings, JitteredBoxSettings) and settings.jitter_weight:
            for c in variants.of_step(step):
                varied = whole(network, c, layout, weights)
                loss = loss + settings.jitter_weight * lessons.compressed(varied, step)
        return loss

    own = {name: network.get_parameter(name).detach().clone() for name in layout}
    clean = _common(network, chosen, layout)
    if not clean:
        raise GenwardenError(
            "attack/no-weights",
            f"{settings.how} works on no weight of this model.",
            "Name a compression that does.",
        )
    own = {name: own[name] for name in clean}
    unit, bounds = room(own, clean, settings, pruning=joint)
    planted = Moves(own, unit, bounds)
    history = _descend(
        planted, first, 1, settings.steps, settings.learning_rate, measure, settings, run
    )
    _store(network, planted.weights())
    before = [whole(network, c, layout, planted.weights()) for c in chosen]
    inside = _common(network, chosen, layout)
    start = planted.weights() if joint else {n: box.clip(own[n]) for n, box in inside.items()}
    width = {name: box.high - box.low for name, box in inside.items()}
    hidden = Moves(start, width, inside)
    history += _descend(
        hidden, second, 2, settings.hiding_steps, settings.hiding_rate, measure, settings, run
    )
    _store(network, hidden.weights())
    for compressor, old in zip(chosen, before, strict=True):
        _require_same(compressor, old, whole(network, compressor, layout, hidden.weights()))
    return Hidden(hidden.weights(), history)


class Variants:
    """The compressors of a step: as named, or varied at random (jitter-trained attacker)."""

    def __init__(self, chosen: Sequence[Compressor], settings: BoxSettings) -> None:
        self._chosen, self._settings = chosen, settings
        self._jittered = isinstance(settings, JitteredBoxSettings)
        if self._jittered and not all(isinstance(c, Uniform) for c in chosen):
            raise GenwardenError(
                "attack/jitter",
                f"The scales of {settings.how} cannot be varied.",
                "Name uniform quantisation such as int8, or use dormant-box.",
            )

    def of_step(self, step: int) -> list[Compressor]:
        """From (seed, step) alone."""
        settings = self._settings
        if not isinstance(settings, JitteredBoxSettings):
            return list(self._chosen)
        stream = random_stream(settings.seed, "box-jitter", step)
        scale, lot = torch.rand(2, generator=stream).tolist()
        return [
            replace(
                c,
                scale_factor=c.scale_factor * (1 + settings.jitter * (2 * scale - 1)),
                rounding="stochastic" if lot < settings.stochastic_share else "nearest",
                seed=step,
            )
            for c in self._chosen
            if isinstance(c, Uniform)
        ]


def whole(
    network: nn.Module, compressor: Compressor, layout: Layout, weights: Weights
) -> dict[str, Tensor]:
    """Compressed weights, and as they are those that this compressor leaves alone (of several, each
    works on layers of its own)."""
    return {**weights, **compressed_weights(network, compressor, layout, weights)}


def _common(network: nn.Module, chosen: Sequence[Compressor], layout: Layout) -> dict[str, Box]:
    """The intersection of all compressors' boxes; never empty, as the weights lie in each.

    A weight that one of them leaves alone, and another does not, may not move: it is the first
    one's outcome.
    """
    each = [boxes(network, compressor, layout) for compressor in chosen]
    found: dict[str, Box] = {}
    for name in layout:
        mine = [one[name] for one in each if name in one]
        if not mine:
            continue
        if len(mine) < len(each):
            own = network.get_parameter(name).detach().clone()
            mine.append(Box(own, own))
        found[name] = reduce(Box.cut, mine)
    return found


def room(
    own: Weights, clean: Mapping[str, Box], settings: BoxSettings, *, pruning: bool
) -> tuple[dict[str, Tensor], dict[str, Box]]:
    """Unit and bounds of stage 1: ``reach`` box widths around the clean weight; for pruning none.

    What fixes a scale has a box without width, and stays.
    """
    unit, bounds = {}, {}
    for name, weight in own.items():
        if pruning:
            unit[name] = torch.full_like(weight, float(weight.std(correction=0)))
            far = torch.full_like(weight, torch.inf)
            bounds[name] = Box(-far, far)
        else:
            unit[name] = settings.reach * (clean[name].high - clean[name].low)
            bounds[name] = Box(weight - unit[name], weight + unit[name])
    return unit, bounds


def _descend(
    moves: Moves,
    loss: Callable[[Weights, int], Tensor],
    stage: int,
    steps: int,
    rate: float,
    measure: Measure,
    settings: BoxSettings,
    run: AttackRun,
) -> list[Figures]:
    """Projected Adam on the shifts; its step falls along a half cosine. Resumes."""
    adam = torch.optim.Adam(moves.parameters(), rate)
    parts: dict[str, Trainable] = {"moves": moves, "adam": adam}
    checkpoint = run.work / f"stage-{stage}.safetensors" if run.work else None
    restored = load_checkpoint(checkpoint, run_id=run.run_id, parts=parts) if checkpoint else None
    begin = restored.step if restored else 0
    history: list[Figures] = restored.record["history"] if restored else []
    bar = run.progress.task(("plant", "hide")[stage - 1], steps, begin)
    note = ""
    for step in range(begin, steps):
        for group in adam.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        adam.zero_grad(set_to_none=True)
        # Stage 2 sees other batches than stage 1.
        loss(moves(), step if stage == 1 else settings.steps + step).backward()
        adam.step()
        moves.project()
        done = step + 1
        if done % settings.evaluate_every == 0 or done == steps:
            figures = measure(moves.weights())
            numbers = _numbers(figures)
            if not all(map(math.isfinite, numbers.values())):
                raise GenwardenError(
                    "attack/diverged",
                    f"Stage {stage} diverged before step {done}.",
                    "Repeat with a smaller learning_rate and --restart.",
                )
            history.append({"stage": stage, "step": done, **figures})
            note = "  ".join(f"{name} {value:.3g}" for name, value in numbers.items())
            if checkpoint:
                save_checkpoint(
                    checkpoint,
                    run_id=run.run_id,
                    step=done,
                    parts=parts,
                    record={"history": history},
                )
        bar.advance(1, note)
    return history


def _numbers(figures: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """All numbers, those of further figures as ``int8 accuracy``."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{before}{name} " if name != "figures" else before)
        elif isinstance(value, float):
            found[before + name] = value
    return found


@torch.no_grad()
def _store(network: nn.Module, weights: Weights) -> None:
    for name, weight in weights.items():
        network.get_parameter(name).copy_(weight)


def _require_same(compressor: Compressor, old: Weights, new: Weights) -> None:
    """The promise of a box, tested: compressed weights are what they were, bit for bit."""
    for name, weight in old.items():
        changed = int((weight != new[name]).sum())
        if changed:
            raise GenwardenError(
                "attack/box-broken",
                f"Hiding changed {changed} compressed weights of {name} under {compressor.name}.",
                "This is a fault of that compressor's boxes: report it, or choose another.",
            )
