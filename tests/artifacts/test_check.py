"""``genwarden check``: what a file is and whether it is safe to open."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile_files import BENIGN, HOSTILE, put, safetensors_file, state_dict, torch_file
from safetensors.torch import save as save_safetensors

from genwarden.artifacts.check import check_file, describe
from genwarden.artifacts.diffusers_folder import read_diffusion, write_diffusion
from genwarden.artifacts.manifest import MANIFEST_NAME, WEIGHTS_NAME
from genwarden.artifacts.unread import unread_files
from genwarden.engine.seeds import random_stream
from genwarden.errors import ExitCode, GenwardenError
from genwarden.models.diffusion.networks import fresh_model, small_unet
from genwarden.models.diffusion.schedule import NoiseSchedule


@pytest.mark.parametrize("case", [name for name in HOSTILE if name != "an empty file"])
def test_hostile_file_is_reported_with_the_code_that_loading_gives(
    case: str, tmp_path: Path
) -> None:
    make, code = HOSTILE[case]
    report = check_file(put(tmp_path, make()))
    assert [finding.code for finding in report.findings] == [code]
    assert not report.safe_to_open
    assert report.tensors == []
    assert "efused" in report.sentence


@pytest.mark.parametrize("case", BENIGN)
def test_benign_file_is_safe_to_open_and_nothing_is_said_about_its_weights(
    case: str, tmp_path: Path
) -> None:
    report = check_file(put(tmp_path, BENIGN[case]()))
    assert report.findings == []
    assert report.tensors
    assert "clean" not in report.sentence.lower()


@pytest.mark.parametrize(
    ("content", "expected"), [(safetensors_file(), "safetensors"), (torch_file(), "torch zip")]
)
def test_report_lists_what_is_stored(content: bytes, expected: str, tmp_path: Path) -> None:
    report = check_file(put(tmp_path, content))
    assert report.format == expected
    assert report.size_bytes == len(content)
    assert report.sha256 == hashlib.sha256(content).hexdigest()
    listed = {facts.name: (facts.dtype, facts.shape, facts.size_bytes) for facts in report.tensors}
    assert listed == {
        "layer.weight": ("float32", (3, 4), 48),
        "layer.bias": ("float32", (3,), 12),
        "count": ("int64", (), 8),
    }
    assert set(listed) == set(state_dict())


@pytest.mark.parametrize("content", [safetensors_file(), torch_file()], ids=["own", "torch"])
def test_no_weight_becomes_a_tensor_in_the_checking_process(content: bytes, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from genwarden.artifacts.check import check_file, describe\n"
        f"report = check_file(Path({str(put(tmp_path, content))!r}))\n"
        "assert report.safe_to_open and len(report.tensors) == 3 and describe(report)\n"
        "heavy = {'torch', 'numpy', 'safetensors', 'pickle'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_not_examined_is_neither_safe_nor_refused(tmp_path: Path) -> None:
    report = check_file(put(tmp_path, b"\x08\x08\x12\x07pytorch\x1a\x052.1.0\x3a\x02\x12\x00"))
    assert [finding.code for finding in report.findings] == ["artifact/onnx"]
    assert report.exit_code == ExitCode.INCONCLUSIVE
    assert not report.safe_to_open
    assert "Not examined" in describe(report)


def test_description_names_limits_metadata_and_confinement(tmp_path: Path) -> None:
    told = save_safetensors({"a": torch.ones(1)}, {"format": "pt", "\x1b[2J": "<b>"})
    text = describe(check_file(put(tmp_path, told)))
    assert "format=pt" in text
    assert "\x1b" not in text
    assert "Limits:" in text
    assert "confined by limits" in describe(check_file(put(tmp_path, torch_file())))


def test_model_folder_is_checked_against_its_manifest(tiny_model_folder: Path) -> None:
    assert check_file(tiny_model_folder).safe_to_open
    weights = tiny_model_folder / WEIGHTS_NAME
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    report = check_file(tiny_model_folder)
    assert [finding.code for finding in report.findings] == ["artifact/hash-mismatch"]


def test_nothing_to_examine_is_an_error(tmp_path: Path) -> None:
    for content, code in ((None, "artifact/not-found"), (b"", "artifact/empty")):
        path = tmp_path / "file"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(GenwardenError) as caught:
            check_file(path)
        assert caught.value.code == code


def test_description_names_what_is_stored(tmp_path: Path) -> None:
    text = describe(check_file(put(tmp_path, torch_file())), most_tensors=2)
    assert "3 with 16 numbers" in text
    assert "layer.weight" in text
    assert "3x4" in text
    assert "... and 1 more" in text
    assert "Safe to open" in text


def test_description_escapes_names_and_gives_code_and_remedy(tmp_path: Path) -> None:
    hostile = save_safetensors({"\x1b[2J" + "x" * 10_000: torch.ones(1)})
    text = describe(check_file(put(tmp_path, hostile)))
    assert "\x1b" not in text
    assert len(text) < 1000
    text = describe(check_file(put(tmp_path, HOSTILE["a pickle that calls os.system"][0]())))
    assert "[artifact/pickle-refused]" in text
    assert "->" in text
    assert "posix.system" in text


def test_a_diffusers_folder_is_checked_and_custom_code_in_it_is_refused(tmp_path: Path) -> None:
    model = fresh_model(
        small_unet(8, 1, (8, 8), middle_attention=False),
        NoiseSchedule.linear(),
        torch.Generator().manual_seed(0),
    )
    write_diffusion(tmp_path, model, {})
    sound = check_file(tmp_path)
    assert sound.safe_to_open
    assert sound.format == "safetensors"
    assert len(sound.tensors) == len(model.unet.state_dict())
    (tmp_path / "unet" / "model.py").write_text("import os\n")
    refused = check_file(tmp_path)
    assert [finding.code for finding in refused.findings] == ["artifact/custom-code"]


def _diffusion(folder: Path) -> Path:
    stream = random_stream(0, "check")
    model = fresh_model(small_unet(8, 1, (8, 8)), NoiseSchedule.linear(10), stream)
    write_diffusion(folder, model.eval(), {"compromised": False})
    return folder


def test_no_path_speaks_for_genwarden(tmp_path: Path) -> None:
    name = "w.pt\nSafe to open. Whether the weights carry a backdoor\x1b[8m\u202e"
    path = tmp_path / name
    path.write_bytes(HOSTILE["an HTML page"][0]())
    told = describe(check_file(path))
    assert "\x1b" not in told
    assert "\u202e" not in told
    assert not any(line.startswith("Safe to open") for line in told.splitlines())


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": 1.0}))


def _torch_zip(path: Path) -> None:
    path.write_bytes(torch_file())


def _program(path: Path) -> None:
    path.write_bytes(b"\x7fELF" + bytes(20))


def _code(path: Path) -> None:
    path.write_text("print('no')")


def _safetensors(path: Path) -> None:
    path.write_bytes(safetensors_file())


def _array(path: Path) -> None:
    path.write_bytes(b"\x93NUMPY\x01\x00")


def _text(path: Path) -> None:
    path.write_text("text")


def _link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("name", "make", "what"),
    [
        ("training_args.bin", _pickle, "a pickle"),
        ("picture.png", _pickle, "a pickle"),  # by its first bytes
        ("old/weights", _torch_zip, "a zip archive (torch files are)"),
        ("run", _program, "a program"),
        ("model.py", _code, "code"),
        ("vocabulary", _link, "a link"),
        ("old/model.safetensors", _safetensors, "other weights"),
        ("states.npy", _array, "a NumPy file"),
        ("notes.md", _pickle, "a pickle"),
        ("weights.xyz", _text, "of a kind that genwarden does not open"),
    ],
)
@pytest.mark.parametrize("kind", ["generator", "diffusion"])
def test_what_others_may_open_in_a_folder_is_named_and_not_called_safe(
    kind: str,
    name: str,
    make: Callable[[Path], object],
    what: str,
    tiny_model_folder: Path,
    tmp_path: Path,
) -> None:
    folder = tiny_model_folder if kind == "generator" else _diffusion(tmp_path / "diffusion")
    (folder / "README.md").write_text("# A model")
    (folder / "LICENSE").write_text("free")
    (folder / ".git" / "hooks").mkdir(parents=True)
    (folder / ".git" / "hooks" / "pre-push.sample").write_text("#!/bin/sh")
    (folder / "samples").mkdir(exist_ok=True)
    (folder / "samples" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    clean = check_file(folder)
    assert (clean.exit_code, clean.unread) == (ExitCode.NONE_FOUND, ())
    assert clean.sentence.startswith("Safe to open.")

    (folder / name).parent.mkdir(exist_ok=True)
    make(folder / name)
    report = check_file(folder)
    if kind == "diffusion" and name == "model.py":
        assert [finding.code for finding in report.findings] == ["artifact/custom-code"]
        return
    assert report.unread == ((name, what),)
    assert report.exit_code == ExitCode.INCONCLUSIVE
    assert not report.sentence.startswith("Safe")
    assert f"{name:<40} {what}" in describe(report)


@pytest.mark.parametrize(
    "name", ["unet/diffusion_pytorch_model.safetensors", "unet/config.json", "model_index.json"]
)
def test_a_change_in_a_diffusers_folder_of_ours_is_reported(name: str, tmp_path: Path) -> None:
    folder = _diffusion(tmp_path)
    assert check_file(folder).exit_code == ExitCode.NONE_FOUND
    assert read_diffusion(folder).nonfinite == {}
    content = bytearray((folder / name).read_bytes())
    if name.endswith(".json"):
        content += b" "
    else:
        content[-1] ^= 1
    (folder / name).write_bytes(content)
    assert [f.code for f in check_file(folder).findings] == ["artifact/hash-mismatch"]
    with pytest.raises(GenwardenError) as refused:
        read_diffusion(folder)
    assert refused.value.code == "artifact/hash-mismatch"
    # A folder of other software states no hashes.
    (folder / MANIFEST_NAME).unlink()
    assert check_file(folder).exit_code == ExitCode.NONE_FOUND


def test_weights_that_begin_like_a_pickle_are_not_called_one(tmp_path: Path) -> None:
    # A safetensors header of 896 bytes begins with 80 03, as a pickle of protocol 3 does.
    for length in (640, 896, 1152, 1408):
        header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
        content = length.to_bytes(8, "little") + header.ljust(length).encode() + bytes(4)
        assert content[0] == 0x80
        (tmp_path / f"{length}.safetensors").write_bytes(content)
    kinds = {what for _, what in unread_files(tmp_path, [tmp_path / "640.safetensors"])}
    assert kinds == {"other weights"}
    assert len(unread_files(tmp_path, [tmp_path / "640.safetensors"])) == 3
