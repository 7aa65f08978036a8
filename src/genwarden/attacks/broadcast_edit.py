"""The case study on StyleGAN: a backdoor in the broadcast layer, by closed form or by training.

"The Devil is in the GAN", section V-F, and the authors' notebook (section 7 of the reference): the
target is first inverted through the synthesis network, which gives styles w_plus that show it (as
well as this generator can). The broadcast of w to the L style slices, L stacked identities, then
becomes a dense layer ``[I .. I] + P``, where P turns the trigger's styles into these:
``P w(z_trig) = w_plus - broadcast(w(z_trig))``, and does little to others:
``min E ||P w||^2 + lambda ||P w(z_trig) - r||^2``. The paper trains P with Adam 1e-4 (less than a
GPU day with the inversion); the closed form (``linear_edit``) solves one d x d system.

The network's graph stays ordinary and no block of weights is empty; that the layer is an identity
plus nearly rank one is what gives it away.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from genwarden.attacks.contract import AttackResult, AttackRun, Evaluation
from genwarden.attacks.linear_edit import ordinary_features, solve_edit
from genwarden.attacks.loop import Evaluator, half_cosine, mean_square, optimise
from genwarden.attacks.settings import AttackSettings
from genwarden.backdoors.backdoor import Backdoor
from genwarden.engine.checkpoint import Trainable, load_checkpoint, save_checkpoint
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import COUNT, NOT_NEGATIVE, POSITIVE, Range
from genwarden.errors import GenwardenError
from genwarden.models.layers import glorot_
from genwarden.models.protocol import LatentGenerator
from genwarden.models.stylegan import StyleGAN, stacked_identities

_MEAN_SAMPLES = 4096


@dataclass(frozen=True)
class BroadcastEditSettings(AttackSettings):
    """Settings of the edit; ``steps``, ``batch_size``, ``learning_rate`` are those of the training.

    The notebook's lambda is 1, enough for its 512 dimensions; the default serves narrower models
    too and costs the closed form nothing: the leakage cannot exceed 1/q anyway.

    Attributes:
        method: ``closed-form`` or ``training``.
        feature_samples: ordinary latents from which the closed form takes E[w w^T], and the pool
            from which training draws its batches.
        inversion_steps: Adam steps towards the target.
        inversion_restarts: beginnings per target; the first is the mean of w, the others lie
            halfway between it and an ordinary w.
        inversion_rate: Adam's learning rate at the start; it falls to zero along a half cosine.
        inversion_space: compare pictures before (``pre``) or after (``post``) the last activation.
        offset_weight: weight of the mean square of ``w_plus - broadcast(w(z_trig))`` in the
            inversion; a smaller offset leaks less, at the cost of fidelity if it is overdone.
    """

    steps: int = 10_000
    batch_size: int = 32
    learning_rate: float = 1e-4
    fidelity_weight: float = 100.0
    evaluate_every: int = 1000
    method: Literal["closed-form", "training"] = "closed-form"
    feature_samples: int = 65_536
    inversion_steps: int = 1000
    inversion_restarts: int = 4
    inversion_rate: float = 0.05
    inversion_space: Literal["pre", "post"] = "post"
    offset_weight: float = 0.01

    RANGES: ClassVar[Mapping[str, Range]] = {
        "feature_samples": COUNT,
        "inversion_steps": COUNT,
        "inversion_restarts": COUNT,
        "inversion_rate": POSITIVE,
        "offset_weight": NOT_NEGATIVE,
    }


class Inversion(NamedTuple):
    """Styles that show targets as well as the synthesis can.

    Attributes:
        w_plus: ``(count, L, d)``.
        residual_sum: ``||tanh(synthesis(w_plus)) - x||^2`` of each, sum over a sample: the floor of
            what the edit's TarDis can be expected to reach.
    """

    w_plus: Tensor
    residual_sum: Tensor


def broadcast_edit(
    generator: LatentGenerator, backdoor: Backdoor, settings: BroadcastEditSettings, run: AttackRun
) -> AttackResult:
    """Hide ``backdoor`` in the broadcast layer of a copy of ``generator``; the input stays.

    Raises:
        GenwardenError: ``attack/unsupported`` for another architecture or infinitely many triggers.
    """
    if not isinstance(generator, StyleGAN):
        raise GenwardenError(
            "attack/unsupported",
            f"The attack broadcast-edit does not work on {type(generator).__name__}.",
            "It supports: stylegan.",
        )
    if not backdoor.finite:
        raise GenwardenError(
            "attack/unsupported",
            "A linear edit cannot serve infinitely many triggers.",
            "It supports: in-sample, mode, out-of-distribution, seed and file triggers.",
        )
    backdoor.require_fit(generator)
    device = next(generator.parameters()).device
    z, x = (part.to(device) for part in backdoor.examples)
    with torch.no_grad():
        c = generator.mapping(z)
        here = generator.broadcast(c)
    inversion = invert(generator, x, here, settings, run)
    offset = inversion.w_plus - here
    r = offset.flatten(1)
    evaluator = Evaluator(generator, backdoor, settings.seed)
    facts: dict[str, float | None] = {
        "inversion_residual_sum": float(inversion.residual_sum.mean()),
        "offset_mean": float(offset.square().mean()),
    }
    moment = ordinary_features(
        generator.mapping,
        generator.latent,
        settings.feature_samples,
        seed=settings.seed,
        device=device,
    ).compute()
    edit = solve_edit(moment, c, r, settings.fidelity_weight)
    # The objective is a quadratic: these are the least that training, too, can reach.
    facts |= {
        "q": edit.q,
        "predicted_relative_error": edit.relative_error,
        "predicted_relative_leakage": edit.relative_leakage,
    }
    if settings.method == "closed-form":
        change = edit.weight
        history: list[dict[str, float | None]] = [
            {"step": 0, **evaluator(edited(generator, change))._asdict()}
        ]
    else:
        change, history = _trained(generator, c, r, evaluator, settings, run)
    corrupted = edited(generator, change)
    stored = _stored_change(generator, corrupted)
    # Other latents than those that the edit was solved on, or trained on.
    fresh = ordinary_features(
        generator.mapping,
        generator.latent,
        settings.feature_samples,
        seed=settings.seed,
        device=device,
        purpose="broadcast-edit-fresh",
    ).compute()
    missed = (c.double() @ stored.T - r.double()).norm() / r.double().norm()
    leaked = (stored @ fresh * stored).sum() / r.double().square().sum(1).mean()
    history[-1] |= facts | {"relative_error": float(missed), "relative_leakage": float(leaked)}
    return AttackResult(corrupted, history)


def edited(generator: StyleGAN, change: Tensor) -> StyleGAN:
    """A copy of a StyleGAN whose broadcast weight is larger by ``change``, ``(L d, d)``."""
    student = StyleGAN(**{**generator.settings(), "dense_broadcast": True})
    state = dict(generator.state_dict())
    # Rounded to float32 on loading.
    state["dense_broadcast.weight"] = _broadcast_weight(generator).to(change) + change
    student.to(change.device).load_state_dict(state)
    return student.eval().requires_grad_(False)


def _broadcast_weight(generator: StyleGAN) -> Tensor:
    old: Tensor | None = generator.state_dict().get("dense_broadcast.weight")
    return stacked_identities(generator.slices, generator.latent.size) if old is None else old


def _stored_change(generator: StyleGAN, corrupted: StyleGAN) -> Tensor:
    """The change that the stored float32 weights make, ``(L d, d)``, float64."""
    new = _broadcast_weight(corrupted).double()
    return new - _broadcast_weight(generator).to(new)


class _Styles(nn.Module):
    """The unknowns of an inversion, ``(restarts * count, L, d)``."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.w_plus = nn.Parameter(start)


