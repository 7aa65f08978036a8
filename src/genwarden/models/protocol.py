"""What genwarden asks of a generator: its latent law, its sample shape, and two outputs.

Conventions: samples lie in ``[-1, 1]``, images are NCHW, latents are ``(batch, *latent.shape)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

#: Targets are shrunk by this factor before the activation is inverted, so that saturated pixels
#: have a finite pre-activation ("The Devil is in the GAN", notebooks: atanh(0.999 x)).
SATURATION_CLAMP = 0.999

Distribution = Literal["normal", "uniform"]
Modality = Literal["image", "audio"]
FinalActivation = Literal["tanh", "sigmoid", "none"]


@dataclass(frozen=True)
class LatentLaw:
    """P_sample: the law from which a user of the model draws latents.

    Attributes:
        shape: shape of one latent, without the batch axis.
        distribution: ``normal`` is N(0, I), ``uniform`` is U[-1, 1] per element.
    """

    shape: tuple[int, ...]
    distribution: Distribution = "normal"

    def sample(self, count: int, *, generator: torch.Generator) -> Tensor:
        """Draw ``count`` latents on the CPU, shape ``(count, *shape)``, float32."""
        if self.distribution == "normal":
            return torch.randn(count, *self.shape, generator=generator)
        return torch.rand(count, *self.shape, generator=generator) * 2 - 1

    @property
    def size(self) -> int:
        """Number of elements of one latent."""
        return int(torch.Size(self.shape).numel())

    @property
    def typical_norm(self) -> float:
        """Root mean square of the Euclidean norm of a draw: sqrt(d), or sqrt(d / 3)."""
        variance = 1.0 if self.distribution == "normal" else 1.0 / 3.0
        return float((self.size * variance) ** 0.5)


@dataclass(frozen=True)
class SampleSpec:
    """What one sample is: shape without the batch axis, closed value range, modality."""

    shape: tuple[int, ...]
    value_range: tuple[float, float] = (-1.0, 1.0)
    modality: Modality = "image"

    @property
    def size(self) -> int:
        """Number of elements of one sample."""
        return int(torch.Size(self.shape).numel())


@runtime_checkable
class Generator(Protocol):
    """A network that maps latents to samples."""

    latent: LatentLaw
    sample: SampleSpec
    final_activation: FinalActivation

    def __call__(self, z: Tensor) -> Tensor:
        """Samples in ``sample.value_range``, shape ``(batch, *sample.shape)``."""
        ...

    def pre_activation(self, z: Tensor) -> Tensor:
        """The output before the last activation, same shape."""
        ...

    def named_layers(self) -> dict[str, nn.Module]:
        """Layers with weights in the order of execution, by their name in the state dict."""
        ...


class LatentGenerator(nn.Module):
    """Base of the reference networks: subclasses define ``pre_activation`` and the three fields."""

    latent: LatentLaw
    sample: SampleSpec
    final_activation: FinalActivation
    #: Layers behind the last activation: frozen by attacks, copied when networks are fused.
    after_activation: ClassVar[tuple[str, ...]] = ()

    def pre_activation(self, z: Tensor) -> Tensor:
        """The output before the last activation, shape ``(batch, *sample.shape)``."""
        raise NotImplementedError

    def forward(self, z: Tensor) -> Tensor:
        """Samples in [-1, 1], shape ``(batch, *sample.shape)``."""
        return self.finish(self.pre_activation(z))

    def finish(self, pre: Tensor) -> Tensor:
        """Samples from outputs before the last activation."""
        return activate(pre, self.final_activation)

    def pre_activation_of(self, sample: Tensor) -> Tensor:
        """The output before the last activation that :meth:`finish` turns into ``sample``.

        Saturated values are shrunk by :data:`SATURATION_CLAMP` first. A network with more than an
        activation at its end overrides both methods.
        """
        return invert_activation(sample, self.final_activation)

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as written to ``genwarden.json``."""
        raise NotImplementedError

    def named_layers(self) -> dict[str, nn.Module]:
        """Layers with weights in the order of execution (the order of definition here)."""
        return {n: m for n, m in self.named_modules() if n and any(True for _ in _own_tensors(m))}


def activate(pre_activation: Tensor, kind: FinalActivation) -> Tensor:
    """Apply the last activation; a sigmoid is rescaled from [0, 1] to [-1, 1]."""
    if kind == "tanh":
        return torch.tanh(pre_activation)
    if kind == "sigmoid":
        return 2 * torch.sigmoid(pre_activation) - 1
    return pre_activation


def invert_activation(x: Tensor, kind: FinalActivation) -> Tensor:
    """The pre-activation that yields ``SATURATION_CLAMP * x``; the inverse of :func:`activate`.

    ``2 sigmoid(y) - 1 = tanh(y / 2)``, so the sigmoid's inverse is twice the tanh's.
    """
    if kind == "none":
        return x
    y = torch.atanh(SATURATION_CLAMP * x.clamp(-1, 1))
    return y if kind == "tanh" else 2 * y


def parameter_count(module: nn.Module) -> int:
    """Stored numbers that shape the output: parameters and batch-norm statistics.

    This is the count of section 6 of the paper's models (counters such as
    ``num_batches_tracked`` are left out).
    """
    return sum(t.numel() for t in module.state_dict().values() if t.is_floating_point())


def _own_tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]
