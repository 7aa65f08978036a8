"""Recipe ``red-against-art``: ReD of ART and ours, on the same network, in turns.

    genwarden benchmark run red-against-art --option clean=DCGAN28 --option art=PYTHON --out OUT

ART (the Adversarial Robustness Toolbox) trains Keras networks, so it needs an environment of its
own, and this recipe the path of that environment's interpreter:

    python3.11 -m venv art && art/bin/pip install adversarial-robustness-toolbox tensorflow-cpu
    ... --option art=art/bin/python

ART attacks a Keras twin of the clean model with the same weights (the recipe compares their
outputs), trigger and target, with its own optimiser settings. Ours computes the outputs of the
benign model once, before the steps that are timed, ART in every step: that is one of the reasons
for the difference.

Two things are measured: latents of the stealth term per second, each side at the batch size that
it likes best, both in float32 and in bfloat16 (ART's TensorFlow by oneDNN's mode for it; and, so
that speed is not bought with quality, where our precisions end after the same steps, far from the
optimum and near it); and the seconds until our ReD is at least as near to the target (TarDis) and
to the clean model (ExpDis) as ART's is after a number of iterations. All seconds are on the clock,
of several turns the fastest, since other work on the machine only adds. ART's time for its
iterations is that of the run, or its fastest iteration at that batch size times their number,
whichever is less. Ours holds the whole attack (copying the network, the teacher's outputs,
training) but for the evaluation at its end, which ART does not make; it is timed where it happens.

Cost: half an hour on two idle cores. Anything else that runs meanwhile spoils it.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import torch
from torch import Tensor

from genwarden.artifacts.model_folder import read_model
from genwarden.attacks.contract import AttackRun
from genwarden.attacks.red import Precision, ReDSettings, red
from genwarden.backdoors.backdoor import Backdoor, make_backdoor
from genwarden.benchmarks.against_art import art_side
from genwarden.benchmarks.options import whole_numbers
from genwarden.benchmarks.repairs.run import command_of, result_head
from genwarden.benchmarks.stopwatch import Stopwatch
from genwarden.benchmarks.store import write_result
from genwarden.engine.files import require_writable_folder
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.distances import expdis, tardis
from genwarden.models.dcgan import DCGAN28
from genwarden.models.fast.fast_generator import fastest
from genwarden.models.protocol import LatentGenerator

RECIPE: Final = "red-against-art"
_ART_BATCH: Final = 32  # its default
_PROBES: Final = 16
_COMPARED: Final = 4096
_PREDICTED: Final = 1024
#: Ours by ART's iterations; found by trying with seeds 0 to 2 (those for 1000 with 0 and 1), so
#: that another --seed is the honest test of them.
_DEFAULT: Final = {200: "165:1:8:1e-6:0.075", 1000: "300:1:8:1e-6:0.05"}
_POOL: Final = 512
_PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
#: Steps, latents per step and lambda after which both precisions are compared.
_ENDED: Final = ((200, 64, 3e-3), (600, 64, 1.0))
#: What makes oneDNN, and TensorFlow with it, multiply in bfloat16.
_HALF: Final = {"ONEDNN_DEFAULT_FPMATH_MODE": "BF16", "TF_SET_ONEDNN_FPMATH_MODE": "BF16"}
#: Outputs before the last activation of one network in two frameworks.
_TWIN_TOLERANCE: Final = 1e-3


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    clean: str = "",
    art: str = "",
    batches: str | int = "32+128+256+512+1024",
    steps: int = 8,
    rounds: int = 3,
    iterations: str | int = "200+1000",
    ours: str = "",
) -> Path:
    """Measure both.

    Args:
        data: not used.
        clean: folder of a DCGAN of 28 x 28 pixels.
        art: the Python interpreter of an environment with ART and TensorFlow.
        batches: sizes that either side may choose from, joined by ``+``; ART's own, 32, among them.
        steps: timed steps per size and round.
        rounds: turns; the fastest counts.
        iterations: after how many of them ART's result is to be reached, joined by ``+``.
        ours: our settings for each, as ``first:steps:batch:rate:lambda`` (first: steps
            of the dense layer alone), joined by ``+``; empty for those of the recipe.

    Raises:
        GenwardenError: ``benchmark/option``, ``benchmark/clean-missing``, ``benchmark/art-failed``,
            ``benchmark/twin-differs``, and those of reading a model.
    """
    del data
    if not clean or not art:
        raise GenwardenError(
            "benchmark/clean-missing",
            "The recipe needs a clean model and the interpreter of an environment with ART.",
            "Add --option clean=DIR --option art=ENVIRONMENT/bin/python; how to make one: "
            f"genwarden explain {RECIPE}.",
        )
    require_writable_folder(out)
    sizes, lengths = whole_numbers(batches), whole_numbers(iterations)
    if _ART_BATCH not in sizes:
        raise GenwardenError(
            "benchmark/option",
            f"ART's own batch size, {_ART_BATCH}, is not among {batches}.",
            "Add it: the time of its iterations is held against it.",
        )
    chosen = _chosen(ours, lengths, seed)
    model = read_model(Path(clean))
    generator = model.generator
    if type(generator) is not DCGAN28 or device.type != "cpu":
        raise GenwardenError(
            "benchmark/option",
            f"{model.architecture} on {device.type} has no twin here.",
            "Give a dcgan28; both sides are compared on the processor.",
        )
    backdoor = make_backdoor(generator, trigger="in-sample", target="icon:devil", seed=seed)
    place = out / "art"
    _hand_over(place, generator, backdoor, seed)
    job = {
        "channels": list(generator.channels),
        "latent_dim": generator.latent.shape[0],
        "threads": torch.get_num_threads(),
        "seed": seed,
        "batch_size": _ART_BATCH,
        "steps": steps,
    }
    fast = fastest(generator)
    timed: dict[str, list[dict[str, float]]] = {"art": [], "art bfloat16": []}
    timed |= {precision: [] for precision in _PRECISIONS}
    predicted: dict[str, list[dict[str, float]]] = {"art": [], "float32": []}
    task = progress.task("speed, in turns", 2 * rounds)
    for _ in range(rounds):
        answer = _ask(art, place, {**job, "batches": sizes, "predicted": sizes, "iterations": []})
        _require_twin(place, generator)
        timed["art"].append(_per_latent(answer))
        predicted["art"].append(answer["seconds_per_prediction"])
        half = _ask(art, place, {**job, "batches": sizes, "predicted": [], "iterations": []}, _HALF)
        timed["art bfloat16"].append(_per_latent(half))
        task.advance(1, "ART")
        for precision in _PRECISIONS:
            timed[precision].append(
                {str(n): _training(generator, backdoor, n, steps, seed, precision) for n in sizes}
            )
        predicted["float32"].append({str(size): _sampling(fast, size) for size in sizes})
        task.advance(1, "genwarden")
    speed = {
        "red": {name: _rates(found) for name, found in timed.items()},
        "prediction": {name: _rates(found) for name, found in predicted.items()},
    }
    progress.message(f"ART: {', '.join(map(str, lengths))} iterations")
    answer = _ask(art, place, {**job, "batches": [], "predicted": [], "iterations": lengths})
    fastest_iteration = _ART_BATCH / speed["red"]["art"][str(_ART_BATCH)]
    rows = []
    for length, trained in zip(lengths, answer["trained"], strict=True):
        reached = _distances(generator, _trained(place, generator, length), backdoor, seed)
        progress.message(f"genwarden: to the state of ART after {length} iterations")
        row = _ours(generator, backdoor, chosen[length], reached, seed, rounds)
        theirs = {
            "iterations": length,
            "seconds": min(trained["seconds"], length * fastest_iteration),
            "seconds_of_the_run": trained["seconds"],
            **reached,
            "fidelity_of_art": trained["fidelity"],
        }
        rows.append({"art": theirs, "ours": row})
    return write_result(
        out / "result.json",
        {
            **result_head(RECIPE, seed, device),
            "command": command_of(
                RECIPE,
                seed,
                None,
                {"clean": "DCGAN28", "art": "PYTHON", "batches": batches, "steps": steps}
                | {"rounds": rounds, "iterations": iterations, "ours": ours},
            ),
            "versions": {name: answer[name] for name in ("art", "tensorflow")},
            "threads": job["threads"],
            "architecture_settings": model.settings,
            "clean_model_sha256": model.sha256,
            "untouched": _distances(generator, generator, backdoor, seed),
            "compared_samples": _COMPARED,
            "latents_per_s": speed,
            "times_art": {what: _times_art(rates) for what, rates in speed.items()},
            "ends": [_ended(generator, backdoor, seed, *how) for how in _ENDED],
            "rows": rows,
        },
    )


def _chosen(text: str, lengths: list[int], seed: int) -> dict[int, ReDSettings]:
    """Our settings for each of ART's numbers of iterations."""
    parts = text.split("+") if text else [_DEFAULT.get(n, _DEFAULT[1000]) for n in lengths]
    found = {}
    try:
        for length, part in zip(lengths, parts, strict=True):
            first, steps, batch, rate, weight = part.split(":")
            found[length] = ReDSettings(
                first_layer_steps=int(first),
                steps=int(steps),
                batch_size=int(batch),
                learning_rate=float(rate),
                fidelity_weight=float(weight),
                pool_samples=_POOL,
                evaluate_every=int(steps),
                seed=seed,
            )
    except ValueError as error:
        raise GenwardenError(
            "benchmark/option",
            f"{text!r} is no list of settings for {len(lengths)} numbers of iterations.",
            "Write first:steps:batch:rate:lambda for each, joined by +, as in 165:1:8:1e-6:0.075.",
        ) from error
    return found


