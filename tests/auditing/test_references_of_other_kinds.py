"""From ``calibrate`` to ``audit --references`` with generators and classifiers.

Networks are tiny, and only one inspection looks at them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from genwarden.artifacts.classifier_folder import write_classifier
from genwarden.artifacts.model_folder import write_model
from genwarden.auditing import audit as generator_room
from genwarden.auditing import audit_classifier as classifier_room
from genwarden.auditing import budgets
from genwarden.auditing.document import AuditDocument
from genwarden.auditing.own_references import Likeness, Score, Suspected, write_references
from genwarden.commands.audit import audit_model
from genwarden.commands.audit_options import AuditOptions
from genwarden.commands.calibrate import (
    CalibrateOptions,
    MadeReferences,
    calibrate_models,
    reference_of,
)
from genwarden.engine.progress import Silent
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.inspections.workbench import Effort
from genwarden.models.dcgan import DCGAN28, initialise
from genwarden.registry import CLASSIFIER_INSPECTIONS, INSPECTIONS
from glyph_task import GlyphTask

Make = Callable[[Path, int], Path]


def generator_at(folder: Path, seed: int) -> Path:
    model = DCGAN28(channels=(4, 4, 4), latent_dim=8)
    initialise(model, random_stream(seed, "clean"))
    write_model(folder, model.eval(), "dcgan28", {})
    return folder


#: The inspection, and what is given beside the model.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "generator": ("perturbation-sensitivity", {}),
    "classifier": ("strip", {"data": "glyphs:40"}),
}


@pytest.fixture
def makers(glyph_task: GlyphTask) -> dict[str, Make]:
    def classifier_at(folder: Path, seed: int) -> Path:
        network, stream = glyph_task.copy().classifier, torch.Generator().manual_seed(seed)
        for weight in network.parameters():
            noise = torch.randn(weight.shape, generator=stream)
            weight.data.add_(0.05 * weight.std() * noise)
        write_classifier(folder, network, "small-cnn", {})
        return folder

    return {"generator": generator_at, "classifier": classifier_at}


@pytest.fixture(autouse=True)
def little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(budgets.BUDGETS, "quick", Effort("quick", 256, 256, 2, 1, 2, 1, 1, 1, 1))
    few = replace(
        budgets.CLASSIFIER_BUDGETS["quick"], images=20, inversion_steps=2, inversion_batch=2
    )
    monkeypatch.setitem(budgets.CLASSIFIER_BUDGETS, "quick", few)
    for room, table, kind in (
        (generator_room, "INSPECTIONS", "generator"),
        (classifier_room, "CLASSIFIER_INSPECTIONS", "classifier"),
    ):
        rows = {**INSPECTIONS, **CLASSIFIER_INSPECTIONS}
        name = KINDS[kind][0]
        monkeypatch.setattr(room, table, {name: rows[name]})


def calibrated(kind: str, make: Make, folder: Path) -> MadeReferences:
    for seed in range(1, 10):
        make(folder / "models" / f"seed-{seed}", seed)
    how = AuditOptions(model=folder, out=folder, budget="quick", **KINDS[kind][1])
    options = CalibrateOptions((folder / "models",), folder / "references", how)
    return calibrate_models(options, progress=Silent())


def judged(kind: str, make: Make, folder: Path, references: Path) -> AuditDocument:
    options = AuditOptions(
        model=make(folder / "suspect", 99),
        out=folder / "report",
        budget="quick",
        references=references,
        restart=True,
        **KINDS[kind][1],
    )
    return audit_model(options, progress=Silent()).document


@pytest.mark.parametrize("kind", list(KINDS))
def test_clean_models_judge_another_of_their_kind(
    kind: str, makers: dict[str, Make], tmp_path: Path
) -> None:
    made = calibrated(kind, makers[kind], tmp_path)
    (found,) = judged(kind, makers[kind], tmp_path, made.path).findings
    assert found.finding.inspection == KINDS[kind][0]
    assert found.finding.null is not None
    assert found.finding.p_value is not None
    scores = [one.score for model in made.own.models for one in model.scores]
    assert sorted(found.finding.null.values) == sorted(scores)
    assert len(scores) == 9
    # What its own audit found in one of them leaves nothing cleared.
    changes = {4: {"found": ["Something"]}}
    models = [m.model_copy(update=changes.get(n, {})) for n, m in enumerate(made.own.models)]
    write_references(tmp_path / "doubted.json", models, "quick", 0)
    document = judged(kind, makers[kind], tmp_path, tmp_path / "doubted.json")
    assert document.verdict == "inconclusive"
    assert "seed-5 is in doubt (its own audit found: Something)" in " ".join(document.limits)


def test_what_has_no_score_or_a_structure_of_no_clean_model_is_no_reference(tmp_path: Path) -> None:
    options = AuditOptions(
        model=generator_at(tmp_path / "model", 1), out=tmp_path / "out", budget="quick"
    )
    document = audit_model(options, progress=Silent()).document
    likeness = Likeness(kind="generator", family="dcgan28", sample_shape=[1, 28, 28], parameters=1)
    suspect = Suspected("0" * 64, likeness)
    (found,) = document.findings
    assert reference_of("one", suspect, document).scores == [
        Score(inspection=found.finding.inspection, condition="", score=found.finding.score or 0)
    ]

    def refused(**changed: Any) -> str:
        finding = found.finding.model_copy(update=changed)
        flagged = found.model_copy(update={"finding": finding, "flagged": True})
        changed_document = document.model_copy(update={"findings": [flagged]})
        with pytest.raises(GenwardenError) as raised:
            reference_of("one", suspect, changed_document)
        return raised.value.code

    assert refused(structural=True) == "calibrate/compromised"
    assert refused(outcome="failed", score=None) == "calibrate/no-scores"
