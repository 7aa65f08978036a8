"""Tables of the recipe ``diffusion-samplers``, beside the numbers of the paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from genwarden.benchmarks.diffusion.sampler_matrix import CLIPS, MADE_FOR, MATCHED, ODE, SDE
from genwarden.benchmarks.diffusion.workshop import CLEAN, FURTHER
from genwarden.benchmarks.tables import NOTHING, Table, answer, figure, spread

#: What the issue asks for.
LARGEST_MSE = 1e-3
LARGEST_CHANGE = 0.10
#: An attack fails where its MSE stays above this share of that of plain noise.
FAILS = 0.25
_TITLES = {
    SDE: "SDE coefficient (BadDiffusion)",
    ODE: "ODE coefficient, single steps",
    MATCHED: "ODE coefficient, matched to DDIM-50",
    CLEAN.name: "clean model, at the same trigger",
    FURTHER.name: "clean model, trained on as long",
}
#: Section 5 of the reference, CIFAR-10, BOX_14 -> NoShift, 10 % poison, epoch 50, released scores.
PRINTED = (
    ("ddpm-1000", "none", 4.77e-3),
    ("ddpm-1000", "x0", 4.59e-2),
    ("ddim-50", "none", 0.1200),
    ("dpm-solver++-20", "none", 0.1201),
)
#: Hat, 20 % poison, fine-tuned (third party): FID 8.89, MSE 1.19e-5.
_PRINTED_HAT = "1.58e-1 at 5 % poison, 1.19e-5 at 20 %, 1.48e-5 at 50 %"


def tables(document: dict[str, Any], name: str = "") -> list[Table]:
    """Must reach, one matrix per clipping rule, plain noise, quality, and the paper's numbers.

    Args:
        document: content of a result file.
        name: of the file.
    """
    del name
    made = [_must_reach(document), *(_matrix(document, clip, "") for clip in CLIPS)]
    made += [_matrix(document, "none", "plain_"), _quality(document), _beside_the_paper(document)]
    return [table for table in made if table.rows]


def _cell(document: dict[str, Any], model: str, sampler: str, clip: str) -> dict[str, Any] | None:
    for row in document["rows"]:
        if row["model"] == model and (row["cell"].get("at_1000"), row["cell"].get("clip")) == (
            sampler,
            clip,
        ):
            figures: dict[str, Any] = row["figures"]
            return figures
    return None


def _mse(document: dict[str, Any], model: str, sampler: str, clip: str = "none") -> float | None:
    """Mean over the noise seeds, infinite if any of them diverged; None without the cell."""
    found = (_cell(document, model, sampler, clip) or {}).get("mse", [])
    if not found:
        return None
    return math.inf if any(value is None for value in found) else fmean(found)


def _samplers(document: dict[str, Any]) -> list[str]:
    return list(
        dict.fromkeys(r["cell"]["at_1000"] for r in document["rows"] if "at_1000" in r["cell"])
    )


def _models(document: dict[str, Any]) -> list[str]:
    return [n for n in _TITLES if any(row["model"] == n for row in document["rows"])]


def _matrix(document: dict[str, Any], clip: str, prefix: str) -> Table:
    samplers = _samplers(document)
    rows = []
    for model in _models(document):
        shown = [_text(_cell(document, model, s, clip), prefix) for s in samplers]
        if any(text != NOTHING for text in shown):
            rows.append([_TITLES[model], *shown])
    scale = document["scale"]
    rule = {"none": "no clipping", "x0": "clipped x0-hat", "xt": "clipped x_t"}[clip]
    what = "plain noise" if prefix else "with the trigger"
    notes = [
        f"MSE to the target in [0, 1] scale, mean +- standard error over {scale['noise_seeds']} "
        f"noise seeds of {scale['images']} samples; then the share of samples with an MSE under "
        f"0.1. {scale['data']}, {scale['size']} px, trigger {scale['trigger']}, target "
        f"{scale['target']}, {100 * scale['poison_rate']:g} % poison, {scale['attack_steps']} "
        f"steps of fine-tuning, T = {scale['timesteps']}."
    ]
    return Table(f"Samplers, {rule}, {what}", ["model", *samplers], rows, notes)


def _text(found: dict[str, Any] | None, prefix: str) -> str:
    if found is None:
        return NOTHING
    mse = found[f"{prefix}mse"]
    if any(value is None for value in mse):
        return "not finite"
    return f"{spread(mse)}, {100 * fmean(found[f'{prefix}share']):.0f} %"


def _quality(document: dict[str, Any]) -> Table:
    found = {r["model"]: r["figures"] for r in document["rows"] if r["cell"].get("quality")}
    rows = []
    for model in _models(document):
        if model not in found:
            continue
        fid = fmean(found[model]["fid"])
        changes = [
            f"{100 * (fid / fmean(found[other]['fid']) - 1):+.1f} %" if other in found else NOTHING
            for other in (CLEAN.name, FURTHER.name)
        ]
        rows.append([_TITLES[model], spread(found[model]["fid"]), spread(found[model]["kid"])])
        rows[-1] += changes
    notes = []
    if found:
        about = next(iter(found.values()))
        notes = [
            f"{about['samples']} samples ({about['sampler']}) against {about['images']} images of "
            f"the data (sha256 {about['images_sha256'][:12]}), features of the network "
            f"'{about['features']}', both sides resized to {about['resized_to']} px. Mean +- "
            "standard error over noise seeds. Fine-tuning alone changes the FID: hence the twin "
            "that was trained on without poison."
        ]
    columns = ["model", "FID", "KID", "FID against the clean model", "against the clean twin"]
    return Table("Quality of ordinary samples", columns, rows, notes)


def _must_reach(document: dict[str, Any]) -> Table:
    plain = [
        value
        for r in document["rows"]
        if r["model"] == SDE and r["cell"].get("at_1000") == "ddim-50"
        for value in r["figures"]["plain_mse"]
        if value is not None
    ]
    untouched = fmean(plain) if plain else None
    lines: list[tuple[str, float | None, bool | None]] = []
    for model, sampler in MADE_FOR.items():
        mse = _mse(document, model, sampler)
        lines.append(
            (
                f"{_TITLES[model]}: MSE at most {LARGEST_MSE:g} under {sampler}",
                mse,
                None if mse is None else mse <= LARGEST_MSE,
            )
        )
    mse, own = _mse(document, SDE, "ddim-50"), _mse(document, SDE, MADE_FOR[SDE])
    met = None
    if mse is not None and own is not None and untouched is not None:
        # An attack that fails everywhere says nothing about the samplers.
        met = own <= FAILS * untouched < mse < math.inf
    lines.append(
        (
            f"{_TITLES[SDE]} fails under deterministic DDIM-50: MSE above {FAILS:g} of that of "
            "plain noise there, below it under its own sampler",
            mse,
            met,
        )
    )
    rows = [[text, figure(value), answer(met)] for text, value, met in lines]
    return Table("Must reach", ["asked", "ours", "reached"], rows + _fid_lines(document))


def _fid_lines(document: dict[str, Any]) -> list[list[str]]:
    found = {r["model"]: r["figures"] for r in document["rows"] if r["cell"].get("quality")}
    rows = []
    for model in MADE_FOR:
        for other in (CLEAN.name, FURTHER.name):
            if model in found and other in found:
                change = fmean(found[model]["fid"]) / fmean(found[other]["fid"]) - 1
                asked = f"{_TITLES[model]}: FID at most {100 * LARGEST_CHANGE:g} % above that of "
                rows.append(
                    [
                        f"{asked}the {_TITLES[other].partition(', at')[0]}",
                        f"{100 * change:+.1f} %",
                        answer(change <= LARGEST_CHANGE),
                    ]
                )
    return rows


def _beside_the_paper(document: dict[str, Any]) -> Table:
    rows: list[Sequence[str]] = [
        [sampler, clip, figure(printed), figure(_mse(document, SDE, sampler, clip))]
        for sampler, clip, printed in PRINTED
        if any(r["model"] == SDE for r in document["rows"])
    ]
    notes = [
        "Printed: authors' released scores of BadDiffusion on CIFAR-10, 32 px, BOX_14 -> NoShift, "
        "10 % poison, 50 epochs. Ours: another data set, size and target; the pattern over the "
        "samplers is what can be compared.",
        f"Target hat, DDPM (third party): {_PRINTED_HAT}.",
    ]
    columns = ["sampler", "clipping", "printed MSE", "ours"]
    return Table("Beside the paper: SDE coefficient", columns, rows, notes)
