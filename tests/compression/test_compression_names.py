"""What a user types is what the compressor is called, and mistakes are answered with the names."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genwarden.compression.chain import Chain
from genwarden.compression.how import compressor, compressors
from genwarden.compression.pruning import FilterPruning, MagnitudePruning
from genwarden.compression.uniform import Uniform
from genwarden.errors import GenwardenError
from genwarden.registry import COMPRESSIONS

_rates = st.floats(1e-6, 1, exclude_max=True)
_uniform = st.builds(
    Uniform,
    bits=st.integers(2, 8),
    affine=st.booleans(),
    granularity=st.sampled_from(["tensor", "channel"]),
    power_of_two=st.booleans(),
    rounding=st.sampled_from(["nearest", "stochastic"]),
    scale_factor=st.floats(0.5, 2),
) | st.builds(Uniform, granularity=st.just("group"), group_size=st.integers(1, 9999))
_single = (
    _uniform
    | st.builds(MagnitudePruning, rate=_rates, across=st.booleans())
    | st.builds(FilterPruning, rate=_rates)
    | st.sampled_from(["prune-2:4", "q8_0", "q4_0", "nf4"]).map(compressor)
)
_any = _single | st.lists(_single, min_size=2, max_size=3).map(lambda s: Chain(tuple(s)))


@given(_any)
@settings(max_examples=200, deadline=None)
def test_a_name_gives_back_the_compressor_that_bears_it(made: Chain) -> None:
    again = compressor(made.name)
    assert again == made
    assert again.name == made.name


@pytest.mark.parametrize("row", COMPRESSIONS.values(), ids=lambda row: row.name)
def test_every_listed_compression_has_an_example_that_it_makes(row: object) -> None:
    from genwarden.registry import Row

    assert isinstance(row, Row)
    made = compressor(row.options["example"])
    assert made.name == row.options["example"]
    assert isinstance(made, row.load())


def test_words_may_stand_in_any_order_and_case() -> None:
    assert compressor(" INT4-per-channel-affine ") == compressor("int4-affine-per-channel")
    assert compressor("int8-per-tensor") == compressor("int8")


def test_a_list_keeps_its_order_and_drops_doubles() -> None:
    names = [made.name for made in compressors("prune-0.30, int8,prune-0.3,int8+nf4")]
    assert names == ["prune-0.3", "int8", "int8+nf4"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("fp8", "compress/unknown"),
        ("", "compress/unknown"),
        ("int8+", "compress/unknown"),
        ("int8-nearest", "compress/unknown"),
        ("int8-per-channel-group8", "compress/unknown"),
        ("int8-scale1.1-scale1.2", "compress/unknown"),
        ("prune-2:8", "compress/unknown"),
        ("prune-nan", "compress/unknown"),
        ("int1", "compress/bits"),
        ("int16-per-channel", "compress/bits"),
        ("prune-0", "compress/rate"),
        ("prune-1", "compress/rate"),
        ("prune-filters-1.5", "compress/rate"),
        ("prune-global--0.3", "compress/rate"),
        ("int4-group0", "compress/group"),
        ("int8-scale3", "compress/scale"),
        ("prune-0.3+int9", "compress/bits"),
    ],
)
def test_a_mistake_is_answered_with_its_kind(text: str, code: str) -> None:
    with pytest.raises(GenwardenError) as caught:
        compressor(text)
    assert caught.value.code == code
    if code == "compress/unknown" and "twice" not in caught.value.cause:
        assert all(name in caught.value.remedy for name in COMPRESSIONS)


@given(st.text("int prune-gobal.0123456789+:_q4fscredh", max_size=30))
@settings(max_examples=200, deadline=None)
def test_no_text_ends_in_anything_but_a_compressor_or_an_error_of_ours(text: str) -> None:
    try:
        made = compressor(text)
    except GenwardenError:
        return  # anything else fails the test
    assert compressor(made.name) == made
