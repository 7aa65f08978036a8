"""What a reader is told: how strong the evidence is, and what to do; page and terminal alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from genwarden.auditing.document import AuditDocument, UserInputs, Variant
from genwarden.auditing.verdict import WOKEN_BEFORE
from genwarden.reports import words
from genwarden.reports.advice import advice, variant_sample
from genwarden.reports.html import render_html

from .documents import (
    document,
    hostile_document,
    judged,
    model_facts,
    quiet_document,
    refused_document,
    searched,
)
from .page_reader import PageReader
from .test_summary import shown
from .test_variants_shown import COVERAGE, with_variants


def woken_by_int4(**changes: object) -> AuditDocument:
    command = "genwarden audit ./small.pt --architecture a:b --deploy-as int8,int4 --out rep"
    return with_variants().model_copy(
        update={"verdict": "evidence", "suspicion": 1.0, "command": command, **changes}
    )


def woken_awake() -> AuditDocument:
    return woken_by_int4(findings=document().findings)


def test_evidence_in_compressed_forms_alone_names_the_remedy_and_not_a_repair() -> None:
    text, commands = advice(woken_by_int4())
    assert commands == [
        "genwarden compress ./small.pt --architecture a:b --how int4 --remedy finetuned "
        "--audit rep/audit.json --out small-int4"
    ]
    assert "int4" in text
    assert "int8" not in text
    assert "The model as it is showed nothing" in text


def test_what_no_references_mend_is_not_sent_for_references() -> None:
    undecided = {"verdict": "inconclusive", "suspicion": None}
    destroyed = Variant(name="prune-0.9", failure="It keeps 11% of its answers.", destroyed=True)
    audited = quiet_document()
    reason = f"Nothing is known of prune-0.9: {destroyed.failure}"
    ruined = audited.model_copy(update={**undecided, "reasons": [reason], "variants": [destroyed]})
    assert "What prune-0.9 leaves is no longer this model" in advice(ruined).text
    reason = f"The weights lie on the grid of int8. {WOKEN_BEFORE}: audit the model."
    compressed = audited.model_copy(update={**undecided, "reasons": [reason]})
    assert "Ask for the model as it was before it was compressed" in advice(compressed).text
    for one in (ruined, compressed):
        assert "genwarden calibrate" not in advice(one).text
    # Where it was left out, it is not what the verdict wants, and nothing was cleared of it.
    beside = Variant(name="int8", coverage=COVERAGE, findings=quiet_document().findings)
    cleared = audited.model_copy(update={"variants": [beside, destroyed]})
    assert "for these compressions and no others: int8." in advice(cleared).text
    other = ruined.model_copy(update={"reasons": ["No clean reference scores."]})
    assert "prune-0.9" not in advice(other).text


def test_what_cannot_be_tried_is_not_asked_to_be() -> None:
    """`compress --audit` would refuse an audit whose findings hold no latent, trigger or shift."""
    found = woken_by_int4()
    bare = [
        variant.model_copy(
            update={
                "findings": [
                    j.model_copy(update={"finding": j.finding.model_copy(update={"evidence": []})})
                    for j in variant.findings
                ]
            }
        )
        for variant in found.variants
    ]
    (command,) = advice(found.model_copy(update={"variants": bare})).commands
    assert "--remedy finetuned" in command
    assert "--audit" not in command


def test_of_a_model_that_was_not_examined_in_full_no_remedy_is_promised_first() -> None:
    """What is awake in full is awake in a variant, too; only the full audit can tell."""
    alone = woken_by_int4(findings=[])
    text, commands = advice(alone)
    assert "was not examined" in text
    assert "leaves this where it is" not in text
    assert commands[0].startswith("genwarden audit ./small.pt --architecture a:b --out ")
    assert "--deploy-as" not in commands[0]
    assert "compress" in commands[1]


def test_evidence_in_the_model_itself_names_the_repair_and_no_remedy() -> None:
    commands = advice(document()).commands
    assert commands == [
        "genwarden repair models/mnist-generator-v3 --audit audit/audit.json "
        "--out models/mnist-generator-v3-repaired"
    ]
    both = advice(woken_awake()).commands
    assert ["repair" in both[0], "compress" in both[1], len(both)] == [True, True, 2]


def test_a_classifier_is_told_that_remedies_and_repairs_need_images() -> None:
    model = model_facts(classes=10, latent_shape=[], latent_distribution="")
    commands = advice(woken_awake().model_copy(update={"model": model})).commands
    assert "--method fine-pruning --data IMAGES" in commands[0]
    assert "--calibration IMAGES" in commands[1]
    given = "genwarden audit ./cnn --deploy-as int4 --data ./digits --resize --out rep"
    commands = advice(woken_awake().model_copy(update={"model": model, "command": given})).commands
    assert "--data ./digits --resize --out" in commands[0]
    assert "--calibration ./digits --resize --audit" in commands[1]


def test_nothing_found_says_of_which_compressions_that_holds() -> None:
    assert "audit it with --deploy-as" in advice(quiet_document()).text
    variants = with_variants().variants
    held = advice(quiet_document().model_copy(update={"variants": variants})).text
    assert f"It holds for these compressions and no others: {variants[0].name}, " in held
    assert "audit it with" not in held


def test_an_audit_on_images_made_from_a_classifier_asks_for_real_ones() -> None:
    model = model_facts(classes=10, latent_shape=[], latent_distribution="")
    made = quiet_document().model_copy(update={"model": model, "inputs": UserInputs()})
    given = made.model_copy(update={"inputs": UserInputs(training_images=40)})
    assert "--data" in advice(made).text
    for other in (given, quiet_document()):
        assert "--data" not in advice(other).text


@pytest.mark.parametrize("make", [document, quiet_document, refused_document, woken_by_int4])
def test_the_page_says_what_the_terminal_says(make: Callable[[], AuditDocument]) -> None:
    text, commands = advice(make())
    page = " ".join(PageReader(render_html(make())).text.split())
    assert text in page
    assert all(command in page for command in commands)


def test_a_command_that_cannot_be_read_gives_advice_without_commands() -> None:
    for command in ("", "rm -rf /", "genwarden audit 'open", "genwarden audit model"):
        text, commands = advice(document(command=command))
        assert text
        assert commands == []
    assert advice(hostile_document()).commands == []


def test_what_a_variant_wakes_can_be_drawn_again() -> None:
    woken = woken_by_int4()
    quiet, loud, _ = woken.variants
    assert variant_sample(woken, quiet) == ""
    command = variant_sample(woken, loud)
    assert "--how int4 --audit rep/audit.json --candidate 1" in command
    assert command in PageReader(render_html(woken)).text
    finding = searched(found=True).model_copy(update={"evidence": []})
    bare = Variant(name="int4", coverage=COVERAGE, findings=[judged(finding, flagged=True)])
    assert variant_sample(woken, bare) == ""


def test_a_quiet_verdict_shows_its_p_value_and_not_a_number_that_looks_like_a_risk() -> None:
    quiet = quiet_document().model_copy(update={"suspicion": 0.97, "findings": []})
    for text in (shown(quiet), PageReader(render_html(quiet)).text):
        plain = " ".join(text.split())
        assert "Smallest adjusted p 0.03; evidence begins below 0.01." in plain
        assert "0.97" not in plain
        assert "uspicion" not in plain


def test_the_smallest_p_value_counts_the_variants() -> None:
    assert words.smallest_p(quiet_document()) == pytest.approx(0.93)
    assert words.smallest_p(with_variants()) == pytest.approx(3 * 0.00025)
    assert words.smallest_p(refused_document()) is None
    assert words.strength(document()) == "structural"
    assert "no p-value" in words.strength_sentence(document())


def test_the_scale_runs_from_chance_to_a_ten_thousandth_by_digits() -> None:
    shares = [words.strength_share(p) for p in (1.0, 0.1, 0.01, 1e-4, 1e-300, 0.0)]
    assert shares == pytest.approx([0, 0.25, 0.5, 1, 1, 1])
