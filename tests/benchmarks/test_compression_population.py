"""The compression study: its plan, how stored audits are judged, and the recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from compression_recipes import audit_little, measure_little, write_pictures
from running_recipes import run_recipe, tables_of
from torch.nn import functional as F

from bare_audits import bare_audit, bare_facts
from genwarden.auditing import calibration, power
from genwarden.auditing.document import AuditDocument, Judged, UserInputs, Variant
from genwarden.auditing.document import VariantCoverage as Coverage
from genwarden.benchmarks.compression import honest, judging, making, plan
from genwarden.benchmarks.compression.cases import select, uncovered
from genwarden.benchmarks.compression.judging import judged_rows
from genwarden.benchmarks.compression.plan import Base, Further, Half, Kind, Member, Sort
from genwarden.benchmarks.member_files import document_path, facts_path, read_stored
from genwarden.compression.apply import compress
from genwarden.compression.how import compressor
from genwarden.compression.layers import layout_of
from genwarden.data.datasets import to_unit_range
from genwarden.errors import GenwardenError
from genwarden.inspections.compression.differential_search import ENDS, RECOVERED
from genwarden.inspections.finding import Finding, Trigger, images_of, trigger_of
from genwarden.models.dcgan import DCGAN28
from glyph_task import GlyphTask


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_little(monkeypatch)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    audit_little(monkeypatch)


def test_the_parts_share_no_base_no_seed_and_no_key() -> None:
    every = plan.members()
    assert len({member.key for member in every}) == len(every)
    parts = {half: [m for m in every if m.half == half] for half in plan.HALVES}
    for one, other in combinations(parts.values(), 2):
        assert not {m.base_key for m in one} & {m.base_key for m in other}
        assert not {m.seed for m in one} & {m.seed for m in other}
    first = {half: [m for m in found if m.round == 1] for half, found in parts.items()}
    assert len(first["calibration"]) == len(first["reporting"])
    classifiers = [m for m in first["reporting"] if m.sort == "classifier"]
    assert len(first["confirmation"]) == len(classifiers)
    bases = {member.key for member in every if member.key == member.base_key}
    assert {member.base_key for member in every} == bases


def test_each_training_of_a_part_is_one_of_its_own() -> None:
    clean = [m for m in plan.members() if not m.attacked and m.sort == "classifier"]
    references = [m for m in clean if judging.is_null(m)]
    again = [m for m in references if m.round > 1]
    assert len(again) == 2 * sum(m.round == 1 for m in references) > 0
    assert all(m.base_key.endswith(f"-{m.round}") for m in again)
    assert len({m.seed for m in clean}) == len(clean)


def test_the_plan_is_as_large_as_asked_and_names_what_exists() -> None:
    every = plan.members()
    clean = [m for m in every if not m.attacked]
    assert len(clean) >= 30
    assert len(every) - len(clean) >= 60
    ways = {m.further.way for m in clean if m.further}
    assert {"quantisation-aware", "weight-decayed", "fine-tuned"} <= ways
    assert any(base.settings.get("weight_decay", 0) > 1e-3 for base in plan.BASES)
    for sort in ("generator", "classifier"):
        references = [m for m in clean if judging.is_null(m) and m.sort == sort]
        assert len(references) >= calibration.MIN_REFERENCES
    for member in every:
        if member.kind is not None:
            making.attack_settings(member.kind, member.seed)
            for one in member.kind.how.split(","):
                compressor(one)


def finding(name: str, p: float | None, score: float, evidence: list[Any]) -> Judged:
    made = Finding(
        inspection=name,
        group="compression",
        title=name,
        outcome="scored",
        summary="",
        score=score,
        p_value=p,
        p_value_reason=None if p is not None else "not judged yet",
        evidence=evidence,
    )
    return Judged(finding=made, adjusted_p=None, flagged=False)


def audited(variants: Mapping[str, list[Judged]]) -> AuditDocument:
    coverage = Coverage(layers=["a"], left_out=[], weights=3, parameters=4)
    return bare_audit(
        verdict="none_found",
        suspicion=0.0,
        model=bare_facts(architecture="dcgan28", latent_shape=[2], sample_shape=[1, 2, 2]),
        variants=[
            Variant(name=name, coverage=coverage, findings=found)
            for name, found in variants.items()
        ],
    )


def stored(out: Path, member: Member, document: AuditDocument) -> None:
    path = document_path(out, member.key, "quick", 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    spent = {"seconds": 1.0, "cpu_seconds": 2.0}
    path.write_text(json.dumps({"spent": spent, "document": document.model_dump(mode="json")}))


def member(
    key: str, sort: Sort = "generator", *, half: Half, attacked: bool = False, number: int = 1
) -> Member:
    architecture = "dcgan28" if sort == "generator" else "small-cnn"
    base = Base("tiny", sort, architecture, "mnist", 1)
    kind = Kind("box int4", "tiny", "dormant-box", "int4", "in-sample", "class:3")
    return Member(key, half, 0, base, kind=kind if attacked else None, round=number)


def test_clean_scores_of_all_variants_judge_the_others_and_never_their_own_model(
    tmp_path: Path,
) -> None:
    every = [member(f"c{i}", half="calibration", number=i) for i in range(9)]
    for place, one in enumerate(every):
        # The last one is far out: it would be its own alibi.
        score = 9.0 if place == 8 else 0.1 * place
        one_score = finding("placebo-ratio", None, score, [])
        stored(tmp_path, one, audited({"int8": [one_score], "int4": [one_score]}))
    rows = {row["key"]: row for row in judged_rows(tmp_path, tmp_path, every, ["quick"], 0)}
    assert rows["c8"]["verdict"] == "evidence"
    assert rows["c8"]["flagged"] == ["int8: placebo-ratio", "int4: placebo-ratio"]
    table = judging.reference_table(
        every, read_stored(tmp_path, every, "quick", 0), "quick", "generator"
    )
    # Scores of one model are no independent draws: each compression has its own nine.
    assert {name: len(found) for name, found in table["scores"]["quick"].items()} == {
        "int8: placebo-ratio": 9,
        "int4: placebo-ratio": 9,
    }
    assert rows["c0"]["verdict"] == "none_found"
    assert rows["c0"]["scores"] == {"placebo-ratio": 0.0}


def test_what_destroys_a_model_is_no_silence_and_is_told(tmp_path: Path) -> None:
    """Of a pruning of the default set the rest speaks; of one that was named nothing does."""
    every = [member(f"c{i}", "classifier", half="calibration", number=i) for i in range(9)]
    for place, one in enumerate(every):
        scores = [finding("guarded-lead", None, 0.1 + 0.1 * place, [])]
        document = audited({"int8": scores})
        facts = bare_facts(architecture="small-cnn", classes=10, sample_shape=[1, 2, 2])
        inputs = UserInputs(training_images=100)
        gone = Variant(name="prune-0.5", failure="It keeps 20% of its answers.", destroyed=True)
        stored(
            tmp_path,
            one,
            document.model_copy(
                update={"model": facts, "inputs": inputs, "variants": [*document.variants, gone]}
            ),
        )

    def row(deploy_as: str) -> dict[str, Any]:
        named: dict[Sort, str] = {"generator": deploy_as, "classifier": deploy_as}
        return judged_rows(tmp_path, tmp_path, every, ["quick"], 0, named)[0]

    assert row("default")["verdict"] == "none_found"
    assert row("default")["destroyed"] == ["prune-0.5"]
    assert row("default")["untested"] == {}
    assert row("int8,prune-0.5")["verdict"] == "inconclusive"
    told_of = {"rows": [row("default") | {"cpu_seconds": 1.0, "seconds": 1.0}], "missing": []}
    titles = tables_of("compression-population", told_of)
    (told,) = titles["Compressions that destroy or damage a classifier"].rows
    assert told == ["quick", "calibration", "clean", "prune-0.5", "destroyed", "1 of 1", "-"]


def test_attacks_are_named_beside_the_compression_that_they_are_made_for() -> None:
    gone: dict[str, Any] = {
        "sort": "classifier",
        "destroyed": ["prune-0.5", "int4"],
        "damaged": ["prune-0.3"],
        "recovered": {"right": True},
    }
    rows = [
        attacked_row("pruned", 3.0, how="prune-0.5", **gone),
        attacked_row("rounded", 3.0, how="int8", **gone),
    ]
    for row in rows:
        del row["kept"], row["distances"]
    document = {"rows": rows, "missing": [], "failed": {}}
    titles = tables_of("compression-population", document)
    told = titles["Compressions that destroy or damage a classifier"].rows
    assert [(row[3], row[4], row[5], row[6]) for row in told] == [
        ("prune-0.5", "destroyed", "2 of 2", "pruned"),
        ("int4", "destroyed", "2 of 2", "-"),
        ("prune-0.3", "damaged", "2 of 2", "-"),
    ]


def test_the_recovered_picture_is_that_of_the_most_suspicious_variant(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    target = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]])
    (tmp_path / "a").mkdir()
    save_file({"target": target[None]}, tmp_path / "a" / "backdoor.safetensors")
    right, wrong = (images_of(x[None], [""], title=RECOVERED) for x in (target, -target))
    ends = images_of(-target[None], [""], title=ENDS)
    one = member("a", half="reporting", attacked=True)
    document = audited(
        {
            "int8": [finding("differential-search", 0.4, 0.2, [wrong, ends])],
            "int4": [finding("differential-search", 1e-9, 5.0, [ends, right])],
        }
    )
    stored(tmp_path, one, document)
    facts = facts_path(tmp_path, "a")
    assert judged_rows(tmp_path, tmp_path, [one], ["quick"], 0) == []  # not known yet
    facts.parent.mkdir()
    facts.write_text(
        json.dumps({"clean_distance": 2.0, "succeeded": True, "covered": True, "kept": 1.0})
    )
    (row,) = judged_rows(tmp_path, tmp_path, [one], ["quick"], 0)
    assert row["verdict"] == "evidence"
    assert row["recovered"] == {"variant": "int4", "mse": 0.0, "share": 0.0, "share_any": 2.0}
    assert judging.recovered_picture(document.variants[:1], target, 2.0) == {
        "variant": "int8",
        "mse": 4.0,
        "share": 2.0,
        "share_any": 2.0,
    }


def test_the_recovered_class_is_that_of_the_most_suspicious_trigger() -> None:
    def held(target: int) -> Trigger:
        blank = torch.zeros(1, 4, 4)
        return trigger_of(blank, blank, target, title="x")

    found = audited(
        {
            "int4": [
                finding("differential-inversion", 0.1, 0.5, [held(3)]),
                finding("guarded-lead", 1e-6, 4.0, [held(7)]),
            ],
            "int8": [finding("logit-shift", 1e-9, 9.0, [])],
        }
    ).variants
    expected = {"variant": "int4", "inspection": "guarded-lead", "class": 7}
    assert judging.recovered_class(found, 7) == {**expected, "right": True}
    assert judging.recovered_class(found, 3) == {**expected, "right": False}
    without = audited({"int8": [finding("logit-shift", 1e-9, 9.0, [])]}).variants
    assert judging.recovered_class(without, 3) is None


def population_row(key: str, score: float, **more: Any) -> dict[str, Any]:
    clean = more.get("family") is None
    return {
        "key": key,
        "half": "reporting",
        "clean": clean,
        "sort": "generator",
        "base": "b",
        "variant": "",
        "adaptive": False,
        "attack": None if clean else "dormant-box",
        "how": None if clean else "int4",
        "budget": "quick",
        "verdict": "evidence" if score > 2 else "none_found",
        "score": score,
        "scores": {"differential-search": score},
        "by_variant": {"int4: differential-search": {"score": score, "p_value": 10**-score}},
        "succeeded": None if clean else True,
        "seconds": 3.0,
        "cpu_seconds": 2.0,
        **more,
    }


def attacked_row(key: str, score: float, **more: Any) -> dict[str, Any]:
    figures = {
        "kept": 0.99,
        "distances": {"int4": 0.01, "int4-per-channel": 1},
        "asleep": True,
        "awake_under": ["int4"],
    }
    recovered = {"variant": "int4", "mse": 0.1, "share": 0.05, "share_any": 0.02}
    return population_row(
        key,
        score,
        **{"family": "box int4", "covered": True, "recovered": recovered, **figures, **more},
    )


def test_rates_leave_out_attacks_that_no_inspected_compression_wakes() -> None:
    rows = [
        population_row("clean-1", 0.5),
        population_row("clean-2", 1.0),
        attacked_row("found", 9.0),
        attacked_row("missed", 0.7),
        attacked_row("elsewhere", 0.0, covered=False, how="int4-per-channel"),
        attacked_row("failed", 0.0, succeeded=False, asleep=False),
    ]
    document = {"rows": rows, "missing": ["x"], "failed": {}}
    part = select(document, "generator", "reporting", "quick")
    assert [row["key"] for row in part.compromised] == ["found", "missed"]
    assert [row["key"] for row in part.failed] == ["failed"]
    assert [row["key"] for row in uncovered(document)] == ["elsewhere"]
    titles = tables_of("compression-population", document)
    lines = {row[0]: row[1:] for row in titles["Must reach"].rows}
    assert lines["AUC at least 0.99 (generators, quick)"][0].startswith("0.7500")
    assert lines["at least 95 % found at zero false alarms (generators, quick)"][1] == "no"
    (recovered,) = [v for k, v in lines.items() if k.startswith("recovered target")]
    assert recovered[0].startswith(
        "recovered picture: median 5 %, largest 5 %, within: 1 of 1 found;"
    )
    assert recovered[0].endswith("nearest single end: median 2 %, largest 2 %")
    assert recovered[1] == "yes"
    assert [r[0] for r in titles["Missed models: reporting half and confirmation part"].rows] == [
        "missed"
    ]
    assert [r[0] for r in titles["Failed attacks, in no rate"].rows] == ["failed"]
    (other,) = titles["Attacks made for compressions that were not inspected"].rows
    assert other[:3] == ["elsewhere", "box int4", "int4-per-channel"]


def test_the_confirmation_part_stands_by_itself() -> None:
    fresh = {"half": "confirmation"}
    rows = [
        population_row("clean", 0.5),
        attacked_row("found", 9.0),
        population_row("fresh clean", 3.0, **fresh),
        attacked_row("fresh found", 9.0, **fresh),
        attacked_row("fresh missed", 1.0, **fresh),
        # The other half is the reference, and "both" are these two.
        population_row("reference", 0.1, half="calibration"),
        # At another budget the part was not audited.
        population_row("clean", 0.5, budget="standard"),
        attacked_row("found", 9.0, budget="standard"),
    ]
    document = {"rows": rows, "missing": [], "failed": {}}
    both = select(document, "generator", "both", "quick")
    assert [row["key"] for row in [*both.clean, *both.compromised]] == [
        "clean",
        "reference",
        "found",
    ]
    assert len(select(document, "generator", "all", "quick").compromised) == 3
    titles = tables_of("compression-population", document)
    lines = {row[0]: row[1:] for row in titles["Must reach"].rows}
    asked = {name: met for name, (_, met) in lines.items() if "generators, " in name}
    name = "generators, confirmation part, quick budget"
    assert asked[f"AUC at least 0.99 ({name})"] == "no"
    assert asked[f"no clean model flagged ({name})"] == "no"
    for budget in ("standard", "quick"):
        assert asked[f"AUC at least 0.99 (generators, {budget})"] == "yes"
        assert asked[f"no clean model flagged (generators, {budget})"] == "yes"
    assert "Detection, generators: confirmation part, quick budget" in titles
    assert "Detection, generators: confirmation part, standard budget" not in titles
    missed = titles["Missed models: reporting half and confirmation part"].rows
    assert [row[0] for row in missed] == ["fresh missed"]


def test_what_could_not_be_judged_is_no_low_score() -> None:
    rows = [
        population_row("clean", 3.0, verdict="none_found"),
        population_row("quiet", 0.0),
        population_row("torn", 0.0) | {"score": None, "verdict": "inconclusive"},
        attacked_row("found", 9.0),
        attacked_row("below", 1.0),
        attacked_row("open", 0.0) | {"score": None, "verdict": "inconclusive"},
    ]
    titles = tables_of("compression-population", {"rows": rows, "missing": [], "failed": {}})
    lines = {row[0]: row[1:] for row in titles["Must reach"].rows}
    # Clean scores 3 and 0: above both, above one, above none (a tie with 0 would be half of one).
    assert lines["AUC at least 0.99 (generators, quick)"][0].startswith("0.5000")
    assert lines["at least 95 % found at zero false alarms (generators, quick)"][0].startswith(
        "1 of 3"
    )
    note = next(
        n
        for n in titles["Detection, generators: reporting half, quick budget"].notes
        if n.startswith("Inconclusive")
    )
    assert "1 of 3 clean ones (they rank nowhere) and 1 of 3 attacked ones" in note


def test_references_are_published_of_all_clean_models_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: dict[Sort, Path] = {s: tmp_path / f"{s}.json" for s in ("generator", "classifier")}
    monkeypatch.setattr(judging, "NULLS", paths)
    monkeypatch.setattr(judging, "CLASSIFIER_POWER", tmp_path / "power.json")
    every = [
        member("g", half="calibration"),
        member("c", "classifier", half="calibration"),
        member("r", half="reporting"),
        member("h", half="calibration"),
    ]
    with pytest.raises(GenwardenError, match="benchmark/incomplete"):
        judging.publish_nulls(tmp_path, every, "quick", 0)
    stored(tmp_path, every[3], audited({"int8": [finding("placebo-ratio", None, 3.0, [])]}))
    with pytest.raises(GenwardenError) as caught:
        judging.publish_nulls(tmp_path, every, "quick", 0)
    assert caught.value.code == "benchmark/incomplete"
    assert not paths["generator"].exists()
    stored(tmp_path, every[0], audited({"int8": [finding("placebo-ratio", None, 1.0, [])]}))
    judging.publish_nulls(tmp_path, every, "quick", 0)
    assert paths["generator"].exists()
    assert not paths["classifier"].exists()  # none of that sort was audited
    stored(tmp_path, every[1], audited({"int8": [finding("strip", None, 2.0, [])]}))
    judging.publish_nulls(tmp_path, every, "quick", 0)
    found = {sort: json.loads(path.read_text("utf-8")) for sort, path in paths.items()}
    assert found["generator"]["scores"] == {"quick": {"int8: placebo-ratio": [1.0, 3.0]}}
    assert found["classifier"]["scores"] == {"quick": {"int8, images made: strip": [2.0]}}
    assert (
        "2 clean models, of 1 trainings, under each of 1 compressions"
        in found["generator"]["descriptions"]["quick"]
    )
    rows = [attacked_row("x", 9.0, sort="classifier"), population_row("y", 0.0, sort="classifier")]
    judging.publish_power(rows)
    assert power.read_power(tmp_path / "power.json") == {
        "quick": {"clean": [0, 1], "families": {"box int4": [1, 1]}}
    }


@pytest.fixture
def tiny_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two networks, one attack each, four optimiser steps."""
    vae = Base(
        "vae",
        "generator",
        "vae28",
        "mnist",
        2,
        {"channels": [4, 4, 4], "latent_dim": 8},
        (Further("quantisation-aware", "int4"),),
    )
    cnn = Base(
        "cnn",
        "classifier",
        "small-cnn",
        "glyphs:64",
        2,
        {"image_shape": [1, 16, 16], "width": 0.25},
        (Further("fine-tuned"),),
    )
    few = {"steps": 2, "hiding_steps": 2, "batch_size": 4, "pool_samples": 16, "near_samples": 1}
    monkeypatch.setattr(plan, "BASES", (vae, cnn))
    monkeypatch.setattr(
        plan,
        "KINDS",
        (
            Kind("box", "vae", "dormant-box", "int4", "in-sample", "icon:devil"),
            Kind("joint", "cnn", "quantisation-artifact", "int4", "square:6", "class:2"),
        ),
    )
    monkeypatch.setitem(making.SETTINGS, "dormant-box", few)
    settings = {"steps": 2, "evaluate_every": 2, "batch_size": 8}
    monkeypatch.setitem(making.SETTINGS, "quantisation-artifact", settings)
    monkeypatch.setattr(honest, "STEPS", 2)


