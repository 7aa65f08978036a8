"""``scheduler_config.json`` of a diffusers folder: noise schedule and the user's sampler.

The class name chooses a row of the table below, never a class. Keys have diffusers' names and
defaults (0.38 to 0.42). An option that would make the user's sampler another one than ours is
refused by name, an unknown key too; nothing is passed over in silence.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genwarden.artifacts.json_object import first_problem
from genwarden.artifacts.shown import shown
from genwarden.errors import GenwardenError
from genwarden.models.diffusion.sampling import (
    SamplerName,
    SamplerSettings,
    Spacing,
    pairs_of,
    timesteps_of,
)
from genwarden.models.diffusion.schedule import BetaLaw, BetaLawName, NoiseSchedule, Prediction

_MAX_STEPS: Final = 10_000
#: Steps of an ordinary user where the folder does not say (section 7 of the reference); DDPM takes
#: all of them.
_USUAL_STEPS: Final[dict[SamplerName, int]] = {
    "ddim": 50,
    "heun": 50,
    "euler": 20,
    "dpm-solver++": 20,
    "unipc": 20,
}
#: Oldest version of diffusers that reads what we write; its numbers mean the same since.
DIFFUSERS_VERSION: Final = "0.38.0"

Beta = Annotated[float, Field(gt=0, lt=1)]


class SchedulerReading(NamedTuple):
    """What a scheduler folder says.

    Attributes:
        schedule: noise levels and what the network predicts.
        defaults: the sampler of an ordinary user.
        notes: sentences about what our sampler does otherwise than the user's.
    """

    schedule: NoiseSchedule
    defaults: SamplerSettings
    notes: tuple[str, ...]


class _Options(NamedTuple):
    """One scheduler class of diffusers.

    Attributes:
        sampler: ours that does the same.
        defaults: where they differ from :class:`_Numbers`.
        required: options that must have one of these values; the first is diffusers' default.
        idle: keys without effect as long as the required options hold.
    """

    sampler: SamplerName
    defaults: dict[str, Any]
    required: dict[str, tuple[Any, ...]]
    idle: frozenset[str] = frozenset()


_PLAIN: dict[str, tuple[Any, ...]] = {"thresholding": (False,), "rescale_betas_zero_snr": (False,)}
_EVEN_SIGMAS: dict[str, tuple[Any, ...]] = {
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
}
_SOLVER: dict[str, tuple[Any, ...]] = {
    **_PLAIN,
    **_EVEN_SIGMAS,
    "solver_order": (2,),
    "use_flow_sigmas": (False,),
    "use_dynamic_shifting": (False,),
    "final_sigmas_type": ("zero",),
}
_THRESHOLDS = frozenset({"dynamic_thresholding_ratio", "sample_max_value"})
#: Written by diffusers before 0.3, without effect since.
_OLD = frozenset({"tensor_format", "timestep_values"})
_SHIFTS = frozenset({"flow_shift", "time_shift_type", "shift_terminal", "sigma_min", "sigma_max"})

SCHEDULERS: Final[dict[str, _Options]] = {
    "DDPMScheduler": _Options(
        "ddpm", {"clip_sample": True, "timestep_spacing": "leading"}, _PLAIN, _THRESHOLDS
    ),
    "DDIMScheduler": _Options(
        "ddim", {"clip_sample": True, "timestep_spacing": "leading"}, _PLAIN, _THRESHOLDS
    ),
    "PNDMScheduler": _Options(
        "ddim", {"timestep_spacing": "leading"}, {}, frozenset({"skip_prk_steps"})
    ),
    "DPMSolverMultistepScheduler": _Options(
        "dpm-solver++",
        {},
        {
            **_SOLVER,
            "algorithm_type": ("dpmsolver++",),
            "solver_type": ("midpoint",),
            "use_lu_lambdas": (False,),
        },
        _THRESHOLDS | _SHIFTS | {"lower_order_final", "euler_at_final"},
    ),
    "UniPCMultistepScheduler": _Options(
        "unipc",
        {},
        {
            **_SOLVER,
            "solver_type": ("bh2",),
            "predict_x0": (True,),
            "lower_order_final": (True,),
            "disable_corrector": ([],),
            "solver_p": (None,),
        },
        _THRESHOLDS | _SHIFTS,
    ),
    "EulerDiscreteScheduler": _Options(
        "euler",
        {},
        {
            **_EVEN_SIGMAS,
            "rescale_betas_zero_snr": (False,),
            "interpolation_type": ("linear",),
            "timestep_type": ("discrete",),
            "final_sigmas_type": ("zero",),
            "sigma_min": (None,),
            "sigma_max": (None,),
        },
    ),
    "HeunDiscreteScheduler": _Options(
        "heun", {"beta_start": 0.00085, "beta_end": 0.012}, dict(_EVEN_SIGMAS)
    ),
}


class _Numbers(BaseModel):
    """The keys that describe noise and steps."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    num_train_timesteps: Annotated[int, Field(ge=1, le=_MAX_STEPS)] = 1000
    beta_start: Beta = 1e-4
    beta_end: Beta = 0.02
    beta_schedule: BetaLawName = "linear"
    trained_betas: Annotated[list[Beta], Field(min_length=1, max_length=_MAX_STEPS)] | None = None
    prediction_type: Prediction = "epsilon"
    timestep_spacing: Spacing = "linspace"
    steps_offset: Annotated[int, Field(ge=0, le=_MAX_STEPS)] = 0
    clip_sample: bool = False
    clip_sample_range: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    variance_type: str | None = None
    set_alpha_to_one: bool = True
    lambda_min_clipped: float = -math.inf


