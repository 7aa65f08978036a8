"""An attack is refused on a model of another kind, with the attacks that fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from genwarden.attacks.subject import require_kind
from genwarden.cli import app
from genwarden.commands.demo import demo_model_folder
from genwarden.errors import ExitCode, GenwardenError

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
    named = caught.value.remedy.partition(": ")[2].removesuffix(".").split(", ")
    assert fitting in named
    assert attack not in named


def test_the_command_refuses_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = CliRunner().invoke(app, ["attack", "red", str(CLASSIFIER), "--out", str(out)])
    assert isinstance(ended.exception, GenwardenError)
    assert ended.exception.code == "usage/attack-kind"
    assert ended.exception.exit_code == ExitCode.ERROR
    assert not out.exists()


def test_an_unknown_attack_is_named() -> None:
    with pytest.raises(GenwardenError, match="usage/unknown-name") as refused:
        require_kind("reds", GAN)
    assert "Did you mean red" in refused.value.cause
