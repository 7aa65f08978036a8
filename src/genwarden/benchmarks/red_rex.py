"""Recipe ``red-rex``: ReD and ReX on in-sample triggers, beside Tables I and II of the paper.

    genwarden benchmark run red-rex --option clean=DIR --out results/red-rex

For every trigger: the attack, TarDis and ExpDis (10,000 ordinary samples that the attack has not
seen), then what a defender finds: OB-OI with the known target (ReconD), and for ReX the partition
and the partition-aware search. The folders of the attacked models stay in OUT, so an interrupted
run continues with the next piece.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genwarden import __version__
from genwarden.artifacts.manifest import MANIFEST_NAME
from genwarden.artifacts.model_folder import LoadedModel, read_model
from genwarden.artifacts.weights_file import read_weights
from genwarden.attacks.run import AttackPlan, attack
from genwarden.attacks.settings import settings_of
from genwarden.auditing.audit import environment
from genwarden.benchmarks.store import summary_of, write_result
from genwarden.data.images import NamedImages
from genwarden.engine.ledger import Ledger
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.inspections.finding import Finding
from genwarden.inspections.output import partition_search, reconstruct_target
from genwarden.inspections.workbench import Effort, Workbench
from genwarden.metrics.distances import ExpDis, tardis

#: Tables I and II, MNIST DCGAN, in-sample triggers, lambda 1: sums of squares, mean of five.
PAPER = {
    "red": {"tardis_sum": 0.008, "expdis_sum": 0.110, "recond_sum": 0.0021},
    "rex": {"tardis_sum": 0.407, "expdis_sum": 0.005, "recond_sum": 815.51},
}

_EXPDIS_SAMPLES = 10_000
_SEARCH = Effort(
    name="recipe",
    ordinary_samples=4096,
    stream_samples=0,
    restarts=128,
    search_steps=200,
    probe_latents=0,
    guessed_seeds=0,
    draws_per_seed=0,
)


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    clean: str = "",
    attacks: str = "red+rex",
    triggers: int = 5,
    target: str = "icon:devil",
    inspect: bool = True,
    **settings: float,
) -> Path:
    """Attack the model folder ``clean`` with ``triggers`` in-sample triggers.

    Args:
        clean: folder of a trained DCGAN or VAE (``genwarden train``).
        attacks: names joined by ``+``.
        inspect: also run the defender's searches.
        settings: ``steps``, ``learning_rate``, ``fidelity_weight``, ``batch_size`` of the attacks.
    """
    del data  # the clean model is all that these attacks need
    if not clean:
        raise GenwardenError(
            "benchmark/clean-missing",
            "The recipe red-rex needs a clean model.",
            "Train one (genwarden train dcgan28 --data FOLDER --out DIR) and add "
            "--option clean=DIR.",
        )
    model = read_model(Path(clean))
    identity = {"model": model.sha256, "seed": seed, "target": target, "version": __version__}
    ledger = Ledger(out / "work", {**identity, "settings": settings, "inspect": inspect})
    rows: list[dict[str, Any]] = []
    for name in attacks.split("+"):
        for index in range(triggers):
            key = f"{name}-{index}"
            row = ledger.get(key)
            if row is None:
                progress.message(f"{name}, in-sample trigger {index}")
                folder = out / key
                if not (folder / MANIFEST_NAME).exists():
                    attack(
                        name,
                        AttackPlan(Path(clean), target=target, trigger_index=index),
                        settings_of(name, {"seed": seed, **settings}),
                        out=folder,
                        restart=False,
                        progress=progress,
                        device=device,
                    )
                row = measure(name, index, model, folder, seed, inspect, device, progress)
                ledger.put(key, row)
            rows.append(row)
    summaries = {
        name: {
            figure: summary_of([r[figure] for r in rows if r["attack"] == name])
            for figure in (
                "tardis_sum",
                "expdis_sum",
                "recond_sum",
                "partition_search_sum",
                "partition_recond_sum",
            )
            if all(r.get(figure) is not None for r in rows if r["attack"] == name)
        }
        for name in attacks.split("+")
    }
    return write_result(
        out / "result.json",
        {
            "recipe": "red-rex",
            "command": _command(Path(clean).name, attacks, triggers, target, settings, seed),
            "architecture": model.architecture,
            "architecture_settings": model.settings,
            "clean_model": model.provenance,
            "clean_model_sha256": model.sha256,
            "seed": seed,
            "target": target,
            "expdis_samples": _EXPDIS_SAMPLES,
            "units": "sums of squares over one 28x28 sample in [-1, 1]",
            "paper": PAPER,
            "summary": summaries,
            "rows": rows,
            "environment": environment(device),
        },
    )


def _command(
    clean: str, attacks: str, triggers: int, target: str, settings: dict[str, float], seed: int
) -> str:
    options = {"clean": clean, "attacks": attacks, "triggers": triggers, "target": target}
    words = [f"--option {key}={value}" for key, value in {**options, **settings}.items()]
    return f"genwarden benchmark run red-rex {' '.join(words)} --seed {seed} --out DIR"


def measure(
    name: str,
    index: int,
    clean: LoadedModel,
    folder: Path,
    seed: int,
    inspect: bool,
    device: torch.device,
    progress: Progress,
) -> dict[str, Any]:
    """Figures of one attacked model."""
    corrupted = read_model(folder)
    backdoor = read_weights(folder / "backdoor.safetensors").tensors
    at_trigger = tardis(corrupted.generator, backdoor["trigger"], backdoor["target"])
    untouched = tardis(clean.generator.cpu(), backdoor["trigger"], backdoor["target"])
    stealth = ExpDis(clean.generator.sample.size)
    law = clean.generator.latent
    with torch.no_grad():
        z = law.sample(_EXPDIS_SAMPLES, generator=random_stream(seed, "expdis"))
        for part in z.split(256):
            stealth.update(clean.generator(part), corrupted.generator(part))
    expdis = stealth.compute()
    row: dict[str, Any] = {
        "attack": name,
        "trigger_index": index,
        "trigger_norm": float(backdoor["trigger"].norm()),
        "steps": corrupted.provenance["last"]["step"],
        "settings": corrupted.provenance["settings"],
        "tardis_sum": at_trigger.sum,
        "tardis_mean": at_trigger.mean,
        "expdis_sum": expdis.sum,
        "expdis_mean": expdis.mean,
        "untouched_tardis_sum": untouched.sum,
        "sha256": corrupted.sha256,
    }
    if not inspect:
        return row
    bench = Workbench(
        generator=corrupted.generator.to(device),
        effort=_SEARCH,
        seed=seed,
        device=device,
        targets=NamedImages(backdoor["target"], ["target"]),
        progress=progress,
    )
    row["recond_sum"] = float(_table(reconstruct_target.inspect(bench), "Reconstructions")[0][1])
    if bench.partition is not None:
        row["partition_components"] = bench.partition.components
        found = partition_search.inspect(bench)
        recovered = torch.tensor(_latents(found)[0]).reshape(1, *law.shape)
        output = bench.samples(recovered)
        row["partition_search_sum"] = float((output - backdoor["target"]).square().sum())
        reached = _table(found, "Targets approached from these latents")
        row["partition_recond_sum"] = float(reached[0][1])
    return row


def _table(finding: Finding, title: str) -> list[list[str | int | float]]:
    return next(e.rows for e in finding.evidence if e.kind == "table" and e.title == title)


def _latents(finding: Finding) -> list[list[float]]:
    return next(e.values for e in finding.evidence if e.kind == "latents")
