"""What an honest vendor may do to a trained model, so that its weights are no longer just trained.

Quantisation-aware training leaves weights that know the grid of a compressor, rounding leaves them
on it, weight decay pulls them to 0: each a clean model that must not be taken for an attack.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from genwarden.benchmarks.compression.plan import Base, Further
from genwarden.benchmarks.population.making import VARIANTS
from genwarden.benchmarks.population.plan import CleanKind
from genwarden.compression.apply import compress, compressed_weights
from genwarden.compression.contract import Compressor, Weights
from genwarden.compression.how import compressor
from genwarden.compression.layers import layout_of
from genwarden.data.datasets import to_unit_range
from genwarden.data.glyphs import is_glyphs
from genwarden.data.labelled import read_labelled
from genwarden.engine.seeds import random_stream
from genwarden.models.classifiers.protocol import ImageClassifier
from genwarden.models.protocol import LatentGenerator
from genwarden.training.classifier import ClassifierLearner, ClassifierSettings
from genwarden.training.frame import Frame

Network = TypeVar("Network", bound=nn.Module)

#: Steps of quantisation-aware training, and of a classifier's fine-tuning.
STEPS = 200
_BATCH = 64
#: Adam's; a hundredth of a weight's usual size.
_AWARE_RATE = 1e-3
_FINE_TUNING_RATE = 0.02


def source(data: Path, name: str) -> str:
    """The data set of a name below the data folder; the built-in digits need none."""
    return name if is_glyphs(name) else str(data / name)


def further_generator(
    generator: LatentGenerator, base: Base, further: Further, seed: int, data: Path
) -> LatentGenerator:
    """The generator after what ``further`` says, in evaluation mode.

    Fine-tuning and weight decay go on with GAN training; quantisation-aware training imitates the
    trained generator, as vendors do who have no discriminator any more.
    """
    if further.way in VARIANTS:
        kind = CleanKind(base.name, base.architecture, base.data, base.steps, base.settings)
        changed = VARIANTS[further.way](generator, kind, seed, data)
        return changed.eval().requires_grad_(False)
    z = generator.latent.sample(2, generator=random_stream(seed, "honest-layout"))
    z = z.to(next(generator.parameters()).device)
    how = compressor(further.how)
    if further.way == "rounded":
        return compress(generator, how, lambda network: network(z))[0]
    teacher = copy.deepcopy(generator).eval()

    def loss(weights: Weights, step: int) -> Tensor:
        latents = generator.latent.sample(
            _BATCH, generator=random_stream(seed, "honest-latents", step)
        ).to(z.device)
        with torch.no_grad():
            wanted = teacher(latents)
        made: Tensor = functional_call(generator, dict(weights), (latents,))
        return F.mse_loss(made, wanted)

    return train_aware(generator, how, z, loss)


def further_classifier(
    classifier: ImageClassifier, base: Base, further: Further, seed: int, data: Path
) -> ImageClassifier:
    """The classifier after what ``further`` says, in evaluation mode."""
    device = next(classifier.parameters()).device
    blank = torch.zeros(2, *classifier.sample.shape, device=device)
    if further.way == "rounded":
        return compress(classifier, compressor(further.how), lambda network: network(blank))[0]
    found = read_labelled(
        source(data, further.data or base.data), classifier.sample, split="train", resize=True
    )
    if further.way == "fine-tuned":
        return _fine_tuned(classifier, found.images, found.labels, seed)

    def loss(weights: Weights, step: int) -> Tensor:
        stream = random_stream(seed, "honest-images", step)
        chosen = torch.randint(len(found.images), (_BATCH,), generator=stream)
        x = to_unit_range(found.images[chosen]).to(device)
        logits: Tensor = functional_call(classifier, dict(weights), (x,))
        return F.cross_entropy(logits, found.labels[chosen].to(device))

    return train_aware(classifier, compressor(further.how), blank, loss)


def train_aware(
    network: Network,
    how: Compressor,
    example: Tensor,
    loss: Callable[[Weights, int], Tensor],
) -> Network:
    """Train the weights that ``how`` works on through its rounding (straight-through), in place.

    Batch norm keeps its statistics, as quantisation-aware training does in its last phase.

    Args:
        example: an input.
        loss: from compressed weights and the number of the step.
    """
    network.eval().requires_grad_(True)
    layout = layout_of(network, lambda: network(example))
    adam = torch.optim.Adam([network.get_parameter(name) for name in layout], _AWARE_RATE)
    for step in range(STEPS):
        adam.zero_grad(set_to_none=True)
        loss(compressed_weights(network, how, layout), step).backward()
        adam.step()
    return network.requires_grad_(False)


def _fine_tuned(
    classifier: ImageClassifier, images: Tensor, labels: Tensor, seed: int
) -> ImageClassifier:
    weights = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    settings = ClassifierSettings(
        STEPS, _BATCH, _FINE_TUNING_RATE, seed, checkpoint_every=STEPS, momentum=0.9
    )
    device = next(classifier.parameters()).device
    learner = ClassifierLearner(classifier, labels, settings, device)
    learner.classifier.load_state_dict(weights)  # the learner begins with fresh ones
    Frame(learner, settings).run(images, device)
    return classifier.eval().requires_grad_(False)
