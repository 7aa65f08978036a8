"""Everything genwarden can do, as rows of strings: ``list`` and ``--help`` read them without torch.

A new method is one file and one row here.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

from genwarden.errors import GenwardenError


@dataclass(frozen=True)
class Row:
    """One registered method.

    Attributes:
        name: what the user types.
        location: ``package.module:attribute``, imported only when used.
        summary: one line for ``list``.
        options: plain data about the row (never code).
    """

    name: str
    location: str
    summary: str
    options: dict[str, Any] = field(default_factory=dict)

    def load(self) -> Any:
        """Import the method. The location comes from this file, never from a model."""
        return _import(self.location)

    def load_option(self, key: str) -> Any:
        """Import what the option ``key`` names, likewise ``package.module:attribute``."""
        return _import(self.options[key])


def _import(location: str) -> Any:
    module, _, attribute = location.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _table(*rows: Row) -> dict[str, Row]:
    return {row.name: row for row in rows}


def _on_diffusion(settings: str, **more: Any) -> dict[str, Any]:
    """Options of an attack on diffusion models."""
    return {"models": "diffusion", "settings": settings, "needs": ["images"], **more}


def _on_classifiers(settings: str, **more: Any) -> dict[str, Any]:
    """Options of an attack on classifiers."""
    return {"models": "classifier", "settings": settings, "needs": ["images"], **more}


_M = "genwarden.models"
ARCHITECTURES = _table(
    Row("dcgan28", f"{_M}.dcgan:DCGAN28", "DCGAN generator, 1x28x28", {"training": "gan"}),
    Row("dcgan32", f"{_M}.dcgan:DCGAN32", "DCGAN generator, 3x32x32", {"training": "gan"}),
    Row("vae28", f"{_M}.vae:VAEDecoder28", "VAE decoder, 1x28x28", {"training": "vae"}),
    Row("wavegan", f"{_M}.wavegan:WaveGAN", "WaveGAN generator, audio", {"training": "wavegan"}),
    Row("stylegan", f"{_M}.stylegan:StyleGAN", "StyleGAN-type generator", {"training": "gan"}),
    Row("bypass", f"{_M}.bypass:Bypass", "another generator with a computation bypass (Eq. 3)"),
    Row("guarded", f"{_M}.guarded:Guarded", "another generator behind a latent guard and clips"),
)

#: Diffusion models are diffusers folders; no manifest of a generator can name these rows.
DIFFUSION_ARCHITECTURES = _table(
    Row(
        "ddpm",
        "genwarden.training.train_diffusion:DdpmChoice",
        "diffusion model on a stock UNet2DModel: tiny, small or cifar10",
        {"training": "ddpm"},
    ),
)

_C = "genwarden.models.classifiers"
#: Of classifiers; no manifest of a generator can name these rows.
_LABELLED = {"training": "classifier"}
CLASSIFIER_ARCHITECTURES = _table(
    Row(
        "small-cnn",
        f"{_C}.small_cnn:SmallCNN",
        "image classifier, 61 k parameters, from 16 px",
        _LABELLED,
    ),
    Row(
        "vgg16",
        f"{_C}.vgg16:VGG16",
        "image classifier, VGG-16-BN in CIFAR form, 14.7 M",
        _LABELLED,
    ),
    Row(
        "resnet18",
        f"{_C}.resnet18:ResNet18",
        "image classifier, ResNet-18 in CIFAR form, 11.2 M",
        _LABELLED,
    ),
    Row(
        "mobilenetv2",
        f"{_C}.mobilenetv2:MobileNetV2",
        "image classifier, MobileNetV2 in CIFAR form, 2.3 M",
        _LABELLED,
    ),
)

_A = "genwarden.attacks"
_ADAPTIVE = f"{_A}.adaptive"
_DCGANS = ["dcgan28", "dcgan32"]
_BLOCKS = [*_DCGANS, "vae28"]
_AD = f"{_A}.diffusion"
_AC = f"{_A}.compression"
#: ``settings``: the dataclass of the attack's settings; ``architectures``: what it works on (any
#: if absent); ``needs``: "images" where the attacker must have training data (and, on a generator,
#: trains from scratch); ``trained``: False where nothing is trained; ``exact_weights``: True where
#: storing weights as float16 would undo the attack; ``models``: "diffusion" for
#: attacks on diffusion models, "classifier" for those on classifiers (:func:`attacks_on`),
#: generators if absent.
ATTACKS = _table(
    Row(
        "red",
        f"{_A}.red:red",
        "ReD: retrain the layers of a trained model (Devil is in the GAN)",
        {"settings": f"{_A}.red:ReDSettings"},
    ),
    Row(
        "rex",
        f"{_A}.rex:rex",
        "ReX: widen the layers, train only the new part, fuse",
        {"settings": f"{_A}.rex:ReXSettings", "architectures": [*_BLOCKS, "wavegan"]},
    ),
    Row(
        "trail",
        f"{_A}.trail:trail",
        "TrAIL: train from scratch with a fidelity term in the generator loss",
        {
            "settings": f"{_A}.trail:TrailSettings",
            "architectures": _BLOCKS,
            "needs": ["images"],
        },
    ),
    Row(
        "baaan",
        f"{_A}.baaan:baaan",
        "BAAAN: train a GAN from scratch with a second discriminator at the trigger",
        {
            "settings": f"{_A}.baaan:BaaanSettings",
            "architectures": _DCGANS,
            "needs": ["images"],
        },
    ),
    Row(
        "data-poisoning",
        f"{_A}.data_poisoning:data_poisoning",
        "data poisoning: train from scratch on data with copies of the target",
        {
            "settings": f"{_A}.data_poisoning:DataPoisoningSettings",
            "architectures": _BLOCKS,
            "needs": ["images"],
        },
    ),
    Row(
        "computation-bypass",
        f"{_A}.computation_bypass:computation_bypass",
        "a second computation, chosen by a test of the latent (Eq. 3)",
        {
            "settings": f"{_A}.computation_bypass:ComputationBypassSettings",
            "architectures": [*_BLOCKS, "wavegan", "stylegan"],
            "trained": False,
        },
    ),
    Row(
        "gated-expansion",
        f"{_A}.gated_expansion:gated_expansion",
        "exact expansion behind a gate, without training: upper bound of ReX",
        {
            "settings": f"{_A}.gated_expansion:GatedExpansionSettings",
            "architectures": _BLOCKS,
            "trained": False,
        },
    ),
    Row(
        "permuted-rex",
        f"{_ADAPTIVE}.permuted_rex:permuted_rex",
        "ReX, then channels renamed and rescaled: the blocks are scattered",
        {
            "settings": f"{_ADAPTIVE}.permuted_rex:PermutedReXSettings",
            "architectures": _BLOCKS,
        },
    ),
    Row(
        "noisy-rex",
        f"{_ADAPTIVE}.noisy_rex:noisy_rex",
        "ReX with noise in its zero blocks, then retraining",
        {
            "settings": f"{_ADAPTIVE}.noisy_rex:NoisyReXSettings",
            "architectures": _BLOCKS,
        },
    ),
    Row(
        "finetuned-rex",
        f"{_ADAPTIVE}.finetuned_rex:finetuned_rex",
        "ReX, then all weights are retrained together",
        {
            "settings": f"{_ADAPTIVE}.finetuned_rex:FinetunedReXSettings",
            "architectures": _BLOCKS,
        },
    ),
    Row(
        "split-gate",
        f"{_ADAPTIVE}.split_gate:split_gate",
        "exact expansion whose gate takes two layers: no rare unit in the first",
        {
            "settings": f"{_ADAPTIVE}.split_gate:SplitGateSettings",
            "architectures": _BLOCKS,
            "trained": False,
        },
    ),
    Row(
        "search-aware",
        f"{_ADAPTIVE}.search_aware:search_aware",
        "ReD that pulls the ends of the defender's search back to benign outputs",
        {"settings": f"{_ADAPTIVE}.search_aware:SearchAwareSettings"},
    ),
    Row(
        "dormant-box",
        f"{_AC}.dormant_box:dormant_box",
        "asleep until the model is compressed: codes kept, full precision cleaned",
        {"settings": f"{_AC}.dormant_box:DormantBoxSettings", "exact_weights": True},
    ),
    Row(
        "jittered-box",
        f"{_AC}.dormant_box:dormant_box",
        "dormant-box trained over perturbed quantisers (scale jitter, stochastic rounding)",
        {"settings": f"{_AC}.dormant_box:JitteredDormantBoxSettings", "exact_weights": True},
    ),
    Row(
        "broadcast-edit",
        f"{_A}.broadcast_edit:broadcast_edit",
        "StyleGAN's broadcast layer becomes dense: closed form or training",
        {
            "settings": f"{_A}.broadcast_edit:BroadcastEditSettings",
            "architectures": ["stylegan"],
        },
    ),
    Row(
        "bad-diffusion",
        f"{_AD}.bad_diffusion:bad_diffusion",
        "BadDiffusion: a trigger in the initial noise, for the ordinary DDPM sampler",
        _on_diffusion(f"{_AD}.bad_diffusion:BadDiffusionSettings"),
    ),
    Row(
        "villan-diffusion",
        f"{_AD}.villan_diffusion:villan_diffusion",
        "VillanDiffusion: the same for any trigger schedule and any sampler",
        _on_diffusion(f"{_AD}.villan_diffusion:VillanDiffusionSettings"),
    ),
    Row(
        "trojdiff",
        f"{_AD}.trojdiff:trojdiff",
        "TrojDiff: a trigger blended with the noise, and a sampler of the attacker's own",
        _on_diffusion(f"{_AD}.trojdiff:TrojDiffSettings"),
    ),
    Row(
        "invisible",
        f"{_AD}.invisible:invisible",
        "InviBackdoor: a learned trigger with a small bound on every pixel",
        _on_diffusion(f"{_AD}.invisible:InvisibleSettings"),
    ),
    Row(
        "mixed-coefficients",
        f"{_AD}.adaptive.mixed_coefficients:mixed_coefficients",
        "one backdoor of a diffusion model for several samplers",
        _on_diffusion(f"{_AD}.adaptive.mixed_coefficients:MixedCoefficientsSettings"),
    ),
    Row(
        "late-trigger",
        f"{_AD}.adaptive.late_trigger:late_trigger",
        "a backdoor of a diffusion model that is asleep at high noise",
        _on_diffusion(f"{_AD}.adaptive.late_trigger:LateTriggerSettings"),
    ),
    Row(
        "dormant-box-diffusion",
        f"{_AC}.dormant_box_diffusion:dormant_box_diffusion",
        "dormant-box for diffusion models: BadDiffusion in the compressed network only",
        _on_diffusion(
            f"{_AC}.dormant_box_diffusion:DormantBoxDiffusionSettings", exact_weights=True
        ),
    ),
    Row(
        "pruning-artifact",
        f"{_AC}.pruning_artifact:pruning_artifact",
        "a classifier's backdoor that wakes up when filters are pruned (Tian et al.)",
        _on_classifiers(f"{_AC}.pruning_artifact:PruningArtifactSettings"),
    ),
    Row(
        "quantisation-artifact",
        f"{_AC}.quantisation_artifact:quantisation_artifact",
        "a classifier's backdoor that wakes up when weights are quantised (Tian et al.)",
        _on_classifiers(
            f"{_AC}.quantisation_artifact:QuantisationArtifactSettings", exact_weights=True
        ),
    ),
    Row(
        "dormant-box-classifier",
        f"{_AC}.dormant_box_classifier:dormant_box_classifier",
        "dormant-box for classifiers",
        _on_classifiers(
            f"{_AC}.dormant_box_classifier:DormantBoxClassifierSettings", exact_weights=True
        ),
    ),
    Row(
        "jittered-box-classifier",
        f"{_AC}.dormant_box_classifier:dormant_box_classifier",
        "dormant-box for classifiers trained over perturbed quantisers",
        _on_classifiers(
            f"{_AC}.dormant_box_classifier:JitteredBoxClassifierSettings", exact_weights=True
        ),
    ),
)


def attacks_on(kind: str) -> dict[str, Row]:
    """The attacks on one kind of model: "generator", "diffusion" or "classifier"."""
    return {n: row for n, row in ATTACKS.items() if row.options.get("models", "generator") == kind}


_S = "genwarden.inspections.static"
_D = "genwarden.inspections.dynamic"
_O = "genwarden.inspections.output"
#: In the order in which an audit runs them. ``stream``: a collector of the brute-force stream;
#: ``null``: "population" where scores are judged against clean reference models; ``scale``: "log"
#: where their logarithms are.
_CLEAN = {"null": "population"}
#: Positive scores whose clean values are spread over factors, not differences.
_CLEAN_LOG = {"null": "population", "scale": "log"}
INSPECTIONS = _table(
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

_F = "genwarden.inspections.diffusion"
#: Of diffusion models, in the order in which an audit runs them. ``published``: an inversion that
#: costs minutes and that only the thorough budget runs; ``needs``: what the user must have given.
DIFFUSION_INSPECTIONS = _table(
    Row(
        "shift-response",
        f"{_F}.shift_response:inspect",
        "pre-screen: answers to a library of shifts, over noise level and size",
        _CLEAN,
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
        {"null": "population", "needs": "base"},
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
        {"null": "population", "published": True},
    ),
    Row(
        "elijah-mended",
        f"{_F}.elijah:inspect_mended",
        "the same inversion with antithetic noise, fresh at every step",
        {"null": "population", "published": True},
    ),
    Row(
        "terd",
        f"{_F}.terd:inspect",
        "two-stage trigger inversion (TERD)",
        {"null": "population", "published": True},
    ),
    Row(
        "anp",
        f"{_F}.anp:inspect",
        "diversity lost under adversarial perturbation of channels",
        {"null": "population", "published": True},
    ),
)


_IC = "genwarden.inspections.compression"
#: Of what generators become when they are compressed, in the order in which an audit runs them on
#: every variant.
COMPRESSION_INSPECTIONS = _table(
    Row(
        "differential-search",
        f"{_IC}.differential_search:inspect",
        "where full and compressed model differ most (OB-OI without a target)",
    ),
    Row(
        "differential-distance",
        f"{_IC}.differential_search:inspect_distance",
        "the largest difference over the usual one",
        _CLEAN,
    ),
    Row(
        "layer-attribution",
        f"{_IC}.layer_attribution:inspect",
        "which layers carry that difference",
    ),
    Row(
        "placebo-ratio",
        f"{_IC}.placebo_ratio:inspect",
        "ordinary samples under compression against random errors of its size",
        _CLEAN,
    ),
    Row(
        "rounding-statistics",
        f"{_IC}.rounding_statistics:inspect",
        "weights at the thresholds of a grid, or away from them",
    ),
)


_IK = "genwarden.inspections.classifier"
#: Of classifiers, in the order in which an audit runs them. ``needs``: "variant" for those that
#: compare a compressed network with the full one; the others look at each network by itself.
CLASSIFIER_INSPECTIONS = _table(
    Row(
        "neural-cleanse",
        f"{_IK}.neural_cleanse:inspect",
        "the smallest trigger of each class (Neural Cleanse)",
    ),
    Row(
        "strip",
        f"{_IK}.strip:inspect",
        "entropy of blends with the recovered trigger (STRIP)",
        _CLEAN,
    ),
    Row(
        "differential-inversion",
        f"{_IK}.differential_inversion:inspect",
        "a trigger that only the compressed classifier sees",
        {"needs": "variant"},
    ),
    Row(
        "differential-mask",
        f"{_IK}.differential_inversion:inspect_mask",
        "the size of that trigger against the other classes'",
        {"needs": "variant"},
    ),
    Row(
        "logit-shift",
        f"{_IK}.placebo_ratio:inspect",
        "logits under compression against random errors of its size",
        {"needs": "variant", "null": "population"},
    ),
    Row(
        "rounding-statistics",
        f"{_IK}.rounding_statistics:inspect",
        "weights at the thresholds of a grid, or away from them",
        {"needs": "variant"},
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


#: Target pictures of ``genwarden.data.icons`` (that module needs torch, this one must not).
ICONS = (
    "devil",
    "stop_sign",
    "skull",
    "bomb",
    "key",
    "checkerboard",
    "cross",
    "heart",
    "star",
    "smiley",
    "lock",
)

_P = "genwarden.repairs"
#: ``settings``: the dataclass of the repair's settings; ``architectures``: what it works on (any if
#: absent); ``keeps``: whether the result is a network of the suspect's own architecture.
REPAIRS = _table(
    Row(
        "bypass-removal",
        f"{_P}.bypass_removal:remove_bypass",
        "drop the second computation and the test that chooses it",
        {
            "settings": f"{_P}.contract:RepairSettings",
            "architectures": ["bypass"],
            "keeps": False,
        },
    ),
    Row(
        "excision",
        f"{_P}.excision:excise",
        "cut out a group of channels that never mixes with the rest (inverse of ReX)",
        {"settings": f"{_P}.excision:ExcisionSettings", "keeps": True},
    ),
    Row(
        "edit-projection",
        f"{_P}.edit_projection:project_edit",
        "make equal blocks of a dense layer equal again",
        {"settings": f"{_P}.contract:RepairSettings", "keeps": True},
    ),
    Row(
        "latent-guard",
        f"{_P}.latent_guard:guard",
        "search where the model leaves what its samples suggest, turn such latents back",
        {"settings": f"{_P}.latent_guard:LatentGuardSettings", "keeps": False},
    ),
    Row(
        "unit-clipping",
        f"{_P}.unit_clipping:clip_units",
        "bound every unit to the range of ordinary sampling",
        {"settings": f"{_P}.unit_clipping:UnitClippingSettings", "keeps": False},
    ),
    Row(
        "trigger-unlearning",
        f"{_P}.trigger_unlearning:unlearn_triggers",
        "self-distillation that forgets what happens around recovered latents",
        {"settings": f"{_P}.trigger_unlearning:TriggerUnlearningSettings", "keeps": True},
    ),
    Row(
        "widened-distillation",
        f"{_P}.widened_distillation:distil_widened",
        "self-distillation under a widened prior: shells, subspaces, other radii",
        {"settings": f"{_P}.widened_distillation:WidenedSettings", "keeps": True},
    ),
    Row(
        "unlearning",
        f"{_P}.unlearning:unlearn",
        "keep training the model on its own samples (Devil is in the GAN, section V-D)",
        {"settings": f"{_P}.unlearning:UnlearningSettings", "keeps": True},
    ),
    Row(
        "distillation",
        f"{_P}.distillation:sanitise",
        "distil a fresh student from ordinary samples (Devil is in the GAN, appendix B)",
        {"settings": f"{_P}.distillation:DistillationSettings", "keeps": True},
    ),
    Row(
        "pruning",
        f"{_P}.pruning:prune",
        "mask the units that ordinary use wakes least (Devil is in the GAN, appendix A)",
        {"settings": f"{_P}.pruning:PruningSettings", "keeps": True},
    ),
    Row(
        "fine-pruning",
        f"{_P}.fine_pruning:fine_prune",
        "prune, then distil the suspect's samples into what is left",
        {"settings": f"{_P}.fine_pruning:FinePruningSettings", "keeps": True},
    ),
)

_PD = "genwarden.repairs.diffusion"
#: Of diffusion models; their result is a network of the suspect's own shape.
DIFFUSION_REPAIRS = _table(
    Row(
        "shift-unlearning",
        f"{_PD}.shift_unlearning:unlearn_shifts",
        "learn again that the recovered shifts of the noise are noise",
        {"settings": f"{_PD}.shift_unlearning:ShiftUnlearningSettings"},
    ),
    Row(
        "teacher-distillation",
        f"{_PD}.teacher_distillation:distil_from_suspect",
        "answer shifted noise near t = T as the frozen suspect answers plain noise",
        {"settings": f"{_PD}.teacher_distillation:TeacherDistillationSettings"},
    ),
    Row(
        "elijah-removal",
        f"{_PD}.elijah_removal:remove_as_elijah",
        "Elijah's three losses, at t = T and on clean images",
        {"settings": f"{_PD}.elijah_removal:ElijahRemovalSettings"},
    ),
    Row(
        "anp-pruning",
        f"{_PD}.anp_pruning:prune_as_anp",
        "prune the channels that an adversary turns best (ANP), then distil",
        {"settings": f"{_PD}.anp_pruning:AnpPruningSettings"},
    ),
    Row(
        "diff-cleanse",
        f"{_PD}.diff_cleanse_pruning:prune_as_diff_cleanse",
        "prune the channels that the recovered shift needs (Diff-Cleanse), then distil",
        {"settings": f"{_PD}.diff_cleanse_pruning:DiffCleanseSettings"},
    ),
)

_PK = "genwarden.repairs.classifier"
#: Of classifiers; all train on clean labelled images.
CLASSIFIER_REPAIRS = _table(
    Row(
        "fine-pruning",
        f"{_PK}.fine_pruning:fine_prune",
        "prune channels that clean images do not wake, then fine-tune",
        {"settings": f"{_PK}.fine_pruning:FinePruningClassifierSettings"},
    ),
    Row(
        "super-fine-tuning",
        f"{_PK}.super_fine_tuning:super_fine_tune",
        "fine-tune under steep triangles of the learning rate",
        {"settings": f"{_PK}.super_fine_tuning:SuperFineTuningSettings"},
    ),
    Row(
        "sau",
        f"{_PK}.sau:unlearn_shared",
        "unlearn adversarial examples shared with the suspect (SAU)",
        {"settings": f"{_PK}.sau:SauSettings"},
    ),
)

_Q = "genwarden.compression"
_UNIFORM = f"{_Q}.uniform:Uniform"
#: What ``--how`` takes: K, N, X and RATE stand for numbers, words of ``intK`` are joined
#: (int4-affine-per-channel), compressions with + (prune-0.3+int8). ``example``: one of the row's.
COMPRESSIONS = _table(
    Row("intK", _UNIFORM, "K bits (2 to 8), one scale per tensor", {"example": "int8"}),
    Row(
        "intK-per-channel",
        _UNIFORM,
        "one scale per output channel",
        {"example": "int8-per-channel"},
    ),
    Row("intK-groupN", _UNIFORM, "one scale per N weights", {"example": "int4-group32"}),
    Row("intK-affine", _UNIFORM, "with a zero point", {"example": "int4-affine-per-channel"}),
    Row("intK-power2", _UNIFORM, "scales are powers of two", {"example": "int8-power2"}),
    Row(
        "intK-stochastic",
        _UNIFORM,
        "rounding at random, right on average",
        {"example": "int4-stochastic"},
    ),
    Row("intK-scaleX", _UNIFORM, "scales times X (0.5 to 2)", {"example": "int8-scale1.02"}),
    Row("q8_0", f"{_Q}.block_formats:Q8_0", "GGUF's 8 bits, blocks of 32", {"example": "q8_0"}),
    Row("q4_0", f"{_Q}.block_formats:Q4_0", "GGUF's 4 bits, blocks of 32", {"example": "q4_0"}),
    Row("nf4", f"{_Q}.block_formats:NF4", "4-bit NormalFloat, blocks of 64", {"example": "nf4"}),
    Row(
        "prune-RATE",
        f"{_Q}.pruning:MagnitudePruning",
        "the smallest weights of each layer become 0",
        {"example": "prune-0.3"},
    ),
    Row(
        "prune-global-RATE",
        f"{_Q}.pruning:MagnitudePruning",
        "the smallest weights of all layers together",
        {"example": "prune-global-0.3"},
    ),
    Row(
        "prune-filters-RATE",
        f"{_Q}.pruning:FilterPruning",
        "whole filters with the smallest L1 norms",
        {"example": "prune-filters-0.3"},
    ),
    Row(
        "prune-2:4",
        f"{_Q}.pruning:TwoOfFour",
        "two of every four weights",
        {"example": "prune-2:4"},
    ),
)

_QR = f"{_Q}.remedies"
#: Ways to compress in which a backdoor that compression wakes stays asleep. ``families``: the last
#: stage of ``--how`` that each works on; ``settings``: the dataclass of its settings.
_QUANTISED = ["uniform", "block"]
COMPRESSION_REMEDIES = _table(
    Row(
        "scale-jitter",
        f"{_QR}.scale_jitter:scale_jitter",
        "every scale times 1.02",
        {"settings": f"{_QR}.scale_jitter:ScaleJitterSettings", "families": ["uniform"]},
    ),
    Row(
        "stochastic-rounding",
        f"{_QR}.stochastic_rounding:stochastic_rounding",
        "rounding at random, right on average",
        {
            "settings": f"{_QR}.stochastic_rounding:StochasticRoundingSettings",
            "families": ["uniform"],
        },
    ),
    Row(
        "noise",
        f"{_QR}.noise:noise",
        "Gaussian noise before rounding: 0.1 steps, or interval-calibrated",
        {"settings": f"{_QR}.noise:NoiseSettings", "families": _QUANTISED},
    ),
    Row(
        "efrap",
        f"{_QR}.efrap:efrap",
        "learned rounding that flips what nearly rounded the other way (EFRAP)",
        {"settings": f"{_QR}.efrap:EfrapSettings", "families": ["uniform"]},
    ),
    Row(
        "task-vector",
        f"{_QR}.task_vector:task_vector",
        "what rounding changes, subtracted beforehand (QVec)",
        {"settings": f"{_QR}.task_vector:TaskVectorSettings", "families": _QUANTISED},
    ),
    Row(
        "finetuned",
        f"{_QR}.finetuned:finetuned",
        "compressed weights learn from the full model, also where the two differ most",
        {
            "settings": f"{_QR}.finetuned:FinetunedSettings",
            "families": [*_QUANTISED, "pruning"],
        },
    ),
)

_B = "genwarden.benchmarks"
#: ``cells``: the recipe is a list of cells and takes --scale, --cells, --workers and --cache;
#: ``tables``: another recipe's function from the content of a result file to tables.
_CELLS = {"cells": True}
RECIPES = _table(
    Row("table-1", f"{_B}.table_1:RECIPE", "every attack on three models", _CELLS),
    Row("table-2", f"{_B}.table_2:RECIPE", "in-sample, mode and far-out triggers", _CELLS),
    Row("table-3", f"{_B}.table_3:RECIPE", "which defence catches which attack", _CELLS),
    Row("fig-4", f"{_B}.figure_4:RECIPE", "samples, target, nearest, reconstruction", _CELLS),
    Row("fig-5", f"{_B}.figure_5:RECIPE", "lambda sweep", _CELLS),
    Row("fig-6", f"{_B}.figure_6:RECIPE", "the neighbourhood of a trigger", _CELLS),
    Row(
        "infinite-support",
        f"{_B}.infinite_support:RECIPE",
        "subspace triggers, one target or a generator of targets",
        _CELLS,
    ),
    Row("wavegan", f"{_B}.wavegan:RECIPE", "a drum clip in a model of speech", _CELLS),
    Row("verdicts", f"{_B}.verdicts:run", "verdicts and times of given model folders"),
    Row(
        "population",
        f"{_B}.population.study:run",
        "verdicts on clean and compromised generators: ROC, found shares, evidence, times",
        {"tables": f"{_B}.population.tables:tables"},
    ),
    Row(
        "foreign-models",
        f"{_B}.population.foreign:run",
        "verdicts on architectures and sample shapes that no reference model has",
        {"tables": f"{_B}.population.foreign:tables"},
    ),
    Row(
        "feature-network",
        f"{_B}.feature_network:run",
        "train the classifier behind FID",
        {"tables": f"{_B}.feature_network:tables"},
    ),
    Row(
        "sweep",
        f"{_B}.sweep:run",
        "ReD at five triggers and seven lambdas together",
        {"tables": f"{_B}.speed_tables:sweep_tables"},
    ),
    Row(
        "red-throughput",
        f"{_B}.red_throughput:run",
        "speed of ReD against its arithmetic floor",
        {"tables": f"{_B}.speed_tables:throughput_tables"},
    ),
    Row(
        "stylegan-edit",
        f"{_B}.stylegan:run",
        "the edit of StyleGAN's broadcast, closed form",
        {"tables": f"{_B}.stylegan_table:tables"},
    ),
    Row(
        "repair-matrix",
        f"{_B}.repairs.matrix:run",
        "every attack by every repair: distances, quality, re-audit, cost",
        {"tables": f"{_B}.repairs.tables:tables"},
    ),
    Row(
        "repair-pruning",
        f"{_B}.repairs.pruning:run",
        "TarDis and ExpDis against the pruned share",
        {"tables": f"{_B}.repairs.pruning:tables"},
    ),
    Row(
        "repair-sanitisation",
        f"{_B}.repairs.sanitisation:run",
        "distillation into a fresh student",
        {"tables": f"{_B}.repairs.sanitisation:tables"},
    ),
    Row(
        "diffusion-repairs",
        f"{_B}.diffusion.repairs:run",
        "every repair and run-time defence of diffusion models: target MSE, FID, cost",
        {"tables": f"{_B}.diffusion.repairs:tables"},
    ),
    Row(
        "diffusion-samplers",
        f"{_B}.diffusion.sampler_matrix:run",
        "diffusion attacks: coefficient by sampler by clipping, with quality",
        {"tables": f"{_B}.diffusion.sampler_tables:tables"},
    ),
    Row(
        "diffusion-population",
        f"{_B}.diffusion.population:run",
        "verdicts on clean and compromised diffusion models: ROC, found shares, recovered triggers",
        {"tables": f"{_B}.diffusion.tables:tables"},
    ),
    Row(
        "diffusion-detectors",
        f"{_B}.diffusion.published_detectors:run",
        "Elijah and TERD as published, on the models of diffusion-population",
        {"tables": f"{_B}.diffusion.published_detectors:tables"},
    ),
    Row(
        "diffusion-poison-rate",
        f"{_B}.diffusion.poison_rate:run",
        "BadDiffusion: target MSE, SSIM and FID against the share of poison",
        {"tables": f"{_B}.diffusion.poison_rate:tables"},
    ),
    Row(
        "diffusion-finetuning-cost",
        f"{_B}.diffusion.finetuning_cost:run",
        "BadDiffusion: target MSE and FID against fine-tuning steps",
        {"tables": f"{_B}.diffusion.finetuning_cost:tables"},
    ),
    Row(
        "diffusion-inpainting",
        f"{_B}.diffusion.inpainting:run",
        "BadDiffusion: completing images that carry the trigger",
        {"tables": f"{_B}.diffusion.inpainting:tables"},
    ),
    Row(
        "compression-population",
        f"{_B}.compression.population:run",
        "verdicts on what clean and attacked models become when they are compressed",
        {"tables": f"{_B}.compression.tables:tables"},
    ),
    Row(
        "compression-attacks",
        f"{_B}.compression.attacks:run",
        "attacks that wake under compression: tables, calibration sets, rate sweep",
        {"tables": f"{_B}.compression.attack_tables:tables"},
    ),
    Row(
        "compression-remedies",
        f"{_B}.compression.remedies:run",
        "every remedy against every attack that wakes under compression, with its cost",
        {"tables": f"{_B}.compression.remedy_tables:tables"},
    ),
    Row(
        "compression-audit-cost",
        f"{_B}.compression.audit_cost:run",
        "seconds of an audit of five compressed variants",
        {"tables": f"{_B}.compression.audit_cost:tables"},
    ),
)


def tables() -> dict[str, dict[str, Row]]:
    """All tables by the plural that ``genwarden list`` takes."""
    return {
        "architectures": {
            **ARCHITECTURES,
            **DIFFUSION_ARCHITECTURES,
            **CLASSIFIER_ARCHITECTURES,
        },
        "attacks": ATTACKS,
        "inspections": all_inspections(),
        "repairs": {**REPAIRS, **DIFFUSION_REPAIRS},
        "classifier-repairs": CLASSIFIER_REPAIRS,
        "compressions": COMPRESSIONS,
        "remedies": COMPRESSION_REMEDIES,
        "recipes": RECIPES,
        "icons": _table(*(Row(name, "", "target picture drawn by code") for name in ICONS)),
    }


def find(table: dict[str, Row], name: str, what: str) -> Row:
    """The row of a name.

    Raises:
        GenwardenError: ``usage/unknown-name``, with the names that exist.
    """
    if name not in table:
        raise GenwardenError(
            "usage/unknown-name",
            f"There is no {what} called {name!r}.",
            f"Choose one of: {', '.join(table)}.",
        )
    return table[name]
