"""Bare weights with a named architecture, ours or the user's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from genwarden.artifacts.open_model import open_model
from genwarden.errors import GenwardenError
from genwarden.models.dcgan import DCGAN28

TINY = {"channels": [4, 4, 4], "latent_dim": 8}


class Foreign(nn.Module):
    """A user's generator: latent (6,), sample (1, 4, 4)."""

    latent_shape = (6,)
    sample_shape = (1, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 16)

    def forward(self, z: Tensor) -> Tensor:
        """Samples in [-1, 1]."""
        return torch.tanh(self.layer(z)).reshape(-1, 1, 4, 4)


class ForeignUniform(Foreign):
    """Another latent law, and a pre-activation of its own."""

    latent_distribution = "uniform"
    final_activation = "tanh"

    def pre_activation(self, z: Tensor) -> Tensor:
        """Before tanh."""
        logits: Tensor = self.layer(z)
        return logits.reshape(-1, 1, 4, 4)


class WithoutShapes(nn.Module):
    """Says nothing about its latents."""


class WrongShape(Foreign):
    """States a shape that it does not return."""

    sample_shape = (3, 4, 4)


class WrongRange(Foreign):
    """Pixels from 0 to 255."""

    def forward(self, z: Tensor) -> Tensor:
        """Samples in [0, 255]."""
        return (super().forward(z) + 1) * 127.5


class WrongLaw(Foreign):
    """States a law that does not exist."""

    latent_distribution = "\x1b[2Jcauchy"


class Crashes(Foreign):
    """Its forward pass raises."""

    def forward(self, z: Tensor) -> Tensor:
        """Always fails."""
        del z
        raise ZeroDivisionError("by design")


class RefusesToBeBuilt(Foreign):
    """Its constructor raises something unusual."""

    def __init__(self) -> None:
        raise StopIteration


def not_a_network() -> int:
    """Returns a number."""
    return 7


@pytest.fixture(autouse=True)
def user_package() -> Iterator[None]:
    """The classes of this file as an importable package of the user's."""
    module = ModuleType("users_package")
    module.__dict__.update({k: v for k, v in globals().items() if callable(v)})
    sys.modules["users_package"] = module
    yield
    del sys.modules["users_package"]


@pytest.fixture
def tiny_weights(tmp_path: Path, tiny_generator: DCGAN28) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(save(dict(tiny_generator.state_dict())))
    return path


@pytest.fixture
def foreign_weights(tmp_path: Path) -> Path:
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(save(dict(Foreign().state_dict())))
    return path


def refusal(path: Path, **options: Any) -> GenwardenError:
    with pytest.raises(GenwardenError) as caught:
        open_model(path, **options)
    assert caught.value.cause.isprintable()
    return caught.value


def test_bare_weights_of_a_known_architecture_load(
    tiny_weights: Path, tiny_generator: DCGAN28
) -> None:
    model = open_model(tiny_weights, architecture="dcgan28", settings=TINY)
    z = torch.ones(2, 8)
    assert torch.equal(model.generator(z), tiny_generator(z))


def test_settings_that_do_not_fit_the_weights_are_refused(tiny_weights: Path) -> None:
    error = refusal(tiny_weights, architecture="dcgan28")
    assert error.code == "artifact/wrong-architecture"
    error = refusal(tiny_weights, architecture="vae28", settings=TINY)
    assert error.code == "artifact/wrong-architecture"


def test_foreign_network_keeps_its_own_law_and_outputs(foreign_weights: Path) -> None:
    model = open_model(foreign_weights, architecture="users_package:Foreign")
    assert model.generator.latent.shape == (6,)
    assert model.generator.sample.shape == (1, 4, 4)
    z = torch.ones(2, 6)
    assert torch.equal(model.generator.pre_activation(z), model.generator(z))


def test_foreign_pre_activation_is_used(foreign_weights: Path) -> None:
    model = open_model(foreign_weights, architecture="users_package:ForeignUniform")
    z = torch.ones(2, 6)
    assert model.generator.latent.distribution == "uniform"
    assert torch.equal(torch.tanh(model.generator.pre_activation(z)), model.generator(z))


@pytest.mark.parametrize(
    ("architecture", "code"),
    [
        ("nothing", "usage/unknown-architecture"),
        (":x", "usage/unknown-architecture"),
        ("x:", "usage/unknown-architecture"),
        ("no_such_package:x", "usage/architecture-not-importable"),
        ("users_package:no_such_name", "usage/architecture-not-importable"),
        ("users_package:not_a_network", "usage/architecture-contract"),
        ("users_package:WithoutShapes", "usage/architecture-contract"),
        ("users_package:WrongShape", "usage/architecture-contract"),
        ("users_package:WrongLaw", "usage/architecture-contract"),
        ("users_package:Crashes", "usage/architecture-contract"),
        ("users_package:RefusesToBeBuilt", "usage/architecture-failed"),
    ],
)
def test_unusable_factory_is_explained(architecture: str, code: str, foreign_weights: Path) -> None:
    assert refusal(foreign_weights, architecture=architecture).code == code


def test_surplus_setting_of_a_foreign_factory_is_explained(foreign_weights: Path) -> None:
    error = refusal(foreign_weights, architecture="users_package:Foreign", settings={"depth": 3})
    assert error.code == "usage/architecture-failed"
    assert "depth" in error.cause


def test_bare_weights_need_an_architecture(tiny_weights: Path) -> None:
    assert refusal(tiny_weights).code == "usage/architecture-missing"


def test_folder_refuses_an_architecture_and_settings(tiny_model_folder: Path) -> None:
    error = refusal(tiny_model_folder, architecture="dcgan28")
    assert error.code == "usage/architecture-for-folder"
    error = refusal(tiny_model_folder, settings={"latent_dim": 8})
    assert error.code == "usage/setting-for-folder"


def test_missing_path_is_not_found(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nothing").code == "artifact/not-found"
    assert refusal(tmp_path / "nothing", architecture="dcgan28").code == "artifact/not-found"


def test_samples_outside_the_agreed_range_are_refused(foreign_weights: Path) -> None:
    error = refusal(foreign_weights, architecture="users_package:WrongRange")
    assert error.code == "usage/architecture-contract"
    assert "[-1, 1]" in error.cause


def test_an_empty_folder_is_nothing_and_no_refused_model(tmp_path: Path) -> None:
    (tmp_path / "model" / ".work").mkdir(parents=True)
    with pytest.raises(GenwardenError) as caught:
        open_model(tmp_path / "model")
    assert caught.value.code == "artifact/not-found"
    assert "stopped" in caught.value.remedy