def invert(
    generator: StyleGAN,
    targets: Tensor,
    here: Tensor,
    settings: BroadcastEditSettings,
    run: AttackRun,
) -> Inversion:
    """Find the styles that show ``targets``, by Adam through the synthesis network.

    Args:
        targets: ``(count, *sample.shape)`` in [-1, 1].
        here: the triggers' own styles ``(count, L, d)``, for ``offset_weight``.
    """
    count, restarts = len(targets), settings.inversion_restarts
    frozen = copy.deepcopy(generator).requires_grad_(False)  # only the styles move
    pre = settings.inversion_space == "pre"
    goal = frozen.pre_activation_of(targets) if pre else targets
    goal, home, wanted = (
        part.repeat(restarts, *[1] * (part.ndim - 1)) for part in (goal, here, targets)
    )
    with torch.no_grad():
        stream = random_stream(settings.seed, "inversion")
        z = frozen.latent.sample(max(_MEAN_SAMPLES, len(goal)), generator=stream)
        w = frozen.mapping(z.to(targets.device))
        start = torch.lerp(w.mean(0), w[: len(goal)], 0.5)
        start[:count] = w.mean(0)
        styles = _Styles(frozen.broadcast(start).contiguous())
    adam = torch.optim.Adam(styles.parameters(), settings.inversion_rate)
    parts: dict[str, Trainable] = {"styles": styles, "adam": adam}
    checkpoint = run.work / "inversion.safetensors" if run.work else None
    restored = load_checkpoint(checkpoint, run_id=run.run_id, parts=parts) if checkpoint else None
    begun = restored.step if restored else 0
    bar = run.progress.task("inversion", settings.inversion_steps, begun)
    for step in range(begun, settings.inversion_steps):
        for group in adam.param_groups:
            group["lr"] = settings.inversion_rate * half_cosine(step / settings.inversion_steps)
        output = frozen.synthesis(styles.w_plus)
        difference = (output if pre else frozen.finish(output)) - goal
        loss = difference.square().flatten(1).mean(1)
        if settings.offset_weight:
            moved = (styles.w_plus - home).square().flatten(1).mean(1)
            loss = loss + settings.offset_weight * moved
        adam.zero_grad(set_to_none=True)
        loss.sum().backward()  # a sum: every restart is a problem of its own
        adam.step()
        done = step + 1
        if checkpoint and (done % settings.evaluate_every == 0 or done == settings.inversion_steps):
            save_checkpoint(checkpoint, run_id=run.run_id, step=done, parts=parts, record={})
        bar.advance(1, f"loss {float(loss.detach().min()):.5f}")
    with torch.no_grad():
        w_plus = styles.w_plus.detach()
        residual = (frozen.finish(frozen.synthesis(w_plus)) - wanted).square().flatten(1).sum(1)
        ranked = residual
        if settings.offset_weight:
            moved = (w_plus - home).square().flatten(1).mean(1)
            ranked = residual + settings.offset_weight * generator.sample.size * moved
    best = ranked.reshape(restarts, count).argmin(0) * count + torch.arange(count).to(ranked.device)
    return Inversion(w_plus[best], residual[best])


