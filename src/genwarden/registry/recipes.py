"""Benchmarks: recipes that rebuild every figure of the documentation."""

from __future__ import annotations

from genwarden.registry.row import Row, table_of

_B = "genwarden.benchmarks"
#: ``cells``: the recipe is a list of cells and takes --scale, --cells, --workers and --cache;
#: ``tables``: another recipe's function from the content of a result file to tables.
_CELLS = {"cells": True}
RECIPES = table_of(
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
        "speed",
        f"{_B}.speed.recipe:run",
        "scan, latent search and audits against eager PyTorch and the arithmetic floor",
        {"tables": f"{_B}.speed.tables:tables"},
    ),
    Row(
        "red-against-art",
        f"{_B}.against_art.recipe:run",
        "ReD of the Adversarial Robustness Toolbox beside ours: speed, and time to the same result",
        {"tables": f"{_B}.against_art.tables:tables"},
    ),
    Row(
        "ray-scaling",
        f"{_B}.ray_scaling.recipe:run",
        "Ray: two workers against one; a worker, a node and the driver killed",
        {"tables": f"{_B}.ray_scaling.tables:tables"},
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
        {"tables": f"{_B}.diffusion.repair_tables:tables"},
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
        "diffusion-audit-cost",
        f"{_B}.diffusion.audit_cost:run",
        "seconds of an audit of a diffusion model, and of its parts",
        {"tables": f"{_B}.diffusion.audit_cost:tables"},
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
    Row(
        "compression-diffusion",
        f"{_B}.compression.diffusion:run",
        "diffusion models that compression wakes: attacks and audits",
        {"tables": f"{_B}.compression.diffusion:tables"},
    ),
    Row(
        "crash-safety",
        f"{_B}.robustness.crash_safety:run",
        "commands killed at random moments, and what they leave",
        {"tables": f"{_B}.robustness.crash_safety:tables"},
    ),
    Row(
        "determinism",
        f"{_B}.robustness.determinism:run",
        "the same audit over repeats, threads, workers and orders of blocks",
        {"tables": f"{_B}.robustness.determinism:tables"},
    ),
)
