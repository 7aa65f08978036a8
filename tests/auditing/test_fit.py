"""Which nulls suit a model: twin-judged ones always, raw scores only those of their own kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from genwarden.auditing.calibration import MIN_REFERENCES, needs_population
from genwarden.auditing.fit import MOST_PARAMETERS, OWN_SCALE, diffusion_family, fits
from genwarden.models.diffusion.schedule import BetaLaw, NoiseSchedule
from genwarden.registry import INSPECTIONS

TABLE: dict[str, Any] = {
    "descriptions": {},
    "scores": {},
    "families": [["dcgan28", [1, 28, 28], 12], ["dcgan32", [3, 32, 32], 12]],
}
RAW = sorted(n for n in INSPECTIONS if needs_population(n) and n not in OWN_SCALE)


@pytest.mark.parametrize("name", RAW)
def test_raw_scores_are_judged_for_the_references_own_kind_alone(name: str) -> None:
    assert fits(name, "dcgan28", (1, 28, 28), TABLE)
    assert fits(name, "dcgan32", [3, 32, 32], TABLE)
    assert not fits(name, "mypackage.models:Generator", (1, 28, 28), TABLE)
    assert not fits(name, "dcgan28", (3, 32, 32), TABLE)
    assert not fits(name, "stylegan", (1, 28, 28), TABLE)


def test_references_that_do_not_say_what_they_are_stand_for_nobody() -> None:
    assert not fits(RAW[0], "dcgan28", (1, 28, 28), {"descriptions": {}, "scores": {}})


@pytest.mark.parametrize("name", sorted(OWN_SCALE))
def test_scores_on_the_suspects_own_scale_are_judged_for_any_model(name: str) -> None:
    assert needs_population(name), f"{name} is not judged against clean models at all"
    assert fits(name, "mypackage.models:Generator", (3, 64, 64), TABLE)


@pytest.mark.parametrize("name", sorted(set(INSPECTIONS) - set(RAW) - OWN_SCALE))
def test_inspections_with_a_null_of_their_own_suit_any_model(name: str) -> None:
    assert fits(name, "mypackage.models:Generator", (3, 64, 64), {})


def test_denoisers_share_the_noise_schedule_of_the_references_and_are_not_far_larger() -> None:
    linear = NoiseSchedule.linear()
    assert diffusion_family("unet2d", linear, 1_100_000) == "unet2d"
    single = NoiseSchedule.from_betas(torch.linspace(1e-4, 0.02, 1000))
    assert diffusion_family("unet2d", single, 1) == "unet2d"
    others = (
        NoiseSchedule.linear(100),
        NoiseSchedule(linear.alphas_cumprod, "v_prediction"),
        NoiseSchedule.from_law(BetaLaw("scaled_linear", 1000, 1e-4, 0.02)),
    )
    for schedule in others:
        assert "noise schedule" in diffusion_family("unet2d", schedule, 1)
    assert "larger" in diffusion_family("unet2d", linear, MOST_PARAMETERS + 1)


@pytest.mark.parametrize("name", RAW)
def test_too_few_references_of_a_kind_judge_nobody(name: str) -> None:
    table = {**TABLE, "families": [["dcgan28", [1, 28, 28], MIN_REFERENCES - 1]]}
    assert not fits(name, "dcgan28", (1, 28, 28), table)
    table["families"] = [["dcgan28", [1, 28, 28], MIN_REFERENCES]]
    assert fits(name, "dcgan28", (1, 28, 28), table)
