"""Batched search over latents: many restarts in one tensor, bounded radius, convergence reported.

Adam is used because its step does not depend on the gradient's scale: far from a trigger the
gradient is tiny, and a handful of restarts with plain descent ends at the benign level (the paper's
own search: five restarts, ReconD 815 where the target was reachable).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.engine.progress import Task
from genwarden.engine.seeds import random_stream
from genwarden.models.protocol import LatentLaw

#: Restarts per forward pass; fixed, since batch size changes the last bits of the arithmetic.
BATCH_RESTARTS = 128

#: Shells that restarts begin on, as multiples of the latent law's typical norm, and their shares.
_SHELLS = ((1.0, 0.7), (0.5, 0.1), (0.1, 0.1), (0.01, 0.1))

#: How far beyond the typical norm of a normal law a search may go.
_BEYOND_TYPICAL = 2.0

Objective = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SearchSettings:
    """One search.

    Attributes:
        steps: Adam steps.
        learning_rate: Adam's; it falls linearly to a tenth over the last half.
        radius: bound on the Euclidean norm of a latent, or None.
        half_width: bound on every element (uniform latent law), or None.
        halvings: how often the worse half of the restarts is given up (successive halving): at
            half of the steps, at a quarter of them, ... For searches of which only the best end
            counts, not for those that compare ends.
    """

    steps: int
    learning_rate: float = 0.05
    radius: float | None = None
    half_width: float | None = None
    halvings: int = 0

    def rungs(self) -> list[int]:
        """Steps after which the worse half is given up, in order."""
        parts = (self.steps >> power for power in range(self.halvings, 0, -1))
        return sorted({steps for steps in parts if steps})


class SearchResult(NamedTuple):
    """End points of all restarts.

    Attributes:
        z: best latent of each restart ``(restarts, *latent.shape)``, CPU.
        score: objective there ``(restarts,)``, CPU.
        start_score: objective at the start ``(restarts,)``.
        late_gain: improvement of the best restart over the last tenth of the steps, relative to
            its score; near 0 when the search has converged.
        zero_gradient_share: share of restarts whose gradient was exactly zero at the start.
    """

    z: Tensor
    score: Tensor
    start_score: Tensor
    late_gain: float
    zero_gradient_share: float


def ordinary_bounds(law: LatentLaw, *, steps: int, learning_rate: float = 0.05) -> SearchSettings:
    """Bounds that keep a search where ordinary latents live (in-sample and mode triggers).

    Normal law: norm at most sqrt(d) + 2, which 0.3 % of ordinary latents exceed whatever d is (the
    norm has a spread of 1/sqrt(2)). Uniform law: every element within [-1, 1].
    """
    if law.distribution == "normal":
        return SearchSettings(steps, learning_rate, radius=law.typical_norm + _BEYOND_TYPICAL)
    return SearchSettings(steps, learning_rate, half_width=1.0)


def start_latents(law: LatentLaw, count: int, *, seed: int, purpose: str) -> Tensor:
    """Starting latents: most on the typical shell, some inside, down to almost zero."""
    draws = law.sample(count, generator=random_stream(seed, purpose))
    scales = []
    for scale, share in _SHELLS:
        scales.extend([scale] * round(share * count))
    scales = (scales + [1.0] * count)[:count]
    return draws * torch.tensor(scales).view(-1, *[1] * len(law.shape))


def search(
    objective: Objective,
    starts: Tensor,
    settings: SearchSettings,
    *,
    device: torch.device,
    task: Task,
) -> SearchResult:
    """Maximise ``objective`` from every start; restarts never influence each other.

    With ``halvings`` they do, in one way: at each of them the worse half goes no further.

    Args:
        objective: latents ``(batch, *latent.shape)`` to scores ``(batch,)``, differentiable.
        starts: ``(restarts, *latent.shape)``.
        task: advanced by the number of restarts times steps.
    """
    going = _begun(starts.to(device), settings)
    dropped = []
    first = 0
    for last in [*settings.rungs(), settings.steps]:
        parts = [going.at(rows) for rows in torch.arange(len(going.z)).split(BATCH_RESTARTS)]
        for part in parts:
            _climb(objective, part, settings, first, last, task)
        going = _State(*(torch.cat(rows) for rows in zip(*parts, strict=True)))
        if last < settings.steps:
            order = going.best.argsort(descending=True, stable=True)
            kept, gone = order[: -(-len(order) // 2)], order[-(-len(order) // 2) :]
            task.advance(len(gone) * (settings.steps - last))
            dropped.append(going.at(gone))
            going = going.at(kept.sort().values)
        first = last
    whole = _State(*(torch.cat(rows).cpu() for rows in zip(*dropped, going, strict=True)))
    whole = whole.at(whole.number.argsort())
    score = whole.best
    top = int(score.argmax())
    gain = float((score[top] - whole.before[top]).abs() / score[top].abs().clamp_min(1e-12))
    flat = float(whole.flat.float().mean())
    return SearchResult(whole.best_z, score, whole.start, gain, flat)


class _State(NamedTuple):
    """Restarts on their way, a row each.

    Attributes:
        number: place among the starts.
        z: where the restart is.
        mean: Adam's of the gradient.
        square: Adam's of its square.
        best_z: the best latent so far.
        best: the objective there.
        start: the objective at the start.
        before: ``best`` when nine tenths of the steps were done.
        flat: whether the gradient was exactly zero at the start.
    """

    number: Tensor
    z: Tensor
    mean: Tensor
    square: Tensor
    best_z: Tensor
    best: Tensor
    start: Tensor
    before: Tensor
    flat: Tensor

    def at(self, rows: Tensor) -> _State:
        """Some of the restarts, as tensors of their own."""
        return _State(*(tensor[rows] for tensor in self))


def _begun(starts: Tensor, settings: SearchSettings) -> _State:
    z = bounded(starts.clone(), settings)
    nothing = torch.full((len(z),), -torch.inf, device=z.device)
    return _State(
        torch.arange(len(z), device=z.device),
        z,
        torch.zeros_like(z),
        torch.zeros_like(z),
        z.clone(),
        nothing,
        nothing,
        nothing,
        torch.zeros(len(z), dtype=torch.bool, device=z.device),
    )


def _climb(
    objective: Objective,
    state: _State,
    settings: SearchSettings,
    first: int,
    last: int,
    task: Task,
) -> None:
    """Adam from step ``first`` to ``last``, in place; after the last step of all one look more."""
    z = state.z.requires_grad_(True)
    adam = torch.optim.Adam([z], settings.learning_rate)
    if first:
        moments = {"exp_avg": state.mean, "exp_avg_sq": state.square}
        adam.state[z] = {"step": torch.tensor(float(first)), **moments}
    for step in range(first, last + (last == settings.steps)):
        score = objective(z)
        with torch.no_grad():
            value = torch.nan_to_num(score.detach(), nan=-torch.inf)
            better = value > state.best
            state.best.copy_(torch.where(better, value, state.best))
            state.best_z[better] = z.detach()[better]
        if step == 0:
            state.start.copy_(value)
        if step <= settings.steps * 0.9:
            state.before.copy_(state.best)
        if step == settings.steps:
            break
        (gradient,) = torch.autograd.grad(score.sum(), z)
        if step == 0:
            state.flat.copy_(gradient.flatten(1).abs().amax(1) == 0)
        z.grad = -torch.nan_to_num(gradient)  # Adam descends
        for group in adam.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, 1.9 - 1.8 * step / settings.steps)
        adam.step()
        with torch.no_grad():
            z.copy_(bounded(z, settings))
        task.advance(len(z))
    z.requires_grad_(False)
    if adam.state[z]:
        state.mean.copy_(adam.state[z]["exp_avg"])
        state.square.copy_(adam.state[z]["exp_avg_sq"])


def bounded(z: Tensor, settings: SearchSettings) -> Tensor:
    """Latents ``(batch, *latent.shape)``, clamped to the half width and shortened to the radius."""
    if settings.half_width is not None:
        z = z.clamp(-settings.half_width, settings.half_width)
    if settings.radius is not None:
        norm = z.flatten(1).norm(dim=1).clamp_min(1e-12)
        z = z * (settings.radius / norm).clamp_max(1.0).view(-1, *[1] * (z.ndim - 1))
    return z


def polish(
    loss: Objective, z: Tensor, *, iterations: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Second-order finish (L-BFGS, float64) of a few candidates, one by one.

    Args:
        loss: latents ``(1, *latent.shape)`` in float64 to a loss ``(1,)`` to be **minimised**.
        z: candidates ``(count, *latent.shape)``.

    Returns:
        Latents (float64, CPU) and their losses; a candidate never gets worse.
    """
    finished, losses = [], []
    for candidate in z:
        point = candidate[None].double().to(device).requires_grad_(True)
        with torch.no_grad():
            start_loss = loss(point)
        lbfgs = torch.optim.LBFGS(
            [point],
            max_iter=iterations,
            history_size=20,
            line_search_fn="strong_wolfe",
            tolerance_grad=1e-12,
            tolerance_change=1e-14,
        )

        def closure(lbfgs: torch.optim.LBFGS = lbfgs, point: Tensor = point) -> Tensor:
            lbfgs.zero_grad()
            value = loss(point).sum()
            value.backward()
            return value

        lbfgs.step(closure)
        with torch.no_grad():
            end_loss = loss(point)
            worse = not bool(end_loss <= start_loss)
        finished.append(candidate[None].double() if worse else point.detach().cpu())
        losses.append((start_loss if worse else end_loss).detach().cpu())
    return torch.cat(finished), torch.cat(losses)
