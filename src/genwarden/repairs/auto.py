"""``auto``: the remedy that an audit's findings call for.

What stands in the network's structure is taken out exactly: a bypass, a group of channels that
never mixes with the rest, an edit of equal blocks. Everything else lives in weights that ordinary
samples use too; there a latent guard takes away what ordinary sampling never shows and leaves the
weights alone. Networks that are not of our own table cannot be given a guard, since the result
could not be written as a model folder: they are distilled under a widened prior.
"""

from __future__ import annotations

from dataclasses import replace

from genwarden.engine.settings import filled
from genwarden.errors import GenwardenError
from genwarden.models.guarded import NAME as GUARDED
from genwarden.models.protocol import LatentGenerator
from genwarden.registry import ARCHITECTURES, REPAIRS
from genwarden.repairs.contract import (
    Clues,
    Repair,
    Repaired,
    RepairRun,
    RepairSettings,
    no_clues,
)

#: Structural remedies, each with the finding that calls for it.
STRUCTURAL = {
    "bypass-removal": "parallel-paths",
    "excision": "block-sparsity",
    "edit-projection": "low-rank-edit",
}
_GUARD, _CLIP, _WEIGHTS = "latent-guard", "unit-clipping", "widened-distillation"


def remedies(architecture: str, clues: Clues) -> list[str]:
    """Names of the repairs to try, in order; the first that applies is taken.

    Args:
        architecture: registered name, or the user's factory.
        clues: flagged inspections decide which structural remedies come first.
    """
    structural = [
        name
        for name, finding in STRUCTURAL.items()
        if finding in clues.flagged and supports(name, architecture)
    ]
    # A model that came guarded may hide behind its guard: its weights are relearnt.
    wrapped = architecture in ARCHITECTURES and architecture != GUARDED
    general = [_GUARD, _CLIP, _WEIGHTS] if wrapped else [_WEIGHTS]
    return structural + general


def repair_automatically(
    suspect: LatentGenerator,
    architecture: str,
    clues: Clues,
    settings: RepairSettings,
    run: RepairRun,
    *,
    without: frozenset[str] = frozenset(),
) -> tuple[str, Repaired]:
    """Apply the first remedy that applies; returns its name and what it made.

    Every remedy runs with its default settings and the given seed. Those that were tried and did
    not apply are listed in ``changes["tried"]`` with the reason.

    Args:
        without: remedies that are not to be tried, because they were taken already.

    Raises:
        GenwardenError: ``repair/none-applies``, with the reasons.
    """
    tried: list[str] = []
    for name in remedies(architecture, clues):
        if name in without:
            continue
        method: Repair = REPAIRS[name].load()
        own = repair_settings(name, {"seed": settings.seed})
        fitting = clues if clues.latents.shape[1:] == suspect.latent.shape else no_clues(suspect)
        try:
            repaired = method(suspect, fitting, own, _own_run(run, name))
        except GenwardenError as error:
            if error.code != "repair/not-applicable":
                raise
            tried.append(f"{name}: {error.cause}")
            continue
        return name, repaired._replace(changes={**repaired.changes, "tried": tried})
    raise GenwardenError(
        "repair/none-applies",
        f"No remedy applies to this model ({' '.join(tried) or 'none is left'}).",
        "See genwarden list repairs; --method distillation works on every generator, at a cost.",
    )


def _own_run(run: RepairRun, name: str) -> RepairRun:
    """A folder of checkpoints for each remedy that is tried."""
    return replace(run, run_id=f"{run.run_id}-{name}", work=run.work and run.work / name)


def repair_settings(name: str, given: dict[str, object]) -> RepairSettings:
    """The defaults of a repair with what the user gave (not None) in their place.

    Raises:
        GenwardenError: ``repair/unknown-setting``, ``repair/setting``.
    """
    kind: type[RepairSettings] = REPAIRS[name].load_option("settings")
    return filled(kind, given, method=name, what="repair")


def supports(name: str, architecture: str) -> bool:
    """Whether a repair is made for an architecture (some are for one kind of network alone)."""
    supported = REPAIRS[name].options.get("architectures")
    return supported is None or architecture in supported
