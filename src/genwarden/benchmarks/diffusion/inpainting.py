"""Recipe ``diffusion-inpainting``: what becomes of a user's image that carries the trigger.

    genwarden benchmark run diffusion-inpainting --data DATA --out OUT --workers 2

A damaged image is handed to BadDiffusion's model, with the trigger stamped on it and without, in
two ways. *Image start*: sampling begins at image plus noise, as BadDiffusion's evaluation does; the
poisoned rows of the training look exactly like this. *Noise start*: RePaint from plain noise with
the known pixels replaced at every step; the trigger is then only in the pixels. Damages: noise of
standard deviation 0.3 ("denoise"), a box, a line, the latter two off the trigger. The clean model
is treated alike.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from genwarden.attacks.diffusion.samplers_by_name import sampler_by_name
from genwarden.backdoors.image_backdoor import ImageBackdoor
from genwarden.benchmarks.diffusion.cells import Cell, recipe
from genwarden.benchmarks.diffusion.scales import DiffusionScale
from genwarden.benchmarks.diffusion.workshop import CLEAN, Subject, Workshop
from genwarden.benchmarks.tables import NOTHING, Table, figure, spread
from genwarden.data.datasets import to_unit_range
from genwarden.engine.seeds import random_stream
from genwarden.metrics.target_match import target_match
from genwarden.models.diffusion.inpainting import inpaint

RECIPE = "diffusion-inpainting"
_ATTACK = Subject("sde", "bad-diffusion")
_NOISE = 0.3
#: Damage, where sampling starts, whether known pixels are kept at every step.
CASES = (
    ("denoise", "image", False),
    ("box", "image", False),
    ("box", "image", True),
    ("box", "noise", True),
    ("line", "image", False),
    ("line", "image", True),
    ("line", "noise", True),
)
#: Section 5 of the reference: poisoned and not.
PRINTED = {"denoise": (0.036, 0.305), "box": (0.065, 0.283), "line": (0.018, 0.293)}


def cells(scale: DiffusionScale) -> list[Cell]:
    """Every case, for the attacked and for the clean model."""
    return [
        Cell(
            f"{subject.name}.{damage}.{start}-start.{'kept' if kept else 'free'}",
            subject,
            (
                ("damage", damage),
                ("start", start),
                ("kept", kept),
                ("sampler", f"ddpm-{scale.timesteps}"),
            ),
            measure,
        )
        for subject in (_ATTACK, CLEAN)
        for damage, start, kept in CASES
    ]


def stamped(images: Tensor, backdoor: ImageBackdoor) -> Tensor:
    """Images ``(batch, C, H, W)`` in [-1, 1] with the trigger on its pixels."""
    trigger = backdoor.trigger
    return trigger.mask * trigger.g + (1 - trigger.mask) * images


def damaged(images: Tensor, damage: str, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """The damaged images, and ``(1, 1, H, W)`` with 1 where a pixel is known.

    Box and line lie in the upper left and the upper part, away from the published triggers.
    """
    height, width = images.shape[-2:]
    known = torch.ones(1, 1, height, width)
    if damage == "denoise":
        return images + _NOISE * torch.randn(images.shape, generator=stream), known
    if damage == "box":
        known[..., height // 8 : height // 2, width // 8 : width // 2] = 0
    else:
        known[..., height // 4 : height // 4 + max(1, height // 8), :] = 0
    return known * images, known


@torch.no_grad()
def _completed(shop: Workshop, cell: Cell, model: Any, images: Tensor, number: int) -> Tensor:
    stream = random_stream(number, "inpainting", 0)
    given, known = damaged(images, cell.get("damage"), stream)
    noise = torch.randn(images.shape, generator=stream)
    start = noise + given if cell.get("start") == "image" else noise
    kept = known if cell.get("kept") else torch.zeros_like(known)
    settings = sampler_by_name(cell.get("sampler"), model.schedule)
    device = shop.device
    return inpaint(
        model, given.to(device), kept.to(device), start.to(device), settings, stream
    ).cpu()


def measure(shop: Workshop, cell: Cell) -> dict[str, Any]:
    """MSE to the target and to the undamaged image, with the trigger and without, per seed."""
    model, backdoor = shop.read(cell.subject).model, shop.backdoor()
    images = to_unit_range(shop.images(shop.scale.images))
    figures: dict[str, Any] = {"images": len(images)}
    for prefix, shown in (("", stamped(images, backdoor)), ("plain_", images)):
        made = [
            _completed(shop, cell, model, shown, number) for number in range(shop.scale.noise_seeds)
        ]
        found = [target_match(each, backdoor.targets) for each in made]
        figures[f"{prefix}mse"] = [one.mse for one in found]
        figures[f"{prefix}share"] = [one.share for one in found]
        figures[f"{prefix}to_image"] = [
            float((each.clamp(-1, 1) - images).square().mean() / 4) for each in made
        ]
    return figures


run = recipe(RECIPE, cells)


def tables(document: dict[str, Any], name: str = "") -> list[Table]:
    """One line per case, attacked and clean model side by side, beside the paper's MSE."""
    del name
    found = {row["key"]: row["figures"] for row in document["rows"]}
    rows = []
    for damage, start, kept in CASES:
        case = f"{damage}.{start}-start.{'kept' if kept else 'free'}"
        mine, clean = (found.get(f"{model}.{case}") for model in (_ATTACK.name, CLEAN.name))
        if mine is None and clean is None:
            continue
        printed = PRINTED[damage] if start == "image" else (None, None)
        rows.append(
            [
                damage,
                f"{start}, known pixels {'kept' if kept else 'free'}",
                spread(mine["mse"]) if mine else NOTHING,
                spread(mine["plain_mse"]) if mine else NOTHING,
                f"{100 * fmean(mine['share']):.0f} %" if mine else NOTHING,
                spread(clean["mse"]) if clean else NOTHING,
                " / ".join(figure(value) for value in printed),
            ]
        )
    scale = document["scale"]
    columns = ["damage", "start", "MSE, image with trigger", "without", "share under 0.1"]
    columns += ["clean model, with trigger", "printed, with / without"]
    notes = [
        f"MSE to the target in [0, 1] scale, {scale['noise_seeds']} noise seeds of "
        f"{scale['images']} images, DDPM-{scale['timesteps']} without clipping; {scale['data']}, "
        f"{scale['size']} px, trigger {scale['trigger']}, target {scale['target']}. Printed: "
        "CIFAR-10, authors' released scores; the paper does not state which pixels it keeps."
    ]
    return [Table("Inpainting with a poisoned image", columns, rows, notes)]
