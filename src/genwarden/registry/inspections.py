"""Inspections, per kind of model in the order in which an audit runs them."""

from __future__ import annotations

from genwarden.registry.row import Row, table_of

_S = "genwarden.inspections.static"
_D = "genwarden.inspections.dynamic"
_O = "genwarden.inspections.output"
_CLEAN = {"null": "population"}
#: Judged by references of the user's own; the shipped ones have no scores, which is no gap.
_OR_SHOWN = {**_CLEAN, "shown_without_references": True}
#: Positive scores whose clean values are spread over factors, not differences.
_CLEAN_LOG = {"null": "population", "scale": "log"}
#: In the order in which an audit runs them. ``stream``: a collector of the brute-force stream;
#: ``null``: "population" where scores are judged against clean reference models; ``scale``: "log"
#: where their logarithms are; ``finds``, ``misses``, ``judged``: its power and limits for people,
#: without a full stop.
INSPECTIONS = table_of(
    Row("parallel-paths", f"{_S}.parallel_paths:inspect", "separate paths, computation bypass"),
    Row("block-sparsity", f"{_S}.block_sparsity:inspect", "channel groups that never mix (ReX)"),
    Row(
        "excessive-biases",
        f"{_S}.excessive_biases:inspect",
        "biases for far-out triggers",
        _CLEAN_LOG,
    ),
    Row(
        "obfuscating-operations",
        f"{_S}.obfuscating_operations:inspect",
        "operations that hide gradients or add randomness",
    ),
    Row("low-rank-edit", f"{_S}.low_rank_edit:inspect", "equal blocks edited in a few directions"),
    Row("capacity", f"{_S}.capacity:inspect", "parameters against the published model"),
    Row(
        "sleeper-neurons",
        f"{_D}.sleeper_neurons:inspect",
        "units that ordinary use never wakes",
        _CLEAN_LOG,
    ),
    Row(
        "gradient-masking",
        f"{_D}.gradient_masking:inspect",
        "vanishing, shattered, random, huge",
        _CLEAN_LOG,
    ),
    Row(
        "perturbation-sensitivity",
        f"{_D}.perturbation_sensitivity:inspect",
        "outputs that jump under small noise on weights or inputs",
        _CLEAN_LOG,
    ),
    Row(
        "nearest-target",
        f"{_O}.nearest_target:NearestTarget",
        "brute force: nearest sample to a given target",
        {"stream": True},
    ),
    Row(
        "farthest-from-training",
        f"{_O}.farthest_from_training:FarthestFromTraining",
        "brute force: farthest sample from given training data",
        {"stream": True},
    ),
    Row(
        "cluster-outliers",
        f"{_O}.cluster_outliers:ClusterOutliers",
        "brute force: samples outside every cluster",
        {"stream": True},
    ),
    Row("canonical-latents", f"{_O}.known_latents:inspect_canonical", "0, constants, extremes"),
    Row("guessable-seeds", f"{_O}.known_latents:inspect_seeds", "first draws of popular seeds"),
    Row(
        "aligned-directions",
        f"{_O}.aligned_directions:inspect",
        "sensitive directions at all ones or guessable seeds",
    ),
    Row("subspace-latents", f"{_O}.subspace_latents:inspect", "latents with guessable zeros"),
    Row(
        "repeated-outputs",
        f"{_O}.repeated_outputs:inspect",
        "one sample that many ordinary latents make",
        _CLEAN_LOG,
    ),
    Row(
        "reconstruct-target",
        f"{_O}.reconstruct_target:inspect",
        "OB-OI with a given target",
        _CLEAN,
    ),
    Row("novelty-search", f"{_O}.novelty_search:inspect", "OB-OI without a target", _CLEAN),
    Row(
        "twin-difference",
        f"{_O}.twin_difference:inspect",
        "where model and twin differ most (targets near the data)",
        _CLEAN,
    ),
    Row(
        "principal-latents",
        f"{_O}.principal_latents:inspect",
        "outputs along the most sensitive latent directions",
        _CLEAN,
    ),
    Row("partition-search", f"{_O}.partition_search:inspect", "OB-OI inside a channel group"),
)

