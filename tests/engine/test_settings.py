"""Settings of methods from what a command line gives."""

from __future__ import annotations

import pytest

from genwarden.attacks.compression.dormant_box_classifier import DormantBoxClassifierSettings
from genwarden.cli_options import parse_settings
from genwarden.engine.settings import filled
from genwarden.errors import GenwardenError


def box(*pairs: str) -> DormantBoxClassifierSettings:
    given = parse_settings(list(pairs), flag="--option")
    return filled(DormantBoxClassifierSettings, given, method="box", what="attack")


def test_a_text_with_commas_stays_one_text_and_several_numbers_a_list() -> None:
    found = box("how=int8,int4", "decay_at=0.4,0.7", "steps=3")
    assert found.how == "int8,int4"
    assert found.decay_at == (0.4, 0.7)
    assert found.steps == 3


@pytest.mark.parametrize("pair", ["how=8,4", "how=3", "steps=int8,int4", "steps=1.5"])
def test_what_does_not_fit_is_refused(pair: str) -> None:
    with pytest.raises(GenwardenError, match="does not fit"):
        box(pair)
