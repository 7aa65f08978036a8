"""Recipe ``clean-population``: train clean generators and record the scores of every inspection.

    genwarden benchmark run clean-population --data DATA --out results/clean-population

DATA holds the data sets as folders by name. The scores become ``auditing/nulls/generators.json``
(``--option publish=true``), from which the audit takes p-values. No attacked model enters.
Each model is a piece of work of its own; an interrupted run continues with the next.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genwarden import __version__
from genwarden.artifacts.manifest import MANIFEST_NAME
from genwarden.artifacts.model_folder import read_model
from genwarden.auditing import calibration
from genwarden.auditing.audit import Request, Suspect, audit
from genwarden.benchmarks.store import summary_of, write_result
from genwarden.data.icons import ICONS, draw_icon
from genwarden.data.images import NamedImages
from genwarden.engine.files import write_json
from genwarden.engine.ledger import Ledger
from genwarden.engine.progress import Progress
from genwarden.errors import GenwardenError
from genwarden.training.settings import TrainingSettings
from genwarden.training.train import train

#: Architecture, its settings, data set, steps, learning rate. Seeds are the position in this list,
#: so that no two models share a training run.
_QUARTER = {"channels": [64, 32, 16]}
POPULATION: tuple[tuple[str, dict[str, Any], str, int, float], ...] = (
    ("vae28", {}, "mnist", 1000, 1e-3),
    ("dcgan28", _QUARTER, "mnist", 800, 2e-4),
    ("vae28", {}, "kmnist", 700, 1e-3),
    ("dcgan28", _QUARTER, "kmnist", 500, 2e-4),
    ("dcgan28", _QUARTER, "fashion_mnist_part", 500, 2e-4),
    ("vae28", {}, "fashion_mnist_part", 600, 1e-3),
    ("dcgan28", _QUARTER, "mnist", 600, 2e-4),
    ("vae28", {}, "mnist", 1500, 1e-3),
    ("dcgan28", _QUARTER, "kmnist", 700, 2e-4),
    ("dcgan28", _QUARTER, "mnist", 1000, 2e-4),
    ("vae28", {}, "kmnist", 1000, 1e-3),
    ("dcgan28", {"channels": [96, 48, 24]}, "mnist", 500, 2e-4),
    ("dcgan28", _QUARTER, "fashion_mnist_part", 700, 2e-4),
    ("vae28", {}, "mnist", 600, 1e-3),
    ("dcgan28", {"channels": [128, 64, 32]}, "kmnist", 400, 2e-4),
    ("dcgan28", _QUARTER, "mnist", 500, 2e-4),
)


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    budget: str = "quick",
    publish: bool = False,
    first: int = 0,
    last: int = len(POPULATION),
) -> Path:
    """Train and inspect the models ``first`` to ``last`` (exclusive) of the population.

    Args:
        data: folder with the data sets as sub-folders.
        budget: budget at which the inspections run.
        publish: write the scores of all finished models into the package.
    """
    if data is None:
        raise GenwardenError(
            "benchmark/data-missing",
            "The recipe clean-population needs training data.",
            "Add --data FOLDER, a folder that holds mnist, kmnist and fashion_mnist_part.",
        )
    ledger = Ledger(out / "work", {"seed": seed, "budget": budget, "version": __version__})
    for index in range(first, min(last, len(POPULATION))):
        if ledger.get(f"model-{index}") is None:
            record = _one(index, out, data, seed, device, progress, budget)
            ledger.put(f"model-{index}", record)
    rows = [row for i in range(len(POPULATION)) if (row := ledger.get(f"model-{i}"))]
    names = sorted({name for row in rows for name in row["scores"]})
    scores = {n: [row["scores"][n] for row in rows if n in row["scores"]] for n in names}
    if publish:
        path = Path(calibration.__file__).parent / "nulls" / "generators.json"
        publish_scores(path, budget, scores, rows)
    return write_result(
        out / "result.json",
        {
            "recipe": "clean-population",
            "command": "genwarden benchmark run clean-population --data DATA",
            "seed": seed,
            "budget": budget,
            "summary": {name: summary_of(values) for name, values in scores.items()},
            "rows": rows,
        },
    )


def publish_scores(
    path: Path, budget: str, scores: dict[str, list[float]], rows: list[dict[str, Any]]
) -> None:
    """Write the reference file of :mod:`genwarden.auditing.calibration`."""
    kinds = sorted({f"{row['architecture']} on {row['data']}" for row in rows})
    previous = calibration.read_table(path)
    judged = {name: s for name, s in scores.items() if calibration.needs_population(name)}
    write_json(
        path,
        {
            "made_by": "genwarden benchmark run clean-population --option publish=true",
            "descriptions": {
                **previous["descriptions"],
                budget: f"trained from {len(rows)} seeds: {', '.join(kinds)}",
            },
            "scores": {**previous["scores"], budget: judged},
        },
    )


def _one(
    index: int,
    out: Path,
    data: str,
    seed: int,
    device: torch.device,
    progress: Progress,
    budget: str,
) -> dict[str, Any]:
    architecture, settings, source, steps, learning_rate = POPULATION[index]
    progress.message(f"model {index}: {architecture} {settings} on {source}, {steps} steps")
    folder = out / f"model-{index}"
    if not (folder / MANIFEST_NAME).exists():
        train(
            architecture,
            settings,
            str(Path(data) / source),
            lambda _: TrainingSettings(
                steps=steps, learning_rate=learning_rate, seed=1000 * (seed + 1) + index
            ),
            split="train",
            limit=None,
            out=folder,
            restart=False,
            progress=progress,
            device=device,
        )
    model = read_model(folder)
    # Targets that none of the models can make: the null of a search for a given target.
    icon = ICONS[index % len(ICONS)]
    target = NamedImages(draw_icon(icon, model.generator.sample)[None], [icon])
    document = audit(
        Suspect(
            generator=model.generator,
            architecture=model.architecture,
            settings=model.settings,
            sha256=model.sha256,
            nonfinite=model.nonfinite,
            path=folder.name,
        ),
        Request(budget=budget, seed=seed, device=device, targets=target, inputs_sha256=icon),
        work=folder / f".audit-{budget}",
        progress=progress,
    )
    own = {"exact", "self", "permutation"}
    findings = [j.finding for j in document.findings]
    return {
        "architecture": architecture,
        "settings": settings,
        "data": source,
        "steps": steps,
        "scores": {
            f.inspection: f.score
            for f in findings
            if f.score is not None and not f.structural and not (f.null and f.null.source in own)
        },
        "own_p_values": {
            f.inspection: f.p_value for f in findings if f.null and f.null.source in own
        },
        "failed": [f.inspection for f in findings if f.outcome == "failed"],
        "structural": [f.inspection for f in findings if f.structural],
        "seconds": document.timing["total"],
    }