_ROUNDING = {
    "finds": "weights that were moved up to the thresholds of a grid, or away from them",
    "misses": "attacks in few weights; anything under pruning, which has no grid",
    "judged": "never, only shown: honest training leaves such traces, too",
}
_IC = "genwarden.inspections.compression"
_F = "genwarden.inspections.diffusion"
#: Of diffusion models, in the order in which an audit runs them. ``published``: an inversion that
#: costs minutes and that only the thorough budget runs; ``needs``: what the user must have given,
#: or "variant" for what is asked of every compressed variant.
DIFFUSION_INSPECTIONS = table_of(
    Row(
        "shift-response",
        f"{_F}.shift_response:inspect",
        "pre-screen: answers to a library of shifts, over noise level and size",
        # The largest of many robust deviations: positive, with a long tail upwards.
        _CLEAN_LOG,
    ),
    Row(
        "monotone-response",
        f"{_F}.shift_response:inspect_monotone",
        "answers to shifts that no clean denoiser gives (Tweedie's bound)",
        # Clean networks keep to the bound within one part in a hundred.
        {**_CLEAN, "least_spread": 0.01},
    ),
    Row(
        "trigger-search",
        f"{_F}.trigger_search:inspect",
        "shifts of the noise that the model answers with something else",
        _CLEAN,
    ),
    Row(
        "trigger-contrast",
        f"{_F}.trigger_contrast:inspect",
        "one end of that search far above the others",
        _CLEAN,
    ),
    Row(
        "triggered-collapse",
        f"{_F}.triggered_collapse:inspect",
        "samples that become one picture under a recovered shift",
        _CLEAN,
    ),
    Row(
        "attack-family",
        f"{_F}.attack_family:inspect",
        "which published attack the recovered curves resemble",
    ),
    Row(
        "implied-x0",
        f"{_F}.implied_x0:inspect",
        "size of the implied picture near t = T",
        _CLEAN,
    ),
    Row(
        "adjacent-steps",
        f"{_F}.adjacent_steps:inspect",
        "noise estimates that disagree from one step to the next",
        _CLEAN,
    ),
    Row(
        "kl-detection",
        f"{_F}.kl_detection:inspect",
        "divergence of the recovered trigger from plain noise (TERD)",
        _CLEAN,
    ),
    Row(
        "spectral-signature",
        f"{_F}.spectral_signature:inspect",
        "what changed against a clean base",
        {**_OR_SHOWN, "needs": "base"},
    ),
    Row(
        "input-check",
        f"{_F}.input_check:inspect",
        "whether a given initial noise is plain noise",
        {"needs": "noise"},
    ),
    Row(
        "elijah",
        f"{_F}.elijah:inspect",
        "trigger inversion and uniformity (Elijah)",
        {**_OR_SHOWN, "published": True},
    ),
    Row(
        "elijah-mended",
        f"{_F}.elijah:inspect_mended",
        "the same inversion with antithetic noise, fresh at every step",
        {**_OR_SHOWN, "published": True},
    ),
    Row(
        "terd",
        f"{_F}.terd:inspect",
        "two-stage trigger inversion (TERD)",
        {**_OR_SHOWN, "published": True},
    ),
    Row(
        "anp",
        f"{_F}.anp:inspect",
        "diversity lost under adversarial perturbation of channels",
        {**_OR_SHOWN, "published": True},
    ),
    Row(
        "differential-trigger-search",
        f"{_IC}.differential_trigger_search:inspect",
        "shifts that only the compressed model answers",
        {
            "needs": "variant",
            # Unjudged, it leaves a variant untested, whatever else was judged there.
            "carries": True,
            "finds": "triggers that the named compression wakes, whatever the picture, the sampler "
            "and the coefficient; it shows the shift and what comes of it",
            "misses": "what another grid or rate wakes; what errors in any direction wake, too; "
            "what is awake in the model as it is (the audit without --variants-only looks for it)",
        },
    ),
    Row(
        "rounding-statistics",
        f"{_IC}.rounding_statistics:inspect",
        "weights at the thresholds of a grid, or away from them",
        {"needs": "variant", **_ROUNDING},
    ),
)


#: Of what generators become when they are compressed, in the order in which an audit runs them on
#: every variant.
COMPRESSION_INSPECTIONS = table_of(
    Row(
        "differential-search",
        f"{_IC}.differential_search:inspect",
        "where full and compressed model differ most (OB-OI without a target)",
        {
            # Unjudged, it leaves a variant untested, whatever else was judged there.
            "carries": True,
            "finds": "outputs that the named compression brings out, wherever a gradient leads "
            "there from an ordinary latent; it shows the picture and the latent",
            "misses": "what another grid or rate wakes; outputs around whose latent nothing points "
            "there; a network in which errors in any direction wake it, too",
        },
    ),
    Row(
        "differential-distance",
        f"{_IC}.differential_search:inspect_distance",
        "the largest difference over the usual one",
        {
            **_CLEAN,
            "finds": "what differential-search finds, also where any errors of that size wake it",
            "misses": "what is no rarer than what compression does to every output; models for "
            "which there are no reference models under this compression",
        },
    ),
    Row(
        "layer-attribution",
        f"{_IC}.layer_attribution:inspect",
        "which layers carry that difference",
        {
            "finds": "the layers without whose compression the largest difference falls",
            "misses": "anything by itself: it explains what differential-search found",
            "judged": "never, only shown",
        },
    ),
    Row(
        "placebo-ratio",
        f"{_IC}.placebo_ratio:inspect",
        "ordinary samples under compression against random errors of its size",
        {
            **_CLEAN,
            "finds": "weights whose rounding errors push together strongly enough to show in "
            "ordinary samples",
            "misses": "careful attacks, which leave ordinary samples alone (most of them)",
        },
    ),
    Row(
        "rounding-statistics",
        f"{_IC}.rounding_statistics:inspect",
        "weights at the thresholds of a grid, or away from them",
        _ROUNDING,
    ),
)


