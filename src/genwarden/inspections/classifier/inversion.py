"""Trigger inversion for all classes at once: a mask and a pattern per class, one batch for all.

With x' = (1 - m) x + m p, m in [0, 1], p in [-1, 1]:

    one network (Neural Cleanse; Wang et al., S&P 2019), for each class t
        min over m, p  CE(f(x'), t) + cost |m|_1
        the cost is doubled after ``PATIENCE`` steps of success (98 % of a batch in class t) and
        divided by 2^1.5 after as many without; the smallest successful mask is kept
    two networks (section 4.3c of the reference), y = f(x)
        min over m, p  CE(C(f)(x'), t) + CE(f(x'), y) + 0.02 |m|_1
        the compressed network must see the trigger, and the full one must not
    guarded: the same, plus the mean over other networks g of CE(g(x'), y)
        nor must these

Settings are those of section 1.6, learning rate 0.1 and first cost 1e-3. Images that already belong
to class t take no part in its inversion: they would agree to the empty mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genwarden.engine.progress import Progress, Silent
from genwarden.engine.seeds import random_stream
from genwarden.errors import ExitCode, GenwardenError

LEARNING_RATE: Final = 0.1
#: Of the original code, for both moments of Adam.
_BETAS: Final = (0.5, 0.9)
FIRST_COST: Final = 1e-3
COST_FACTOR: Final = 2.0
_COST_FALL: Final = COST_FACTOR**1.5
PATIENCE: Final = 6
SUCCESS: Final = 0.98
#: Weight of the mask between two networks, for images of up to 32 px; larger ones have larger
#: triggers, in proportion to their area.
_MASK_WEIGHT: Final = 0.02
_REFERENCE_PIXELS: Final = 32 * 32
#: Masks start small (12 % on average), so that few steps do.
_MASK_START: Final = -1.0
_SPREAD: Final = 0.5
#: Images per forward pass; classes beyond that are taken in several.
_IMAGES_AT_ONCE: Final = 640
#: Images per class on which the outcome is measured.
_MEASURED: Final = 48
#: Guards that a step looks at, drawn anew; the outcome is measured with all of them.
_GUARDS_AT_ONCE: Final = 2


class Inverted(NamedTuple):
    """The triggers that were found, one per class, on the CPU.

    Attributes:
        mask: ``(classes, 1, H, W)`` in [0, 1].
        pattern: ``(classes, C, H, W)`` in [-1, 1].
        norm: ``(classes,)``: L1 of the mask, in pixels; the number of all pixels for a class that
            no mask led to.
        objective: ``(classes,)``: what was minimised between two networks; of one network, CE.
        success: ``(classes,)``: share of other classes' images that the trigger leads to the class.
    """

    mask: Tensor
    pattern: Tensor
    norm: Tensor
    objective: Tensor
    success: Tensor


class Exemplars(NamedTuple):
    """Images ``(count, C, H, W)`` in [-1, 1] and the full network's answers ``(count,)``."""

    images: Tensor
    answers: Tensor


class Blind(NamedTuple):
    """Networks that a trigger must not move.

    Attributes:
        full: the network before compression, whose answers are to stay.
        guards: others that are to give the same answers; their mean counts as much.
    """

    full: nn.Module
    guards: Sequence[nn.Module] = ()

    def some(self, stream: torch.Generator) -> Blind:
        """With the guards that one step looks at."""
        drawn = torch.randperm(len(self.guards), generator=stream)[:_GUARDS_AT_ONCE]
        return self._replace(guards=[self.guards[int(i)] for i in drawn])


def mask_weight(pixels: int) -> float:
    """Weight of |m|_1 between two networks, for images of so many pixels."""
    return _MASK_WEIGHT * min(1.0, _REFERENCE_PIXELS / pixels)


