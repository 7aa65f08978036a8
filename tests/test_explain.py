"""``genwarden explain``: for people, and for whatever name a user can type."""

from __future__ import annotations

import re

import pytest

from genwarden import registry
from genwarden.cli_explain import explain, for_people
from genwarden.compression.how import compressor
from genwarden.compression.in_words import in_words
from genwarden.errors import GenwardenError


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


def test_a_name_that_nothing_has_is_an_error() -> None:
    for name in ("int9", "nothing"):
        with pytest.raises(GenwardenError) as caught:
            explain(name)
        assert caught.value.code == "usage/unknown-name"