#: Keys of :class:`_Numbers` that only some classes have.
_OWNERS: Final = {
    "clip_sample": {"DDPMScheduler", "DDIMScheduler", "HeunDiscreteScheduler"},
    "clip_sample_range": {"DDPMScheduler", "DDIMScheduler", "HeunDiscreteScheduler"},
    "variance_type": {"DDPMScheduler", "DPMSolverMultistepScheduler"},
    "set_alpha_to_one": {"DDIMScheduler", "PNDMScheduler"},
    "lambda_min_clipped": {"DPMSolverMultistepScheduler"},
}


def read_scheduler(
    name: str, document: dict[str, Any], where: str, *, named_in: str = ""
) -> SchedulerReading:
    """Validate a scheduler's configuration.

    Args:
        name: its class name in diffusers.
        named_in: the file that names the class, if it is another than ``where``.
        document: the parsed ``scheduler_config.json``; keys that begin with "_" are diffusers' own.

    Raises:
        GenwardenError: ``artifact/unknown-scheduler``, ``artifact/unsupported-scheduler``,
            ``artifact/bad-settings``.
    """
    if name not in SCHEDULERS:
        raise GenwardenError(
            "artifact/unknown-scheduler",
            f"{named_in or where} names the scheduler {shown(name)!r}, which genwarden does not "
            "have.",
            f"Known are: {', '.join(SCHEDULERS)}. If one of them has the noise schedule that the "
            "network was trained with, save the pipeline with it.",
        )
    options = SCHEDULERS[name]
    given = {key: value for key, value in document.items() if not key.startswith("_")}
    foreign = {key for key, owners in _OWNERS.items() if name not in owners}
    known = (set(_Numbers.model_fields) - foreign) | set(options.required) | options.idle | _OLD
    unknown = sorted(set(given) - known)
    if unknown:
        raise _bad(where, f"{name} has no setting {shown(unknown[0])!r}")
    for key, allowed in options.required.items():
        # 0 == False: a number must not pass for the switch that it equals.
        value = given.get(key, allowed[0])
        if not any(value == wanted and type(value) is type(wanted) for wanted in allowed):
            raise _unsupported(where, f"{key} = {shown(value)}", f"{key} = {allowed[0]}")
    try:
        numbers = _Numbers.model_validate({**options.defaults, **given})
    except ValidationError as error:
        raise _bad(where, first_problem(error)) from error
    try:
        schedule = _schedule(numbers, where)
        defaults = _sampler(options, numbers, where)
        pairs_of(timesteps_of(schedule, defaults), schedule)
    except GenwardenError as error:
        if not error.code.startswith("usage/"):
            raise
        raise _bad(where, error.cause.rstrip(".")) from error
    return SchedulerReading(schedule, defaults, _notes(name, numbers))


def _schedule(numbers: _Numbers, where: str) -> NoiseSchedule:
    betas = numbers.trained_betas
    if betas is not None:
        if len(betas) != numbers.num_train_timesteps:
            raise _bad(where, "trained_betas and num_train_timesteps differ in number")
        schedule = NoiseSchedule.from_betas(
            torch.tensor(betas, dtype=torch.float64), numbers.prediction_type
        )
    else:
        law = BetaLaw(
            numbers.beta_schedule, numbers.num_train_timesteps, numbers.beta_start, numbers.beta_end
        )
        schedule = NoiseSchedule.from_law(law, numbers.prediction_type)
    least = math.log(float(schedule.a[-1] / schedule.s[-1]))
    if math.isnan(numbers.lambda_min_clipped) or numbers.lambda_min_clipped > least:
        raise _unsupported(
            where,
            f"lambda_min_clipped = {numbers.lambda_min_clipped}",
            f"a value below {least:.2f}",
        )
    return schedule


