"""References of the user's own: what they may judge, what they may not, and how they are made.

Networks are tiny and untrained; what real ones score is the population study's business.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from genwarden import __version__
from genwarden.auditing import audit_diffusion as room
from genwarden.auditing.document import AuditDocument
from genwarden.auditing.judging import calibrated, calibrated_under
from genwarden.auditing.own_references import (
    FILE_NAME,
    OwnReferences,
    ReferenceModel,
    Score,
    Suspected,
    crossed,
    like,
    read_references,
    suitable_references,
    table_of,
    write_references,
)
from genwarden.cli import app
from genwarden.commands.audit import AuditOptions, audit_model
from genwarden.commands.calibrate import Calibrated, CalibrateOptions, calibrate_models
from genwarden.engine.progress import Silent
from genwarden.errors import GenwardenError
from genwarden.inspections.finding import Finding
from tiny_diffusion import model_at, shrink_quick_budget

SUSPECT = Suspected("suspect", "unet2d", (1, 12, 12))
NOTHING: dict[str, Any] = {"descriptions": {}, "scores": {}}
CLEAN = [0.10, 0.12, 0.15, 0.18, 0.20, 0.22, 0.25, 0.28, 0.30]


def reference(number: int, score: float, **more: Any) -> ReferenceModel:
    return ReferenceModel(
        **{
            "name": f"clean-{number}",
            "sha256": f"{number:064d}",
            "family": "unet2d",
            "sample_shape": [1, 12, 12],
            "scores": [Score(inspection="trigger-search", condition="", score=score)],
            **more,
        }
    )


def references(*models: ReferenceModel) -> OwnReferences:
    return OwnReferences(genwarden=__version__, budget="quick", models=list(models))


def nine(**more: Any) -> OwnReferences:
    return references(*(reference(n, score, **more) for n, score in enumerate(CLEAN)))


def scored(score: float) -> Finding:
    return Finding(
        inspection="trigger-search",
        group="diffusion",
        title="Search",
        outcome="scored",
        summary="",
        score=score,
        p_value_reason="not judged yet",
    )


def p_of(
    score: float, own: OwnReferences | None, shipped: dict[str, Any] = NOTHING
) -> float | None:
    table = table_of(own, SUSPECT)
    found = calibrated(
        [scored(score)], "unet2d", (1, 12, 12), budget="quick", table=shipped, own=table
    )
    return found.findings[0].p_value


def test_a_score_is_judged_where_the_shipped_references_judge_nobody() -> None:
    assert p_of(1.0, None) is None
    high, ordinary = p_of(1.0, nine()), p_of(0.2, nine())
    assert high is not None
    assert ordinary is not None
    assert high < 1e-4
    assert ordinary > 0.3


@pytest.mark.parametrize(
    "unlike",
    [
        {"sample_shape": [1, 16, 16]},
        {"sample_shape": [3, 12, 12]},
        {"family": "another"},
        {"sha256": "suspect"},
    ],
)
def test_models_that_are_not_like_the_suspect_or_are_itself_do_not_judge_it(
    unlike: dict[str, Any],
) -> None:
    assert like(nine(**unlike), SUSPECT) == []
    assert p_of(1.0, nine(**unlike)) is None


def test_too_few_for_one_inspection_leave_it_to_the_shipped_references() -> None:
    shipped = {
        "descriptions": {"quick": "shipped"},
        "families": [["unet2d", [1, 12, 12], 8]],
        "scores": {"quick": {"trigger-search": [5.0, 5.1, 5.2, 5.3, 5.4, 5.5, 5.6, 5.7]}},
    }
    seven = references(*nine().models[:7])
    assert p_of(1.0, seven, shipped) == p_of(1.0, None, shipped)
    fewer, whole = p_of(1.0, seven, shipped), p_of(1.0, nine(), shipped)
    assert fewer is not None
    assert whole is not None
    assert fewer > 0.9  # far below the shipped scores
    assert whole < 1e-4


def test_a_condition_is_judged_by_models_under_that_condition_alone() -> None:
    own = references(
        *(
            reference(n, s, scores=[Score(inspection="trigger-search", condition="int8", score=s)])
            for n, s in enumerate(CLEAN)
        )
    )
    found = {
        condition: calibrated_under(
            condition,
            [scored(1.0)],
            "unet2d",
            (1, 12, 12),
            budget="quick",
            table=NOTHING,
            own=table_of(own, SUSPECT),
        )
        for condition in ("int8", "int4")
    }
    p = found["int8"].findings[0].p_value
    assert p is not None
    assert p < 1e-4
    assert found["int8"].unfit == frozenset()
    assert found["int4"].findings[0].p_value is None
    assert found["int4"].unfit == {"trigger-search"}


def test_the_odd_one_out_is_named_by_the_others_and_alike_ones_are_not() -> None:
    assert not any(one.flagged for one in crossed(nine()))
    odd = references(*nine().models, reference(9, 3.0))
    assert [one.name for one in crossed(odd) if one.flagged] == ["clean-9"]
    assert all(one.smallest is None for one in crossed(references(*nine().models[:8])))


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(GenwardenError) as refused:
        act()
    assert refused.value.remedy
    return refused.value.code


def test_a_file_is_refused_that_cannot_judge(tmp_path: Path) -> None:
    def given(own: OwnReferences | str, suspect: Suspected = SUSPECT, budget: str = "quick") -> str:
        path = tmp_path / FILE_NAME
        path.write_text(own if isinstance(own, str) else own.model_dump_json(), "utf-8")
        return refusal(lambda: suitable_references(tmp_path, suspect, budget))

    bare = json.loads(nine().model_dump_json())
    assert given("{}") == "usage/references-file"
    assert given("[" * 5000) == "usage/references-file"
    assert given(json.dumps({**bare, "extra": 1})) == "usage/references-file"
    assert given(json.dumps({**bare, "genwarden": "0.0.0"})) == "usage/references-file"
    assert given(nine().model_dump_json().replace("0.3}", "NaN}")) == "usage/references-file"
    assert given(nine(), budget="standard") == "usage/references-budget"
    assert given(nine(), Suspected("s", "unet2d", (1, 28, 28))) == "usage/references-unlike"
    # One of eight is the suspect itself: seven are left.
    eight = references(*nine().models[:8])
    assert given(eight, replace(SUSPECT, sha256=f"{0:064d}")) == "usage/references-unlike"
    missing = tmp_path / "nowhere.json"
    assert refusal(lambda: read_references(missing)) == "usage/references-file"
    path = tmp_path / FILE_NAME
    path.write_text(nine().model_dump_json(), "utf-8")
    assert suitable_references(path, SUSPECT, "quick") == nine()
    assert suitable_references(None, SUSPECT, "quick") is None


def test_a_model_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    twice = [reference(0, 0.1), reference(0, 0.1, name="copy")]
    path = tmp_path / FILE_NAME
    assert refusal(lambda: write_references(path, twice, "quick")) == "calibrate/same-model"
    assert not path.exists()


@pytest.fixture
def tiny_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_quick_budget(monkeypatch)
    monkeypatch.setattr(room, "shipped_diffusion", lambda: NOTHING)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    for seed in range(9):
        model_at(folder / f"seed-{seed}", seed)
    (folder / "notes").mkdir()
    return folder


def make(models: Path, out: Path) -> Calibrated:
    like_this = AuditOptions(model=models, out=out, budget="quick")
    return calibrate_models(CalibrateOptions((models,), out, like_this), progress=Silent())


def audited(model: Path, out: Path, **more: Any) -> AuditDocument:
    options = AuditOptions(model=model, out=out, budget="quick", **more)
    return audit_model(options, progress=Silent()).document


@pytest.mark.usefixtures("tiny_effort")
def test_clean_models_are_audited_once_and_judge_another(models: Path, tmp_path: Path) -> None:
    made = make(models, tmp_path / "references")
    assert [Path(one.name).name for one in made.crossed] == [f"seed-{n}" for n in range(9)]
    assert {document.verdict for document in made.documents} == {"inconclusive"}
    audit = tmp_path / "references" / "audits" / "01-seed-0" / "audit.json"
    before = audit.stat().st_mtime_ns
    again = make(models, tmp_path / "references")
    assert audit.stat().st_mtime_ns == before
    assert again.own == made.own
    assert f"--references {made.path}" in made.following

    suspect = model_at(models.parent / "suspect", 99)
    assert audited(suspect, tmp_path / "without").verdict == "inconclusive"
    document = audited(suspect, tmp_path / "with", references=made.path.parent)
    search = next(j.finding for j in document.findings if j.finding.inspection == "trigger-search")
    assert search.null is not None
    assert sorted(search.null.values) == sorted(
        s.score for m in made.own.models for s in m.scores if s.inspection == "trigger-search"
    )
    assert document.verdict == "none_found", document.reasons
    assert any("9 models that the user calls clean" in limit for limit in document.limits)
    assert f"--references {made.path.parent}" in document.command
    # A model among them is judged by the other eight.
    itself = audited(models / "seed-3", tmp_path / "itself", references=made.path)
    assert any("8 models that the user calls clean" in limit for limit in itself.limits)


@pytest.mark.usefixtures("tiny_effort")
def test_what_cannot_be_calibrated_is_refused(models: Path, tmp_path: Path) -> None:
    def given(*paths: Path, **more: Any) -> str:
        like_this = AuditOptions(model=models, out=tmp_path, **{"budget": "quick", **more})
        options = CalibrateOptions(paths, tmp_path / "out", like_this)
        return refusal(lambda: calibrate_models(options, progress=Silent()))

    assert given(models / "notes") == "calibrate/no-models"
    assert given(models / "seed-1", models / "seed-2") == "calibrate/too-few"
    assert given(models, budget="none") == "usage/budget"
    assert not (tmp_path / "out").exists()
    broken = models / "seed-4" / "unet" / "diffusion_pytorch_model.safetensors"
    broken.write_bytes(b"no weights")
    assert given(models) == "calibrate/refused"
    assert not (tmp_path / "out" / FILE_NAME).exists()


@pytest.mark.usefixtures("tiny_effort")
def test_the_command_says_how_the_models_agree_and_what_comes_next(
    models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "references"
    shown = CliRunner().invoke(
        app, ["calibrate", str(models), "--out", str(out), "--budget", "quick"]
    )
    assert shown.exit_code == 0, shown.output
    assert "of 9 are below 0.01" in shown.output
    assert (out / FILE_NAME).exists()
    flat = "".join(shown.output.split())
    assert "".join(f"genwarden audit MODEL --references {out / FILE_NAME}".split()) in flat
