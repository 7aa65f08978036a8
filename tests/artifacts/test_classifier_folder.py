"""Classifier folders: read back as written; neither kind of folder passes for the other."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from genwarden.artifacts.check import check_file
from genwarden.artifacts.classifier_folder import (
    is_classifier_folder,
    read_classifier,
    write_classifier,
)
from genwarden.artifacts.manifest import MANIFEST_NAME, WEIGHTS_NAME
from genwarden.artifacts.open_classifier import open_classifier, opens_as_classifier
from genwarden.artifacts.open_model import open_model
from genwarden.commands.audit import audit_model
from genwarden.commands.audit_options import AuditOptions
from genwarden.commands.demo import demo_model_folder
from genwarden.engine.files import sha256_bytes
from genwarden.engine.progress import Silent
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.classifiers.protocol import initialise_classifier
from genwarden.models.classifiers.small_cnn import SmallCNN
from genwarden.models.protocol import SampleSpec

TINY: dict[str, Any] = {"image_shape": [1, 16, 16], "classes": 3, "width": 0.25}
IMAGES = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def tiny() -> SmallCNN:
    classifier = SmallCNN(**TINY)
    initialise_classifier(classifier, random_stream(0, "tiny-classifier"))
    return classifier.eval()


@pytest.fixture
def folder(tmp_path: Path, tiny: SmallCNN) -> Path:
    path = tmp_path / "classifier"
    write_classifier(path, tiny, "small-cnn", {"compromised": False})
    return path


def refusal(path: Path, **options: Any) -> GenwardenError:
    with pytest.raises(GenwardenError) as caught:
        open_classifier(path, **options)
    assert caught.value.cause.isprintable()
    return caught.value


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def replace_weights(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Other weights with a manifest that matches them."""
    content = save(tensors)
    (folder / WEIGHTS_NAME).write_bytes(content)
    edit_manifest(folder, files={WEIGHTS_NAME: sha256_bytes(content)})


def test_folder_reproduces_the_classifier_bit_for_bit(folder: Path, tiny: SmallCNN) -> None:
    loaded = open_classifier(folder)
    with torch.no_grad():
        assert torch.equal(loaded.classifier(IMAGES), tiny(IMAGES))
    assert (loaded.architecture, loaded.settings) == ("small-cnn", TINY)
    assert loaded.sha256 == sha256_bytes((folder / WEIGHTS_NAME).read_bytes())
    assert loaded.provenance == {"compromised": False}
    assert loaded.nonfinite == {}
    assert not loaded.classifier.training
    assert not any(p.requires_grad for p in loaded.classifier.parameters())


def test_nonfinite_weights_load_and_are_counted(folder: Path) -> None:
    tensors = read_classifier(folder).classifier.state_dict()
    tensors["head.weight"][0, :2] = float("nan")
    replace_weights(folder, tensors)
    assert read_classifier(folder).nonfinite == {"head.weight": 2}


def test_half_precision_folder_loads(folder: Path) -> None:
    tensors = read_classifier(folder).classifier.state_dict()
    replace_weights(
        folder, {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    )
    loaded = read_classifier(folder).classifier
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"format_version": 2}, "artifact/manifest-invalid"),
        ({"kind": "generator"}, "artifact/manifest-invalid"),
        ({"kind": "detector"}, "artifact/manifest-invalid"),
        ({"kind": ["classifier"]}, "artifact/manifest-invalid"),
        ({"surprise": 1}, "artifact/manifest-invalid"),
        (
            {"latent": {"shape": [8], "distribution": "normal"}},
            "artifact/manifest-invalid",
        ),
        ({"classes": 1}, "artifact/manifest-invalid"),
        ({"classes": 1 << 40}, "artifact/manifest-invalid"),
        ({"classes": 4}, "artifact/manifest-shapes"),
        (
            {
                "sample": {
                    "shape": [1, 28, 28],
                    "value_range": [-1.0, 1.0],
                    "modality": "image",
                }
            },
            "artifact/manifest-shapes",
        ),
        ({"architecture": "dcgan28"}, "artifact/unknown-architecture"),
        ({"architecture": "os:system"}, "artifact/unknown-architecture"),
        ({"architecture": "resnet18"}, "artifact/wrong-architecture"),
        ({"files": {}}, "artifact/manifest-files"),
        ({"settings": TINY | {"classes": 4}}, "artifact/wrong-architecture"),
        ({"settings": TINY | {"width": 0.5}}, "artifact/wrong-architecture"),
        ({"settings": TINY | {"width": 1e9}}, "artifact/bad-settings"),
        ({"settings": TINY | {"image_shape": [1, 1 << 30, 16]}}, "artifact/bad-settings"),
        ({"settings": TINY | {"no_such": 1}}, "artifact/bad-settings"),
    ],
)
def test_manifest_that_does_not_fit_is_refused(
    changes: dict[str, Any], code: str, folder: Path
) -> None:
    edit_manifest(folder, provenance={"compromised": True})  # the benign twin: still opens
    assert open_classifier(folder).provenance == {"compromised": True}
    edit_manifest(folder, **changes)
    assert refusal(folder).code == code


