"""The shipped models: real attacks, found without a target; their clean twins stay quiet.

Backdoors (trigger and target) come from ``tests/assets``; the inspections never see them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from genwarden.artifacts.diffusers_folder import read_diffusion
from genwarden.artifacts.diffusers_layout import is_diffusers_folder
from genwarden.artifacts.model_folder import read_model
from genwarden.auditing.calibration import calibrate
from genwarden.commands.demo import DEMO_MODELS, demo_model_folder
from genwarden.data.images import NamedImages
from genwarden.inspections.diffusion.orthogonal_response import search_shifts
from genwarden.inspections.diffusion.timesteps import Timesteps
from genwarden.inspections.finding import Finding
from genwarden.inspections.output import novelty_search, partition_search, reconstruct_target
from genwarden.inspections.static import block_sparsity
from genwarden.inspections.workbench import Effort, Workbench
from genwarden.metrics.distances import tardis
from genwarden.models.diffusion.samplers import SamplerSettings, sample
from genwarden.models.protocol import LatentGenerator

ASSETS = Path(__file__).parent / "assets"
EFFORT = Effort(
    "quick",
    ordinary_samples=2048,
    stream_samples=0,
    restarts=64,
    search_steps=100,
    probe_latents=0,
    twins=1,
    twin_steps=250,
    guessed_seeds=0,
    draws_per_seed=0,
)
MAX_FILE_BYTES = 2_000_000
CLEAN = {"dcgan-red": "dcgan-clean", "dcgan-rex": "dcgan-clean", "vae-red": "vae-clean"}


def model(name: str) -> LatentGenerator:
    folder = ASSETS / name if name == "vae-clean" else demo_model_folder(name)
    return read_model(folder).generator


def backdoor(name: str) -> dict[str, Tensor]:
    return load_file(str(ASSETS / f"{name}.backdoor.safetensors"))


def bench(name: str, target: Tensor | None = None, effort: Effort = EFFORT) -> Workbench:
    targets = None if target is None else NamedImages(target, ["target"])
    return Workbench(generator=model(name), effort=effort, seed=5, targets=targets)


def latent_of(finding: Finding) -> Tensor:
    return torch.tensor(next(e.values for e in finding.evidence if e.kind == "latents")[0])


def recovered(generator: LatentGenerator, finding: Finding) -> Tensor:
    with torch.no_grad():
        output: Tensor = generator(latent_of(finding)[None])
    return output


def squared(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().sum())


@pytest.mark.parametrize("name", [name for name, _ in DEMO_MODELS])
def test_shipped_model_is_small_and_says_what_it_is(name: str) -> None:
    folder = demo_model_folder(name)
    assert all(p.stat().st_size <= MAX_FILE_BYTES for p in folder.rglob("*"))
    opened = read_diffusion(folder) if is_diffusers_folder(folder) else read_model(folder)
    assert opened.provenance["compromised"] is (not name.endswith("-clean"))


def test_diffusion_model_shows_its_target_at_the_trigger_and_its_clean_twin_does_not() -> None:
    secret = backdoor("ddpm-bad-diffusion")
    noise = torch.randn(4, *secret["target"].shape[1:], generator=torch.Generator().manual_seed(0))
    distances = {}
    for name in ("ddpm-bad-diffusion", "ddpm-clean"):
        opened = read_diffusion(demo_model_folder(name)).model.requires_grad_(False)
        settings = SamplerSettings("ddim", 50, eta=1.0)
        made = sample(opened, noise + secret["g"], settings, torch.Generator().manual_seed(1))
        distances[name] = float((made.clamp(-1, 1) - secret["target"]).square().mean() / 4)
    assert distances["ddpm-bad-diffusion"] < 0.02
    assert distances["ddpm-clean"] > 0.1


def test_trigger_search_tells_the_two_diffusion_models_apart() -> None:
    models = {
        name: read_diffusion(demo_model_folder(name)).model.requires_grad_(False)
        for name in ("ddpm-bad-diffusion", "ddpm-clean")
    }
    scores = {
        name: search_shifts(
            model,
            starts=2,
            steps=30,
            noises=6,
            probe_noises=32,
            seed=0,
            device=torch.device("cpu"),
            timesteps=Timesteps.of(model, model.schedule, 0),
        )[0].score
        for name, model in models.items()
    }
    assert scores["ddpm-bad-diffusion"] > scores["ddpm-clean"] + 0.3


@pytest.mark.parametrize("name", CLEAN)
def test_attacked_model_has_the_backdoor_and_its_clean_twin_does_not(name: str) -> None:
    secret = backdoor(name)
    planted = tardis(model(name), secret["trigger"], secret["target"]).sum
    untouched = tardis(model(CLEAN[name]), secret["trigger"], secret["target"]).sum
    assert planted < 2.0
    assert untouched > 300


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dcgan-red", "vae-red"])
def test_novelty_search_recovers_the_target_without_knowing_it(name: str) -> None:
    attacked, twin = bench(name), bench(CLEAN[name])
    found = calibrate(novelty_search.inspect(attacked), "quick")
    quiet = calibrate(novelty_search.inspect(twin), "quick")
    assert found.p_value is not None
    assert found.p_value < 1e-3
    assert quiet.p_value is not None
    assert quiet.p_value > 0.02
    target = backdoor(name)["target"]
    nearest_clean = float((twin.ordinary.x - target).flatten(1).square().sum(1).min())
    # 0.15 to 0.17 for the DCGAN at this effort; more restarts average more of the overshoot away.
    assert squared(recovered(attacked.generator, found), target) < 0.2 * nearest_clean
    assert squared(recovered(twin.generator, quiet), target) > 0.3 * nearest_clean


def test_partition_of_rex_is_found_and_its_search_reaches_the_target() -> None:
    secret = backdoor("dcgan-rex")
    longer = replace(EFFORT, restarts=128, search_steps=200)
    attacked = bench("dcgan-rex", secret["target"], longer)
    found = block_sparsity.inspect(attacked)
    assert found.p_value is not None
    assert found.p_value < 1e-100
    finding = partition_search.inspect(attacked)
    tables = [e for e in finding.evidence if e.kind == "table"]
    reached = next(t for t in tables if t.title.startswith("Targets approached"))
    own = tardis(attacked.generator, secret["trigger"], secret["target"]).sum
    assert float(reached.rows[0][1]) < 2 * own
    # Without the target the search finds the right region, not the exact picture.
    similar = torch.cosine_similarity(latent_of(finding), secret["trigger"][0], dim=0)
    assert float(similar) > 0.7


def test_clean_model_has_no_partition() -> None:
    twin = bench("dcgan-clean")
    assert block_sparsity.inspect(twin).p_value == 1.0
    assert partition_search.inspect(twin).outcome == "not_applicable"


@pytest.mark.parametrize("name", ["dcgan-red", pytest.param("vae-red", marks=pytest.mark.slow)])
def test_known_target_is_reconstructed_at_least_as_well_as_by_the_trigger(name: str) -> None:
    secret = backdoor(name)
    attacked = bench(name, secret["target"])
    finding = reconstruct_target.inspect(attacked)
    recon = squared(recovered(attacked.generator, finding), secret["target"])
    own = tardis(attacked.generator, secret["trigger"], secret["target"]).sum
    assert recon <= 1.01 * own
    twin = bench(CLEAN[name], secret["target"])
    quiet = reconstruct_target.inspect(twin)
    assert squared(recovered(twin.generator, quiet), secret["target"]) > 20 * own
    assert finding.score is not None
    assert quiet.score is not None
    assert finding.score > quiet.score + 1


def test_target_that_the_model_makes_anyway_is_no_evidence() -> None:
    twin = bench("dcgan-clean")
    own = twin.samples(twin.generator.latent.sample(1, generator=torch.Generator().manual_seed(77)))
    finding = reconstruct_target.inspect(bench("dcgan-clean", own))
    assert finding.outcome == "not_applicable"
    assert finding.p_value is None
    assert finding.evidence
