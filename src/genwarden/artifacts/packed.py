"""A generator on its way to another process: checked numbers, and what builds the network.

Nothing of the model file travels. The weights are those that the opened, checked network holds,
written anew as safetensors; the architecture is a name of our own table, or the factory that the
user named on the command line, which must be importable there, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from safetensors.torch import load, save

from genwarden.artifacts.model_folder import build
from genwarden.artifacts.open_model import ForeignGenerator, call_factory
from genwarden.models.protocol import LatentGenerator
from genwarden.registry import ARCHITECTURES


@dataclass(frozen=True)
class PackedGenerator:
    """Plain data that a generator is made from.

    Attributes:
        weights: its state dict as safetensors.
        architecture: name in the registry, or ``package.module:factory``.
        settings: keyword arguments of the architecture.
    """

    weights: bytes
    architecture: str
    settings: dict[str, Any]

    @classmethod
    def of(
        cls, generator: LatentGenerator, architecture: str, settings: dict[str, Any]
    ) -> PackedGenerator:
        """Pack an opened generator."""
        # Clones: safetensors refuses tensors that share memory.
        tensors = {k: t.detach().cpu().clone() for k, t in generator.state_dict().items()}
        return cls(save(tensors), architecture, settings)

    def unpack(self) -> LatentGenerator:
        """The same network, on the CPU, in evaluation mode.

        Raises:
            GenwardenError: ``usage/architecture-not-importable`` where a user's own factory is not
                installed.
        """
        generator: LatentGenerator
        if self.architecture in ARCHITECTURES:
            factory = ARCHITECTURES[self.architecture].load()
            generator = build(factory, self.settings, self.architecture)
        else:
            network = call_factory(self.architecture, self.settings, ARCHITECTURES)
            own = isinstance(network, LatentGenerator)
            generator = network if own else ForeignGenerator(network, self.architecture)  # type: ignore[assignment]
        generator.load_state_dict(load(self.weights))
        return generator.eval().requires_grad_(False)
