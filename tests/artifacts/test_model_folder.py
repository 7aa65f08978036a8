"""Model folders: what is written is read back; what was tampered with is refused."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from genwarden.artifacts.manifest import MANIFEST_NAME, WEIGHTS_NAME
from genwarden.artifacts.model_folder import read_model, write_model
from genwarden.artifacts.open_model import open_model
from genwarden.engine.files import sha256_bytes
from genwarden.errors import GenwardenError
from genwarden.models.dcgan import DCGAN28, DCGAN32
from genwarden.models.protocol import LatentGenerator
from genwarden.models.vae import VAEDecoder28


def refusal(folder: Path) -> GenwardenError:
    with pytest.raises(GenwardenError) as caught:
        open_model(folder)
    assert caught.value.cause.isprintable()
    assert len(caught.value.cause.replace(str(folder), "")) < 400
    return caught.value


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def replace_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Other weights with a manifest that matches them."""
    content = save(tensors)
    (folder / WEIGHTS_NAME).write_bytes(content)
    edit_manifest(folder, files={WEIGHTS_NAME: sha256_bytes(content)})


@pytest.mark.parametrize(
    ("name", "generator"),
    [
        ("dcgan28", DCGAN28((4, 3, 2), 5)),
        ("dcgan32", DCGAN32((4, 3, 2), 5)),
        ("vae28", VAEDecoder28((4, 3, 2), 5)),
    ],
)
def test_folder_reproduces_the_generator_bit_for_bit(
    name: str, generator: LatentGenerator, tmp_path: Path
) -> None:
    digest = write_model(tmp_path, generator.eval(), name, {"compromised": True})
    model = read_model(tmp_path)
    z = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model.generator(z), generator(z))
    assert (model.sha256, model.architecture) == (digest, name)
    assert model.settings == generator.settings()
    assert model.provenance == {"compromised": True}
    assert model.nonfinite == {}
    assert not model.generator.training
    assert not any(p.requires_grad for p in model.generator.parameters())


def test_same_model_gives_the_same_bytes(tmp_path: Path, tiny_generator: DCGAN28) -> None:
    for folder in ("a", "b"):
        write_model(tmp_path / folder, tiny_generator, "dcgan28", {})
    for name in (MANIFEST_NAME, WEIGHTS_NAME):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_nonfinite_weights_load_and_are_counted(tiny_model_folder: Path) -> None:
    tensors = read_model(tiny_model_folder).generator.state_dict()
    tensors["project.weight"][0, :3] = float("nan")
    tensors["up1.weight"][0, 0, 0, 0] = float("-inf")
    replace_weights(tiny_model_folder, tensors)
    assert read_model(tiny_model_folder).nonfinite == {"project.weight": 3, "up1.weight": 1}


def test_half_precision_folder_loads(tiny_model_folder: Path) -> None:
    tensors = read_model(tiny_model_folder).generator.state_dict()
    halves = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    replace_weights(tiny_model_folder, halves)
    loaded = read_model(tiny_model_folder).generator
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_changed_weights_do_not_match_their_hash(tiny_model_folder: Path) -> None:
    path = tiny_model_folder / WEIGHTS_NAME
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert refusal(tiny_model_folder).code == "artifact/hash-mismatch"


@pytest.mark.parametrize(
    ("name", "code"),
    [(MANIFEST_NAME, "artifact/no-manifest"), (WEIGHTS_NAME, "artifact/not-found")],
)
def test_missing_file_is_named(name: str, code: str, tiny_model_folder: Path) -> None:
    (tiny_model_folder / name).unlink()
    error = refusal(tiny_model_folder)
    assert error.code == code
    assert name in error.cause


@pytest.mark.parametrize("name", [MANIFEST_NAME, WEIGHTS_NAME])
def test_empty_file_is_refused(name: str, tiny_model_folder: Path) -> None:
    (tiny_model_folder / name).write_bytes(b"")
    assert refusal(tiny_model_folder).code in {"artifact/empty", "artifact/hash-mismatch"}


