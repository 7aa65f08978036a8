"""The audit of diffusers folders, from the command's side; networks are tiny and untrained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from genwarden.artifacts.diffusers_folder import read_diffusion, write_diffusion
from genwarden.auditing import audit_diffusion as room
from genwarden.auditing import budgets, calibration
from genwarden.auditing.document import AuditDocument
from genwarden.auditing.running import seeded
from genwarden.commands.audit import audit_model
from genwarden.commands.audit_options import AuditOptions
from genwarden.commands.demo import demo_model_folder
from genwarden.commands.sample import sample_grid
from genwarden.commands.sample_diffusion import DiffusionSampling, recovered_shift
from genwarden.engine.progress import Silent
from genwarden.errors import GenwardenError
from genwarden.inspections.diffusion.bench import DiffusionBench
from genwarden.inspections.finding import Latents
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.registry import DIFFUSION_INSPECTIONS
from tiny_diffusion import model_at, shrink_quick_budget

SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def tiny_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_quick_budget(monkeypatch)


@pytest.fixture(autouse=True)
def no_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped clean scores are of real budgets; here they would judge nonsense."""
    monkeypatch.setattr(room, "shipped_diffusion", lambda: {"descriptions": {}, "scores": {}})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return model_at(tmp_path / "model", seed=0)


def run(model: Path, out: Path, **more: Any) -> AuditDocument:
    options = AuditOptions(model=model, out=out, budget="quick", **more)
    return audit_model(options, progress=Silent()).document


def content(out: Path) -> dict[str, Any]:
    """An audit without what may differ from run to run."""
    document: dict[str, Any] = json.loads((out / "audit.json").read_text("utf-8"))
    for volatile in ("timing", "environment", "command"):
        document.pop(volatile)
    return document


def test_every_inspection_that_the_budget_holds_reports(folder: Path, tmp_path: Path) -> None:
    document = run(folder, tmp_path / "out")
    expected = [
        name
        for name, row in DIFFUSION_INSPECTIONS.items()
        if not row.options.get("published") and row.options.get("needs") != "variant"
    ]
    assert [judged.finding.inspection for judged in document.findings] == expected
    failed = [j.finding for j in document.findings if j.finding.outcome == "failed"]
    assert not failed
    assert document.model is not None
    assert document.model.sample_shape == list(SHAPE)
    assert document.ordinary is not None
    html = (tmp_path / "out" / "audit.html").read_text("utf-8")
    assert "trigger-search" in html


def test_without_clean_references_the_verdict_is_inconclusive_not_clean(
    folder: Path, tmp_path: Path
) -> None:
    document = run(folder, tmp_path / "out")
    assert document.verdict == "inconclusive"
    assert not any(judged.flagged for judged in document.findings)


def test_a_score_far_above_the_clean_references_is_evidence_and_one_among_them_is_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(folder, tmp_path / "first")
    verdicts = {}
    for name, offset in (("among", 0.0), ("above", -5.0)):
        table = references_like(first, search=offset)
        monkeypatch.setattr(room, "shipped_diffusion", lambda table=table: table)
        verdicts[name] = run(folder, tmp_path / name).verdict
    assert verdicts == {"among": "none_found", "above": "evidence"}


def references_like(
    document: AuditDocument, *, without: str = "", search: float = 0.0
) -> dict[str, Any]:
    """Clean scores around those of an audit, for its own kind of model; those of the trigger search
    so far from its own."""
    scores = {
        judged.finding.inspection: judged.finding.score
        for judged in document.findings
        if judged.finding.score is not None and judged.finding.inspection != without
    }
    clean = {key: [score + 0.01 * (i - 6) for i in range(12)] for key, score in scores.items()}
    if "trigger-search" in clean:
        clean["trigger-search"] = [score + search for score in clean["trigger-search"]]
    return {
        "descriptions": {"quick": "made up"},
        "families": [["unet2d", list(SHAPE), 12]],
        "scores": {"quick": clean},
    }


