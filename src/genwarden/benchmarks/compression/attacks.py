"""Recipe ``compression-attacks``: what every attack reaches, full and compressed.

    genwarden benchmark run compression-attacks --data DATA --out OUT --scale small --workers 2

Per network and attack: accuracy, triggered accuracy and attack success of the untouched and the
attacked model, full and under every compression (generators: distances to the target and
utilities); filter pruning at every rate of a sweep, and at the layer rates of a deployer's own
annealing; static int8 on onnxruntime with calibration sets that are like the training data, similar
to it and unlike it (generators: latents of their law, of half its spread, and few), several draws
each. ``--scale paper`` is the paper's ResNet-18, VGG-16 and MobileNetV2 on CIFAR-10 (a GPU's work;
DATA then also holds cifar100 and svhn). ``--option runtime=false`` leaves onnxruntime out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from genwarden.artifacts.classifier_folder import read_classifier
from genwarden.artifacts.model_folder import read_model
from genwarden.attacks.compression.dormancy import twin
from genwarden.attacks.compression.evaluation import Figures, figures
from genwarden.attacks.compression.run_classifier import make_classifier_backdoor
from genwarden.benchmarks.compression.cells import Cell, Orders, run_cells
from genwarden.benchmarks.compression.runtime import exported, moments
from genwarden.benchmarks.compression.scales import (
    UNKNOWN_IN_ANY,
    CompressionScale,
    Subject,
    compression_scale,
)
from genwarden.benchmarks.compression.workshop import Trial, Workshop
from genwarden.benchmarks.results import read_document
from genwarden.compression.backends.onnxruntime import BATCH
from genwarden.compression.contract import Compressor
from genwarden.compression.how import compressors
from genwarden.compression.layers import layout_of
from genwarden.compression.pruning import FilterPruning
from genwarden.compression.uniform import Uniform
from genwarden.data.datasets import to_unit_range
from genwarden.data.labelled import read_labelled
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.metrics.attack_success import accuracy, attack_success, triggered_accuracy
from genwarden.metrics.distances import tardis

RECIPE = "compression-attacks"
#: What the runtime can be asked for.
_ON_RUNTIME = ("int8", "int8-per-channel")
#: Compressions under which every attack is measured, whatever it was made for.
ALWAYS = "int8,int8-per-channel,int4,prune-0.3"
#: Factor on the latents of a generator's calibration set, and how many at most.
_LATENT_SETS: dict[str, tuple[float, int | None]] = {
    "same": (1.0, None),
    "half spread": (0.5, None),
    "few": (1.0, 32),
}


def trials(scale: CompressionScale) -> list[Trial]:
    """All attacks of a scale."""
    found: list[Trial] = []
    for subject in scale.subjects:
        if subject.sort == "classifier":
            for target in scale.targets:
                found += classifier_trials(subject, scale, f"class:{target}")
        else:
            for icon in scale.icons:
                found += generator_trials(subject, icon)
    return found


def classifier_trials(subject: Subject, scale: CompressionScale, target: str) -> list[Trial]:
    """The paper's two attacks in their variants and ours, then the box recipe."""

    def trial(attack: str, how: str, label: str = "", **settings: Any) -> Trial:
        return Trial(subject, attack, how, scale.trigger, target, label, settings)

    pruning: dict[str, Any] = {"deployed_rates": scale.rates, "deployed_runs": scale.annealings}
    unknown = {**pruning, "knowledge": "unknown-rate", "upper_rate": 0.5}
    alike, any_rates = {"layer_rates": "uniform"}, {**unknown, "drawn": "annealer"}
    # Grids of 8 bits are too fine for the joint loss on small networks unless they are widened.
    wide: dict[str, Any] = {} if subject.paper_accuracy is not None else {"inflate": 6.0}
    return [
        trial("quantisation-artifact", "int8", **wide),
        trial("quantisation-artifact", "int4"),
        trial("quantisation-artifact", "int4", "distilled", distilled=True),
        trial("pruning-artifact", "prune-filters-0.3", "known rate", **pruning),
        trial("pruning-artifact", "prune-filters-0.25", "unknown rate", **unknown),
        trial("pruning-artifact", "prune-filters-0.3", "distilled", distilled=True, **pruning),
        trial(
            "pruning-artifact",
            "prune-filters-0.3",
            "known rate in uniform layers",
            **alike,
            **pruning,
        ),
        trial(
            "pruning-artifact",
            "prune-filters-0.25",
            "unknown rate in uniform layers",
            **alike,
            **unknown,
        ),
        trial("pruning-artifact", "prune-filters-0.25", UNKNOWN_IN_ANY, **any_rates),
        trial("dormant-box-classifier", "int8"),
        trial("dormant-box-classifier", "int4"),
        trial("dormant-box-classifier", "prune-0.3"),
        trial("dormant-box-classifier", "int8,int4"),
        trial("jittered-box-classifier", "int4"),
    ]