@pytest.mark.parametrize("name", [MANIFEST_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_links_inside_the_folder_are_refused(
    link: Any, name: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    (tiny_model_folder / name).rename(outside)
    link(outside, tiny_model_folder / name)
    assert refusal(tiny_model_folder).code == "artifact/link"


@pytest.mark.parametrize("name", [MANIFEST_NAME, WEIGHTS_NAME])
def test_folder_in_the_place_of_a_file_is_refused(name: str, tiny_model_folder: Path) -> None:
    (tiny_model_folder / name).unlink()
    (tiny_model_folder / name).mkdir()
    assert refusal(tiny_model_folder).code == "artifact/not-a-file"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "null",
        "{}",
        '{"a": 1, "a": 2}',
        "[" * 200_000,
        '{"a":' * 200_000,
        '{"settings": ' + "9" * 100_000 + "}",
        '{"\\u001b[2J\\u0000": 1}',
        "\ufeff{}",
        json.dumps({"\n" * 5000: 1}),
    ],
)
def test_malformed_manifest_is_refused(text: str, tiny_model_folder: Path) -> None:
    (tiny_model_folder / MANIFEST_NAME).write_text(text)
    assert refusal(tiny_model_folder).code in {"artifact/manifest-invalid", "artifact/empty"}


def test_huge_manifest_is_refused_unread(tiny_model_folder: Path) -> None:
    (tiny_model_folder / MANIFEST_NAME).write_text(" " * (2 << 20))
    assert refusal(tiny_model_folder).code == "artifact/too-large"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"format_version": 2}, "artifact/manifest-invalid"),
        ({"kind": "classifier"}, "artifact/manifest-invalid"),
        ({"surprise": 1}, "artifact/manifest-invalid"),
        ({"architecture": "os:system"}, "artifact/unknown-architecture"),
        ({"architecture": "\x1b[2J"}, "artifact/unknown-architecture"),
        ({"files": {}}, "artifact/manifest-files"),
        ({"files": {"../../etc/passwd": "0" * 64}}, "artifact/manifest-files"),
        ({"files": {WEIGHTS_NAME: "zz"}}, "artifact/manifest-invalid"),
        ({"latent": {"shape": [9], "distribution": "normal"}}, "artifact/manifest-shapes"),
        ({"latent": {"shape": [8], "distribution": "uniform"}}, "artifact/manifest-shapes"),
        ({"latent": {"shape": [0], "distribution": "normal"}}, "artifact/manifest-invalid"),
        ({"latent": {"shape": [1 << 40], "distribution": "normal"}}, "artifact/manifest-invalid"),
        ({"settings": {"channels": [4, 4, 4], "latent_dim": 9}}, "artifact/wrong-architecture"),
        ({"settings": {"channels": [5, 4, 4], "latent_dim": 8}}, "artifact/wrong-architecture"),
        ({"settings": {"channels": [4, 4], "latent_dim": 8}}, "artifact/bad-settings"),
        ({"settings": {"channels": [4, 4, 4, 9], "latent_dim": 8}}, "artifact/bad-settings"),
        ({"settings": {"channels": "444", "latent_dim": 8}}, "artifact/bad-settings"),
        ({"settings": {"channels": [4.5, 4, 4], "latent_dim": 8}}, "artifact/bad-settings"),
        ({"settings": {"channels": [-4, 4, 4], "latent_dim": 8}}, "artifact/bad-settings"),
        ({"settings": {"channels": [4, 0, 4], "latent_dim": 8}}, "artifact/wrong-architecture"),
        ({"settings": {"latent_dim": "eight"}}, "artifact/bad-settings"),
        ({"settings": {"no_such": 1}}, "artifact/bad-settings"),
        ({"settings": {"self": 1}}, "artifact/bad-settings"),
        ({"settings": {"channels": [1e400, 4, 4]}}, "artifact/manifest-invalid"),
    ],
)
def test_manifest_that_does_not_fit_is_refused(
    changes: dict[str, Any], code: str, tiny_model_folder: Path
) -> None:
    edit_manifest(tiny_model_folder, **changes)
    assert refusal(tiny_model_folder).code == code


@pytest.mark.parametrize("size", [10**5, 10**9, 10**14, 10**18, 10**30])
@pytest.mark.parametrize("place", ["channels", "latent_dim"])
def test_absurd_settings_allocate_nothing(
    size: int, place: str, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absurd = {"channels": [size, 4, 4]} if place == "channels" else {"latent_dim": size}
    original = {"channels": [4, 4, 4], "latent_dim": 8}
    edit_manifest(tiny_model_folder, settings=original | absurd)
    allocated: list[int] = []
    empty = torch.empty

    def watched(*arguments: Any, **options: Any) -> torch.Tensor:
        tensor = empty(*arguments, **options)
        allocated.append(0 if tensor.is_meta else tensor.numel())
        return tensor

    monkeypatch.setattr(torch, "empty", watched)
    tracemalloc.start()
    try:
        error = refusal(tiny_model_folder)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert error.code in {"artifact/wrong-architecture", "artifact/bad-settings"}
    assert sum(allocated) == 0
    assert peak_bytes < 4 << 20


def test_wrong_weights_name_what_differs(tiny_model_folder: Path) -> None:
    tensors = read_model(tiny_model_folder).generator.state_dict()
    tensors["\x1b[31mstranger"] = tensors.pop("up1.weight")
    replace_weights(tiny_model_folder, tensors)
    error = refusal(tiny_model_folder)
    assert error.code == "artifact/wrong-architecture"
    assert "missing up1.weight" in error.cause
    assert "stranger" in error.cause


def test_integer_weights_do_not_pass_for_floats(tiny_model_folder: Path) -> None:
    tensors = read_model(tiny_model_folder).generator.state_dict()
    tensors["up1.weight"] = tensors["up1.weight"].to(torch.int8)
    replace_weights(tiny_model_folder, tensors)
    assert "int8" in refusal(tiny_model_folder).cause


def test_data_parallel_prefix_is_recognised(tiny_model_folder: Path) -> None:
    tensors = read_model(tiny_model_folder).generator.state_dict()
    replace_weights(tiny_model_folder, {f"module.{k}": v for k, v in tensors.items()})
    assert refusal(tiny_model_folder).code == "artifact/data-parallel"


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), text=st.binary(min_size=1, max_size=4))
def test_damaged_manifest_loads_or_is_refused(
    place: float, text: bytes, tiny_model_folder: Path
) -> None:
    path = tiny_model_folder / MANIFEST_NAME
    original = path.read_bytes()
    at = int(place * len(original))
    path.write_bytes(original[:at] + text + original[at + len(text) :])
    try:
        open_model(tiny_model_folder)
    except GenwardenError as error:
        code = error.code
    else:
        code = "artifact/none"
    finally:
        path.write_bytes(original)
    assert code.startswith("artifact/")