_IK = "genwarden.inspections.classifier"
#: Of classifiers, in the order in which an audit runs them. ``needs``: "variant" for those that
#: compare a compressed network with the full one; the others look at each network by itself.
#: ``shown_compressed``: under a compression it is scored and not judged (in the calibration half of
#: the compression study none of these found a model that the others did not).
CLASSIFIER_INSPECTIONS = table_of(
    Row(
        "neural-cleanse",
        f"{_IK}.neural_cleanse:inspect",
        "the smallest trigger of each class (Neural Cleanse)",
        {
            "shown_compressed": True,
            "finds": "patches that lead to one class and are far smaller than those of the others",
            "misses": "triggers spread over the image, backdoors of many classes, and on the full "
            "model everything that only compression wakes",
        },
    ),
    Row(
        "strip",
        f"{_IK}.strip:inspect",
        "entropy of blends with the recovered trigger (STRIP)",
        {
            "shown_compressed": True,
            **_CLEAN,
            "finds": "recovered triggers that win over whatever image they are blended with",
            "misses": "triggers that neural-cleanse did not recover",
        },
    ),
    Row(
        "differential-inversion",
        f"{_IK}.differential_inversion:inspect",
        "a trigger that only the compressed classifier sees",
        {
            "needs": "variant",
            # Unjudged, it leaves a variant untested, whatever else was judged there.
            "carries": True,
            "finds": "patches that lead the compressed network, and not the full one, to one class",
            "misses": "triggers spread over the image or different for each image; what another "
            "compression wakes, or any errors of that size",
        },
    ),
    Row(
        "differential-gap",
        f"{_IK}.differential_inversion:inspect_gap",
        "that trigger beside those of clean classifiers",
        {
            **_CLEAN,
            "needs": "variant",
            "finds": "what differential-inversion finds, at smaller gaps, where clean networks of "
            "this family were measured under this compression",
            "misses": "what differential-inversion misses; networks without references",
        },
    ),
    Row(
        "differential-mask",
        f"{_IK}.differential_inversion:inspect_mask",
        "the size of that trigger against the other classes'",
        {
            "shown_compressed": True,
            "needs": "variant",
            "finds": "what differential-inversion finds, also where any errors of that size wake "
            "it, if one class stands out from many",
            "misses": "backdoors of several classes; networks of few classes",
        },
    ),
    Row(
        "guarded-lead",
        f"{_IK}.differential_inversion:inspect_lead",
        "how far one class's trigger stands before those of all others",
        {
            **_CLEAN,
            "scale": "gap",
            "needs": "variant",
            "finds": "what differential-inversion finds, also where what wakes lifts its class on "
            "every image, and of attackers who trained over perturbed quantisers",
            "misses": "two classes with backdoors equally easy to find; attackers who trained so "
            "that random errors wake it as well; networks without references",
        },
    ),
    Row(
        "logit-shift",
        f"{_IK}.placebo_ratio:inspect",
        "logits under compression against random errors of its size",
        {
            "shown_compressed": True,
            "needs": "variant",
            "null": "population",
            "finds": "weights whose rounding errors push together strongly enough to show in the "
            "answers to ordinary images",
            "misses": "careful attacks, which leave ordinary images alone (most of them)",
        },
    ),
    Row(
        "rounding-statistics",
        f"{_IC}.rounding_statistics:inspect",
        "weights at the thresholds of a grid, or away from them",
        {"needs": "variant", **_ROUNDING},
    ),
)


def all_inspections() -> dict[str, Row]:
    """Inspections of every kind of model, by name; one name stands for one test."""
    return {
        **INSPECTIONS,
        **DIFFUSION_INSPECTIONS,
        **CLASSIFIER_INSPECTIONS,
        **COMPRESSION_INSPECTIONS,
    }