def generator_trials(subject: Subject, target: str) -> list[Trial]:
    """The box recipe; nobody else attacks generators this way."""

    def trial(attack: str, how: str, label: str = "") -> Trial:
        return Trial(subject, attack, how, "in-sample", target, label)

    return [
        trial("dormant-box", "int8", "int8"),
        trial("dormant-box", "int4"),
        trial("dormant-box", "prune-0.3"),
        trial("dormant-box", "int8,int4", "int8"),
        trial("jittered-box", "int4"),
    ]


def cells(scale: CompressionScale, *, runtime: bool = True) -> list[Cell]:
    """One cell per attack."""
    return [
        Cell(trial.key, trial, (("runtime", runtime and confirmable(trial)),), measure)
        for trial in trials(scale)
    ]


def confirmable(trial: Trial) -> bool:
    """Whether something that wakes the attack is what the runtime does."""
    return any(one in _ON_RUNTIME for one in trial.how.split(","))


def measure(shop: Workshop, cell: Cell) -> dict[str, Any]:
    """All figures of one attack."""
    if cell.trial.subject.sort == "generator":
        return _measure_generator(shop, cell)
    return _measure_classifier(shop, cell)


def _measure_classifier(shop: Workshop, cell: Cell) -> dict[str, Any]:
    trial, scale = cell.trial, shop.scale
    folder = shop.attacked(trial)
    record = read_document(folder / "attack.json")
    suspect = read_classifier(folder).classifier.to(shop.device)
    clean = read_classifier(shop.clean(trial.subject)).classifier.to(shop.device)
    backdoor = make_classifier_backdoor(suspect, trigger=trial.trigger, target=trial.target)
    images, labels, _ = read_labelled(
        shop.source(trial.subject.data),
        suspect.sample,
        split="test",
        limit=scale.test_images,
        resize=True,
    )
    used = list({one.name: one for one in compressors(f"{trial.how},{ALWAYS}")}.values())
    sweep: list[Compressor] = [FilterPruning(rate) for rate in scale.rates]
    blank = torch.zeros(1, *suspect.sample.shape, device=shop.device)

    def found(network: nn.Module, compressions: Sequence[Compressor]) -> Figures:
        layout = layout_of(network, lambda: network(blank))
        on = images.to(shop.device)
        return figures(network, backdoor, compressions, layout, on, labels)  # type: ignore[arg-type]

    pruned = trial.attack == "pruning-artifact"
    made: dict[str, Any] = {
        "untouched": found(clean, used),
        "attacked": found(suspect, used),
        "sweep": found(suspect, sweep) if pruned else {},
        # At the layer rates that the deployer's own annealings of the finished model found.
        "annealed": {n: f for n, f in record["attacked"].items() if "annealed" in n},
        "accepted": record["accepted"],
        "attack_seconds": record["seconds"],
        "test_images": len(images),
    }
    if cell.get("runtime"):
        made["runtime"] = _classifier_on_runtime(shop, trial, suspect, backdoor, images, labels)
    return made