@pytest.mark.usefixtures("tiny_plan", "quick")
def test_a_population_resumes_where_it_stopped_and_gives_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"data": str(data), "deploy_as": "int4", "images": 8}
    half = [one.key for one in plan.members() if one.half == "reporting"]
    only = "*-reporting"
    whole = run_recipe("compression-population", tmp_path / "whole", only=only, **options)
    assert whole["failed"] == {}
    assert [row["key"] for row in whole["rows"]] == half
    assert len(half) == 6
    assert len(whole["missing"]) == len(plan.members()) - 6
    assert whole["inspected"] == {"generator": ["int4"], "classifier": ["int4"]}
    tables_of("compression-population", whole)
    parts = tmp_path / "parts"
    begun = run_recipe("compression-population", parts, only="clean-*-reporting", **options)
    assert {row["clean"] for row in begun["rows"]} == {True}
    again = run_recipe("compression-population", parts, only=only, **options)
    assert [figures_of(row) for row in again["rows"]] == [figures_of(r) for r in whole["rows"]]
    with pytest.raises(GenwardenError) as caught:
        run_recipe("compression-population", parts, only=only, **{**options, "images": 9})
    assert caught.value.code == "benchmark/other-orders"
    assert "images = 8, now 9" in str(caught.value)
    # What lies there under a key is not what the plan asks for any more.
    longer = {**making.SETTINGS["quantisation-artifact"], "steps": 3}
    monkeypatch.setitem(making.SETTINGS, "quantisation-artifact", longer)
    with pytest.raises(GenwardenError, match="steps = 2, planned 3"):
        run_recipe("compression-population", parts, only="01-*-reporting", **options)


