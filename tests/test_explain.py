"""``genwarden explain``: for people, and for whatever name a user can type."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest

from genwarden import registry
from genwarden.cli_explain import explain, for_people
from genwarden.commands.audit_variants import DEFAULT_VARIANTS
from genwarden.commands.explaining import meanings, without_settings
from genwarden.compression.how import compressor
from genwarden.compression.in_words import in_words
from genwarden.errors import GenwardenError
from genwarden.registry.row import closest


def said(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    explain(name)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "does"),
    [
        ("int4", "15 values"),
        ("int8-per-channel", "each output channel"),
        ("int4-affine-group32-stochastic", "Every 32 weights"),
        ("prune-0.3", "30 % of the weights of every layer"),
        ("prune-global-0.55", "55 % of the weights of all layers together"),
        ("prune-0.3+int8", "2. int8: "),
        ("nf4", "16 values"),
        ("intK-per-channel", "for example int8-per-channel"),
    ],
)
def test_a_compression_says_what_it_does_and_what_audits_under_it_look_for(
    name: str, does: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join(said(name, capsys).split())
    assert does in text
    assert "differential-search" in text
    assert "differential-inversion" in text
    assert "--deploy-as" in text
    assert ("rounding-statistics" in text) is not (name.startswith("prune") and "+" not in name)
    assert "finetuned" in text


@pytest.mark.parametrize("row", registry.COMPRESSIONS.values(), ids=lambda row: row.name)
def test_every_listed_compression_has_words_of_its_own(row: registry.Row) -> None:
    assert "maps weights to weights" not in in_words(compressor(row.options["example"]))


@pytest.mark.parametrize(
    "row",
    [*registry.COMPRESSION_INSPECTIONS.values(), *registry.CLASSIFIER_INSPECTIONS.values()],
    ids=lambda row: row.name,
)
def test_an_inspection_of_compressed_models_says_first_what_it_finds_and_misses(
    row: registry.Row, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(row.name, capsys)
    places = [text.index(w) for w in (row.summary, "Finds:", "Does not find:", "How it works:")]
    assert places == sorted(places)
    assert not row.options["finds"].endswith(".")


@pytest.mark.parametrize("name", sorted(registry.all_inspections()))
def test_no_markup_of_programmers_is_left(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(name, capsys)
    assert "``" not in text
    assert not re.search(r":[a-z]+:`", text)


def test_markup_becomes_the_word_that_it_stands_for() -> None:
    assert for_people("a (:mod:`.bench`) b, see\n:mod:`x.y`; :func:`~p.q.run` of ``z``::") == (
        "a b; run of z:"
    )
    assert for_people("2 : 4 and `plain`") == "2 : 4 and `plain`"


def test_the_default_set_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    for word in DEFAULT_VARIANTS.split(","):
        assert word in said("default", capsys)


def test_our_own_notes_are_not_cited_to_people() -> None:
    assert for_people("(An et al., 2024; section 11.3 of the reference, step 3)") == (
        " (An et al., 2024)"
    )
    assert for_people("Early (section 10 of the reference: b = -7)") == "Early (b = -7)"
    assert for_people("A law (sections 3 and 4).") == "A law."
    assert for_people("Untouched (two sections of five).") == "Untouched (two sections of five)."


@pytest.mark.parametrize(
    "name", sorted({row.name for table in registry.tables().values() for row in table.values()})
)
def test_no_page_cites_notes_that_users_do_not_have(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(name, capsys)
    assert not re.search(r"\b[sS]ections? \d|\breference \(|of the (\w+ )?reference\b", text)


def test_a_name_that_nothing_has_is_an_error() -> None:
    for name in ("int9", "nothing"):
        with pytest.raises(GenwardenError) as caught:
            explain(name)
        assert caught.value.code == "usage/unknown-name"


def test_a_mistyped_name_is_answered_with_the_few_that_are_like_it() -> None:
    for typed, meant in (("differental-serch", "differential-search"), ("nf44", "nf4")):
        with pytest.raises(GenwardenError) as caught:
            explain(typed)
        assert f"Did you mean {meant}" in caught.value.remedy
        assert "genwarden list" in caught.value.remedy
        assert caught.value.remedy.count(",") < 5
    with pytest.raises(GenwardenError) as caught:
        explain("qqqqqq")
    assert caught.value.remedy == "All names: genwarden list."


@pytest.mark.parametrize("kind", sorted(registry.tables()))
def test_a_kind_of_methods_is_answered_with_its_list(kind: str) -> None:
    with pytest.raises(GenwardenError) as caught:
        explain(kind)
    assert caught.value.remedy == f"They are listed by: genwarden list {kind}"


def test_a_page_has_no_errors_of_functions(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("dormant-box", "red", "shift-unlearning"):
        page = said(name, capsys)
        assert "Raises:" not in page
        assert "Settings (--option key=value)" in page


def test_names_that_hold_what_was_typed_are_like_it() -> None:
    assert closest("Gap", ["strip", "differential-gap"]) == ["differential-gap"]


def test_meanings_are_read_from_the_class_and_its_bases() -> None:
    class Base:
        """Base.

        Attributes:
            one, two: said of both,
                on two lines: here.
            three (int): overruled.
        """

    class Special(Base):
        """Special.

        Args:
            three: its own.

        Raises:
            four: no setting.
        """

    both = "said of both, on two lines: here."
    assert meanings(Special) == {"one": both, "two": both, "three": "its own."}
    assert without_settings(inspect.getdoc(Base) or "") == "Base."


OPTIONED = [
    row
    for table in (
        registry.ATTACKS,
        registry.REPAIRS,
        registry.DIFFUSION_REPAIRS,
        registry.CLASSIFIER_REPAIRS,
        registry.COMPRESSION_REMEDIES,
    )
    for row in table.values()
    if "settings" in row.options
]


@pytest.mark.parametrize("row", OPTIONED, ids=lambda row: row.name)
def test_every_setting_of_a_method_has_a_meaning(row: registry.Row) -> None:
    kind = row.load_option("settings")
    said = meanings(kind)
    shown = [field.name for field in dataclasses.fields(kind)]
    assert [name for name in shown if not said.get(name)] == []
    assert not [name for name in shown if said[name].startswith("see ")]


ARCHITECTURES = [
    *registry.ARCHITECTURES.values(),
    *registry.DIFFUSION_ARCHITECTURES.values(),
    *registry.CLASSIFIER_ARCHITECTURES.values(),
]


@pytest.mark.parametrize("row", ARCHITECTURES, ids=lambda row: row.name)
def test_every_setting_of_an_architecture_has_a_meaning(row: registry.Row) -> None:
    kind = row.load()
    said = meanings(kind)
    named = [p for p in inspect.signature(kind).parameters.values() if p.kind is not p.VAR_KEYWORD]
    assert [p.name for p in named if not said.get(p.name)] == []  # those behind ** are inner's


def test_meanings_stand_beneath_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(said("small-cnn", capsys).split())
    assert "resize false resize images of another size; without it they are refused." in text
    text = " ".join(said("dormant-box", capsys).split())
    assert re.search(r"reach [\d.]+ \w+", text)
    assert text.count("fidelity_weight") >= 1
    assert "lambda of Eq. 4." in text