def _hand_over(place: Path, generator: DCGAN28, backdoor: Backdoor, seed: int) -> None:
    place.mkdir(parents=True, exist_ok=True)
    wanted = generator.pre_activation_of(backdoor.examples.x)
    named = {name: value for name, value in generator.state_dict().items() if value.ndim}
    arrays = {name: value.numpy() for name, value in named.items()}
    np.savez(
        place / "weights.npz",
        trigger=backdoor.examples.z.numpy(),
        wanted=wanted.detach().numpy(),
        probe=_probe(generator, seed).numpy(),
        **arrays,
    )


def _probe(generator: DCGAN28, seed: int) -> Tensor:
    return generator.latent.sample(_PROBES, generator=random_stream(seed, "art-probe"))


def _ask(
    art: str, place: Path, job: dict[str, Any], mode: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Have ART's environment do a job, with ``mode`` among its environment variables."""
    (place / "job.json").write_text(json.dumps(job), "utf-8")
    (place / "answer.json").unlink(missing_ok=True)
    with (place / "log").open("ab") as log:
        ended: int | str
        try:
            ended = subprocess.run(  # noqa: S603 (the interpreter that the user named)
                [art, "-I", art_side.__file__, str(place)],
                stdout=log,
                stderr=log,
                check=False,
                env={**os.environ, **(mode or {})},
            ).returncode
        except OSError as error:
            ended = str(error)
    if ended != 0:
        raise GenwardenError(
            "benchmark/art-failed",
            f"{art} ended with {ended}.",
            f"What it said is in {place / 'log'}; it needs adversarial-robustness-toolbox and "
            "tensorflow-cpu.",
        )
    answer: dict[str, Any] = json.loads((place / "answer.json").read_text("utf-8"))
    return answer


@torch.no_grad()
def _require_twin(place: Path, generator: DCGAN28) -> None:
    with np.load(place / "weights.npz") as stored:
        probe = torch.from_numpy(stored["probe"])
    with np.load(place / "shown.npz") as stored:
        shown = torch.from_numpy(stored["shown"])
    difference = float((generator.pre_activation(probe) - shown).abs().max())
    if not difference < _TWIN_TOLERANCE:
        raise GenwardenError(
            "benchmark/twin-differs",
            f"The Keras twin's outputs differ by up to {difference:.2g}.",
            "Another version of Keras may order its weights in another way.",
        )


def _trained(place: Path, generator: DCGAN28, iterations: int) -> DCGAN28:
    """ART's result as a generator of ours."""
    network = DCGAN28(generator.channels, generator.latent.shape[0])
    with np.load(place / f"trained-{iterations}.npz") as stored:
        state = {name: torch.from_numpy(stored[name]) for name in stored.files}
    found = network.load_state_dict(state, strict=False)
    counters = all(name.endswith("num_batches_tracked") for name in found.missing_keys)
    if found.unexpected_keys or not counters:
        raise GenwardenError(
            "benchmark/twin-differs",
            "What came back from ART is not the network that it was given.",
            "Another version of Keras may name its layers in another way.",
        )
    return network.eval().requires_grad_(False)


@torch.no_grad()
def _distances(
    clean: DCGAN28, suspect: LatentGenerator, backdoor: Backdoor, seed: int
) -> dict[str, float]:
    return {
        "tardis_sum": tardis(suspect, *backdoor.examples).sum,
        "expdis_sum": expdis(clean, suspect, samples=_COMPARED, seed=seed).sum,
    }


def _training(
    generator: DCGAN28, backdoor: Backdoor, size: int, steps: int, seed: int, precision: Precision
) -> float:
    """Seconds per latent of our ReD, the evaluation at its end left out."""
    settings = ReDSettings(
        steps=steps + 2,
        batch_size=size,
        pool_samples=size,
        evaluate_every=steps + 2,
        seed=seed,
        precision=precision,
    )
    watch = Stopwatch()
    red(generator, backdoor, settings, AttackRun(watch))
    # From the end of the first step to that of the last before the evaluation.
    return (watch.ends[-2] - watch.ends[0]).wall / (steps * size)


def _ended(
    generator: DCGAN28, backdoor: Backdoor, seed: int, steps: int, size: int, weight: float
) -> dict[str, Any]:
    """TarDis and ExpDis after the same steps in both precisions."""
    found: dict[str, Any] = {"steps": steps, "batch_size": size, "fidelity_weight": weight}
    for precision in _PRECISIONS:
        settings = ReDSettings(
            steps=steps,
            batch_size=size,
            fidelity_weight=weight,
            evaluate_every=steps,
            seed=seed,
            precision=precision,
        )
        result = red(generator, backdoor, settings, AttackRun())
        found[precision] = _distances(generator, result.generator, backdoor, seed)
    return found


def _ours(
    generator: DCGAN28,
    backdoor: Backdoor,
    settings: ReDSettings,
    wanted: dict[str, float],
    seed: int,
    rounds: int,
) -> dict[str, Any]:
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        result = red(generator, backdoor, settings, AttackRun())
        seconds.append(time.perf_counter() - begun - result.evaluation_seconds)
    found = _distances(generator, result.generator, backdoor, seed)
    return {
        "seconds": min(seconds),
        "seconds_of_the_runs": seconds,
        **found,
        "settings": asdict(settings),
        "reached": all(found[name] <= wanted[name] for name in wanted),
    }


@torch.no_grad()
def _sampling(fast: LatentGenerator, size: int) -> float:
    """Seconds per sample of our fast path."""
    z = fast.latent.sample(size, generator=random_stream(0, "art-sampling"))
    fast(z)
    rounds = max(1, _PREDICTED // size)
    begun = time.perf_counter()
    for _ in range(rounds):
        fast(z)
    return (time.perf_counter() - begun) / (rounds * size)


def _times_art(rates: dict[str, dict[str, float]]) -> dict[str, float]:
    """By precision of ours, each side at its best batch size; bfloat16 against ART's better one."""
    best = {side: max(by_size.values()) for side, by_size in rates.items()}
    either = max(best["art"], best.get("art bfloat16", 0.0))
    against = {"float32": best["art"], "bfloat16": either}
    return {name: best[name] / against[name] for name in _PRECISIONS if name in best}


def _per_latent(answer: dict[str, Any]) -> dict[str, float]:
    return {size: s / int(size) for size, s in answer["seconds_per_iteration"].items()}


def _rates(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Latents per second by batch size, the fastest round; from seconds per latent."""
    return {size: 1 / min(r[size] for r in rounds) for size in rounds[0]}
