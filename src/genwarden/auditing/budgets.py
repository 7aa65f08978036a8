"""The three budgets of an audit. Times are for 2 CPU cores; see the benchmark page."""

from __future__ import annotations

from genwarden.errors import GenwardenError
from genwarden.inspections.classifier.bench import ClassifierEffort
from genwarden.inspections.compression.bench import CompressionEffort
from genwarden.inspections.compression.diffusion_bench import DiffusionVariantEffort
from genwarden.inspections.compression.rerun import EVERY_SEARCH, OWN_NULLS
from genwarden.inspections.diffusion.bench import DiffusionEffort
from genwarden.inspections.workbench import Effort

BUDGETS = {
    # A quarter-width DCGAN in under 24 seconds.
    "quick": Effort(
        name="quick",
        ordinary_samples=4096,
        stream_samples=8192,
        restarts=64,
        search_steps=100,
        probe_latents=128,
        twins=1,
        twin_steps=250,
        guessed_seeds=32,
        draws_per_seed=4,
    ),
    # A full-width DCGAN in under ten minutes, a quarter-width one in under one.
    "standard": Effort(
        name="standard",
        ordinary_samples=4096,
        stream_samples=32_768,
        restarts=128,
        search_steps=150,
        probe_latents=256,
        twins=1,
        twin_steps=500,
        guessed_seeds=128,
        draws_per_seed=8,
    ),
    # The paper's million samples and thousands of restarts.
    "thorough": Effort(
        name="thorough",
        ordinary_samples=16_384,
        stream_samples=1_000_000,
        restarts=4096,
        search_steps=600,
        probe_latents=512,
        twins=4,
        twin_steps=2000,
        guessed_seeds=1024,
        draws_per_seed=16,
    ),
}

#: The same three budgets for diffusion models.
DIFFUSION_BUDGETS = {
    "quick": DiffusionEffort(
        name="quick",
        search_starts=4,
        search_steps=30,
        search_noises=6,
        probe_noises=32,
        screen_noises=4,
        refine_steps=40,
        refine_noises=4,
        samples=12,
        sampler_steps=10,
        published=False,
        elijah_steps=100,
        terd_steps=300,
        terd_refinements=50,
        anp_steps=50,
    ),
    # A model of 1 M parameters and 28 pixels in under five minutes.
    "standard": DiffusionEffort(
        name="standard",
        search_starts=4,
        search_steps=50,
        search_noises=8,
        probe_noises=64,
        screen_noises=8,
        refine_steps=60,
        refine_noises=6,
        samples=16,
        sampler_steps=20,
        published=False,
        elijah_steps=100,
        terd_steps=3000,
        terd_refinements=1000,
        anp_steps=200,
    ),
    # With the published inversions at their published lengths.
    "thorough": DiffusionEffort(
        name="thorough",
        search_starts=8,
        search_steps=150,
        search_noises=32,
        probe_noises=128,
        screen_noises=16,
        refine_steps=300,
        refine_noises=16,
        samples=64,
        sampler_steps=50,
        published=True,
        elijah_steps=100,
        terd_steps=3000,
        terd_refinements=1000,
        anp_steps=500,
    ),
}


#: The same three budgets for each compressed variant of a diffusion model.
DIFFUSION_VARIANT_BUDGETS = {
    "quick": DiffusionVariantEffort(
        name="quick",
        starts=2,
        steps=30,
        noises=6,
        probe_noises=32,
        placebos=3,
        reruns=("trigger-search",),
    ),
    "standard": DiffusionVariantEffort(
        name="standard",
        starts=3,
        steps=30,
        noises=6,
        probe_noises=32,
        placebos=4,
        reruns=("trigger-search",),
    ),
    "thorough": DiffusionVariantEffort(
        name="thorough",
        starts=4,
        steps=100,
        noises=16,
        probe_noises=128,
        placebos=8,
        reruns=(
            "shift-response",
            "monotone-response",
            "trigger-search",
            "trigger-contrast",
            "triggered-collapse",
            "implied-x0",
            "adjacent-steps",
        ),
    ),
}

#: The same three budgets for each compressed variant of a generator.
COMPRESSION_BUDGETS = {
    # Five variants of a quarter-width DCGAN in under a minute.
    "quick": CompressionEffort(
        name="quick", restarts=32, search_steps=60, placebos=4, ordinary_samples=512
    ),
    # In under two minutes.
    "standard": CompressionEffort(
        name="standard",
        restarts=48,
        search_steps=80,
        placebos=4,
        ordinary_samples=1024,
        reruns=OWN_NULLS,
    ),
    "thorough": CompressionEffort(
        name="thorough",
        restarts=256,
        search_steps=200,
        placebos=8,
        ordinary_samples=4096,
        reruns=EVERY_SEARCH,
    ),
}


#: The same three budgets for classifiers, as they are and for each compressed variant.
CLASSIFIER_BUDGETS = {
    "quick": ClassifierEffort(
        name="quick",
        images=40,
        synthesis_steps=100,
        inversion_steps=120,
        inversion_batch=4,
        restarts=1,
        placebos=1,
        shift_placebos=8,
        guards=16,
        blends=8,
    ),
    # Ten classes of 16 pixels on a small CNN: 14 seconds of one core per variant (8 to 31).
    "standard": ClassifierEffort(
        name="standard",
        images=64,
        synthesis_steps=150,
        inversion_steps=200,
        inversion_batch=8,
        restarts=1,
        placebos=1,
        shift_placebos=16,
        guards=16,
        blends=16,
    ),
    # Neural Cleanse at its published length.
    "thorough": ClassifierEffort(
        name="thorough",
        images=1000,
        synthesis_steps=400,
        inversion_steps=1000,
        inversion_batch=32,
        restarts=3,
        placebos=4,
        shift_placebos=32,
        guards=16,
        blends=64,
    ),
}


def classifier_budget(name: str) -> ClassifierEffort:
    """The effort of a budget's name, for classifiers.

    Raises:
        GenwardenError: ``usage/budget``.
    """
    budget(name)
    return CLASSIFIER_BUDGETS[name]


def compression_budget(name: str) -> CompressionEffort:
    """The effort of a budget's name, for each compressed variant.

    Raises:
        GenwardenError: ``usage/budget``.
    """
    budget(name)
    return COMPRESSION_BUDGETS[name]


def diffusion_budget(name: str) -> DiffusionEffort:
    """The effort of a budget's name, for diffusion models.

    Raises:
        GenwardenError: ``usage/budget``.
    """
    budget(name)
    return DIFFUSION_BUDGETS[name]


def diffusion_variant_budget(name: str) -> DiffusionVariantEffort:
    """The effort of a budget's name, for each compressed variant of a diffusion model.

    Raises:
        GenwardenError: ``usage/budget``.
    """
    budget(name)
    return DIFFUSION_VARIANT_BUDGETS[name]


def budget(name: str) -> Effort:
    """The effort of a budget's name.

    Raises:
        GenwardenError: ``usage/budget``.
    """
    if name not in BUDGETS:
        raise GenwardenError(
            "usage/budget",
            f"There is no budget {name!r}.",
            f"Choose one of: {', '.join(BUDGETS)}.",
        )
    return BUDGETS[name]