def test_changed_weights_do_not_match_their_hash(folder: Path) -> None:
    assert check_file(folder).safe_to_open
    path = folder / WEIGHTS_NAME
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert refusal(folder).code == "artifact/hash-mismatch"
    assert [f.code for f in check_file(folder).findings] == ["artifact/hash-mismatch"]


def test_neither_kind_of_folder_passes_for_the_other(
    folder: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(GenwardenError) as caught:
        open_model(folder)
    assert caught.value.code == "artifact/classifier"
    assert refusal(tiny_model_folder).code == "artifact/not-a-classifier"
    kinds = [is_classifier_folder(p) for p in (folder, tiny_model_folder, tmp_path)]
    assert kinds == [True, False, False]


def test_bare_weights_of_a_named_architecture_load(folder: Path, tiny: SmallCNN) -> None:
    weights = folder / WEIGHTS_NAME
    loaded = open_classifier(weights, architecture="small-cnn", settings=TINY)
    with torch.no_grad():
        assert torch.equal(loaded.classifier(IMAGES), tiny(IMAGES))
    assert refusal(weights).code == "usage/architecture-missing"
    assert refusal(weights, architecture="small-cnn").code == "artifact/wrong-architecture"
    assert refusal(weights, architecture="dcgan28").code == "artifact/not-a-classifier"
    assert refusal(weights, architecture="alexnet").code == "usage/unknown-architecture"
    assert refusal(folder, architecture="small-cnn").code == "usage/architecture-for-folder"
    assert refusal(folder, settings={"width": 2.0}).code == "usage/setting-for-folder"
    with pytest.raises(GenwardenError) as caught:
        open_model(weights, architecture="small-cnn", settings=TINY)
    assert caught.value.code == "artifact/classifier"


def test_shipped_classifier_is_small_and_says_what_it_is() -> None:
    path = demo_model_folder("cnn-clean")
    assert all(p.stat().st_size <= 300_000 for p in path.iterdir())
    shipped = read_classifier(path)
    assert shipped.provenance["compromised"] is False
    assert shipped.provenance["result"]["accuracy"] > 0.98
    assert (shipped.classifier.classes, shipped.classifier.sample.shape) == (10, (1, 16, 16))


class Foreign(nn.Module):
    """A user's classifier of 1x4x4 images, three classes."""

    image_shape = (1, 4, 4)
    classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.layer(x.flatten(1))
        return logits


class MoreClasses(Foreign):
    """States another number of classes than it has logits."""

    classes = 4


class LargerImages(Foreign):
    """States images that its layer cannot read."""

    image_shape = (1, 5, 5)


class WithoutClasses(nn.Module):
    """Says nothing about its classes."""

    image_shape = (1, 4, 4)


@pytest.fixture
def users_package() -> Iterator[None]:
    """The classes of this file as an importable package of the user's."""
    module = ModuleType("users_classifiers")
    module.__dict__.update({k: v for k, v in globals().items() if callable(v)})
    sys.modules["users_classifiers"] = module
    yield
    del sys.modules["users_classifiers"]


@pytest.mark.usefixtures("users_package")
def test_users_own_network_is_opened_if_it_does_what_it_states(tmp_path: Path) -> None:
    network = Foreign()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(save(dict(network.state_dict())))
    loaded = open_classifier(path, architecture="users_classifiers:Foreign").classifier
    images = IMAGES[:, :, :4, :4]
    assert torch.equal(loaded(images), network(images))
    assert (loaded.sample, loaded.classes) == (SampleSpec((1, 4, 4)), 3)
    for name in ("MoreClasses", "LargerImages", "WithoutClasses"):
        error = refusal(path, architecture=f"users_classifiers:{name}")
        assert error.code == "usage/architecture-contract"


@pytest.mark.usefixtures("users_package")
def test_an_audit_tells_users_own_classifier_from_a_generator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(save(dict(Foreign().state_dict())))
    assert opens_as_classifier(path, "users_classifiers:Foreign")
    assert not opens_as_classifier(path, "users_classifiers:WithoutClasses")
    assert not opens_as_classifier(path, "dcgan28")
    # What is asked here is which kind of audit it comes to.
    monkeypatch.setattr("genwarden.auditing.audit_classifier.CLASSIFIER_INSPECTIONS", {})
    options = AuditOptions(
        model=path, out=tmp_path / "out", architecture="users_classifiers:Foreign", device="cpu"
    )
    document = audit_model(options, progress=Silent()).document
    assert document.model is not None
    assert (document.model.classes, document.model.sample_shape) == (3, [1, 4, 4])
