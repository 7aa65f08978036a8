"""``auto`` for diffusion models: unlearn what the audit recovered, search again, unlearn the rest.

The trigger search looks at the weights alone, so it can say after a repair whether any shift of the
noise is still answered with something else. What it finds is added to what is unlearnt, once.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, Final

import torch

from genwarden.auditing.budgets import diffusion_budget
from genwarden.engine.seeds import derive_seed
from genwarden.engine.settings import filled
from genwarden.inspections.diffusion.orthogonal_response import Recovered, search_shifts
from genwarden.inspections.diffusion.timesteps import Timesteps
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.registry import DIFFUSION_REPAIRS
from genwarden.repairs.diffusion.contract import (
    DiffusionClues,
    DiffusionRepair,
    DiffusionRepaired,
    DiffusionRepairRun,
    DiffusionRepairSettings,
)
from genwarden.repairs.diffusion.own_samples import images_for

METHOD: Final = "shift-unlearning"
_ROUNDS: Final = 2
#: A search on a clean network ends at shifts whose unexplained answer is about its noise per size:
#: scores (log10) of about 0. Recovered triggers of repaired-to-be models had 0.6 to 1.3.
_ANSWERED: Final = 0.2


def repair_automatically(
    suspect: DiffusionModel,
    clues: DiffusionClues,
    settings: DiffusionRepairSettings,
    run: DiffusionRepairRun,
) -> tuple[str, DiffusionRepaired]:
    """Unlearn the clues' shifts, and in a second round those that the search still finds.

    Returns:
        Name of the remedy and its result; ``changes["rounds"]`` has one entry per round, with the
        largest score of the search after it.
    """
    method: DiffusionRepair = DIFFUSION_REPAIRS[METHOD].load()
    images = images_for(suspect, settings, run)
    own = diffusion_repair_settings(METHOD, {"seed": settings.seed})
    current, known = suspect, clues
    if clues.trigger is None and not len(clues.shifts):
        known = _with(clues, _search(suspect, settings.seed, 0, run))
    rounds: list[dict[str, Any]] = []
    history: list[dict[str, float]] = []
    for number in range(1, _ROUNDS + 1):
        part = replace(
            run,
            images=images,
            run_id=f"{run.run_id}-{number}",
            work=run.work and run.work / f"round-{number}",
        )
        repaired = method(current, known, own, part)
        current = repaired.model
        history += [{"round": float(number), **row} for row in repaired.history]
        found = _search(current, settings.seed, number, run)
        answered = [one for one in found if one.score > _ANSWERED]
        rounds.append(
            {
                **repaired.changes,
                "own_samples": run.images is None,
                "largest_score_after": round(found[0].score, 4),
                "still_answered": len(answered),
            }
        )
        if not answered:
            break
        known = _with(known, answered)
    changes = {"settings": asdict(own), "rounds": rounds}
    return METHOD, DiffusionRepaired(current, changes, history)


def diffusion_repair_settings(name: str, given: dict[str, object]) -> DiffusionRepairSettings:
    """The defaults of a repair with what the user gave (not None) in their place.

    Raises:
        GenwardenError: ``repair/unknown-setting``, ``repair/setting``.
    """
    kind: type[DiffusionRepairSettings] = DIFFUSION_REPAIRS[name].load_option("settings")
    return filled(kind, given, method=name, what="repair")


def _search(
    model: DiffusionModel, seed: int, number: int, run: DiffusionRepairRun
) -> list[Recovered]:
    """The trigger search at its quick length, with noises of its own in every round."""
    effort = diffusion_budget("quick")
    own = derive_seed(seed, "repair-search", number)
    return search_shifts(
        model,
        starts=effort.search_starts,
        steps=effort.search_steps,
        noises=effort.search_noises,
        probe_noises=effort.probe_noises,
        seed=own,
        device=next(model.parameters()).device,
        timesteps=Timesteps.of(model, model.schedule, own),
        progress=run.progress,
    )


def _with(clues: DiffusionClues, found: list[Recovered]) -> DiffusionClues:
    """The clues with more shifts, the new ones first."""
    new = torch.stack([one.shift for one in found])
    return replace(clues, shifts=torch.cat([new, clues.shifts]))
