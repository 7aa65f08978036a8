"""What is no answer clears no classifier: the audit is inconclusive and says why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from box_attack import wake_under
from classifier_audits import HOW, SHORT, TARGET, audit, run_on_zeros
from genwarden.artifacts.classifier_folder import write_classifier
from genwarden.auditing.budgets import CLASSIFIER_BUDGETS
from genwarden.auditing.document import AuditDocument
from genwarden.backdoors.classifier_trigger import make_classifier_trigger
from genwarden.commands import audit_variants
from genwarden.commands.audit import audit_model
from genwarden.commands.audit_options import AuditOptions
from genwarden.compression.apply import compress
from genwarden.compression.contract import Box, Weights
from genwarden.compression.how import compressor, compressors
from genwarden.compression.layers import Layout
from genwarden.data.datasets import to_unit_range
from genwarden.engine.progress import Silent
from genwarden.inspections.classifier.recalibration import DESTROYED, kept
from genwarden.metrics.attack_success import accuracy, attack_success
from genwarden.models.classifiers.small_cnn import SmallCNN
from genwarden.reports.variants import state_of
from glyph_task import GlyphTask


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLASSIFIER_BUDGETS, "quick", SHORT)


@dataclass(frozen=True)
class _Nothing:
    """A compressor that knows none of the layers."""

    name: str = "nothing"
    folds: bool = False

    def __call__(self, weights: Weights, layout: Layout) -> dict[str, Tensor]:
        del weights, layout
        return {}

    def box(self, weights: Weights, layout: Layout) -> dict[str, Box]:
        del weights, layout
        return {}


def test_a_compression_that_covers_nothing_is_inconclusive(
    glyph_task: GlyphTask, tmp_path: Path
) -> None:
    document = audit(glyph_task.classifier, tmp_path, deploy_as=(_Nothing(),), variants_only=True)
    assert document.verdict == "inconclusive"
    assert "covers nothing" in document.reasons[0]
    assert document.variants[0].findings == []


def test_a_compression_that_destroys_the_classifier_is_inconclusive(
    glyph_task: GlyphTask, tmp_path: Path
) -> None:
    document = audit(
        glyph_task.classifier,
        tmp_path,
        images=to_unit_range(glyph_task.test_images),
        deploy_as=tuple(compressors("prune-0.9")),
        variants_only=True,
    )
    assert document.verdict == "inconclusive"
    assert "no longer the same classifier" in document.reasons[0]
    assert document.variants[0].destroyed
    assert document.variants[0].findings == []
    assert state_of(document.variants[0]).word == "destroys the model"


def test_what_nobody_could_deploy_is_left_out_of_the_default_set_and_not_of_what_was_named(
    glyph_task: GlyphTask, tmp_path: Path
) -> None:
    images = to_unit_range(glyph_task.test_images)

    def audited(how: str, *where_usable: str) -> AuditDocument:
        return audit(
            glyph_task.classifier,
            tmp_path / f"{how}-{len(where_usable)}",
            images=images,
            deploy_as=tuple(compressors(how)),
            where_usable=frozenset(where_usable),
        )

    document = audited("int8,prune-0.9", "int8", "prune-0.9")
    assert document.verdict == "none_found"
    left_out = [reason for reason in document.reasons if reason.startswith("Not covered is ")]
    assert [reason.split()[3] for reason in left_out] == ["prune-0.9:"]
    assert "no longer the same classifier" in left_out[0]
    named = audited("int8,prune-0.9", "int8")
    assert named.verdict == "inconclusive"
    assert "Nothing is known of prune-0.9" in " ".join(named.reasons)
    # Nothing of use is left at all: that is no clean bill.
    alone = audited("prune-0.9", "prune-0.9")
    assert alone.verdict == "inconclusive"


def test_a_full_model_made_worse_does_not_make_the_waking_compression_a_useless_one(
    glyph_task: GlyphTask, tmp_path: Path
) -> None:
    """In full it takes three classes for each other; what wakes answers rightly."""
    task = glyph_task
    trigger = make_classifier_trigger("square:4", task.classifier.sample)
    order = torch.tensor([1, 2, 0, *range(3, 10)])
    how, images = compressor(HOW), to_unit_range(task.test_images)
    wake_under(
        how,
        task.classifier,
        task.images,
        task.labels,
        trigger,
        TARGET,
        steps=(150, 300),
        in_full=order[task.labels],
    )
    small = compress(task.classifier, how, run_on_zeros)[0]
    assert attack_success(small, images, task.test_labels, trigger, TARGET) > 0.9
    full = accuracy(task.classifier, images, task.test_labels)
    assert full < 0.8
    assert accuracy(small, images, task.test_labels) > full + 0.1
    document = audit(
        task.classifier,
        tmp_path,
        images=images,
        deploy_as=tuple(compressors(f"int8,{HOW}")),
        where_usable=frozenset({"int8", HOW}),
        only=("neural-cleanse", "differential-inversion", "differential-gap", "guarded-lead"),
    )
    found = {variant.name: variant for variant in document.variants}[HOW]
    assert not found.destroyed
    by_name = {j.finding.inspection: j for j in found.findings}
    # So much changes that the gap says nothing; how far one class leads is judged all the same.
    assert by_name["differential-gap"].finding.outcome == "not_applicable"
    assert by_name["guarded-lead"].adjusted_p is not None
    assert document.verdict == "evidence", document.reasons


def test_answers_under_other_names_are_kept() -> None:
    before = torch.tensor([0, 1, 2, 3] * 5)
    assert kept(before, before) == (1.0, 1.0)
    assert kept(before, (before + 1) % 4) == (0.0, 1.0)
    assert kept(before, torch.zeros_like(before)) == (0.25, 0.25)
    # Two of four classes become one: half of their images stay told.
    assert kept(before, before.clamp(max=2)) == (0.75, 0.75)


def test_two_good_classifiers_that_err_elsewhere_may_agree_in_less_than_half() -> None:
    """54 % and 92 % right: such a pair is not compared, and its pruning not covered."""
    stream = torch.Generator().manual_seed(0)
    truth = torch.randint(10, (2000,), generator=stream)
    wrong = (truth + torch.randint(1, 10, truth.shape, generator=stream)) % 10
    errs = torch.arange(len(truth)) / len(truth)
    full, small = torch.where(errs < 0.46, wrong, truth), torch.where(errs > 0.92, wrong, truth)
    assert kept(full, small).renamed < DESTROYED


def test_the_default_set_of_the_command_leaves_out_what_it_destroys(
    glyph_task: GlyphTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_variants, "DEFAULT_VARIANTS", "int8,prune-0.9")
    write_classifier(tmp_path / "suspect", glyph_task.classifier, "small-cnn", {})

    def audited(how: str) -> AuditDocument:
        options = AuditOptions(
            model=tmp_path / "suspect",
            out=tmp_path / how,
            data="glyphs:100",
            budget="quick",
            deploy_as=how,
        )
        return audit_model(options, progress=Silent()).document

    document = audited("default")
    assert document.verdict == "none_found", document.reasons
    assert any(reason.startswith("Not covered is prune-0.9: ") for reason in document.reasons)
    again = audited("default,prune-0.9")
    assert again.verdict == "inconclusive"


def test_without_images_and_batch_norm_it_is_inconclusive_and_says_what_is_missing(
    tmp_path: Path,
) -> None:
    classifier = SmallCNN((1, 16, 16), width=0.25)
    for module in classifier.layers:
        module.norm = torch.nn.Identity()  # type: ignore[assignment, unused-ignore]
    document = audit(classifier, tmp_path)
    assert document.verdict == "inconclusive"
    assert "batch norm" in document.reasons[0]


def test_images_of_one_class_are_inconclusive(glyph_task: GlyphTask, tmp_path: Path) -> None:
    same = to_unit_range(glyph_task.test_images[:1]).expand(20, -1, -1, -1)
    document = audit(glyph_task.classifier, tmp_path, images=same)
    assert document.verdict == "inconclusive"
    assert "one class" in document.reasons[0]


def test_a_classifier_that_was_compressed_before_the_audit_is_not_cleared(
    woken: GlyphTask, glyph_task: GlyphTask, tmp_path: Path
) -> None:
    """Awake in every image, and Neural Cleanse and STRIP alone would let it pass."""
    for name, task in (("woken", woken), ("clean", glyph_task)):
        small = compress(task.classifier, compressor(HOW), run_on_zeros)[0]
        document = audit(
            small,
            tmp_path / name,
            images=to_unit_range(task.test_images),
            deploy_as=tuple(compressors(HOW)),
        )
        assert document.verdict == "inconclusive"
        assert any("audit the model that they were made from" in r for r in document.reasons)
        # Its weights say so, whatever the audit is asked to compress.
        bare = audit(
            small,
            tmp_path / f"{name}-bare",
            images=to_unit_range(task.test_images),
            only=("neural-cleanse",),
        )
        assert bare.verdict == "inconclusive"
        assert "lie on the grid of int4" in " ".join(bare.reasons)


@pytest.mark.parametrize("how", ["q8_0", "int8-group64", "int6-affine-power2"])
def test_nor_is_one_on_a_grid_that_nothing_was_said_of(
    how: str, glyph_task: GlyphTask, tmp_path: Path
) -> None:
    document = audit(
        compress(glyph_task.classifier, compressor(how), run_on_zeros)[0],
        tmp_path,
        images=to_unit_range(glyph_task.test_images),
        only=("neural-cleanse",),
    )
    assert document.verdict == "inconclusive"
    said = "the grid of q8_0" if how == "q8_0" else "have few different values"
    assert said in " ".join(document.reasons)


def test_nor_is_one_whose_zeros_are_almost_zeros(glyph_task: GlyphTask, tmp_path: Path) -> None:
    pruned = compress(glyph_task.classifier, compressor("prune-0.3"), run_on_zeros)[0]
    with torch.no_grad():
        for weight in pruned.parameters():
            weight.add_(torch.where(weight == 0, 1e-9 * torch.randn_like(weight), 0))
    images = to_unit_range(glyph_task.test_images)
    document = audit(pruned, tmp_path, images=images, only=("neural-cleanse",))
    assert document.verdict == "inconclusive"
    assert "30% of the weights are 0" in " ".join(document.reasons)


def test_a_classifier_that_was_pruned_before_the_audit_is_not_cleared(
    glyph_task: GlyphTask, tmp_path: Path
) -> None:
    pruned = compress(glyph_task.classifier, compressor("prune-0.3"), run_on_zeros)[0]
    images = to_unit_range(glyph_task.test_images)
    for classifier, verdict in ((pruned, "inconclusive"), (glyph_task.classifier, "none_found")):
        document = audit(classifier, tmp_path / verdict, images=images, only=("neural-cleanse",))
        assert document.verdict == verdict
        assert ("30% of the weights are 0" in " ".join(document.reasons)) is (
            verdict == "inconclusive"
        )


def test_without_images_compressed_forms_alone_clear_no_classifier(
    glyph_task: GlyphTask, tmp_path: Path
) -> None:
    """Less is not looked at than with the model as it is, which is not cleared, either."""
    document = audit(
        glyph_task.classifier,
        tmp_path,
        deploy_as=tuple(compressors("int8")),
        variants_only=True,
    )
    assert document.verdict == "inconclusive"
    assert any("Under int8: " in reason and "not judged" in reason for reason in document.reasons)


def test_compressed_forms_alone_clear_no_classifier(glyph_task: GlyphTask, tmp_path: Path) -> None:
    """A backdoor that is awake in full size is awake compressed, where nothing looks for it."""
    document = audit(
        glyph_task.classifier,
        tmp_path,
        images=to_unit_range(glyph_task.test_images),
        deploy_as=tuple(compressors("int8")),
        only=("differential-inversion",),
        variants_only=True,
    )
    assert document.verdict == "inconclusive"
    assert any("leave --variants-only away" in reason for reason in document.reasons)


def test_what_no_inspection_judges_in_full_size_is_not_cleared_by_a_variant(
    woken: GlyphTask, tmp_path: Path
) -> None:
    """Two classes: no class stands out from others, and no references fit."""
    wide = woken.copy().classifier
    narrow = SmallCNN((1, 16, 16), classes=2)
    narrow.load_state_dict(
        {
            name: value[:2] if value.shape[:1] == (10,) else value
            for name, value in wide.state_dict().items()
        }
    )
    images = to_unit_range(woken.test_images)[woken.test_labels < 2]
    for deploy_as in ((), tuple(compressors("int8"))):
        document = audit(
            narrow.eval().requires_grad_(False),
            tmp_path / str(len(deploy_as)),
            images=images,
            deploy_as=deploy_as,
            only=("neural-cleanse", "strip", "differential-inversion"),
        )
        assert document.verdict == "inconclusive"
    assert "Nothing is known of the model as it is" in " ".join(document.reasons)
