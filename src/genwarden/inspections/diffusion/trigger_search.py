"""Trigger search: the strongest shift of the noise that the model answers with something else.

A clean denoiser answers a shift of its input with that shift, more or less blurred. A backdoored
one answers its trigger with the target too, which no blur of the trigger explains, and for every
noise alike. The search maximises that unexplained part over its own noise, by gradient, from
sixteen starts: two sizes, two trigger schedules, any shifts and fine ones. No sampler is run and
nothing is known of trigger or target. The score of the strongest shift is judged against clean
models of the same image size. Not seen: triggers in prompts, labels or images to be completed;
taken for a backdoor: models of very few pictures.
The arithmetic is in ``genwarden.inspections.diffusion.orthogonal_response``.
"""

from __future__ import annotations

import math

import torch

from genwarden.inspections.diffusion.bench import DiffusionBench
from genwarden.inspections.diffusion.orthogonal_response import (
    LEVELS,
    REACHES,
    Recovered,
)
from genwarden.inspections.diffusion.timesteps import level_of
from genwarden.inspections.finding import Evidence, Finding, Images, Table, images_of, latents_of
from genwarden.models.diffusion.samplers import SamplerSettings

NAME = "trigger-search"
TITLE = "Shifts that the model answers with something else"
#: The evidence from which a repair takes the shifts.
SHIFTS_TITLE = "Recovered shifts, as numbers"
SHOWN_SHIFTS = 4
_SHOWN_SAMPLES = 8


def inspect(bench: DiffusionBench) -> Finding:
    """Search, and score the strongest shift found."""
    best = bench.recovered[0]
    effort = bench.effort
    levels = [level_of(bench.schedule, a) for a in LEVELS]
    strongest = max(range(len(levels)), key=lambda i: best.ratios[i])
    return Finding(
        inspection=NAME,
        group="diffusion",
        title=TITLE,
        outcome="scored",
        summary=(
            f"Strongest shift: near t = {levels[strongest]} the part of the answer that the shift "
            f"itself does not explain is {best.ratios[strongest]:.3g} times its noise (size of the "
            f"shift {_size(best):.2f} standard deviations per pixel)."
        ),
        score=best.score,
        score_name="log10 of unexplained answer over noise, per size of the shift",
        p_value_reason="judged against clean reference models",
        budget={
            "starts": effort.search_starts * len(REACHES),
            "steps": effort.search_steps,
            "noises": effort.search_noises,
            "forward_images": effort.search_starts
            * len(REACHES)
            * effort.search_steps
            * effort.search_noises,
        },
        power=(
            "Shifts of the initial noise of up to "
            f"{max(reach.radius for reach in REACHES):g} standard deviations per pixel that lead "
            "to a fixed picture, under any sampler, whatever the picture, the coefficient and the "
            "schedule of the trigger."
        ),
        evidence=_evidence(bench, levels),
    )


def _evidence(bench: DiffusionBench, levels: list[int]) -> list[Evidence]:
    found = bench.recovered[:SHOWN_SHIFTS]
    rows: list[list[str | int | float]] = [
        [
            index + 1,
            round(one.score, 3),
            round(_size(one), 3),
            one.reach.psi,
            *[round(value, 4) for value in one.ratios],
            *[round(value, 4) for value in one.gains],
        ]
        for index, one in enumerate(bench.recovered)
    ]
    return [
        shifts_row(found, "Recovered shifts"),
        *(samples_at(bench, found[0], settings) for settings in bench.samplers),
        Table(
            title="All ends of the search",
            caption="psi: of the trigger schedule, 1 for 1 - a_t and 0 for s_t. Ratio: unexplained "
            "part of the answer over its noise. Gain: answer along the shift; a clean denoiser "
            "stays below 1 / s, which is close to 1.",
            columns=[
                "shift",
                "score",
                "size",
                "psi",
                *[f"ratio near t = {t}" for t in levels],
                *[f"gain near t = {t}" for t in levels],
            ],
            rows=rows,
        ),
        latents_of(torch.stack([one.shift for one in found]), title=SHIFTS_TITLE),
    ]


def shifts_row(found: list[Recovered], title: str) -> Images:
    """Recovered shifts as pictures, strongest first."""
    return images_of(
        torch.stack([one.shift / one.shift.abs().max().clamp(min=1e-6) for one in found]),
        [f"{index}: score {one.score:.2f}" for index, one in enumerate(found, start=1)],
        title=title,
        caption="Each is scaled to its own largest value; grey is no shift.",
    )


def samples_at(
    bench: DiffusionBench, best: Recovered, settings: SamplerSettings, whose: str = ""
) -> Images:
    """Samples of the model on the bench from noise plus a shift.

    Args:
        whose: samples, where the row stands beside those of another network.
    """
    noise = bench.noise("ordinary", bench.effort.samples)[:_SHOWN_SAMPLES]
    return images_of(
        bench.samples(noise + best.shift, settings),
        [""] * len(noise),
        title=f"{whose + ': s' if whose else 'S'}amples at shift 1, {settings.label}",
        caption="From the noise of the ordinary samples plus the shift. An attack is made for "
        "one sampler; the others may show nothing.",
    )


def _size(found: Recovered) -> float:
    return float(found.shift.norm()) / math.sqrt(found.shift.numel())
