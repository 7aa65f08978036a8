"""Recipe ``compression-remedies``: every remedy against every attack that wakes under compression.

    genwarden benchmark run compression-remedies --data DATA --out OUT --workers 2

One cell per attacked model (those of ``compression-attacks``, which may lie in a folder given as
``--option models=DIR``), compression that wakes it, and remedy. A remedy of the deployer
(``genwarden list remedies``) takes the place of plain compression; a repair of classifiers
(``genwarden list classifier-repairs``) comes before it. Each is also used on the untouched model,
whose costs are what a deployer pays who has no reason for suspicion. Costs are changes of the
output against the full model that was compressed: mean squares on ordinary latents, or logits and
accuracy on test images.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from genwarden.artifacts.classifier_folder import read_classifier
from genwarden.artifacts.model_folder import read_model
from genwarden.attacks.compression.run_classifier import make_classifier_backdoor
from genwarden.benchmarks.compression.attacks import trials
from genwarden.benchmarks.compression.cells import Cell, Orders, run_cells
from genwarden.benchmarks.compression.scales import CompressionScale, compression_scale
from genwarden.benchmarks.compression.workshop import Trial, Workshop
from genwarden.commands.compressing import ClassifierSubject, GeneratorSubject
from genwarden.compression.apply import compress
from genwarden.compression.contract import Compressor
from genwarden.compression.how import compressor, compressors
from genwarden.compression.layers import layout_of
from genwarden.compression.remedies.contract import family
from genwarden.compression.remedies.run import compress_with, remedy_settings
from genwarden.data.datasets import to_unit_range
from genwarden.data.labelled import LabelledImages, read_labelled
from genwarden.engine.progress import Progress
from genwarden.engine.settings import filled
from genwarden.metrics.attack_success import accuracy, attack_success, triggered_accuracy
from genwarden.metrics.distances import expdis, tardis
from genwarden.registry import CLASSIFIER_REPAIRS, COMPRESSION_REMEDIES
from genwarden.repairs.classifier.contract import LabelledData
from genwarden.repairs.contract import RepairRun

RECIPE = "compression-remedies"
#: Compression as a deployer does it who knows nothing.
PLAIN = "none"
#: A remedy's random acts are drawn with a seed that the attacks did not have.
_SEED_AWAY = 1000
#: Ordinary latents behind a cost; a defender's clean images, labelled for the repairs.
_SAMPLES, _IMAGES = 2048, 512


def cells(scale: CompressionScale) -> list[Cell]:
    """Attacks x what wakes them x what can be done about it."""
    made = []
    # What undoes pruning is measured on the published variants, not on those for other deployers.
    studied = [one for one in trials(scale) if not one.label.endswith("layers")]
    for trial in studied:
        for how in compressors(trial.how):
            for remedy in remedies_for(trial, how):
                fields = (("how", how.name), ("remedy", remedy))
                key = f"{trial.key}.{how.name}.{remedy}".replace(":", "-")
                made.append(Cell(key, trial, fields, measure))
    return made


def remedies_for(trial: Trial, how: Compressor) -> list[str]:
    """Names of the remedies that do something to a compression, plain compression first."""
    kind = family(how)
    found = [n for n, row in COMPRESSION_REMEDIES.items() if kind in row.options["families"]]
    if trial.subject.sort == "classifier":
        found += CLASSIFIER_REPAIRS
    return [PLAIN, *found]


def measure(shop: Workshop, cell: Cell) -> dict[str, Any]:
    """Attacked and untouched model under one remedy."""
    if cell.trial.subject.sort == "generator":
        return _measure_generator(shop, cell)
    return _measure_classifier(shop, cell)


def _measure_generator(shop: Workshop, cell: Cell) -> dict[str, Any]:
    folder = shop.attacked(cell.trial)
    secret = load_file(folder / "backdoor.safetensors")
    made: dict[str, Any] = {}
    for name, path in (("attacked", folder), ("untouched", shop.clean(cell.trial.subject))):
        loaded = read_model(path)
        loaded.generator.to(shop.device)
        subject = GeneratorSubject(loaded)
        small, seconds = _remedied(shop, cell, subject)
        made[name] = {
            "distance": tardis(small, secret["trigger"], secret["target"]).mean,
            "cost": expdis(loaded.generator, small, samples=_SAMPLES).mean,
            "seconds": seconds,
        }
        if name == "untouched":
            made["clean_distance"] = tardis(
                loaded.generator, secret["trigger"], secret["target"]
            ).mean
    return made


def _measure_classifier(shop: Workshop, cell: Cell) -> dict[str, Any]:
    trial = cell.trial
    folder = shop.attacked(trial)
    made: dict[str, Any] = {}
    for name, path in (("attacked", folder), ("untouched", shop.clean(trial.subject))):
        loaded = read_classifier(path)
        full = loaded.classifier.to(shop.device)
        backdoor = make_classifier_backdoor(full, trigger=trial.trigger, target=trial.target)
        data = _images(shop, trial, full, "train", _IMAGES)
        test = _images(shop, trial, full, "test", shop.scale.test_images)
        subject = ClassifierSubject(loaded, to_unit_range(data.images))
        small, seconds = _remedied(shop, cell, subject, data)
        images, labels = test.images.to(shop.device), test.labels
        made[name] = {
            "full_accuracy": accuracy(full, images, labels),
            "accuracy": accuracy(small, images, labels),
            "triggered_accuracy": triggered_accuracy(small, images, labels, backdoor.trigger),
            "attack_success": attack_success(
                small, images, labels, backdoor.trigger, backdoor.target
            ),
            "cost": _logit_change(full, small, images),
            "seconds": seconds,
        }
    return made


def _images(shop: Workshop, trial: Trial, full: Any, split: str, count: int) -> LabelledImages:
    source = shop.source(trial.subject.data)
    return read_labelled(source, full.sample, split=split, limit=count, resize=True)


@torch.no_grad()
def _logit_change(full: nn.Module, small: nn.Module, images: Tensor) -> float:
    """Mean square of what changed, over the variance of the full model's logits."""
    x = to_unit_range(images)
    before = torch.cat([full(part) for part in x.split(500)])
    after = torch.cat([small(part) for part in x.split(500)])
    return float((after - before).square().mean() / before.var())


