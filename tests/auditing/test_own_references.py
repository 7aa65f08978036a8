"""References of the user's own: what they may judge, what they may not, and how they are made.

Networks are tiny and untrained; what real ones score is the population study's business.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from typer.testing import CliRunner

from genwarden import __version__
from genwarden.artifacts.diffusers_folder import read_diffusion, write_diffusion
from genwarden.auditing import audit_diffusion as room
from genwarden.auditing import budgets
from genwarden.auditing.audit_variants import calibrated_variant
from genwarden.auditing.document import AuditDocument, Judged
from genwarden.auditing.doubts import disagreement, doubts, too_few
from genwarden.auditing.given_references import suitable_references
from genwarden.auditing.judging import Calibrated, calibrated, calibrated_under
from genwarden.auditing.own_references import (
    FILE_NAME,
    Kind,
    Likeness,
    OwnReferences,
    ReferenceModel,
    Score,
    Suspected,
    alike,
    effort_hash,
    read_references,
    table_of,
    weights_hash,
    write_references,
)
from genwarden.auditing.running import seeded
from genwarden.cli import app
from genwarden.commands.audit import audit_model
from genwarden.commands.audit_options import AuditOptions
from genwarden.commands.calibrate import CalibrateOptions, MadeReferences, calibrate_models
from genwarden.commands.open_suspect import open_suspect
from genwarden.engine.progress import Silent
from genwarden.errors import GenwardenError
from genwarden.inspections.finding import Finding
from genwarden.models.diffusion.networks import fresh_model, small_unet
from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.registry import Row
from tiny_diffusion import model_at, shrink_quick_budget

LIKENESS = Likeness(
    kind="diffusion",
    family="unet2d",
    sample_shape=[1, 12, 12],
    parameters=100,
    further={"timesteps": 1000},
)
SUSPECT = Suspected("suspect", LIKENESS)
NOTHING: dict[str, Any] = {"descriptions": {}, "scores": {}}
CLEAN = [0.10, 0.12, 0.15, 0.18, 0.20, 0.22, 0.25, 0.28, 0.30]
SHAPE = (1, 12, 12)


def reference(
    number: int, score: float, inspection: str = "trigger-search", condition: str = "", **more: Any
) -> ReferenceModel:
    fields = {
        "name": f"clean-{number}",
        "weights": f"{number:064d}",
        "likeness": LIKENESS,
        "scores": [Score(inspection=inspection, condition=condition, score=score)],
    }
    return ReferenceModel(**{**fields, **more})


def nine(**more: Any) -> list[ReferenceModel]:
    return [reference(n, score, **more) for n, score in enumerate(CLEAN)]


def own(models: list[ReferenceModel]) -> OwnReferences:
    effort = effort_hash("diffusion", "quick")
    return OwnReferences(
        genwarden=__version__,
        budget="quick",
        seed=0,
        effort={"diffusion": effort},
        models=models,
    )


def scored(score: float, inspection: str = "trigger-search") -> Finding:
    return Finding(
        inspection=inspection,
        group="diffusion",
        title="Search",
        outcome="scored",
        summary="",
        score=score,
        p_value_reason="not judged yet",
    )


def p_of(
    score: float, models: list[ReferenceModel], shipped: dict[str, Any] = NOTHING
) -> float | None:
    found = calibrated(
        [scored(score)],
        "unet2d",
        SHAPE,
        budget="quick",
        table=shipped,
        own=table_of(models, "quick"),
    )
    return found.findings[0].p_value


def test_a_score_is_judged_where_the_shipped_references_judge_nobody() -> None:
    assert p_of(1.0, []) is None
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
        {"kind": "generator"},
        {"parameters": 101},
        {"further": {"timesteps": 4000}},
    ],
)
def test_models_that_are_not_like_the_suspect_do_not_judge_it(unlike: dict[str, Any]) -> None:
    other = LIKENESS.model_copy(update=unlike)
    assert alike(own(nine()), SUSPECT) == nine()
    assert alike(own(nine(likeness=other)), SUSPECT) == []
    assert alike(own(nine(weights="suspect")), SUSPECT) == []  # nor itself


def test_too_few_for_one_inspection_leave_it_to_the_shipped_references() -> None:
    shipped = {
        "descriptions": {"quick": "shipped"},
        "families": [["unet2d", [1, 12, 12], 8]],
        "scores": {"quick": {"trigger-search": [5.0, 5.1, 5.2, 5.3, 5.4, 5.5, 5.6, 5.7]}},
    }
    fewer, whole = p_of(1.0, nine()[:7], shipped), p_of(1.0, nine(), shipped)
    assert fewer == p_of(1.0, [], shipped)
    assert fewer is not None
    assert whole is not None
    assert fewer > 0.9  # far below the shipped scores
    assert whole < 1e-4


def test_a_condition_is_judged_by_models_under_that_condition_alone() -> None:
    table = table_of(nine(condition="int8"), "quick")

    def found(condition: str) -> Calibrated:
        return calibrated_under(
            condition,
            [scored(1.0)],
            "unet2d",
            SHAPE,
            budget="quick",
            table=NOTHING,
            own=table,
        )

    p = found("int8").findings[0].p_value
    assert p is not None
    assert p < 1e-4
    assert found("int8").unfit == frozenset()
    assert found("int4").findings[0].p_value is None
    assert found("int4").unfit == {"trigger-search"}


def test_what_is_repeated_under_compression_is_judged_by_compressed_models() -> None:
    # Rounding moves the score of clean models far up: no evidence against this one.
    rounded = [reference(n, score + 5, "novelty-search", "int8") for n, score in enumerate(CLEAN)]
    full = [reference(n, score, "novelty-search") for n, score in enumerate(CLEAN)]

    def p(models: list[ReferenceModel]) -> float | None:
        found = calibrated_variant(
            "int8",
            [scored(5.2, "novelty-search")],
            "unet2d",
            SHAPE,
            budget="quick",
            own=table_of(models, "quick"),
        )
        assert found.own == ({"novelty-search"} if models is rounded else frozenset())
        return found.findings[0].p_value

    ordinary = p(rounded)
    assert ordinary is not None
    assert ordinary > 0.3
    assert p(full) == p([])  # the shipped ones, as without any


def test_models_that_stand_out_are_named_even_if_they_are_alike() -> None:
    assert disagreement(nine()) == {}
    found = disagreement([*nine(), reference(9, 3.0)])
    assert list(found) == ["clean-9"]
    assert list(map(str, found["clean-9"])) == ["trigger-search 3, the others 0.1 to 0.3"]
    two = disagreement([*nine()[:7], reference(8, 1.0), reference(9, 1.01)])
    assert sorted(two) == ["clean-8", "clean-9"]
    # The score in which it stands out farthest comes first.
    both = [
        m.model_copy(
            update={"scores": [*m.scores, Score(inspection="strip", condition="", score=s)]}
        )
        for m, s in zip([*nine(), reference(9, 3.0)], [*CLEAN, 9.0], strict=True)
    ]
    assert [one.key for one in disagreement(both)["clean-9"]] == ["strip", "trigger-search"]
    assert disagreement([reference(0, 9.0), *nine()[1:7]]) == {}  # seven judge nobody


def test_a_model_far_below_the_others_is_named_because_a_backdoor_hides_behind_it() -> None:
    low = [*nine(), reference(9, -3.0)]
    hidden, plain = p_of(1.0, low), p_of(1.0, nine())
    assert hidden is not None
    assert plain is not None
    assert hidden > 0.05
    assert plain < 1e-4
    assert doubts(low) == {"clean-9": ["stands out: trigger-search -3, the others 0.1 to 0.3"]}


def test_what_its_own_audit_found_speaks_against_a_reference(tmp_path: Path) -> None:
    found = [*nine()[:8], reference(8, CLEAN[8], found=["Empty blocks of weights"])]
    assert doubts(nine()) == {}
    assert doubts(found) == {"clean-8": ["its own audit found: Empty blocks of weights"]}
    write_references(tmp_path / FILE_NAME, found, "quick", 0)
    (sentence,) = suitable_references(tmp_path, SUSPECT, "quick", 0).doubted
    assert "clean-8 is in doubt" in sentence


def test_what_the_shipped_references_flag_counts_where_the_others_given_flag_it_too() -> None:
    key = "trigger-search"
    ordinary = [*nine()[:8], reference(8, CLEAN[8], suspected=[key])]
    assert doubts(ordinary) == {}
    # Too near to stand out by itself, among nine scores and whoever is the largest.
    high = 0.5
    assert doubts([*nine()[:8], reference(8, high)]) == {}
    (why,) = doubts([*nine()[:8], reference(8, high, suspected=[key])])["clean-8"]
    assert why.startswith("its own audit found: trigger-search, which is high beside the others")
    # Nobody to say otherwise: seven others are needed.
    assert list(doubts([*nine()[:6], reference(6, CLEAN[6], suspected=[key])])) == ["clean-6"]


def test_inspections_with_too_few_scores_are_named() -> None:
    assert too_few(nine()) == []
    without = [m.model_copy(update={"scores": []}) for m in nine()[:2]]
    assert too_few([*without, *nine()[2:]]) == ["trigger-search (7 of 9 models)"]


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(GenwardenError) as refused:
        act()
    assert refused.value.remedy
    return refused.value.code


def test_a_file_is_refused_that_cannot_judge(tmp_path: Path) -> None:
    def refused(
        content: str, suspect: Suspected = SUSPECT, budget: str = "quick", seed: int = 0
    ) -> str:
        (tmp_path / FILE_NAME).write_text(content, "utf-8")
        return refusal(lambda: suitable_references(tmp_path, suspect, budget, seed))

    good = own(nine()).model_dump_json()
    bare = json.loads(good)
    assert refused("{}") == "usage/references-file"
    assert refused("[" * 5000) == "usage/references-file"
    assert refused(json.dumps({**bare, "extra": 1})) == "usage/references-file"
    assert refused(json.dumps({**bare, "genwarden": "0.0.0"})) == "usage/references-file"
    broken = good.replace("0.3}", "NaN}")
    assert broken != good
    assert refused(broken) == "usage/references-file"
    assert refused(good.replace("trigger-search", "triger-search")) == "usage/references-file"
    for field in ("weights", "name"):
        twice = [*bare["models"], {**bare["models"][0], field: "another"}]
        assert refused(json.dumps({**bare, "models": twice})) == "usage/references-file"
    assert refused(good, budget="standard") == "usage/references-budget"
    assert refused(good, seed=1) == "usage/references-seed"
    # The same name, but other numbers of steps.
    other = json.dumps({**bare, "effort": {"diffusion": "0" * 64}})
    assert refused(other) == "usage/references-budget"
    unlike = LIKENESS.model_copy(update={"sample_shape": [1, 28, 28]})
    assert refused(good, Suspected("s", unlike)) == "usage/references-unlike"
    # One of eight is the suspect itself: seven are left.
    eight = own(nine()[:8]).model_dump_json()
    assert refused(eight, SUSPECT._replace(weights=f"{0:064d}")) == "usage/references-unlike"
    for missing in (tmp_path / "nowhere.json", tmp_path / ("x" * 300)):
        assert refusal(partial(read_references, missing)) == "usage/references-file"
    (tmp_path / FILE_NAME).write_text(good, "utf-8")
    found = suitable_references(tmp_path / FILE_NAME, SUSPECT, "quick", 0)
    assert found.models == 9
    assert found.doubted == []
    assert found.too_few == []


def test_the_effort_of_a_budget_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[Kind] = ["generator", "diffusion", "classifier"]
    before = {kind: effort_hash(kind, "quick") for kind in kinds}
    assert len(set(before.values())) == 3
    longer = replace(budgets.DIFFUSION_BUDGETS["quick"], search_steps=77)
    monkeypatch.setitem(budgets.DIFFUSION_BUDGETS, "quick", longer)
    after = {kind: effort_hash(kind, "quick") for kind in kinds}
    assert {kind for kind in kinds if before[kind] != after[kind]} == {"diffusion"}


@pytest.fixture(scope="module", autouse=True)
def tiny_effort() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        shrink_quick_budget(patch)
        patch.setattr(room, "shipped_diffusion", lambda: NOTHING)
        yield


class Given(NamedTuple):
    """A folder of nine clean models, what was made of them, and a tenth to judge."""

    models: Path
    made: MadeReferences
    suspect: Path


def make(models: Path, out: Path, **more: Any) -> MadeReferences:
    how = AuditOptions(model=models, out=out, budget="quick", **{"deploy_as": "int8", **more})
    return calibrate_models(CalibrateOptions((models,), out, how), progress=Silent())


def audited(model: Path, out: Path, **more: Any) -> AuditDocument:
    options = AuditOptions(model=model, out=out, budget="quick", **more)
    return audit_model(options, progress=Silent()).document


@pytest.fixture(scope="module")
def given(tiny_effort: None, tmp_path_factory: pytest.TempPathFactory) -> Given:
    del tiny_effort
    folder = tmp_path_factory.mktemp("calibrated")
    for seed in range(1, 10):  # with fresh weights, 0 stands out
        model_at(folder / "models" / f"seed-{seed}", seed)
    (folder / "models" / "notes").mkdir()
    made = make(folder / "models", folder / "references")
    return Given(folder / "models", made, model_at(folder / "suspect", 99))


@pytest.fixture
def again(given: Given, tmp_path: Path) -> Given:
    """The same where a test may change it."""
    shutil.copytree(given.models.parent, tmp_path / "again")
    made = given.made._replace(path=tmp_path / "again" / "references" / FILE_NAME)
    return Given(tmp_path / "again" / "models", made, tmp_path / "again" / "suspect")


def finding(findings: list[Judged], name: str = "trigger-search") -> Finding:
    return next(j.finding for j in findings if j.finding.inspection == name)


def test_clean_models_judge_another_in_full_and_compressed(given: Given, tmp_path: Path) -> None:
    made = given.made
    assert [Path(name).name for name in made.reports] == [f"seed-{n}" for n in range(1, 10)]
    assert all(report.exists() for report in made.reports.values())
    assert f"--references {made.path}" in made.following
    assert "--deploy-as int8" in made.following
    without = audited(given.suspect, tmp_path / "without", deploy_as="int8")
    assert without.verdict == "inconclusive"
    assert without.inputs.references == ""
    judged = {"references": made.path.parent, "deploy_as": "int8"}
    document = audited(given.suspect, tmp_path / "with", **judged)
    (variant,) = document.variants
    for condition, findings in (("", document.findings), ("int8", variant.findings)):
        null = finding(findings).null
        assert null is not None
        assert sorted(null.values) == sorted(
            s.score
            for m in made.own.models
            for s in m.scores
            if (s.inspection, s.condition) == ("trigger-search", condition)
        )
    assert document.verdict == "none_found", document.reasons
    assert any("9 models that the user calls clean" in limit for limit in document.limits)
    assert f"--references {made.path.parent}" in document.command
    assert document.inputs.references == read_references(made.path).sha256


def test_a_copy_of_a_reference_is_not_judged_by_itself(given: Given, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(given.models / "seed-3", copy)
    (copy / "genwarden.json").unlink()
    config = copy / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": "x"}))
    assert read_diffusion(copy).sha256 != read_diffusion(given.models / "seed-3").sha256
    document = audited(copy, tmp_path / "out", references=given.made.path)
    assert any("8 models that the user calls clean" in limit for limit in document.limits)


def changed(made: MadeReferences, path: Path, change: Callable[[int, Score], Score | None]) -> Path:
    models = [
        m.model_copy(
            update={"scores": [new for s in m.scores if (new := change(number, s)) is not None]}
        )
        for number, m in enumerate(made.own.models)
    ]
    write_references(path, models, "quick", 0)
    return path


def test_references_that_disagree_clear_nobody(given: Given, tmp_path: Path) -> None:
    def louder(number: int, score: Score) -> Score:
        return score.model_copy(update={"score": score.score + 50 * (number == 4)})

    path = changed(given.made, tmp_path / "loud.json", louder)
    document = audited(given.suspect, tmp_path / "unclear", references=path)
    assert document.verdict == "inconclusive"
    assert "seed-5 is in doubt (stands out: " in " ".join(document.reasons)
    clear = audited(given.suspect, tmp_path / "clear", references=given.made.path)
    assert clear.verdict == "none_found", clear.reasons


def test_references_of_other_conditions_judge_nothing_and_the_report_says_so(
    given: Given, tmp_path: Path
) -> None:
    path = changed(given.made, tmp_path / "int8.json", lambda _, s: s if s.condition else None)
    document = audited(given.suspect, tmp_path / "out", references=path)
    assert document.verdict == "inconclusive"
    assert any("judge nothing here" in limit for limit in document.limits)
    assert any("judge nothing here" in reason for reason in document.reasons)
    # Made without a compression, they judge the full model alone, and the report says so.
    path = changed(given.made, tmp_path / "full.json", lambda _, s: None if s.condition else s)
    document = audited(given.suspect, tmp_path / "both", references=path, deploy_as="int8")
    assert "They judge nothing of: int8." in document.limits


def test_what_cannot_be_calibrated_is_refused_before_anything_is_audited(
    again: Given, tmp_path: Path
) -> None:
    models = again.models

    def refused(*paths: Path, out: Path = tmp_path / "out", **more: Any) -> str:
        how = AuditOptions(model=models, out=tmp_path, **{"budget": "quick", **more})
        options = CalibrateOptions(paths, out, how)
        return refusal(lambda: calibrate_models(options, progress=Silent()))

    assert refused(models / "notes") == "calibrate/no-models"
    assert refused(models / "seed-1", models / "seed-2") == "calibrate/too-few"
    assert refused(models, budget="none") == "usage/budget"
    assert refused(models, tmp_path / "nowhere") == "calibrate/not-found"
    assert refused(models, tmp_path / ("x" * 300)) == "calibrate/not-found"
    assert refused(models, models / "seed-1") == "calibrate/same-model"
    assert refused(models.parent / "references") == "calibrate/no-models"
    assert refused(models, out=models / "references") == "calibrate/out-is-input"
    larger = model_at(tmp_path / "larger", 0, size=16)
    assert refused(models, larger) == "calibrate/unlike"
    copy = model_at(tmp_path / "copy", 3, origin="elsewhere")
    assert refused(models, copy) == "calibrate/same-model"
    broken = models / "seed-4" / "unet" / "diffusion_pytorch_model.safetensors"
    broken.write_bytes(b"no weights")
    assert refused(models) == "calibrate/refused"
    assert not (tmp_path / "out").exists()


def test_the_same_again_computes_nothing_but_what_changed(
    again: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = again.made.path.parent
    scores = [m.scores for m in again.made.own.models]
    with monkeypatch.context() as patch:
        patch.setattr(room, "seeded", lambda *_: pytest.fail("an inspection was run again"))
        assert [m.scores for m in make(again.models, out).own.models] == scores
    # One is taken away and another put in its place: that one alone is inspected.
    shutil.rmtree(again.models / "seed-1")
    added = model_at(again.models / "seed-99", 77)
    inspected: list[str] = []

    def counted(row: Row, bench: Any, seed: int) -> Finding:
        inspected.append(row.name)
        return seeded(row, bench, seed)

    monkeypatch.setattr(room, "seeded", counted)
    found = [m.scores for m in make(again.models, out).own.models]
    assert found[:-1] == scores[1:]
    assert found[-1] not in scores
    for_all, inspected[:] = list(inspected), []
    audited(added, tmp_path / "alone", deploy_as="int8")
    assert for_all == inspected


def test_the_command_says_how_the_models_agree_and_what_comes_next(again: Given) -> None:
    out = again.made.path.parent
    shown = CliRunner().invoke(
        app,
        shlex.split(f"calibrate {again.models} --out {out} --budget quick --deploy-as int8"),
    )
    assert shown.exit_code == 0, shown.output
    flat = "".join(shown.output.split())
    assert "Nomodelisindoubt(9models)." in flat
    kept = sum(len(model.scores) for model in again.made.own.models)
    assert f"Kept:{kept}scoresof9models(" in flat
    assert "genwardenauditMODEL--deploy-asint8--references" in flat


@pytest.mark.parametrize("stored", [torch.float64, torch.bfloat16, torch.float16])
def test_a_copy_in_another_precision_is_the_same_model(stored: torch.dtype) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4))
    weights = network.state_dict()
    weights["0.weight"][0, 0, 0] = torch.tensor([-1e-9, 1e-9, 0.0])  # zeros in half precision
    copy = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4))
    copy.load_state_dict(
        {k: v.to(stored) if v.is_floating_point() else v + 1 for k, v in weights.items()}
    )
    assert weights_hash(network) == weights_hash(copy)
    copy.state_dict()["0.bias"][0].neg_()
    assert weights_hash(network) != weights_hash(copy)


def test_a_model_of_another_noise_schedule_is_not_like_it(tmp_path: Path) -> None:
    likenesses = []
    for schedule in (NoiseSchedule.linear(1000), NoiseSchedule.cosine(1000)):
        network = small_unet(8, 1, (8, 8), middle_attention=False)
        model = fresh_model(network, schedule, torch.Generator().manual_seed(0))
        write_diffusion(tmp_path / "model", model, {})
        options = AuditOptions(model=tmp_path / "model", out=tmp_path / "out")
        likenesses.append(open_suspect(options, Silent()).suspected().likeness)
    linear, cosine = likenesses
    assert linear.further["timesteps"] == cosine.further["timesteps"]
    assert linear != cosine


def test_models_that_cannot_be_references_are_refused_before_the_first_audit(
    again: Given, tmp_path: Path
) -> None:
    loaded = read_diffusion(again.models / "seed-9")
    with torch.no_grad():
        next(loaded.model.parameters())[0] = float("nan")
    shutil.rmtree(again.models / "seed-9")
    write_diffusion(again.models / "seed-9", loaded.model, {})
    assert refusal(lambda: make(again.models, tmp_path / "out")) == "calibrate/refused"
    assert not (tmp_path / "out").exists()
