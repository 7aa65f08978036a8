"""Recipe ``diffusion-samplers``: attack coefficient x sampler x clipping.

    genwarden benchmark run diffusion-samplers --data DATA --out OUT --workers 2

One clean model is trained and fine-tuned three times with the same trigger and target: with
BadDiffusion's coefficient (SDE), with that of deterministic samplers in single steps (ODE), and
with the one matched to the 50 steps of DDIM. Each is then drawn from with every sampler under every
clipping rule, with and without the trigger; so is the clean model. Theory predicts which
combinations fail (section 8 of the BadDiffusion reference). FID and KID are measured beside, also
of a clean twin that was trained on for as long without poison.

``--scale`` is smoke, small (16 px), small-blend (the same, longer, with a trigger on a zero
background), small-strong (with one of 2.8 times its norm), small-converged (the same from a base
that is trained to its end, as the paper's), medium (28 px) or paper (CIFAR-10, GPU).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from genwarden.attacks.diffusion.evaluation import triggered_samples
from genwarden.attacks.diffusion.samplers_by_name import sampler_by_name
from genwarden.benchmarks.diffusion.cells import Cell, recipe
from genwarden.benchmarks.diffusion.fidelity import fidelity
from genwarden.benchmarks.diffusion.scales import DiffusionScale
from genwarden.benchmarks.diffusion.workshop import CLEAN, FURTHER, Subject, Workshop
from genwarden.metrics.target_match import target_match
from genwarden.models.diffusion.samplers import Clip

RECIPE = "diffusion-samplers"
SDE, ODE, MATCHED = "sde", "ode", "ode-matched"
CLIPS: tuple[Clip, ...] = ("none", "x0", "xt")
#: The sampler that each attack is made for, as it is called at T = 1000.
MADE_FOR = {SDE: "ddpm-1000", ODE: "ddim-50", MATCHED: "ddim-50"}
#: Samplers at T = 1000: name, steps, eta.
SAMPLERS: tuple[tuple[str, int, str], ...] = (
    ("ddpm", 1000, ""),
    ("ddim", 50, ""),
    ("ddim", 50, ":0.5"),
    ("ddim", 50, ":1"),
    ("dpm-solver++", 20, ""),
    ("unipc", 20, ""),
    ("euler", 50, ""),
    ("heun", 25, ""),
)


def subjects(scale: DiffusionScale) -> list[Subject]:
    """The three attacks, and the two clean models."""
    matched = f"ddim-{scale.steps(50)}"
    return [
        Subject(SDE, "bad-diffusion"),
        Subject(ODE, "villan-diffusion", (("zeta", 0.0),)),
        Subject(MATCHED, "villan-diffusion", (("sampler", matched), ("zeta", 0.0))),
        CLEAN,
        FURTHER,
    ]


def cells(scale: DiffusionScale) -> list[Cell]:
    """Every model with every sampler and clipping rule, and its quality."""
    made = [
        Cell(
            f"{subject.name}.{name}-{steps}{eta.replace(':', '-eta-')}.{clip}",
            subject,
            (
                ("sampler", f"{name}-{scale.steps(steps)}{eta}"),
                ("at_1000", f"{name}-{steps}{eta}"),
                ("clip", clip),
            ),
            measure,
        )
        for subject in subjects(scale)
        if not subject.further
        for name, steps, eta in SAMPLERS
        for clip in CLIPS
    ]
    return made + [
        Cell(f"{subject.name}.quality", subject, (("quality", True),), measure_quality)
        for subject in subjects(scale)
    ]


def measure(shop: Workshop, cell: Cell) -> dict[str, Any]:
    """MSE, SSIM and share per noise seed, with the trigger and without it."""
    model, backdoor = shop.read(cell.subject).model, shop.backdoor()
    sampler = replace(sampler_by_name(cell.get("sampler"), model.schedule), clip=cell.get("clip"))
    figures: dict[str, Any] = {"label": sampler.label, "images": shop.scale.images}
    for prefix, hidden in (("", backdoor), ("plain_", None)):
        found = [
            target_match(
                triggered_samples(model, hidden, sampler, count=shop.scale.images, seed=number),
                backdoor.targets,
            )
            for number in range(shop.scale.noise_seeds)
        ]
        # Clipped at every step or not, a diverging sampler leaves NaN, which no JSON can hold.
        figures[f"{prefix}mse"] = [one.mse if one.mse == one.mse else None for one in found]
        figures[f"{prefix}ssim"] = [
            one.ssim if one.ssim is not None and one.ssim == one.ssim else None for one in found
        ]
        figures[f"{prefix}share"] = [one.share for one in found]
    return figures


def measure_quality(shop: Workshop, cell: Cell) -> dict[str, Any]:
    """FID and KID of ordinary samples."""
    return fidelity(shop, cell.subject)


run = recipe(RECIPE, cells)