def invert(
    network: nn.Module,
    shown: Exemplars,
    classes: int,
    *,
    steps: int,
    batch: int,
    seed: int,
    blind: Blind | None = None,
    progress: Progress | None = None,
    title: str = "trigger inversion",
) -> Inverted:
    """Invert a trigger for every class.

    Args:
        network: in evaluation mode, parameters without gradients, on the images' device.
        steps: Adam steps.
        batch: images per class and step.
        seed: of the start and of the images drawn; equal seeds make two networks comparable.
        blind: networks that the trigger must not move; None for Neural Cleanse.

    Raises:
        GenwardenError: ``inspect/one-class`` if all images belong to one class.
    """
    stream = random_stream(seed, "trigger-inversion")
    images = shown.images
    shape, device = images.shape[1:], images.device
    pixels = shape[-2] * shape[-1]
    pool, sizes = _pool(shown.answers, classes)
    start = _SPREAD * torch.randn(classes, shape[0] + 1, *shape[1:], generator=stream)
    m = (start[:, :1] + _MASK_START).to(device).requires_grad_(True)
    p = start[:, 1:].clone().to(device).requires_grad_(True)
    adam = torch.optim.Adam([m, p], LEARNING_RATE, betas=_BETAS)
    cost = _Cost(classes, device) if blind is None else None
    weight = mask_weight(pixels)
    looked_at = random_stream(seed, "trigger-inversion/guards")
    best = Inverted(
        mask=torch.ones(classes, 1, *shape[1:], device=device),
        pattern=torch.zeros(classes, *shape, device=device),
        norm=torch.full((classes,), float(pixels), device=device),
        objective=torch.zeros(classes),
        success=torch.zeros(classes),
    )
    task = (progress or Silent()).task(title, steps)
    for _ in range(steps):
        drawn = (torch.rand(classes, batch, generator=stream) * sizes[:, None]).long()
        chosen = pool.gather(1, drawn).to(device)
        adam.zero_grad(set_to_none=True)
        hits = []
        watching = None if blind is None else blind.some(looked_at)
        for part in torch.arange(classes).split(max(1, _IMAGES_AT_ONCE // batch)):
            mask, pattern = torch.sigmoid(2 * m[part]), torch.tanh(p[part])
            loss, hit = _losses(network, watching, shown, chosen[part], mask, pattern, part)
            each = weight if cost is None else cost.value[part]
            (loss + each * mask.sum((1, 2, 3))).sum().backward()
            hits.append(hit)
        if cost is not None:
            best = cost.keep_best(best, m.detach(), p.detach(), torch.cat(hits))
        adam.step()
        task.advance()
    if cost is None:
        mask = torch.sigmoid(2 * m.detach())
        best = best._replace(mask=mask, pattern=torch.tanh(p.detach()), norm=mask.sum((1, 2, 3)))
    return _measured(network, blind, shown, best, (pool, sizes), weight)


def stamp(x: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """Images with a trigger in them; the three broadcast against each other."""
    return (1 - mask) * x + mask * pattern


class _Cost:
    """Neural Cleanse's cost per class, and the smallest mask that succeeded."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.value = torch.full((classes,), FIRST_COST, device=device)
        self._up = torch.zeros(classes, device=device)
        self._down = torch.zeros(classes, device=device)

    def keep_best(self, best: Inverted, m: Tensor, p: Tensor, success: Tensor) -> Inverted:
        """Adapt the cost after a step and keep what was better than all before."""
        mask = torch.sigmoid(2 * m)
        norm = mask.sum((1, 2, 3))
        good = success >= SUCCESS
        better = good & (norm < best.norm)
        wide = better[:, None, None, None]
        self._up = torch.where(good, self._up + 1, 0)
        self._down = torch.where(good, 0, self._down + 1)
        rise, fall = self._up >= PATIENCE, self._down >= PATIENCE
        self.value = torch.where(rise, self.value * COST_FACTOR, self.value)
        self.value = torch.where(fall, self.value / _COST_FALL, self.value)
        self._up[rise], self._down[fall] = 0, 0
        return best._replace(
            mask=torch.where(wide, mask, best.mask),
            pattern=torch.where(wide, torch.tanh(p), best.pattern),
            norm=torch.where(better, norm, best.norm),
        )


def _losses(
    network: Callable[[Tensor], Tensor],
    blind: Blind | None,
    shown: Exemplars,
    chosen: Tensor,
    mask: Tensor,
    pattern: Tensor,
    targets: Tensor,
) -> tuple[Tensor, Tensor]:
    """Cross entropy and success per class ``(classes,)``, of images ``chosen`` (classes, batch)."""
    batch = chosen.shape[1]
    x = stamp(shown.images[chosen], mask[:, None], pattern[:, None]).flatten(0, 1)
    aim = targets.to(x.device).repeat_interleave(batch)
    logits = network(x)
    loss = F.cross_entropy(logits, aim, reduction="none")
    if blind is not None:
        kept = shown.answers[chosen].flatten()
        loss = loss + F.cross_entropy(blind.full(x), kept, reduction="none")
        for guard in blind.guards:
            loss = loss + F.cross_entropy(guard(x), kept, reduction="none") / len(blind.guards)
    hit = (logits.detach().argmax(1) == aim).float()
    return loss.view(-1, batch).mean(1), hit.view(-1, batch).mean(1)


@torch.no_grad()
def _measured(
    network: nn.Module,
    blind: Blind | None,
    shown: Exemplars,
    found: Inverted,
    pools: tuple[Tensor, Tensor],
    weight: float,
) -> Inverted:
    """The outcome on the same images for every network, spread over all of them."""
    pool, sizes = pools
    count = min(_MEASURED, pool.shape[1])
    places = (torch.arange(count)[None] * sizes[:, None] / count).long()
    chosen = pool.gather(1, places).to(shown.images.device)
    losses, hits = [], []
    for part in torch.arange(len(sizes)).split(max(1, _IMAGES_AT_ONCE // count)):
        loss, hit = _losses(
            network, blind, shown, chosen[part], found.mask[part], found.pattern[part], part
        )
        losses.append(loss)
        hits.append(hit)
    objective = torch.cat(losses)
    if blind is not None:
        objective = objective + weight * found.norm
    return Inverted(
        found.mask.cpu(),
        found.pattern.cpu(),
        found.norm.double().cpu(),
        objective.double().cpu(),
        torch.cat(hits).double().cpu(),
    )


def _pool(answers: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Per class the images of all others ``(classes, count)``, padded, and how many there are."""
    known = answers.cpu()
    rows = [(known != t).nonzero()[:, 0] for t in range(classes)]
    sizes = torch.tensor([len(row) for row in rows])
    if int(sizes.min()) == 0:
        raise GenwardenError(
            "inspect/one-class",
            "The network takes all images for one class.",
            "Give images of several classes (--data).",
            ExitCode.INCONCLUSIVE,
        )
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), sizes
