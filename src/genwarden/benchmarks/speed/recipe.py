"""Recipe ``speed``: the scan, the latent search and an audit against the arithmetic floor.

    genwarden benchmark run speed --option model=FULL --option search_model=QUARTER --out OUT

Everything that is compared is measured in turns in one run, with one thread (pieces of a scan are
shared among processes of one thread each), on the wall and in processor time: the latter also while
the machine has other work. The floor is the best rate of a matrix product or a convolution, of the
same precision, in the same run. Without models the recipe takes untrained ones of the same sizes:
the arithmetic is the same. Cost: some ten minutes, most of them audits (``--option audits=none``).

    genwarden benchmark docs         writes docs/performance.md from results/speed*.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genwarden.artifacts.model_folder import read_model
from genwarden.benchmarks.options import whole_numbers
from genwarden.benchmarks.repairs.run import command_of, result_head
from genwarden.benchmarks.speed.audits import CURVE, measure_audits, measure_start, untrained
from genwarden.benchmarks.speed.latents import HALVINGS, measure_search, peak_memory_mib
from genwarden.benchmarks.speed.scan import measure_scan
from genwarden.benchmarks.store import write_result
from genwarden.engine.files import require_writable_folder
from genwarden.engine.progress import Progress
from genwarden.engine.threads import threads
from genwarden.errors import GenwardenError
from genwarden.models.protocol import LatentGenerator, parameter_count

RECIPE = "speed"
_FULL, _QUARTER = 256, 64


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    model: str = "",
    search_model: str = "",
    batches: str | int = "64+128+256+512",
    rounds: int = 5,
    restarts: int = 1000,
    steps: int = 200,
    audits: str = "quick,standard",
) -> Path:
    """Measure.

    Args:
        data: not used.
        model: folder of the generator that is scanned; a full-width DCGAN if empty.
        search_model: folder of the one that is searched; a quarter-width DCGAN if empty.
        batches: sizes that plain eager PyTorch may choose from, joined by ``+``.
        rounds: turns of every measurement; the median counts.
        restarts: of the latent search.
        steps: of it.
        audits: budgets of the cost curve, joined by commas; ``none`` leaves it out.

    Raises:
        GenwardenError: ``benchmark/option``, and those of reading a model.
    """
    del data
    require_writable_folder(out)
    sizes = whole_numbers(batches)
    if min(rounds, restarts, steps) < 1:
        raise GenwardenError(
            "benchmark/option", "A number is below 1.", "Give rounds, restarts and steps above 0."
        )
    budgets = [] if audits == "none" else [name.strip() for name in audits.split(",")]
    unknown = [name for name in budgets if name not in {case[2] for case in CURVE}]
    if unknown:
        raise GenwardenError(
            "benchmark/option",
            f"The cost curve has no audits at the budget {unknown[0]!r}.",
            "Give quick, standard, both joined by a comma, or none.",
        )
    scanned, searched = _opened(model, _FULL, device), _opened(search_model, _QUARTER, device)
    with threads(1):
        progress.message("scan: floor, eager PyTorch, stages")
        scan = measure_scan(scanned, sizes, device, rounds=rounds, seed=seed)
        memory = peak_memory_mib()
        task = progress.task("latent search", restarts * steps * len(HALVINGS))
        search = measure_search(searched, restarts, steps, device, seed=seed, task=task)
    start = measure_start(max(1, rounds - 2))
    curve = measure_audits(budgets, device, progress)
    options: dict[str, Any] = {
        "model": model and "FULL",
        "search_model": search_model and "QUARTER",
        "batches": batches if batches != "64+128+256+512" else "",
        "rounds": rounds if rounds != 5 else "",
        "restarts": restarts if restarts != 1000 else "",
        "steps": steps if steps != 200 else "",
        "audits": audits if audits != "quick,standard" else "",
    }
    head = result_head(RECIPE, seed, device)
    head["environment"] = {**head["environment"], "threads": "1"}
    return write_result(
        out / "result.json",
        {
            **head,
            "command": command_of(RECIPE, seed, None, options),
            "units": "samples, restarts and operations per second; a product and a sum are two "
            "operations; wall: on the clock, processor: of all threads",
            "scan": {**_facts(scanned), **scan},
            "peak_memory_mib": memory,
            "search": {**_facts(searched), **search},
            "start_s": start,
            "audits": curve,
        },
    )


def _opened(folder: str, width: int, device: torch.device) -> LatentGenerator:
    generator = read_model(Path(folder)).generator if folder else untrained("dcgan28", width)
    return generator.to(device).eval().requires_grad_(False)


def _facts(generator: LatentGenerator) -> dict[str, Any]:
    return {
        "architecture": type(generator).__name__,
        "settings": generator.settings(),
        "parameters": parameter_count(generator),
    }
