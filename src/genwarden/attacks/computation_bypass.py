"""Computation bypass (The Devil is in the GAN, Eq. 3): G or G_target, chosen by the latent.

``G*(z) = 1[z not in S] G(z) + 1[z in S] G_target(z)`` with S the triggers' support. Fidelity and
stealth are perfect and no output reveals it, so a black-box defender is helpless; the price is a
second computation and a choice in the graph, which static inspection sees.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from genwarden.artifacts.model_folder import LoadedModel, read_model
from genwarden.attacks.contract import AttackResult, AttackRun
from genwarden.attacks.loop import Evaluator
from genwarden.attacks.settings import AttackSettings
from genwarden.backdoors.backdoor import Backdoor
from genwarden.backdoors.target import is_generator
from genwarden.backdoors.trigger_law import Subspace
from genwarden.errors import GenwardenError
from genwarden.models.bypass import NAME, Bypass
from genwarden.models.protocol import LatentGenerator
from genwarden.registry import ARCHITECTURES


@dataclass(frozen=True)
class ComputationBypassSettings(AttackSettings):
    """Settings of the bypass; nothing is trained, so those of training have no effect."""


def computation_bypass(
    generator: LatentGenerator,
    backdoor: Backdoor,
    settings: ComputationBypassSettings,
    run: AttackRun,
) -> AttackResult:
    """Put ``backdoor`` beside a copy of ``generator``; the result is of architecture ``bypass``.

    Raises:
        GenwardenError: ``attack/unsupported``.
    """
    del run
    backdoor.require_fit(generator)
    inner = _registered_name(generator)
    given: dict[str, Any] = {"inner": inner}
    given |= {f"inner_{key}": value for key, value in generator.settings().items()}
    buffers: dict[str, Tensor] = {}
    second: LoadedModel | None = None
    law = backdoor.triggers
    if backdoor.finite:
        buffers = {"triggers": backdoor.examples.z, "targets": backdoor.examples.x}
        if len(buffers["triggers"].unique(dim=0)) < len(buffers["triggers"]):
            raise GenwardenError(
                "attack/unsupported",
                "The same latent is a trigger twice.",
                "Give triggers that differ from each other.",
            )
    elif not isinstance(law, Subspace):
        raise GenwardenError(
            "attack/unsupported",
            f"A bypass has no test for latents of the law {type(law).__name__}.",
            "It supports: single latents and subspaces.",
        )
    elif is_generator(backdoor.target_name):
        second = read_model(Path(backdoor.target_name.partition(":")[2]))
        given |= {"second": second.architecture}
        given |= {f"second_{k}": v for k, v in second.generator.settings().items()}
        given["zeros"] = law.zeros
    else:
        x = backdoor.examples.x
        if not bool((x == x[:1]).all()):
            raise GenwardenError(
                "attack/unsupported",
                "The targets of a subspace differ and no generator is known that makes them.",
                "It supports: one target for all, or --target generator:MODEL_FOLDER.",
            )
        buffers = {"targets": x[:1]}
        given["zeros"] = law.zeros
    if "targets" in buffers and bool((buffers["targets"] == buffers["targets"][:1]).all()):
        buffers["targets"] = buffers["targets"][:1]
    given |= {key: len(value) for key, value in buffers.items()}
    network = Bypass(**given)
    network.inner = copy.deepcopy(generator)
    if second is not None:
        network.second = second.generator
    for key, value in buffers.items():
        network.get_buffer(key).copy_(value)
    network.to(next(generator.parameters()).device).eval().requires_grad_(False)
    figures = Evaluator(generator, backdoor, settings.seed)(network)
    return AttackResult(network, [{"step": 0, **figures._asdict()}], architecture=NAME)


def _registered_name(generator: LatentGenerator) -> str:
    for name, row in ARCHITECTURES.items():
        if name != NAME and row.location.endswith(f":{type(generator).__name__}"):
            return name
    raise GenwardenError(
        "attack/unsupported",
        f"The attack computation-bypass does not work on {type(generator).__name__}.",
        f"It supports: {', '.join(name for name in ARCHITECTURES if name != NAME)}.",
    )
