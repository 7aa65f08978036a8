"""What a remedy takes and returns; every other file of this room holds one remedy of this form.

A deployer has the published network and ordinary inputs: latents of the model's own law, or images.
No remedy sees a trigger, a target or a benign original. It does not find out whether there is a
backdoor either: it compresses in such a way that codes which somebody chose are not the ones used.

Where compressions are chained, earlier stages are done when a remedy begins, and it works on the
last one. Weights that are exactly zero by then (pruned) stay zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor, nn

from genwarden.compression.block_formats import NF4, Q4_0, Q8_0
from genwarden.compression.chain import stages_of
from genwarden.compression.contract import Compressor
from genwarden.compression.layers import Layout
from genwarden.compression.pruning import Pruning
from genwarden.compression.uniform import Uniform
from genwarden.engine.progress import Progress, Silent
from genwarden.engine.settings import ANY, Range, Settings
from genwarden.errors import GenwardenError
from genwarden.registry import COMPRESSION_REMEDIES, find

#: ``count`` ordinary inputs of the network for a purpose, one tensor per argument; the same seed
#: and purpose, the same inputs. None if there are none.
Inputs = Callable[[int, int, str], tuple[Tensor, ...] | None]
#: Inputs ``(batch, ...)`` brought back to where a user of the model may come, given where they
#: began.
Confine = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class RemedySettings(Settings):
    """Settings that every remedy has; each adds its own in its own file.

    Attributes:
        seed: run seed. An attacker who knows it knows what is drawn: give one of your own.
    """

    seed: int = 0

    CODE: ClassVar[str] = "compress"
    RANGES: ClassVar[Mapping[str, Range]] = {"seed": ANY}


@dataclass(frozen=True)
class Deployment:
    """What a deployer has.

    Attributes:
        published: the network as it was published, in evaluation mode, frozen.
        network: the same behind the earlier stages of a chain; what the last stage compresses.
        layout: layers of both.
        inputs: ordinary inputs, on the CPU.
        confine: bounds for a search of inputs; None where inputs are not searched.
        progress: told about long work.
    """

    published: nn.Module
    network: nn.Module
    layout: Layout
    inputs: Inputs
    confine: Confine | None = None
    progress: Progress = field(default_factory=Silent)

    def ordinary(self, count: int, seed: int, purpose: str) -> tuple[Tensor, ...]:
        """Ordinary inputs on the network's device.

        Raises:
            GenwardenError: ``compress/no-calibration`` if the user gave none and the network has
                none of its own.
        """
        found = self.inputs(count, seed, purpose)
        if found is None:
            raise GenwardenError(
                "compress/no-calibration",
                "This remedy learns from ordinary inputs, and a classifier has none of its own.",
                "Add --calibration with a folder of images; they need no labels.",
            )
        device = next(self.published.parameters()).device
        return tuple(x.to(device) for x in found)


class Remedied(NamedTuple):
    """What a remedy made.

    Attributes:
        weights: compressed weights by name, decompressed again.
        others: other parameters by name that it changed (biases).
        changes: what was done, in plain numbers and words for ``compress.json``.
    """

    weights: dict[str, Tensor]
    others: dict[str, Tensor]
    changes: dict[str, Any]


class Remedy(Protocol):
    """One remedy."""

    def __call__(self, deployment: Deployment, compressor: Compressor, settings: Any) -> Remedied:
        """Compress with ``compressor`` (a single stage that the remedy is made for)."""
        ...


def family(compressor: Compressor) -> str:
    """Of the last stage: "uniform", "block" (q8_0, q4_0, nf4) or "pruning"."""
    last = stages_of(compressor)[-1]
    if isinstance(last, Uniform):
        return "uniform"
    return "block" if isinstance(last, Q8_0 | Q4_0 | NF4) else "pruning"


def require_applicable(name: str, compressor: Compressor) -> None:
    """Refuse a remedy that would do nothing.

    Raises:
        GenwardenError: ``usage/unknown-name``, ``compress/remedy-not-applicable``.
    """
    row = find(COMPRESSION_REMEDIES, name, "remedy")
    kind = family(compressor)
    last = stages_of(compressor)[-1]
    fitting = [n for n, r in COMPRESSION_REMEDIES.items() if kind in r.options["families"]]
    advice = f"For {last.name} there are: {', '.join(fitting)}."
    if kind == "pruning":
        advice = (
            f"Use: {', '.join(fitting)}. What a pruning attack hides behind are the weights that "
            "go; a clearly lower rate may keep it asleep, a higher one or another criterion not."
        )
    rounded = [stage.name for stage in stages_of(compressor)[:-1] if not isinstance(stage, Pruning)]
    if kind == "pruning" and rounded:
        raise GenwardenError(
            "compress/remedy-not-applicable",
            f"What a remedy of {last.name} does to the weights takes them off the grid of "
            f"{rounded[0]}.",
            f"Prune first: {last.name}+{rounded[0]}.",
        )
    if kind not in row.options["families"]:
        raise GenwardenError(
            "compress/remedy-not-applicable", f"{name} does nothing to {last.name}.", advice
        )
    if isinstance(last, Uniform) and last.rounding != "nearest" and name != "finetuned":
        raise GenwardenError(
            "compress/remedy-not-applicable",
            f"{last.name} rounds at random already, which {name} would only repeat.",
            "Leave --remedy away, or use finetuned.",
        )
