"""Hostile weight files are refused with a stable code; their benign twins load."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from hostile_files import (
    BENIGN,
    HOSTILE,
    calling,
    members_of,
    put,
    raw_safetensors,
    safetensors_file,
    state_dict,
    tied,
    torch_file,
    with_pickle,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genwarden.artifacts.check import check_file
from genwarden.artifacts.torch_zip import read_plan
from genwarden.artifacts.weights_file import read_weights
from genwarden.errors import GenwardenError


def refusal(path: Path) -> GenwardenError:
    with pytest.raises(GenwardenError) as caught:
        read_weights(path)
    return caught.value


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file_is_refused_with_its_code_one_sentence_and_one_remedy(
    case: str, tmp_path: Path
) -> None:
    make, code = HOSTILE[case]
    error = refusal(put(tmp_path, make()))
    assert error.code == code
    assert error.exit_code == 2
    # One short printable sentence, and one remedy.
    for text in (error.cause, error.remedy):
        assert text.isprintable()
        assert text.endswith(".")
        assert 10 < len(text.replace(str(tmp_path), "")) < 300


@pytest.mark.parametrize("case", BENIGN)
def test_benign_file_loads_as_dense_float32(case: str, tmp_path: Path) -> None:
    weights = read_weights(put(tmp_path, BENIGN[case]()))
    assert weights.tensors
    for tensor in weights.tensors.values():
        assert tensor.is_contiguous()
        assert not tensor.is_floating_point() or tensor.dtype == torch.float32


@pytest.mark.parametrize("make", [safetensors_file, torch_file])
def test_values_survive_both_formats(make: object, tmp_path: Path) -> None:
    assert callable(make)
    loaded = read_weights(put(tmp_path, make())).tensors
    for name, expected in state_dict().items():
        assert torch.equal(loaded[name], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_keep_their_values_as_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    stored = torch.tensor([0.5, -1.25, 3.0], dtype=dtype)
    loaded = read_weights(put(tmp_path, torch_file({"a": stored}))).tensors["a"]
    assert torch.equal(loaded, torch.tensor([0.5, -1.25, 3.0]))


def test_tied_weights_stay_one_tensor(tmp_path: Path) -> None:
    tensors = read_weights(put(tmp_path, torch_file(tied()))).tensors
    assert len(tensors) == 50
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == 1


@pytest.mark.parametrize("wrap", [lambda p: p, with_pickle], ids=["bare", "in a torch zip"])
@pytest.mark.parametrize("module", ["os", "posix", "subprocess", "builtins", "runpy"])
def test_payload_never_runs(module: str, wrap: object, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    name = {"subprocess": "getoutput", "builtins": "exec", "runpy": "run_path"}.get(module)
    payload = calling(module, name or "system", f"touch {canary}")
    assert callable(wrap)
    path = put(tmp_path, wrap(payload))
    refusal(path)
    assert not check_file(path).safe_to_open
    assert not canary.exists()


def test_payload_is_live_where_pickle_is_trusted(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickle.loads(calling("posix", "system", f"touch {canary}"))  # noqa: S301 - the control
    assert canary.exists()


def test_refused_pickle_names_what_it_asked_for(tmp_path: Path) -> None:
    path = put(tmp_path, with_pickle(calling("posix", "system", "true")))
    assert "posix.system" in refusal(path).cause


def test_suffix_does_not_decide_the_format(tmp_path: Path) -> None:
    assert read_weights(put(tmp_path, torch_file(), "model.safetensors")).tensors
    assert read_weights(put(tmp_path, safetensors_file(), "model.pt")).tensors


def test_wrong_hash_is_refused_before_parsing(tmp_path: Path) -> None:
    path = put(tmp_path, b"not even a weights file")
    with pytest.raises(GenwardenError) as caught:
        read_weights(path, expected_sha256="0" * 64)
    assert caught.value.code == "artifact/hash-mismatch"


def test_missing_file_is_named(tmp_path: Path) -> None:
    error = refusal(tmp_path / "nowhere.pt")
    assert error.code == "artifact/not-found"
    assert "nowhere.pt" in error.cause


def test_folder_and_pipe_are_not_files(tmp_path: Path) -> None:
    assert refusal(tmp_path).code == "artifact/not-a-file"
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe").code == "artifact/not-a-file"


def test_impossible_paths_are_refused() -> None:
    assert refusal(Path("a\0b")).code == "artifact/unreadable"
    assert refusal(Path("x" * 5000)).code == "artifact/unreadable"


def test_link_that_the_user_names_is_followed_but_not_inside_a_folder(tmp_path: Path) -> None:
    path = put(tmp_path, safetensors_file())
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read_weights(link).tensors
    with pytest.raises(GenwardenError) as caught:
        read_weights(link, member=True)
    assert caught.value.code == "artifact/link"


@pytest.mark.parametrize("make", [safetensors_file, torch_file])
def test_every_truncation_is_refused(make: object, tmp_path: Path) -> None:
    assert callable(make)
    content = make()
    for length in {*range(0, len(content), 97), *range(len(content) - 3, len(content))}:
        assert refusal(put(tmp_path, content[:length])).code.startswith("artifact/")


_SAFETENSORS, _TORCH = safetensors_file(), torch_file()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    original=st.sampled_from([_SAFETENSORS, _TORCH]),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    keep=st.floats(0, 1),
    cut=st.booleans(),
)
def test_damaged_file_loads_or_is_refused_and_check_agrees(
    original: bytes, edits: list[tuple[float, int]], keep: float, cut: bool, tmp_path: Path
) -> None:
    content = bytearray(original)
    for place, value in edits:
        content[int(place * len(content))] = value
    path = put(tmp_path, bytes(content[: int(keep * len(content))] if cut else content))
    try:
        read_weights(path)
        loaded = True
    except GenwardenError:
        loaded = False
    if path.stat().st_size:
        assert check_file(path).safe_to_open == loaded


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    header=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__", "F32"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    ),
    data=st.binary(max_size=16),
)
def test_any_json_header_loads_or_is_refused(header: object, data: bytes, tmp_path: Path) -> None:
    path = put(tmp_path, raw_safetensors({"a": header, "b": header}, data))
    with contextlib.suppress(GenwardenError):  # anything else fails the test
        read_weights(path)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), insert=st.binary(min_size=1, max_size=6))
def test_damaged_pickle_with_right_checksums_loads_or_is_refused(
    place: float, insert: bytes
) -> None:
    pickled = members_of(_TORCH)["archive/data.pkl"]
    at = int(place * len(pickled))
    content = with_pickle(pickled[:at] + insert + pickled[at + len(insert) :])
    with contextlib.suppress(GenwardenError):  # anything else fails the test
        read_plan(content, "it")
