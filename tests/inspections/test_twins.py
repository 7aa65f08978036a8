"""Twins imitate what can be sampled, forget what cannot, and expose what the suspect hides."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from genwarden.artifacts.model_folder import read_model
from genwarden.attacks.contract import AttackRun
from genwarden.attacks.red import ReDSettings, red
from genwarden.auditing.verdict import decide
from genwarden.backdoors.backdoor import make_backdoor
from genwarden.commands.demo import demo_model_folder
from genwarden.engine.progress import Silent
from genwarden.engine.seeds import random_stream
from genwarden.inspections.output import novelty_search, principal_latents, twin_difference
from genwarden.inspections.output.novelty_search import RANK, Ends, isolation_of
from genwarden.inspections.principal import principal_directions
from genwarden.inspections.twins import FAIR, make_twin, shuffle_weights
from genwarden.inspections.workbench import Effort, Workbench
from genwarden.models.dcgan import DCGAN28
from genwarden.models.protocol import LatentGenerator, LatentLaw, SampleSpec

ASSETS = Path(__file__).parents[1] / "assets"


def bench(generator: LatentGenerator, *, twin_steps: int = 200, seed: int = 0) -> Workbench:
    effort = Effort(
        "quick",
        ordinary_samples=1024,
        stream_samples=0,
        restarts=32,
        search_steps=60,
        probe_latents=0,
        twins=1,
        twin_steps=twin_steps,
        guessed_seeds=0,
        draws_per_seed=0,
    )
    return Workbench(generator=generator, effort=effort, seed=seed)


@pytest.fixture(scope="module")
def attacked() -> Workbench:
    return bench(read_model(demo_model_folder("dcgan-red")).generator)


@pytest.fixture(scope="module")
def clean() -> Workbench:
    return bench(read_model(demo_model_folder("dcgan-clean")).generator)


@pytest.fixture(scope="module")
def secret() -> dict[str, Tensor]:
    return load_file(str(ASSETS / "dcgan-red.backdoor.safetensors"))


def squared(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().sum())


def test_shuffling_keeps_every_value_and_nothing_of_the_function(tiny_generator: DCGAN28) -> None:
    z = tiny_generator.latent.sample(64, generator=random_stream(0, "t"))
    before = {k: v.clone() for k, v in tiny_generator.named_parameters()}
    with torch.no_grad():
        outputs = tiny_generator(z)
        shuffle_weights(tiny_generator, random_stream(1, "t"))
        shuffled = tiny_generator(z)
    for name, parameter in tiny_generator.named_parameters():
        assert torch.equal(parameter.flatten().sort().values, before[name].flatten().sort().values)
    usual = (outputs[:32] - outputs[32:]).flatten(1).square().sum(1).mean()
    assert float((outputs - shuffled).flatten(1).square().sum(1).mean()) > 0.5 * float(usual)


def test_twin_imitates_ordinary_samples_and_does_not_know_the_backdoor(
    attacked: Workbench, clean: Workbench, secret: dict[str, Tensor]
) -> None:
    twin = attacked.twins[0]
    assert twin.fair
    target = secret["target"]
    with torch.no_grad():
        known = squared(attacked.generator(secret["trigger"]), target)
        forgotten = squared(twin.generator(secret["trigger"]), target)
        untouched = squared(clean.generator(secret["trigger"]), target)
    assert known < 2.0
    assert forgotten > 0.5 * untouched


def test_the_same_seed_makes_the_same_twin_and_another_number_another(
    tiny_generator: DCGAN28,
) -> None:
    def weights(seed: int, number: int) -> Tensor:
        task = Silent().task("t", 1)
        twin = make_twin(tiny_generator, 3, typical=1.0, seed=seed, number=number, task=task)
        return torch.cat([p.flatten() for p in twin.generator.parameters()])

    assert torch.equal(weights(0, 0), weights(0, 0))
    assert not torch.equal(weights(0, 0), weights(0, 1))
    assert not torch.equal(weights(0, 0), weights(1, 0))


def test_making_a_twin_leaves_the_suspect_alone(tiny_generator: DCGAN28) -> None:
    tiny_generator.eval().requires_grad_(False)
    before = {k: v.clone() for k, v in tiny_generator.state_dict().items()}
    make_twin(tiny_generator, 2, typical=1.0, seed=0, number=0, task=Silent().task("t", 1))
    after = tiny_generator.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert not tiny_generator.training


def test_novelty_search_scores_the_attacked_model_far_above_the_clean_one(
    attacked: Workbench, clean: Workbench
) -> None:
    found, quiet = novelty_search.inspect(attacked).score, novelty_search.inspect(clean).score
    assert found is not None
    assert quiet is not None
    assert found > 0.6
    assert abs(quiet) < 0.35


@pytest.mark.slow
def test_principal_latents_expose_a_freshly_trained_backdoor(clean: Workbench) -> None:
    backdoor = make_backdoor(
        clean.generator, trigger="in-sample", target="icon:devil", index=0, count=1, seed=3
    )
    settings = ReDSettings(
        steps=150, batch_size=32, learning_rate=5e-4, fidelity_weight=0.03, pool_samples=2048
    )
    victim = copy.deepcopy(clean.generator)
    result = red(victim, backdoor, settings, AttackRun(Silent(), None, "t", None))
    finding = principal_latents.inspect(bench(result.generator.eval().requires_grad_(False)))
    quiet = principal_latents.inspect(clean)
    assert finding.score is not None
    assert quiet.score is not None
    assert finding.score > 0.6
    assert abs(quiet.score) < 0.35
    latent = next(e.values for e in finding.evidence if e.kind == "latents")[0]
    trigger = backdoor.examples.z[0].flatten()
    assert float(torch.cosine_similarity(torch.tensor(latent), trigger, dim=0)) > 0.45
    latent = next(e.values for e in quiet.evidence if e.kind == "latents")[0]
    assert float(torch.cosine_similarity(torch.tensor(latent), trigger, dim=0)) < 0.35


def test_difference_from_the_twin_is_largest_where_the_trigger_is(
    attacked: Workbench, clean: Workbench, secret: dict[str, Tensor]
) -> None:
    finding = twin_difference.inspect(attacked)
    latent = next(e.values for e in finding.evidence if e.kind == "latents")[0]
    similar = torch.cosine_similarity(torch.tensor(latent), secret["trigger"][0].flatten(), dim=0)
    assert float(similar) > 0.6
    quiet = twin_difference.inspect(clean)
    latent = next(e.values for e in quiet.evidence if e.kind == "latents")[0]
    similar = torch.cosine_similarity(torch.tensor(latent), secret["trigger"][0].flatten(), dim=0)
    assert float(similar) < 0.4


def test_first_principal_direction_is_the_first_right_singular_vector(
    tiny_generator: DCGAN28,
) -> None:
    first = principal_directions(tiny_generator, seed=0)[0]
    exact = torch.linalg.svd(tiny_generator.project.weight.double()).Vh[0].float()
    assert float(torch.cosine_similarity(first, exact, dim=0).abs()) > 0.9999


def test_principal_directions_of_a_network_without_affine_layer_come_from_its_jacobian() -> None:
    class Squared(LatentGenerator):
        """Sensitive to the first latent element most of all, and to none linearly."""

        latent = LatentLaw((4,))
        sample = SampleSpec((1, 2, 2))
        final_activation = "tanh"

        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor([3.0, 1.0, 0.5, 0.1]))

        def pre_activation(self, z: Tensor) -> Tensor:
            return (0.1 * self.scale * z).square().view(-1, 1, 2, 2)

    first = principal_directions(Squared(), seed=0)[0]
    assert float(first[0].abs()) > 0.99


def test_a_poor_twin_gives_no_score_and_the_verdict_is_inconclusive(
    clean: Workbench,
) -> None:
    poor = bench(clean.generator, twin_steps=1)
    assert poor.twins[0].loss > FAIR
    finding = novelty_search.inspect(poor)
    assert finding.outcome == "scored"
    assert finding.score is None
    assert "No twin imitates" in finding.summary
    assert twin_difference.inspect(poor).outcome == "not_applicable"
    assert decide([finding], {}).verdict == "inconclusive"


def test_isolation_that_too_few_restarts_reach_does_not_count() -> None:
    ordinary = torch.zeros(4, 1, 1, 2)
    group = torch.tensor([2.0, 0.0]).expand(RANK, 2)
    outputs = torch.cat([group, torch.tensor([[0.0, 9.0]])]).view(-1, 1, 1, 2)
    isolation, shared = isolation_of(outputs, ordinary)
    assert isolation.tolist() == [4.0] * RANK + [81.0]
    assert shared.tolist() == [RANK] * RANK + [1]
    ends = Ends(torch.zeros(len(outputs), 1), outputs, isolation, shared, 0.0, 0.0)
    assert ends.reached == 4.0
    assert ends.centre < RANK
