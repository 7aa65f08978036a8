"""Whether the shipped clean scores can judge an inspection of a given model.

A p-value from clean reference models is worth something only where the reference models stand for
the suspect. For raw scores that depends on the network: how far a bias strays, how rarely a unit
wakes or how unevenly outputs react to noise follows from normalisation, activation and size. Clean
DCGANs and VAEs have sleeper scores of 0.3 to 2.3, a clean MLP 3.6; they react to noise with 0.3 to
0.8, a clean generator that reads a class from its latent with 4.6: false alarms, if the ones judged
the others. So the references must share the suspect's architecture and sample shape. (Of diffusion
models, clean ones of 28 pixels reach higher search scores than those of 16.) A score that is a
ratio to the same measurement in the suspect's own twin (:mod:`genwarden.inspections.twins`), or to
the suspect's own other outcomes, has taken most of that out and is judged for any model; where no
twin is fair, there is no score. Of classifiers the number of classes must agree as well: the
easiest of two classes leads the other by more than the easiest of ten leads the next. Of diffusion
models the noise schedule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from genwarden.auditing.calibration import MIN_REFERENCES, needs_population
from genwarden.models.diffusion.schedule import NoiseSchedule

#: Scores on a scale of the suspect's own.
OWN_SCALE = frozenset(
    {
        "novelty-search",
        "principal-latents",
        "twin-difference",
        "monotone-response",
        "differential-distance",
        "placebo-ratio",
    }
)
#: Searches without which "nothing found" would promise too much: where no reference models suit
#: them, the verdict is inconclusive unless something else is evidence.
CARRYING = frozenset({"trigger-search"})
_OTHER_SCHEDULE = "another noise schedule or prediction"
#: Four times those of the largest clean denoiser of the study.
MOST_PARAMETERS = 2_500_000


def classifier_family(architecture: str, classes: int) -> str:
    """Under which name ``families`` of a table has classifiers of an architecture."""
    return f"{architecture}, {classes} classes"


def diffusion_family(architecture: str, schedule: NoiseSchedule, parameters: int) -> str:
    """Under which name ``families`` of a table has denoisers: that of the architecture for those
    that are like the study's."""
    return ", ".join([architecture, *unlike_study(schedule, parameters)])


def unlike_study(schedule: NoiseSchedule, parameters: int) -> list[str]:
    """What a denoiser has that no clean one of the study has, in words.

    Those of the study have the linear schedule of 1,000 steps and predict the noise: what levels
    mean, and how a network answers there, follows from both. (The shipped clean model was evidence
    with a schedule of 100 steps written beside it.)
    """
    plain = schedule.like(NoiseSchedule.linear())
    unlike = [] if plain else [_OTHER_SCHEDULE]
    return [*unlike, "a larger network"] if parameters > MOST_PARAMETERS else unlike


def condition_of(compression: str, *, given: int, wanted: int) -> str:
    """Under which clean classifiers were scored: what they became, and which images there were.

    Images made from a network wander into what it sleeps through; scores on given ones are lower,
    and those on a few of them wilder.

    Args:
        given: images that the user gave.
        wanted: that the inspections work on, if there are so many.
    """
    images = "made" if not given else "given" if given >= wanted else "given, too few"
    return f"{compression or 'as it is'}, images {images}"


def fits(
    inspection: str, architecture: str, sample_shape: Sequence[int], table: Mapping[str, Any]
) -> bool:
    """Whether an inspection's null suits a model.

    True for inspections that bring a null of their own and for those on the suspect's own scale;
    for the others only if enough references have this architecture and this sample shape.

    Args:
        architecture: registered name, or what the user wrote behind ``--architecture``; of
            classifiers as :func:`classifier_family` has it, of denoisers :func:`diffusion_family`.
        sample_shape: of one sample, without the batch axis.
        table: the reference file; its ``families`` are triples of architecture, sample shape and
            number of clean models. A file that names none stands for nobody.
    """
    if not needs_population(inspection):
        return True
    if inspection in OWN_SCALE:
        # How near clean networks keep to a bound is known under the references' schedule alone.
        return _OTHER_SCHEDULE not in architecture
    wanted = (architecture, tuple(sample_shape))
    counts = {(name, tuple(shape)): count for name, shape, count in table.get("families", [])}
    return int(counts.get(wanted, 0)) >= MIN_REFERENCES