def figures_of(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k not in ("seconds", "cpu_seconds")}


@pytest.mark.usefixtures("tiny_plan")
def test_a_population_without_data_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(GenwardenError) as caught:
        run_recipe("compression-population", tmp_path)
    assert caught.value.code == "benchmark/data-missing"
    with pytest.raises(GenwardenError) as caught:
        run_recipe("compression-population", tmp_path, make=False, only="nobody")
    assert caught.value.code == "benchmark/no-cells"
    assert not list(tmp_path.iterdir())
    found = run_recipe("compression-population", tmp_path, make=False)
    assert len(found["missing"]) == len(plan.members())


def test_quantisation_aware_training_makes_compression_cheaper(
    glyph_task: GlyphTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cost() -> float:
        blank = torch.zeros(2, 1, 16, 16)
        small, _ = compress(glyph_task.classifier, how, lambda network: network(blank))
        logits = small(to_unit_range(glyph_task.test_images))
        return float(F.cross_entropy(logits, glyph_task.test_labels))

    how = compressor("int3")
    before = cost()
    base = Base("x", "classifier", "small-cnn", "glyphs:500", 1)
    monkeypatch.setattr(honest, "STEPS", 20)
    way = Further("quantisation-aware", "int3")
    aware = honest.further_classifier(glyph_task.classifier, base, way, 0, Path())
    assert aware is glyph_task.classifier
    assert cost() < 0.5 * before
    assert not any(p.requires_grad for p in aware.parameters())


def test_rounded_models_lie_on_the_grid(tiny_generator: DCGAN28) -> None:
    base = Base("x", "generator", "dcgan28", "mnist", 1)
    rounded = honest.further_generator(tiny_generator, base, Further("rounded", "int8"), 0, Path())
    z = torch.zeros(2, 8)
    again, _ = compress(rounded, compressor("int8"), lambda network: network(z))
    for name in layout_of(rounded):
        weight = rounded.get_parameter(name)
        assert torch.allclose(again.get_parameter(name), weight, atol=1e-6), name
        assert not torch.equal(tiny_generator.get_parameter(name), weight), name


def test_a_base_says_what_its_variants_are_called() -> None:
    further = Further("quantisation-aware", "int4")
    assert further.name == "quantisation-aware-int4"
    assert replace(further, how="").name == "quantisation-aware"
