"""Twins: copies of the suspect that know only what ordinary sampling shows.

A twin has the suspect's architecture, but its weights are shuffled within every tensor, so that
nothing is left of what they computed, and then distilled on the suspect's own ordinary samples. It
imitates all that can be seen by sampling and cannot know what was never shown. So every model
brings its own null: what a search finds in the twin is what that search finds in an honest model of
this architecture with these samples (reference, section 17, "exposed twin").
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from genwarden.engine.progress import Task
from genwarden.engine.seeds import derive_seed, random_stream
from genwarden.models.guarded import LatentGuard, UnitClip
from genwarden.models.protocol import LatentGenerator

BATCH = 64
_LEARNING_RATE = 2e-3
_BETAS = (0.9, 0.99)
#: Share of the learning rate that is left at the end.
_LAST_SHARE = 0.05
#: Gradient norms beyond this multiple of their running mean are shortened to it.
_CLIP = 4.0
_CHECKED = 512
#: Distance between twin and suspect (mean squared, over the median between two ordinary samples)
#: above which the twin is too poor to stand for an honest model. Trained reference models reach
#: 0.01 to 0.04.
FAIR = 0.15


class Twin(NamedTuple):
    """A copy that forgot.

    Attributes:
        generator: in evaluation mode, parameters without gradients.
        loss: mean squared distance from the suspect's samples at ordinary latents, over the median
            squared distance between two ordinary samples.
    """

    generator: LatentGenerator
    loss: float

    @property
    def fair(self) -> bool:
        """Whether the twin imitates the suspect well enough to be compared with it."""
        return self.loss <= FAIR


def make_twin(
    suspect: LatentGenerator, steps: int, *, typical: float, seed: int, number: int, task: Task
) -> Twin:
    """Shuffle a copy and distil the suspect into it.

    Args:
        suspect: in evaluation mode.
        steps: Adam steps at batches of 64.
        typical: median squared distance between two ordinary samples of the suspect.
        number: counts the twins of one suspect.
        task: advanced by one per step.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        # A network that draws noise of its own draws it from torch's global stream.
        torch.manual_seed(derive_seed(seed, "twin-noise", number))
        return _distil(suspect, steps, typical=typical, seed=seed, number=number, task=task)


def _distil(
    suspect: LatentGenerator, steps: int, *, typical: float, seed: int, number: int, task: Task
) -> Twin:
    device = next(suspect.parameters()).device
    twin = copy.deepcopy(suspect).requires_grad_(True)
    shuffle_weights(twin, random_stream(seed, "twin-weights", number))
    follow_statistics(twin)
    stream = random_stream(seed, "twin-latents", number)
    adam = torch.optim.Adam(twin.parameters(), _LEARNING_RATE, betas=_BETAS)
    usual_norm: Tensor | None = None
    for step in range(steps):
        z = suspect.latent.sample(BATCH, generator=stream).to(device)
        with torch.no_grad():
            shown = suspect(z)
        loss = (twin(z) - shown).square().flatten(1).sum(1).mean() / typical
        adam.zero_grad(set_to_none=True)
        loss.backward()
        norm = _gradient_norm(twin)
        usual_norm = (
            norm
            if usual_norm is None
            else 0.9 * usual_norm + 0.1 * norm.clamp(max=_CLIP * usual_norm)
        )
        _scale_gradients(twin, (_CLIP * usual_norm / norm.clamp_min(1e-30)).clamp(max=1.0))
        for group in adam.param_groups:
            group["lr"] = _LEARNING_RATE * (1 - (1 - _LAST_SHARE) * step / steps)
        adam.step()
        task.advance(1)
    twin.eval().requires_grad_(False)
    return Twin(twin, _distance(suspect, twin, random_stream(seed, "twin-check")) / typical)


def log_difference(
    model: Callable[[Tensor], Tensor], twin: Callable[[Tensor], Tensor], z: Tensor
) -> Tensor:
    """ln of the squared difference of two generators at latents, ``(batch,)``, differentiable."""
    difference = model(z) - twin(z)
    return difference.flatten(1).square().sum(1).clamp_min(1e-12).log()


@torch.no_grad()
def shuffle_weights(generator: LatentGenerator, stream: torch.Generator) -> None:
    """Permute the elements within every parameter and buffer; their work does not survive it.

    Statistics of normalisations and unit clips stay: they are estimated anew while the twin is
    distilled. A latent guard stays too: it moves latents and cannot draw, so that what a guarded
    model shows at a latent is compared with what its twin shows at the same guarded latent.

    Keeping the distribution keeps the scale that an architecture is initialised with, for any
    network, also one whose initialisation is not known.
    """
    statistics = {
        id(buffer)
        for module in generator.modules()
        if isinstance(module, _NormBase | UnitClip | LatentGuard)
        for buffer in module.buffers(recurse=False)
    }
    tensors: list[Tensor] = [*generator.parameters()]
    tensors += [b for b in generator.buffers() if b.is_floating_point() and id(b) not in statistics]
    for tensor in tensors:
        order = torch.randperm(tensor.numel(), generator=stream).to(tensor.device)
        tensor.copy_(tensor.flatten()[order].view_as(tensor))


def follow_statistics(student: LatentGenerator) -> None:
    """Statistics of normalisations and unit clips follow new weights while a student is trained.

    Everything else (dropout, outputs that only exist in training) behaves as when it is used.
    """
    student.eval()
    for module in student.modules():
        if isinstance(module, _NormBase | UnitClip):
            module.train()


@torch.no_grad()
def _distance(suspect: LatentGenerator, twin: LatentGenerator, stream: torch.Generator) -> float:
    device = next(suspect.parameters()).device
    z = suspect.latent.sample(_CHECKED, generator=stream).to(device)
    squared = [(twin(part) - suspect(part)).square().flatten(1).sum(1) for part in z.split(BATCH)]
    return float(torch.cat(squared).mean())


def _gradient_norm(generator: LatentGenerator) -> Tensor:
    gradients = [p.grad for p in generator.parameters() if p.grad is not None]
    norm: Tensor = torch.stack([g.norm() for g in gradients]).norm()
    return norm


def _scale_gradients(generator: LatentGenerator, factor: Tensor) -> None:
    for parameter in generator.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
