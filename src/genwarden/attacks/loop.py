"""What attacks on a trained model share: Adam on Eq. 4, stopping rule, resume, evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genwarden.attacks.contract import AttackRun, Evaluation
from genwarden.attacks.losses import mean_square as mean_square
from genwarden.attacks.settings import AttackSettings, DistillationSettings
from genwarden.backdoors.backdoor import Backdoor, Pairs
from genwarden.engine.checkpoint import Trainable, load_checkpoint, save_checkpoint
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.distances import ExpDis, tardis
from genwarden.models.fast.fast_generator import fastest
from genwarden.models.protocol import LatentGenerator

_FORWARD_BATCH = 256
#: Held-out ordinary latents on which an attack follows its ExpDis.
EVALUATION_SAMPLES = 2048


def optimise(
    network: nn.Module,
    loss_of_step: Callable[[int], Tensor],
    evaluate: Callable[[], Evaluation],
    settings: AttackSettings,
    run: AttackRun,
) -> list[dict[str, float | None]]:
    """Train ``network`` in place and return the history of evaluations.

    Adam's step falls to zero along a half cosine.

    Args:
        loss_of_step: Eq. 4 for a given step number; all randomness must follow from that number.
    """
    trainable = [p for p in network.parameters() if p.requires_grad]
    adam = torch.optim.Adam(trainable, settings.learning_rate, fused=True)
    parts: dict[str, Trainable] = {"network": network, "adam": adam}
    checkpoint = run.work / "attack.safetensors" if run.work else None
    restored = load_checkpoint(checkpoint, run_id=run.run_id, parts=parts) if checkpoint else None
    start = restored.step if restored else 0
    history: list[dict[str, float | None]] = restored.record["history"] if restored else []
    bar = run.progress.task("attack", settings.steps, start)
    note = ""
    if restored and reached(history[-1], settings):
        return history  # interrupted between the last evaluation and the writing of the model
    for step in range(start, settings.steps):
        for group in adam.param_groups:
            group["lr"] = settings.learning_rate * half_cosine(step / settings.steps)
        adam.zero_grad(set_to_none=True)
        loss_of_step(step).backward()
        adam.step()
        done = step + 1
        if done % settings.evaluate_every == 0 or done == settings.steps:
            figures = evaluate()
            if not all(math.isfinite(figure) for figure in figures if figure is not None):
                raise GenwardenError(
                    "attack/diverged",
                    f"The training diverged before step {done} (TarDis or ExpDis is not finite).",
                    "Repeat with a smaller --learning-rate or --lambda and --restart.",
                )
            history.append({"step": done, **figures._asdict()})
            note = in_words(history[-1])
            if checkpoint and done < settings.steps:
                save_checkpoint(
                    checkpoint,
                    run_id=run.run_id,
                    step=done,
                    parts=parts,
                    record={"history": history},
                )
            if reached(history[-1], settings):
                bar.advance(settings.steps - step, note)
                break
        bar.advance(1, note)
    return history


def half_cosine(fraction: float) -> float:
    """How much of the first step is left after a fraction of the steps: from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * fraction))


def in_words(figures: Mapping[str, float | None], values: int | None = None) -> str:
    """TarDis and ExpDis of an evaluation, for a progress line.

    Args:
        values: numbers in a sample, for means of squares; None for their sums.
    """
    names = {
        "tardis_sum": "TarDis",
        "expdis_sum": "ExpDis",
        "compressed_tardis_sum": "TarDis once compressed",
        "compressed_expdis_sum": "ExpDis once compressed",
    }
    given = {title: figures.get(key) for key, title in names.items()}
    return "  ".join(
        f"{title} {v:.4f}" if values is None else f"{title} {v / values:.3g}"
        for title, v in given.items()
        if v is not None
    )


def reached(figures: Mapping[str, float | None], settings: AttackSettings) -> bool:
    limits = {"tardis_sum": settings.stop_tardis_sum, "expdis_sum": settings.stop_expdis_sum}
    given = {name: limit for name, limit in limits.items() if limit > 0}
    values = {name: figures[name] for name in given}
    return bool(given) and all(v is not None and v <= given[name] for name, v in values.items())


class Pool(NamedTuple):
    """Latents and outputs before the last activation: the benign model's, or wanted ones."""

    z: Tensor
    pre: Tensor

    def batch(self, step: int, settings: DistillationSettings) -> Pool:
        """The batch of one step, from (seed, step) alone."""
        stream = random_stream(settings.seed, "attack-batch", step)
        chosen = torch.randint(len(self.z), (settings.batch_size,), generator=stream)
        chosen = chosen.to(self.z.device)
        return Pool(self.z[chosen], self.pre[chosen])


@torch.no_grad()
def ordinary_pool(
    generator: LatentGenerator,
    count: int,
    seed: int,
    purpose: str,
    device: torch.device,
    *,
    quick: bool = False,
) -> Pool:
    """Draw ``count`` ordinary latents and run the benign model on them once.

    Args:
        quick: by the fast path, whose last bits differ: to learn from, not to compare exactly.
    """
    z = generator.latent.sample(count, generator=random_stream(seed, purpose)).to(device)
    network = fastest(generator) if quick else generator
    return Pool(z, torch.cat([network.pre_activation(part) for part in z.split(_FORWARD_BATCH)]))


class FidelityBatches:
    """Triggers of each step and the outputs, before the last activation, that they shall give."""

    def __init__(
        self, generator: LatentGenerator, backdoor: Backdoor, settings: AttackSettings
    ) -> None:
        backdoor.require_fit(generator)
        self._generator, self._backdoor, self._settings = generator, backdoor, settings
        self._device = next(generator.parameters()).device
        # Finitely many pairs are the same in every step, and inverting an output can be costly.
        self._fixed = self._inverted(backdoor.examples) if backdoor.finite else None

    def batch(self, step: int) -> Pool:
        """``(z, pre)`` of one step, from (seed, step) alone."""
        if self._fixed is not None:
            return self._fixed
        stream = random_stream(self._settings.seed, "attack-triggers", step)
        return self._inverted(self._backdoor.pairs(self._settings.batch_size, generator=stream))

    def _inverted(self, pairs: Pairs) -> Pool:
        pre = self._generator.pre_activation_of(pairs.x)
        return Pool(pairs.z.to(self._device), pre.to(self._device))


class Evaluator:
    """TarDis on the backdoor's examples and ExpDis on held-out latents, against a benign model.

    Attributes:
        seconds: spent on evaluating so far, on the clock: no part of the attack itself.
    """

    def __init__(self, benign: LatentGenerator, backdoor: Backdoor, seed: int) -> None:
        begun = time.perf_counter()
        backdoor.require_fit(benign)
        device = next(benign.parameters()).device
        self._backdoor = backdoor
        self._benign = benign
        self._held_out = ordinary_pool(
            benign, EVALUATION_SAMPLES, seed, "attack-evaluation", device
        )
        self.seconds = time.perf_counter() - begun

    @torch.no_grad()
    def __call__(self, suspect: LatentGenerator) -> Evaluation:
        """Figures of a compromised model, in evaluation mode."""
        begun = time.perf_counter()
        distance = ExpDis(self._benign.sample.size)
        parts = (part.split(_FORWARD_BATCH) for part in self._held_out)
        for z, pre in zip(*parts, strict=True):
            distance.update(self._benign.finish(pre), suspect(z))
        at_trigger = tardis(suspect, self._backdoor.examples.z, self._backdoor.examples.x)
        found = Evaluation(at_trigger.sum, distance.compute().sum)
        self.seconds += time.perf_counter() - begun
        return found