def _remedied(
    shop: Workshop,
    cell: Cell,
    subject: GeneratorSubject | ClassifierSubject,
    data: LabelledImages | None = None,
) -> tuple[Any, float]:
    """The compressed network, and the seconds that it took."""
    how, remedy = compressor(cell.get("how")), cell.get("remedy")
    network = subject.network.eval().requires_grad_(False)
    example = tuple(x.to(shop.device) for x in subject.example())
    given = {"seed": shop.seed + _SEED_AWAY}
    began = time.perf_counter()
    small: Any
    if remedy in COMPRESSION_REMEDIES:
        layout = layout_of(network, lambda: network(*example))
        settings = remedy_settings(remedy, given)
        cured = compress_with(
            network, how, layout, remedy, settings, subject.inputs, confine=subject.confine
        )
        small = cured.network
    else:
        if remedy != PLAIN:
            network = _repaired(network, remedy, given, data)
        small, _ = compress(network, how, lambda one: one(*example))
    return small.requires_grad_(False), round(time.perf_counter() - began, 2)


def _repaired(
    network: nn.Module, name: str, given: dict[str, Any], data: LabelledImages | None
) -> nn.Module:
    if data is None:
        raise ValueError("repairs of classifiers need labelled images")
    row = CLASSIFIER_REPAIRS[name]
    settings = filled(row.load_option("settings"), given, method=name, what="repair")
    found = row.load()(network, LabelledData(data.images, data.labels), settings, RepairRun())
    repaired: nn.Module = found.classifier
    return repaired


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    scale: str = "small",
    models: str = "",
    only: str = "*",
    workers: int = 1,
    restart: bool = False,
) -> Path:
    """Make what is missing and do every cell that is not done yet.

    Args:
        data: folder with the data sets as sub-folders.
        models: folder of the models, which ``compression-attacks`` shares; ``OUT/models`` if empty.
        only: shell patterns of cell keys, joined by commas (``*.efrap,*.none``).
        workers: models, then cells, at a time; one thread each.
        restart: do the chosen cells anew; models are kept.

    Raises:
        GenwardenError: those of :func:`.cells.run_cells`; ``usage/unknown-name``.
    """
    chosen = compression_scale(scale)
    shop = Workshop(
        chosen,
        Path(models) if models else out / "models",
        Path(data) if data else None,
        seed,
        device,
    )
    options = {"models": models and "MODELS"}
    orders = Orders(RECIPE, out, shop, data, options, only, workers, restart)
    return run_cells(orders, cells(chosen), progress)