def _sampler(options: _Options, numbers: _Numbers, where: str) -> SamplerSettings:
    if numbers.clip_sample and numbers.clip_sample_range != 1:
        raise _unsupported(
            where, f"clip_sample_range = {numbers.clip_sample_range}", "clip_sample_range = 1.0"
        )
    if options.sampler == "ddpm" and numbers.variance_type == "fixed_large_log":
        # diffusers takes the root of a negative logarithm there
        raise _unsupported(where, "variance_type = fixed_large_log", "fixed_small or fixed_large")
    if numbers.variance_type not in _VARIANCES:
        raise _bad(where, f"there is no variance_type {shown(numbers.variance_type)!r}")
    total = numbers.num_train_timesteps
    # A solver places one timestep more than it visits.
    usual = max(1, min(_USUAL_STEPS.get(options.sampler, total), total - 1))
    return SamplerSettings(
        name=options.sampler,
        steps=total if options.sampler == "ddpm" else usual,
        clip="x0" if numbers.clip_sample else "none",
        spacing=numbers.timestep_spacing,
        offset=numbers.steps_offset if numbers.timestep_spacing == "leading" else 0,
        variance="large" if numbers.variance_type == "fixed_large" else "small",
    )


_LEARNED = {"learned", "learned_range"}
_VARIANCES = {None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", *_LEARNED}


def _notes(name: str, numbers: _Numbers) -> tuple[str, ...]:
    notes = []
    if name == "PNDMScheduler":
        notes.append(
            "The folder names PNDM; DDIM with eta 0, which solves the same equation, stands for it."
        )
    if name == "DDPMScheduler" and numbers.variance_type in _LEARNED:
        notes.append(
            "The folder's sampler uses the variance that the network estimates; genwarden's uses "
            "the posterior variance."
        )
    if name == "DDIMScheduler" and not numbers.set_alpha_to_one:
        notes.append(
            "The folder's sampler ends at the noise level of t = 0; genwarden's at the clean image."
        )
    return tuple(notes)


def scheduler_document(schedule: NoiseSchedule, settings: SamplerSettings) -> dict[str, Any]:
    """What diffusers needs to sample in the same way; the inverse of :func:`read_scheduler`.

    The number of steps and eta are arguments of the user's call and are not stored.

    Raises:
        GenwardenError: ``usage/sampler-not-in-diffusers`` for a clipping that no scheduler does.
    """
    name = next(n for n, options in SCHEDULERS.items() if options.sampler == settings.name)
    clips = name in _OWNERS["clip_sample"]
    if settings.clip == "xt" or (settings.clip == "x0" and not clips):
        raise GenwardenError(
            "usage/sampler-not-in-diffusers",
            f"diffusers' {name} cannot clip {settings.clip}, so a folder cannot say so.",
            "Write the model with another default sampler.",
        )
    law = schedule.law
    document: dict[str, Any] = {
        "_class_name": name,
        "_diffusers_version": DIFFUSERS_VERSION,
        "num_train_timesteps": schedule.steps,
        "beta_start": law.beta_start if law else 1e-4,
        "beta_end": law.beta_end if law else 0.02,
        "beta_schedule": law.name if law else "linear",
        "trained_betas": None if law else schedule.betas.tolist(),
        "prediction_type": schedule.prediction,
        "timestep_spacing": settings.spacing,
        "steps_offset": settings.offset,
    }
    if clips:
        document["clip_sample"] = settings.clip == "x0"
    if settings.name == "ddpm":
        document["variance_type"] = f"fixed_{settings.variance}"
    return document


def _unsupported(where: str, setting: str, wanted: str) -> GenwardenError:
    return GenwardenError(
        "artifact/unsupported-scheduler",
        f"{where} sets {setting}, which none of genwarden's samplers does.",
        f"Save the scheduler with {wanted}; the network stays the same.",
    )


def _bad(where: str, problem: str) -> GenwardenError:
    return GenwardenError(
        "artifact/bad-settings",
        f"{where}: {problem}.",
        "Fetch the folder again, or save it with a current version of diffusers.",
    )
