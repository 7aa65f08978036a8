"""The published attacks and the adaptive ones."""

from __future__ import annotations

from typing import Any

from genwarden.registry.row import Row, table_of


def _on_diffusion(settings: str, **more: Any) -> dict[str, Any]:
    """Options of an attack on diffusion models."""
    return {"models": "diffusion", "settings": settings, "needs": ["images"], **more}


def _on_classifiers(settings: str, **more: Any) -> dict[str, Any]:
    """Options of an attack on classifiers."""
    return {"models": "classifier", "settings": settings, "needs": ["images"], **more}


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
ATTACKS = table_of(
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
        "jittered-box-diffusion",
        f"{_AC}.dormant_box_diffusion:dormant_box_diffusion",
        "dormant-box for diffusion models trained over perturbed quantisers",
        _on_diffusion(
            f"{_AC}.dormant_box_diffusion:JitteredBoxDiffusionSettings", exact_weights=True
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
    return {name: row for name, row in ATTACKS.items() if attacked_kind(row) == kind}


def attacked_kind(attack: Row) -> str:
    """The kind of model that an attack works on: "generator", "diffusion" or "classifier"."""
    kind: str = attack.options.get("models", "generator")
    return kind
