"""What an audit costs, by width, resolution and budget, and how long a command takes to begin."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genwarden.artifacts.model_folder import write_model
from genwarden.auditing.audit import Request, Suspect, audit
from genwarden.benchmarks.stopwatch import now
from genwarden.engine.progress import Progress, Silent
from genwarden.engine.seeds import random_stream
from genwarden.engine.threads import fixed_threads, threads
from genwarden.models.dcgan import DCGAN28, DCGAN32
from genwarden.models.layers import glorot_
from genwarden.models.protocol import parameter_count

#: Architecture, feature maps of the first layer, budget: one thing differs from the first row.
CURVE = (
    ("dcgan28", 64, "quick"),
    ("dcgan28", 128, "quick"),
    ("dcgan28", 256, "quick"),
    ("dcgan32", 64, "quick"),
    ("dcgan28", 64, "standard"),
)
_LOAD = (
    "import sys, pathlib\n"
    "import genwarden.auditing.audit, genwarden.commands.audit\n"
    "from genwarden.artifacts.model_folder import read_model\n"
    "read_model(pathlib.Path(sys.argv[1]))\n"
)


def measure_audits(
    names: list[str], device: torch.device, progress: Progress
) -> list[dict[str, Any]]:
    """Audits of untrained networks: what they compute does not depend on the weights."""
    rows = []
    chosen = [case for case in CURVE if case[2] in names]
    bar = progress.task("audits", len(chosen))
    for architecture, width, budget in chosen:
        generator = untrained(architecture, width)
        suspect = Suspect(generator, architecture, generator.settings(), "0" * 64, {}, "model")
        number = fixed_threads(parameter_count(generator))
        begun = now()
        with tempfile.TemporaryDirectory() as work, threads(number):
            request = Request(budget=budget, seed=0, device=device)
            document = audit(suspect, request, work=Path(work), progress=Silent())
        rows.append(
            {
                "architecture": architecture,
                "channels": list(generator.channels),
                "parameters": parameter_count(generator),
                "budget": budget,
                "threads": number,
                "seconds": (now() - begun)._asdict(),
                "timing": document.timing,
            }
        )
        bar.advance(1, f"{architecture} {width} {budget}")
    return rows


def untrained(architecture: str, width: int) -> DCGAN28 | DCGAN32:
    """A DCGAN with random weights and batch norms settled on its own activations."""
    channels = (width, width // 2, width // 4)
    network = DCGAN28(channels) if architecture == "dcgan28" else DCGAN32(channels)
    stream = random_stream(0, "speed-network")
    glorot_(network, stream)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0  # statistics of its own activations
    network.train()
    with torch.no_grad():
        network(network.latent.sample(256, generator=stream))
    return network.eval().requires_grad_(False)


def measure_start(repeats: int) -> dict[str, dict[str, float]]:
    """Seconds until ``--help`` is printed, and until a model is loaded and could be audited."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        network = untrained("dcgan28", 64)
        write_model(model, network, "dcgan28", {"origin": "untrained, for timing"})
        commands = {
            "help": [sys.executable, "-m", "genwarden", "--help"],
            "audit": [sys.executable, "-c", _LOAD, str(model)],
        }
        return {name: _fastest(command, repeats) for name, command in commands.items()}


def _fastest(command: list[str], repeats: int) -> dict[str, float]:
    """The fastest start: what other work beside it costs is not ours."""
    found = []
    for _ in range(repeats):
        begun, before = now(), os.times()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 (our own)
        after = os.times()
        processor = (
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
        found.append(((now() - begun).wall, processor))
    return {"wall": min(f[0] for f in found), "processor": min(f[1] for f in found)}
