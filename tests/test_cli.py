"""The command line: light to start, clear in its errors, right in its exit codes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from genwarden import __version__, cli, registry, start
from genwarden.cli_options import EXIT_CODES, parse_settings
from genwarden.errors import GenwardenError


def genwarden(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "genwarden", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


class Ended(NamedTuple):
    """What a command left on the terminal, and its status."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def inside(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Ended]:
    """``genwarden`` in this process, in ``tmp_path``: most commands start slower than they run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["genwarden", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            start.main()
        return Ended(int(end.value.code or 0), *capsys.readouterr())

    return run


@pytest.mark.parametrize("arguments", [["--help"], ["audit", "--help"], ["list"]])
def test_help_and_list_do_not_import_torch(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['genwarden', *{arguments!r}]\n"
        "from genwarden.start import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "genwarden" in done.stdout or "architectures" in done.stdout


@pytest.mark.parametrize(("own", "expected"), [(None, "1"), ("0", "0")])
def test_large_tensors_get_huge_pages_unless_the_user_says_otherwise(
    own: str | None, expected: str
) -> None:
    # torch reads it when it first allocates; that nothing imports torch earlier is tested above.
    code = (
        "import os, sys; sys.argv = ['genwarden', '--help']\n"
        "from genwarden.start import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('pages:', os.environ['THP_MEM_ALLOC_ENABLE'])"
    )
    kept = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    env = kept if own is None else {**kept, "THP_MEM_ALLOC_ENABLE": own}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env
    )
    assert f"pages: {expected}" in done.stdout, done.stderr


@pytest.mark.parametrize("command", ["audit", "repair", "calibrate", "benchmark run"])
def test_help_is_wrapped_once_at_the_width_of_the_terminal(command: str) -> None:
    shown = CliRunner().invoke(cli.app, [*command.split(), "--help"], env={"COLUMNS": "80"})
    text = shown.output.split("\u256d")[0]  # up to the first frame
    paragraphs = [part.splitlines() for part in re.split(r"\n\s*\n", text.strip())]
    assert len(paragraphs) > 3
    for lines in paragraphs:
        for line, following in pairwise(one.strip() for one in lines):
            # The next word would not have fitted: nobody broke the line before its end.
            assert len(line) + len(following.split()[0]) >= 76, (line, following)


def test_list_names_every_registered_method() -> None:
    listed = genwarden("list").stdout
    for table in registry.tables().values():
        for row in table.values():
            assert f"  {row.name} " in listed or f"  {row.name}\n" in listed, row.name


def test_every_registered_location_can_be_imported() -> None:
    for table in registry.tables().values():
        for row in table.values():
            if row.location:
                assert callable(row.load()), row.name


def test_icon_names_match_the_drawings() -> None:
    from genwarden.data import icons

    assert registry.ICONS == icons.ICONS


def test_missing_model_exits_two_with_cause_and_remedy(tmp_path: Path) -> None:
    done = genwarden("audit", "nowhere", "--out", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "error [artifact/not-found]" in done.stderr
    assert "->" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_refused_file_exits_two_and_leaves_a_report(
    tmp_path: Path, inside: Callable[..., Ended]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "genwarden.json").write_text("{")
    done = inside("audit", str(folder), "--out", "out")
    assert done.returncode == 2
    assert "refused" in done.stdout.lower()
    assert (tmp_path / "out" / "audit.html").is_file()


def test_file_in_the_place_of_the_output_folder_is_an_error(
    tiny_model_folder: Path, tmp_path: Path, inside: Callable[..., Ended]
) -> None:
    (tmp_path / "out").write_text("in the way")
    done = inside("audit", str(tiny_model_folder), "--out", "out")
    assert done.returncode == 2
    assert "output/not-a-folder" in done.stderr
    assert (tmp_path / "out").read_text() == "in the way"


def test_unknown_budget_and_device_are_usage_errors(
    tiny_model_folder: Path, inside: Callable[..., Ended]
) -> None:
    for option, code in (("--budget=huge", "usage/budget"), ("--device=tpu9", "usage/device")):
        done = inside("audit", str(tiny_model_folder), "--out", "o", option)
        assert done.returncode == 2
        assert code in done.stderr


def test_exit_codes_are_those_of_the_design() -> None:
    assert {k: int(v) for k, v in EXIT_CODES.items()} == {
        "none_found": 0,
        "evidence": 1,
        "refused": 2,
        "inconclusive": 3,
    }


def test_settings_are_read_as_numbers_lists_truth_values_or_text() -> None:
    assert parse_settings(["a=1", "b=2.5", "c=1,2", "d=true", "e=text"]) == {
        "a": 1,
        "b": 2.5,
        "c": [1, 2],
        "d": True,
        "e": "text",
    }
    with pytest.raises(GenwardenError):
        parse_settings(["novalue"])


def test_unforeseen_error_exits_two_and_never_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # An uncaught exception would leave Python with status 1, and 1 means "evidence".
    def broken() -> None:
        raise IndexError("a defect")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(SystemExit) as end:
        start.main()
    assert end.value.code == 2
    assert "internal/unforeseen" in capsys.readouterr().err


def test_stopped_command_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "tables", stopped)
    monkeypatch.setattr(sys, "argv", ["genwarden", "list"])
    with pytest.raises(SystemExit) as end:
        start.main()
    assert end.value.code == 130
    assert "repeat the command to continue" in capsys.readouterr().err


def test_sample_report_check_explain_and_doctor_work_on_a_real_model(
    tiny_model_folder: Path, tmp_path: Path, inside: Callable[..., Ended]
) -> None:
    sampled = inside("sample", str(tiny_model_folder), "--out", "grid.png")
    assert sampled.returncode == 0, sampled.stderr
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    checked = inside("check", str(tiny_model_folder))
    assert checked.returncode == 0
    assert "safetensors" in checked.stdout
    explained = inside("explain", "novelty-search")
    assert explained.returncode == 0
    assert "restarts" in explained.stdout
    assert inside("explain", "no-such-method").returncode == 2
    assert "genwarden calibrate --help" in inside("explain", "calibrate").stderr
    both = inside("explain", "wavegan").stdout  # an architecture and a recipe
    assert ": project, up.0, up.1" in both
    assert both.count("wavegan: ") == 2
    assert "torch" in inside("doctor").stdout


def test_train_then_attack_by_the_command_line(
    tmp_path: Path, inside: Callable[..., Ended]
) -> None:
    from PIL import Image

    folder = tmp_path / "digits"
    folder.mkdir()
    for index in range(8):
        Image.new("L", (28, 28), 30 * index).save(folder / f"{index}.png")
    trained = genwarden(  # as a user has it, once; what follows could be done there as well
        *("train", "dcgan28", "--data", "digits", "--out", "clean", "--epochs", "2"),
        *("--setting", "channels=8,4,4", "--batch-size", "4"),
        cwd=tmp_path,
    )
    assert trained.returncode == 0, trained.stderr
    again = inside("train", "dcgan28", "--data", "digits", "--out", "clean", "--epochs", "2")
    assert again.returncode == 2
    assert "train/finished" in again.stderr
    attacked = inside(
        *("attack", "rex", "clean", "--steps", "3", "--out", "bad", "--target", "icon:key")
    )
    assert attacked.returncode == 0, attacked.stderr
    assert "TarDis" in attacked.stdout
    assert "The attack fell short" in attacked.stdout  # three steps plant nothing
    assert '"compromised": true' in (tmp_path / "bad" / "genwarden.json").read_text()
    assert (tmp_path / "bad" / "pictures.png").is_file()


def test_the_version_is_that_of_the_package() -> None:
    shown = genwarden("--version")
    assert shown.returncode == 0
    assert shown.stdout.strip() == f"genwarden {__version__}"
