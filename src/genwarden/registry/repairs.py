"""What makes a suspect harmless."""

from __future__ import annotations

from genwarden.registry.row import Row, table_of

_P = "genwarden.repairs"
#: ``settings``: the dataclass of the repair's settings; ``architectures``: what it works on (any if
#: absent); ``keeps``: whether the result is a network of the suspect's own architecture.
REPAIRS = table_of(
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
DIFFUSION_REPAIRS = table_of(
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
CLASSIFIER_REPAIRS = table_of(
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
