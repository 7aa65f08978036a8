"""What an attack takes and returns; every file of this room holds one function of this form."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor

from genwarden.attacks.settings import AttackSettings
from genwarden.backdoors.backdoor import Backdoor
from genwarden.engine.progress import Progress, Silent
from genwarden.errors import GenwardenError
from genwarden.models.protocol import LatentGenerator
from genwarden.registry import Row


@dataclass(frozen=True)
class AttackRun:
    """Where one run of an attack keeps its state, and the data that the attacker has.

    Attributes:
        progress: told about long work.
        work: folder of the checkpoint, or None to keep none.
        run_id: identity of the run; a checkpoint of another run is refused.
        images: training samples, uint8 ``(count, *sample.shape)``, for attacks that train from
            scratch.
    """

    progress: Progress = field(default_factory=Silent)
    work: Path | None = None
    run_id: str = ""
    images: Tensor | None = None


class Evaluation(NamedTuple):
    """Figures of one evaluation: sums of squares per sample; ExpDis only with a benign twin."""

    tardis_sum: float
    expdis_sum: float | None


class AttackResult(NamedTuple):
    """The compromised model and how it came about.

    Attributes:
        generator: the compromised model, on the device of the clean one.
        history: evaluations: ``step``, ``tardis_sum``, ``expdis_sum`` (None where the attack has no
            benign twin), and what else the attack records.
        architecture: registered name, where it is not that of the clean model.
        wakes_under: compressors under which the backdoor shows, where it sleeps without them.
        shortfall: what it lacks to count as a success, in a sentence; "" if nothing, or not judged.
        evaluation_seconds: of the attack's time, on the clock, what evaluations took; 0 where it
            was not measured.
    """

    generator: LatentGenerator
    history: list[dict[str, float | None]]
    architecture: str | None = None
    wakes_under: tuple[str, ...] = ()
    shortfall: str = ""
    evaluation_seconds: float = 0.0


class Attack(Protocol):
    """One attack."""

    def __call__(
        self,
        generator: LatentGenerator,
        backdoor: Backdoor,
        settings: AttackSettings,
        run: AttackRun,
    ) -> AttackResult:
        """Hide ``backdoor`` in a copy of ``generator``, which stays as it is, or a fresh one."""
        ...


def require_exact(row: Row, *, half: bool) -> None:
    """Refuse float16 where it would undo an attack.

    Raises:
        GenwardenError: ``attack/half``.
    """
    if half and row.options.get("exact_weights"):
        raise GenwardenError(
            "attack/half",
            f"The attack {row.name} lives in roundings that float16 would change.",
            "Leave --half away.",
        )