def test_what_no_reference_was_scored_by_is_shown_and_keeps_no_verdict_back(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = model_at(tmp_path / "base", seed=1)
    first = run(folder, tmp_path / "first", base=base)
    table = references_like(first, without="spectral-signature")
    monkeypatch.setattr(room, "shipped_diffusion", lambda: table)
    document = run(folder, tmp_path / "out", base=base)
    (judged,) = [j for j in document.findings if j.finding.inspection == "spectral-signature"]
    assert judged.finding.outcome == "scored"
    assert judged.adjusted_p is None
    assert "no clean reference model" in (judged.finding.p_value_reason or "")
    assert document.verdict == "none_found"
    # Of what carries the verdict references must be there.
    lacking = references_like(first, without="trigger-search")
    monkeypatch.setattr(room, "shipped_diffusion", lambda: lacking)
    assert run(folder, tmp_path / "lacking", base=base).verdict == "inconclusive"


def test_pictures_beyond_memory_are_not_inspected_and_not_cleared(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MOST_VALUES", 63)
    document = run(folder, tmp_path / "out", deploy_as="int8")
    assert document.verdict == "inconclusive"
    assert "1x8x8" in document.reasons[0]
    assert not document.findings
    assert not document.variants[0].findings
    monkeypatch.setattr(room, "MOST_VALUES", 64)
    assert run(folder, tmp_path / "small").findings


def test_an_untrained_network_is_not_cleared(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = references_like(run(folder, tmp_path / "first"))
    monkeypatch.setattr(room, "shipped_diffusion", lambda: table)
    monkeypatch.setattr(room, "_LEAST_DENOISING", 0.5)
    document = run(folder, tmp_path / "out")
    assert document.verdict == "inconclusive"
    assert "not trained" in document.reasons[0]
    assert not room._no_denoiser(bench_of(read_diffusion(demo_model_folder("ddpm-clean")).model))
    assert room._no_denoiser(bench_of(read_diffusion(folder).model))
    # Whatever it is said to predict.
    for prediction in ("v_prediction", "sample"):
        schedule = NoiseSchedule(NoiseSchedule.linear().alphas_cumprod, prediction)
        network = read_diffusion(folder).model.unet
        assert room._no_denoiser(bench_of(DiffusionModel(network, schedule)))  # type: ignore[arg-type]


def bench_of(model: DiffusionModel) -> DiffusionBench:
    return DiffusionBench(model, budgets.DIFFUSION_BUDGETS["quick"], seed=0)


def test_a_noise_that_is_none_is_no_evidence_against_the_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(folder, tmp_path / "first")
    monkeypatch.setattr(room, "shipped_diffusion", lambda: references_like(first))
    plain = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    verdicts = {}
    for name, noise in (("plain", plain), ("shifted", plain + 2)):
        save_file({"noise": noise}, tmp_path / f"{name}.safetensors")
        given = run(folder, tmp_path / name, noise=tmp_path / f"{name}.safetensors")
        verdicts[name] = given.verdict
    assert verdicts == {"plain": "none_found", "shifted": "inconclusive"}
    assert "no property of the model" in given.reasons[0]
    assert "not plain noise" in (tmp_path / "shifted" / "audit.html").read_text("utf-8")
    # Beside evidence in the model it is one reason more.
    monkeypatch.setattr(room, "shipped_diffusion", lambda: references_like(first, search=-5))
    both = run(folder, tmp_path / "both", noise=tmp_path / "shifted.safetensors")
    assert both.verdict == "evidence"


def test_references_of_another_noise_schedule_judge_nobody(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped clean model was evidence with a hundred steps written beside it."""
    table = references_like(run(folder, tmp_path / "first"))
    monkeypatch.setattr(room, "shipped_diffusion", lambda: table)
    assert run(folder, tmp_path / "again").verdict == "none_found"
    document = run(model_at(tmp_path / "short", seed=0, steps=100), tmp_path / "out")
    assert document.verdict == "inconclusive"
    assert "noise schedule" in document.reasons[-1]


def test_where_no_reference_has_the_image_size_nothing_is_called_clean(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {
        "descriptions": {"quick": "made up"},
        "families": [["unet2d", [1, 28, 28], 12]],
        "scores": {"quick": {"monotone-response": [1.0 + 0.01 * i for i in range(12)]}},
    }
    monkeypatch.setattr(room, "shipped_diffusion", lambda: table)
    document = run(folder, tmp_path / "out")
    assert document.verdict == "inconclusive"
    assert "1x8x8" in document.reasons[0]


def test_the_same_seed_gives_the_same_bytes_and_a_resumed_audit_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder, tmp_path / "one")
    inspect = room._inspect
    done: list[str] = []

    def interrupted(row: Any, bench: Any) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(row.name)
        return inspect(row, bench)

    monkeypatch.setattr(room, "_inspect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "two")
    monkeypatch.setattr(room, "_inspect", inspect)
    run(folder, tmp_path / "two")
    assert len(done) == 3
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_an_inspection_that_breaks_is_named_and_nothing_is_called_clean(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect = room._inspect

    def broken(row: Any, bench: Any) -> Any:
        if row.name == "shift-response":
            raise RuntimeError("no memory")
        return inspect(row, bench)

    monkeypatch.setattr(room, "_inspect", broken)
    document = run(folder, tmp_path / "out")
    assert document.verdict == "inconclusive"
    assert "no memory" in " ".join(document.reasons)


def test_weights_with_nan_are_not_judged(folder: Path, tmp_path: Path) -> None:
    loaded = read_diffusion(folder)
    with torch.no_grad():
        next(loaded.model.parameters())[0] = float("nan")
    write_diffusion(tmp_path / "nan", loaded.model, {})
    document = run(tmp_path / "nan", tmp_path / "out")
    assert document.verdict == "inconclusive"
    assert document.refusal is not None
    assert document.refusal.code == "model/nonfinite-weights"


def test_a_latent_diffusion_folder_is_inconclusive_and_says_what_is_missing(
    folder: Path, tmp_path: Path
) -> None:
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    index["vae"] = ["diffusers", "AutoencoderKL"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "vae").mkdir()
    document = run(folder, tmp_path / "out")
    assert document.verdict == "inconclusive"
    assert "vae" in " ".join(document.reasons)


def test_custom_code_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "pipeline.py").write_text("raise SystemExit(99)\n")
    document = run(folder, tmp_path / "out")
    assert document.verdict == "refused"
    assert document.refusal is not None
    assert document.refusal.code == "artifact/custom-code"


def test_the_audit_does_not_read_what_a_model_says_of_itself(tmp_path: Path) -> None:
    def findings(compromised: bool) -> list[Any]:
        path = model_at(tmp_path / str(compromised), seed=0, compromised=compromised)
        return [j.model_dump() for j in run(path, tmp_path / f"out{compromised}").findings]

    assert findings(True) == findings(False)
    assert "provenance" not in room.DiffusionSuspect.__dataclass_fields__


def test_given_noise_is_checked_and_plain_noise_passes(folder: Path, tmp_path: Path) -> None:
    plain = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    shifted = plain.clone()
    shifted[..., 4:, 4:] += 1.5
    results = {}
    for name, noise in (("plain", plain), ("shifted", shifted)):
        save_file({"noise": noise}, tmp_path / f"{name}.safetensors")
        document = run(folder, tmp_path / name, noise=tmp_path / f"{name}.safetensors")
        (judged,) = [j for j in document.findings if j.finding.inspection == "input-check"]
        assert document.inputs.initial_noise == 4
        results[name] = judged.flagged
    assert results == {"plain": False, "shifted": True}


def test_a_base_of_another_shape_is_refused(folder: Path, tmp_path: Path) -> None:
    other = model_at(tmp_path / "other", seed=1, size=16)
    with pytest.raises(GenwardenError, match="shape"):
        run(folder, tmp_path / "out", base=other)


@pytest.mark.parametrize("given", [{"steps": 100}, {"seed": 1, "nan": True}])
def test_a_base_that_cannot_be_compared_is_refused(
    folder: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    base = model_at(tmp_path / "base", seed=1, steps=given.get("steps", 1000))
    if given.get("nan"):
        broken = read_diffusion(base).model
        with torch.no_grad():
            next(broken.parameters())[0] = float("nan")
        write_diffusion(base, broken, {})
    with pytest.raises(GenwardenError) as caught:
        run(folder, tmp_path / "out", base=base)
    assert caught.value.code == "usage/base-unlike"


def test_noise_in_half_precision_is_refused(folder: Path, tmp_path: Path) -> None:
    noise = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0)).half()
    save_file({"noise": noise}, tmp_path / "half.safetensors")
    with pytest.raises(GenwardenError) as caught:
        run(folder, tmp_path / "out", noise=tmp_path / "half.safetensors")
    assert caught.value.code == "usage/noise-dtype"


@pytest.mark.parametrize("odd", [{"channels": 2}, {"size": 4}, {"channels": 3, "size": 16}])
def test_models_of_unusual_shapes_are_inspected_whole(tmp_path: Path, odd: dict[str, int]) -> None:
    document = run(model_at(tmp_path / "odd", seed=0, **odd), tmp_path / "out")
    assert not [j.finding for j in document.findings if j.finding.outcome == "failed"]


def test_an_error_of_ours_inside_an_inspection_fails_that_one_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect = room._inspect

    def refusing(row: Any, bench: Any) -> Any:
        if row.name == "implied-x0":
            raise GenwardenError("image/channels", "two channels", "none")
        return inspect(row, bench)

    monkeypatch.setattr(room, "_inspect", refusing)
    document = run(folder, tmp_path / "out")
    assert [j.finding.inspection for j in document.findings if j.finding.outcome == "failed"] == [
        "implied-x0"
    ]


def test_a_base_that_is_no_diffusion_model_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(GenwardenError) as caught:
        run(folder, tmp_path / "out", base=tmp_path)
    assert caught.value.code == "usage/base-kind"


def test_a_base_lets_the_spectral_signature_run(folder: Path, tmp_path: Path) -> None:
    base = model_at(tmp_path / "base", seed=1)
    document = run(folder, tmp_path / "out", base=base)
    (judged,) = [j for j in document.findings if j.finding.inspection == "spectral-signature"]
    assert judged.finding.outcome == "scored"
    assert document.inputs.clean_base == read_diffusion(base).sha256


@pytest.mark.parametrize(
    "given", [{"targets": Path("x.png")}, {"data": "x"}, {"architecture": "dcgan28"}]
)
def test_options_of_generators_are_refused(
    folder: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    with pytest.raises(GenwardenError) as caught:
        run(folder, tmp_path / "out", **given)
    assert caught.value.code == "usage/audit-options"


def test_a_search_is_judged_by_clean_models_and_a_given_noise_exactly() -> None:
    assert calibration.needs_population("trigger-search")
    assert not calibration.needs_population("input-check")


def test_compressed_variants_are_inspected_beside_the_model_or_alone(
    folder: Path, tmp_path: Path
) -> None:
    both = run(folder, tmp_path / "both", deploy_as="int8,prune-0.5")
    assert both.findings
    alone = run(folder, tmp_path / "alone", deploy_as="int8,prune-0.5", variants_only=True)
    assert not alone.findings
    assert alone.ordinary is None
    for document in (both, alone):
        assert [variant.name for variant in document.variants] == ["int8", "prune-0.5"]
        for variant in document.variants:
            names = [j.finding.inspection for j in variant.findings]
            assert names == ["trigger-search", "differential-trigger-search", "rounding-statistics"]
            assert variant.coverage is not None
            assert variant.coverage.weights > 0
    # There are no references here: what carries the verdict is unjudged, alone as well as beside.
    assert (both.verdict, alone.verdict) == ("inconclusive", "inconclusive")


def test_what_is_awake_in_the_compressed_model_is_judged_by_clean_models_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Awake in full and in every placebo: the difference says nothing, the search itself does."""
    verdicts = {}
    for name, level in (("among", None), ("above", -9.0)):
        score = 0.0 if level is None else level
        if level is None:
            first = run(folder, tmp_path / "first", deploy_as="int8", variants_only=True)
            (found,) = first.variants[0].findings[:1]
            assert found.finding.score is not None
            score = found.finding.score
        table = {
            "descriptions": {"quick": "made up"},
            "families": [["unet2d", list(SHAPE), 12]],
            "scores": {"quick": {"trigger-search": [score + 0.01 * i for i in range(12)]}},
        }
        monkeypatch.setattr(room, "shipped_diffusion", lambda table=table: table)
        document = run(folder, tmp_path / name, deploy_as="int8", variants_only=True)
        verdicts[name] = document.verdict
    assert verdicts == {"among": "none_found", "above": "evidence"}


def test_what_compression_does_to_honest_models_is_shown_and_not_judged(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pruned by half a clean denoiser breaks Tweedie's bound, which no reference model does."""
    more = ("trigger-search", "monotone-response", "implied-x0")
    short = replace(budgets.DIFFUSION_VARIANT_BUDGETS["quick"], reruns=more)
    monkeypatch.setitem(budgets.DIFFUSION_VARIANT_BUDGETS, "quick", short)
    low = [-9.0 + 0.01 * i for i in range(12)]
    table = {
        "descriptions": {"quick": "made up"},
        "families": [["unet2d", list(SHAPE), 12]],
        "scores": {"quick": dict.fromkeys(more, low)},
    }
    monkeypatch.setattr(room, "shipped_diffusion", lambda: table)
    document = run(folder, tmp_path / "out", deploy_as="prune-0.5")
    here = {j.finding.inspection: j for j in document.findings}
    there = {j.finding.inspection: j for j in document.variants[0].findings}
    for name in more:
        assert here[name].flagged
        assert there[name].finding.score is not None
        assert there[name].flagged is (name == "trigger-search")
    assert there["monotone-response"].finding.p_value_reason == (
        "the clean reference models are not compressed"
    )


def test_an_audit_of_variants_continues_in_the_middle_of_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"deploy_as": "int8,int4", "variants_only": True}
    run(folder, tmp_path / "one", **asked)
    done: list[str] = []

    def interrupted(row: Any, bench: Any, seed: int) -> Any:
        if len(done) == 4:  # two of the second variant's three are left
            raise KeyboardInterrupt
        done.append(row.name)
        return seeded(row, bench, seed)

    monkeypatch.setattr(room, "seeded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "two", **asked)
    monkeypatch.setattr(room, "seeded", seeded)
    run(folder, tmp_path / "two", **asked)
    assert content(tmp_path / "one") == content(tmp_path / "two")


@pytest.mark.parametrize("channels", [2, 4])
def test_variants_of_any_number_of_channels(channels: int, tmp_path: Path) -> None:
    folder = model_at(tmp_path / "model", seed=0, channels=channels)
    document = run(folder, tmp_path / "out", deploy_as="int4", variants_only=True)
    outcomes = [j.finding.outcome for j in document.variants[0].findings]
    assert outcomes == ["scored"] * 3


def test_variants_of_nan_are_untested(folder: Path, tmp_path: Path) -> None:
    loaded = read_diffusion(folder)
    with torch.no_grad():
        next(loaded.model.parameters())[0] = float("nan")
    write_diffusion(tmp_path / "nan", loaded.model, {})
    document = run(tmp_path / "nan", tmp_path / "out", deploy_as="int8", variants_only=True)
    assert document.verdict == "inconclusive"
    assert "NaN" in document.variants[0].failure


def test_base_and_noise_are_not_silently_ignored(folder: Path, tmp_path: Path) -> None:
    base = model_at(tmp_path / "base", seed=1)
    with pytest.raises(GenwardenError, match="--variants-only") as caught:
        run(folder, tmp_path / "out", deploy_as="int8", variants_only=True, base=base)
    assert caught.value.code == "usage/audit-options"


def test_a_shift_found_under_a_compression_is_drawn_under_it(folder: Path, tmp_path: Path) -> None:
    document = run(folder, tmp_path / "out", deploy_as="int4", variants_only=True)
    path, loaded = tmp_path / "out" / "audit.json", read_diffusion(folder)
    shift = recovered_shift(path, 1, loaded, under="int4")
    (wanted,) = [
        evidence.values[0]
        for judged in document.variants[0].findings
        if judged.finding.inspection == "differential-trigger-search"
        for evidence in judged.finding.evidence
        if isinstance(evidence, Latents)
    ]
    assert torch.allclose(shift.flatten(), torch.tensor(wanted))
    for under in ("", "int8"):
        with pytest.raises(GenwardenError) as caught:
            recovered_shift(path, 1, loaded, under=under)
        assert caught.value.code == "sample/no-such-candidate"
    drawn = []
    for name, how in (("full", None), ("small", "int4")):
        picture = tmp_path / f"{name}.png"
        sample_grid(
            folder,
            picture,
            count=2,
            columns=2,
            seed=0,
            architecture=None,
            settings={},
            diffusion=DiffusionSampling(sampler="ddim-4"),
            how=how,
        )
        drawn.append(picture.read_bytes())
    assert drawn[0] != drawn[1]
