"""An attack is refused on a model of another kind, with the attacks that fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from genwarden.attacks.subject import require_kind
from genwarden.commands.demo import demo_model_folder
from genwarden.errors import GenwardenError

GAN, DIFFUSION, CLASSIFIER = (
    demo_model_folder(f"{name}-clean") for name in ("dcgan", "ddpm", "cnn")
)


@pytest.mark.parametrize(
    ("attack", "folder", "kind"),
    [
        ("red", GAN, "generator"),
        ("bad-diffusion", DIFFUSION, "diffusion"),
        ("pruning-artifact", CLASSIFIER, "classifier"),
        ("dormant-box", Path("nowhere"), "generator"),  # reading it says what is wrong
    ],
)
def test_the_kind_of_an_attack(attack: str, folder: Path, kind: str) -> None:
    assert require_kind(attack, folder) == kind


@pytest.mark.parametrize(
    ("attack", "folder", "fitting"),
    [
        ("dormant-box", DIFFUSION, "dormant-box-diffusion"),
        ("dormant-box", CLASSIFIER, "dormant-box-classifier"),
        ("bad-diffusion", GAN, "red"),
        ("pruning-artifact", DIFFUSION, "bad-diffusion"),
    ],
)
def test_another_kind_is_refused_with_what_fits(attack: str, folder: Path, fitting: str) -> None:
    with pytest.raises(GenwardenError) as caught:
        require_kind(attack, folder)
    assert caught.value.code == "usage/attack-kind"
    assert f" {fitting}," in f" {caught.value.remedy}".replace(".", ",")


def test_an_unknown_attack_is_named() -> None:
    with pytest.raises(GenwardenError, match="usage/unknown-name"):
        require_kind("reds", GAN)