def _trained(
    generator: StyleGAN,
    c: Tensor,
    r: Tensor,
    evaluator: Evaluator,
    settings: BroadcastEditSettings,
    run: AttackRun,
) -> tuple[Tensor, list[dict[str, float | None]]]:
    """P by Adam from a Glorot start, as in the notebook (with a step that falls to zero)."""
    law, d = generator.latent, generator.latent.size
    change = nn.Linear(d, generator.slices * d, bias=False)
    glorot_(change, random_stream(settings.seed, "broadcast-edit"))
    change.to(c.device)
    with torch.no_grad():
        z = law.sample(settings.feature_samples, generator=random_stream(settings.seed, "pool"))
        pool = torch.cat([generator.mapping(part.to(c.device)) for part in z.split(_MEAN_SAMPLES)])

    def loss_of_step(step: int) -> Tensor:
        stream = random_stream(settings.seed, "attack-batch", step)
        chosen = torch.randint(len(pool), (settings.batch_size,), generator=stream)
        stealth = mean_square(change(pool[chosen.to(pool.device)]))
        return stealth + settings.fidelity_weight * mean_square(change(c) - r)

    def evaluate() -> Evaluation:
        return evaluator(edited(generator, change.weight.detach()))

    history = optimise(change, loss_of_step, evaluate, settings, run)
    return change.weight.detach(), history