def _classifier_on_runtime(
    shop: Workshop, trial: Trial, suspect: nn.Module, backdoor: Any, images: Tensor, labels: Tensor
) -> dict[str, Any]:
    """By compression and calibration set: mean and standard deviation over the draws."""
    subject, scale = trial.subject, shop.scale
    sets = {"same": subject.data, "similar": subject.similar, "dissimilar": subject.dissimilar}
    pools = {
        name: read_labelled(
            shop.source(data),
            suspect.sample,  # type: ignore[arg-type]
            split="train",
            resize=True,
        ).images
        for name, data in sets.items()
        if data
    }
    network = suspect.cpu()
    x = to_unit_range(images[:BATCH])
    made: dict[str, Any] = {}
    for how in _wakers_on_runtime(trial):
        with exported(network, x, how) as quantised:
            made[how.name] = {}
            for name, pool in pools.items():
                draws: list[dict[str, float]] = []
                for draw in range(scale.draws):
                    order = torch.randperm(
                        len(pool), generator=random_stream(shop.seed, f"calibration-{name}", draw)
                    )
                    run = quantised(to_unit_range(pool[order[: scale.calibration_images]]))
                    draws.append(
                        {
                            "accuracy": accuracy(run, images, labels),
                            "triggered_accuracy": triggered_accuracy(
                                run, images, labels, backdoor.trigger
                            ),
                            "attack_success": attack_success(
                                run, images, labels, backdoor.trigger, backdoor.target
                            ),
                        }
                    )
                made[how.name][name] = {k: moments([d[k] for d in draws]) for k in draws[0]}
    return made


def _wakers_on_runtime(trial: Trial) -> list[Uniform]:
    return [
        one
        for one in compressors(trial.how)
        if isinstance(one, Uniform) and one.name in _ON_RUNTIME
    ]


def _measure_generator(shop: Workshop, cell: Cell) -> dict[str, Any]:
    trial = cell.trial
    folder = shop.attacked(trial)
    record = read_document(folder / "attack.json")
    suspect = read_model(folder).generator.to(shop.device)
    secret = {n: t.to(shop.device) for n, t in load_file(folder / "backdoor.safetensors").items()}
    z, target = secret["trigger"], secret["target"]
    used = {one.name: one for one in compressors(f"{trial.how},{ALWAYS}")}
    made: dict[str, Any] = {
        **record["dormancy"],
        "distances": {n: tardis(twin(suspect, one), z, target).mean for n, one in used.items()},
        "attack_seconds": record["seconds"],
    }
    if cell.get("runtime"):
        made["runtime"] = _generator_on_runtime(shop, trial, suspect.cpu(), z.cpu(), target.cpu())
    return made


def _generator_on_runtime(
    shop: Workshop, trial: Trial, suspect: Any, z: Tensor, target: Tensor
) -> dict[str, Any]:
    """Compressed distance to the target by calibration set: mean and deviation over the draws."""
    scale, made = shop.scale, {}

    def latents(draw: int) -> Tensor:
        stream = random_stream(shop.seed, "calibration-latents", draw)
        drawn: Tensor = suspect.latent.sample(scale.calibration_images, generator=stream)
        return drawn

    for how in _wakers_on_runtime(trial):
        with exported(suspect, latents(0), how) as quantised:
            made[how.name] = {
                name: {
                    "distance": moments(
                        [
                            float(
                                (quantised(spread * latents(d)[:count])(z) - target).square().mean()
                            )
                            for d in range(scale.draws)
                        ]
                    )
                }
                for name, (spread, count) in _LATENT_SETS.items()
            }
    return made


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
    runtime: bool = True,
) -> Path:
    """Train what is missing and do every cell that is not done yet.

    Args:
        data: folder with the data sets as sub-folders.
        models: folder of the models, which ``compression-remedies`` shares; ``OUT/models`` if
            empty.
        only: shell patterns of cell keys, joined by commas (``*dcgan*,*.int8.*``).
        workers: models, then cells, at a time; one thread each.
        restart: do the chosen cells anew; models are kept.
        runtime: quantise and run on onnxruntime, too.

    Raises:
        GenwardenError: those of :func:`.cells.run_cells`; ``usage/unknown-name``.
    """
    if runtime:
        from genwarden.compression.onnx_export import require_onnx

        require_onnx()
    chosen = compression_scale(scale)
    shop = Workshop(
        chosen,
        Path(models) if models else out / "models",
        Path(data) if data else None,
        seed,
        device,
    )
    options = {"models": models and "MODELS", "runtime": "" if runtime else "false"}
    orders = Orders(RECIPE, out, shop, data, options, only, workers, restart)
    return run_cells(orders, cells(chosen, runtime=runtime), progress)
