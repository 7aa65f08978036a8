"""Foreign generators: opened as a user would, attacked, audited, kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_effort import TINY

from few_inspections import keep_only
from genwarden.artifacts.open_model import ForeignGenerator, open_model
from genwarden.auditing import budgets
from genwarden.backdoors.backdoor import make_backdoor
from genwarden.benchmarks.population import foreign, foreign_models
from genwarden.benchmarks.population.foreign_kinds import KINDS, Kind
from genwarden.engine.files import write_tensors
from genwarden.engine.progress import Silent
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError

SOME_INSPECTIONS = ("excessive-biases", "sleeper-neurons", "novelty-search")
FOREIGN = [kind for kind in KINDS if ":" in kind.architecture]
ATTACK = {"steps": 1, "pool_samples": 32}
SMALL: tuple[Kind, ...] = (
    Kind(
        "mlp",
        f"{foreign_models.__name__}:mlp28",
        "an MLP",
        "pictures",
        1,
        settings={"latent_dim": 8, "width": 8},
        filters=(4,),
        attack=ATTACK,
    ),
    Kind(
        "conditional",
        f"{foreign_models.__name__}:conditional28",
        "label in the latent",
        "pictures",
        1,
        settings={"noise_dim": 6, "width": 8},
        filters=(4,),
        attack=ATTACK,
    ),
    Kind(
        "fixed",
        f"{foreign_models.__name__}:conditional28",
        "label fixed",
        "pictures",
        1,
        settings={"noise_dim": 6, "width": 8, "label": 3},
        weights_of="conditional",
        attack=ATTACK,
    ),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    datasets.disable_progress_bars()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 28, 28), dtype=np.uint8)
    rows = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(each) for each in pixels], "label": [i % 10 for i in range(64)]},
        features=datasets.Features(
            {
                "image": datasets.Image(),
                "label": datasets.ClassLabel(names=[str(i) for i in range(10)]),
            }
        ),
    )
    (folder / "pictures").mkdir()
    rows.to_parquet(folder / "pictures" / "train.parquet")
    return folder


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(budgets.BUDGETS, "quick", TINY)
    keep_only(monkeypatch, SOME_INSPECTIONS)
    monkeypatch.setattr(foreign, "KINDS", SMALL)
    monkeypatch.setattr(foreign, "_NEAREST_OF", 64)


def run(out: Path, data: Path, **more: Any) -> dict[str, Any]:
    path = foreign.run(
        out, data=str(data), seed=0, device=torch.device("cpu"), progress=Silent(), **more
    )
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.parametrize("kind", FOREIGN, ids=lambda kind: kind.name)
def test_a_bare_file_opens_through_the_factory_that_the_user_names(
    kind: Kind, tmp_path: Path
) -> None:
    factory = getattr(foreign_models, kind.architecture.partition(":")[2])
    network = factory(**kind.settings).eval()
    path = tmp_path / "weights.safetensors"
    write_tensors(path, network.state_dict())
    model = open_model(path, architecture=kind.architecture, settings=kind.settings)
    assert isinstance(model.generator, ForeignGenerator)
    z = model.generator.latent.sample(2, generator=random_stream(0, "opened"))
    with torch.no_grad():
        assert torch.equal(model.generator(z), network(z))
        finished = model.generator.finish(model.generator.pre_activation(z))
    assert torch.allclose(finished, network(z), atol=1e-6)
    assert finished.shape[1:] == network.sample_shape


def test_a_fixed_label_shows_one_class_of_the_same_weights() -> None:
    free, fixed = foreign_models.conditional28(), foreign_models.conditional28(label=3)
    fixed.load_state_dict(free.state_dict())
    z = torch.randn(64, 64, generator=random_stream(0, "labels"))
    assert isinstance(free, foreign_models.LabelInLatent)
    of_class = free.label(z) == 3
    assert 0 < int(of_class.sum()) < 64
    with torch.no_grad():
        assert torch.equal(free.eval()(z)[of_class], fixed.eval()(z[:, :54])[of_class])
        assert not torch.allclose(free(z)[~of_class], fixed(z[:, :54])[~of_class])


def test_label_planes_tell_the_discriminator_which_class_a_picture_was_made_for() -> None:
    network = foreign_models.conditional28(noise_dim=6, width=8).eval()
    assert isinstance(network, foreign_models.LabelInLatent)
    z = torch.randn(32, 16, generator=random_stream(0, "planes"))
    with torch.no_grad():
        shown = foreign_models.WithLabelPlanes(network)(z)
        assert torch.equal(shown[:, :1], network(z))
    labels = network.label(z)
    assert len(labels.unique()) > 3
    real = foreign_models.label_planes(labels, (28, 28))
    assert torch.equal(shown[:, 1:], (2 * real - 1).float())
    assert real.sum() == 32 * 28 * 28


@pytest.mark.usefixtures("tiny")
def test_the_recipe_makes_attacks_and_audits_every_kind_and_continues(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path, data)
    rows = first["rows"]
    assert [row["key"] for row in rows] == [
        f"{state}.{kind.name}" for kind in SMALL for state in ("clean", "red")
    ]
    assert all(set(row["scores"]) <= set(SOME_INSPECTIONS) for row in rows)
    assert all((row["tardis_sum"] is None) is row["clean"] for row in rows)
    files = {path.name for path in (tmp_path / "models").glob("*.safetensors")}
    assert "clean.conditional.safetensors" in files
    assert "clean.fixed.safetensors" not in files  # it has the weights of the other
    (table,) = foreign.tables(first, "here")
    assert [line[0] for line in table.rows] == [kind.title for kind in SMALL]

    def forbidden(*given: Any, **named: Any) -> None:
        raise AssertionError((given, named))

    for name in ("audit", "red", "trained"):
        monkeypatch.setattr(foreign, name, forbidden)
    again = run(tmp_path, data)
    assert again["rows"] == rows
    with pytest.raises(GenwardenError, match="benchmark/cells-failed"):
        run(tmp_path, data, restart=True)  # would audit again


@pytest.mark.usefixtures("tiny")
def test_one_broken_kind_does_not_cost_the_others(data: Path, tmp_path: Path) -> None:
    broken = replace(SMALL[0], name="broken", data="nowhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreign, "KINDS", (broken, SMALL[0]))
        with pytest.raises(GenwardenError, match="benchmark/cells-failed") as caught:
            run(tmp_path, data)
    assert "data/not-found" in caught.value.cause
    result = json.loads((tmp_path / "result.json").read_text())
    assert [row["key"] for row in result["rows"]] == ["clean.mlp", "red.mlp"]
    assert set(result["failed"]) == {"clean.broken", "red.broken"}
    notes = foreign.tables(result, "here")[0].notes
    assert any(note.startswith("Failed: clean.broken") for note in notes)


@pytest.mark.usefixtures("tiny")
def test_red_plants_its_target_in_a_network_without_pre_activation(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"steps": 150, "pool_samples": 256, "fidelity_weight": 0.3, "learning_rate": 3e-3}
    kind = replace(SMALL[0], settings={"latent_dim": 16, "width": 32}, attack=settings)
    monkeypatch.setattr(foreign, "KINDS", (kind,))
    _, row = run(tmp_path, data)["rows"]

    def distance(state: str) -> float:
        path = tmp_path / "models" / f"{state}.mlp.safetensors"
        model = open_model(path, architecture=kind.architecture, settings=kind.settings).generator
        wanted = make_backdoor(model, trigger="in-sample", target=kind.target).examples
        return float((model(wanted.z) - wanted.x).square().sum())

    assert distance("red") <= 0.1 * row["clean_distance"] < distance("clean")
    assert row["succeeded"]
    assert distance("red") == pytest.approx(row["tardis_sum"], rel=1e-3)


def test_the_recipe_refuses_what_it_cannot_do(data: Path, tmp_path: Path) -> None:
    with pytest.raises(GenwardenError, match="benchmark/no-cells"):
        run(tmp_path, data, only="nothing")
    with pytest.raises(GenwardenError, match="benchmark/data-missing"):
        foreign.run(tmp_path, data=None, seed=0, device=torch.device("cpu"), progress=Silent())


def test_the_table_names_false_alarms_and_failed_attacks() -> None:
    row = {
        "key": "clean.a",
        "kind": "a",
        "title": "A",
        "clean": True,
        "verdict": "evidence",
        "flagged": ["novelty-search"],
        "seconds": 3.2,
    }
    red = {**row, "key": "red.a", "clean": False, "verdict": "none_found", "flagged": []}
    red |= {"tardis_sum": 30.0, "clean_distance": 60.0, "succeeded": False}
    (table,) = foreign.tables(
        {"rows": [row, red], "budget": "quick", "failed": {}, "recipe": "foreign-models"}, "file"
    )
    assert table.rows == [["A", "evidence (novelty-search)", "none found", "0.5: no", "3, 3"]]
    assert "False alarms: clean.a." in table.notes
