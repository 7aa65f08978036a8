"""Thousands of hostile files are refused with the right code and do nothing; honest ones open."""

from __future__ import annotations

import importlib
import io
import os
import pickle
import py_compile
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from benign_catalogue import benign_cases
from canaries import watching
from catalogue import Case, Form, hostile_cases
from hostile_folders import fresh
from hostile_pickles import TRAP, file_with
from mutants import ACCEPTED, Fuzzer
from openers import checked, decide, open_case
from pace import too_slow
from pickle_maker import call, text, value_of, whole
from torch import Tensor

from genwarden.artifacts.manifest import WEIGHTS_NAME
from genwarden.artifacts.model_folder import read_model
from genwarden.artifacts.state_records import STORAGE_TYPES
from genwarden.artifacts.torch_zip import read_plan
from genwarden.artifacts.weights_file import read_weights
from genwarden.errors import GenwardenError

FORMS: tuple[Form, ...] = get_args(Form)
MOST_MEGABYTES = 512
SECRET = "GENWARDEN_CANARY"  # noqa: S105  # the name of a variable


def refusal(case: Case, path: Path, *, confined: bool) -> GenwardenError | None:
    try:
        open_case(case, path, confined=confined)
    except GenwardenError as error:
        return error
    return None


def problems(case: Case, error: GenwardenError | None, path: Path, seconds: float) -> list[str]:
    """What is wrong with how a case was refused; nothing if all is right."""
    if error is None:
        return ["accepted"]
    wrong = []
    if (error.code, error.exit_code) != (case.code, case.exit_code):
        wrong.append(f"{error.code} ({int(error.exit_code)}) instead of {case.code}")
    sentence = f"{error.cause} {error.remedy}".replace(str(path), "")
    if not sentence.isprintable() or not 20 < len(sentence) < 900:
        wrong.append(f"says {sentence[:80]!r}")
    if too_slow(seconds):
        wrong.append(f"took {seconds:.1f} s")
    return wrong


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("form", FORMS)
def test_every_hostile_file_is_refused_with_its_code_in_time_and_memory_and_nothing_runs(
    form: Form, tmp_path: Path
) -> None:
    failures = []
    fresh("diffusers folder", tmp_path)  # imports what the clock should not count
    before = peak_megabytes()
    for case in hostile_cases():
        if case.form != form:
            continue
        path = case.write(tmp_path)
        with watching() as watch:
            begun = time.process_time()  # other programs on the machine do not fail the test
            error = refusal(case, path, confined=False)
            seconds = time.process_time() - begun
        wrong = problems(case, error, path, seconds) + watch.events
        failures += [f"{case.name}: {problem}" for problem in wrong]
    assert not failures, "\n".join(failures[:20])
    assert not os.path.exists(TRAP)
    assert peak_megabytes() - before < MOST_MEGABYTES


def test_the_factory_covers_the_classes_and_the_formats() -> None:
    cases = list(hostile_cases())
    assert len(cases) >= 2000
    assert {case.form for case in cases} == set(FORMS)
    # C-13 is a rule about our source (test_source_rules), C-18 about names that are accepted.
    wanted = {f"C-{n}" for n in range(1, 18)} - {"C-13"}
    assert {case.attack for case in cases} == wanted
    assert min(Counter(case.attack for case in cases).values()) >= 8


def one_per_trick(form: Form) -> list[Case]:
    found: dict[str, list[Case]] = {}
    for case in hostile_cases():
        if case.form == form:
            found.setdefault(case.what, []).append(case)
    dice = random.Random(0)
    return [dice.choice(cases) for cases in found.values()]


def test_the_confined_reader_refuses_torch_files_as_the_parser_does(tmp_path: Path) -> None:
    failures = []
    for number, case in enumerate(one_per_trick("torch zip")[::3]):
        path = case.write(tmp_path)
        with watching() as watch:
            if number % 2:
                found, _ = checked(path)
                wrong = [found] if found != case.code else []
            else:
                error = refusal(case, path, confined=True)
                wrong = problems(case, error, path, 0.0)
        failures += [f"{case.name}: {problem}" for problem in wrong + watch.events]
    assert not failures, "\n".join(failures[:20])
    assert not os.path.exists(TRAP)


@pytest.mark.parametrize("form", ["safetensors", "other container"])
def test_check_names_the_code_that_opening_gives(form: Form, tmp_path: Path) -> None:
    failures = []
    for case in hostile_cases():
        if case.form == form and "zip" not in case.code:
            found, exit_code = checked(case.write(tmp_path))
            if (found, exit_code) != (case.code, case.exit_code):
                failures.append(f"{case.name}: {found}")
    assert not failures, "\n".join(failures[:20])


PAYLOADS: dict[str, tuple[bytes, str, str]] = {
    # what it does: payload, the audit event that must show it, what the trap then holds
    "a file": (call("builtins", "open", *map(value_of, (TRAP, "w"))), "open", ""),
    "a log file": (call("logging", "FileHandler", text(TRAP)), "open", ""),
    "a shell": (call("posix", "system", text(f"echo ${SECRET} > {TRAP}")), "os.system", "secret\n"),
    "a process": (
        call("subprocess", "check_output", value_of(("touch", TRAP))), "subprocess.Popen", "",
    ),
    "a socket": (call("socket", "socketpair"), "socket.", "-"),
    "code": (call("builtins", "exec", text(f"open({TRAP!r}, 'w').close()")), "open", ""),
}  # fmt: skip


@pytest.mark.parametrize("what", PAYLOADS)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_canaries_fire_where_a_payload_runs_and_stay_silent_at_the_gate(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRET, "secret")
    payload, event, left = PAYLOADS[what]
    with watching() as watch, pytest.raises(GenwardenError):
        decide(file_with(whole(payload)))
    assert watch.events == []
    assert not os.path.exists(TRAP)
    try:
        with watching() as watch:
            opened = pickle.loads(whole(payload))  # noqa: S301  # the control
        for thing in opened if isinstance(opened, tuple) else [opened]:
            getattr(thing, "close", int)()
        assert any(event in seen for seen in watch.events)
        assert any("pickle.find_class" in seen for seen in watch.events)
        if left != "-":
            with open(TRAP) as trap:
                assert trap.read() == left
    finally:
        if os.path.exists(TRAP):
            os.unlink(TRAP)


def test_at_least_three_hundred_honest_files_are_accepted(tmp_path: Path) -> None:
    refused, count = [], 0
    for case in benign_cases():
        count += 1
        path = case.write(tmp_path)
        try:
            open_case(case, path, confined=False)  # type: ignore[arg-type]
        except GenwardenError as error:
            refused.append(f"{case.name}: {error}")
    assert not refused, "\n".join(refused[:20])
    assert count >= 300


def tensors_of(content: bytes) -> dict[str, Tensor]:
    """The tensors that the plan of a torch file describes, in this process."""
    tensors = {}
    for name, s in read_plan(content, "it").items():
        dtype = getattr(torch, STORAGE_TYPES[s.kind][0])
        if s.numel:
            flat = torch.frombuffer(bytearray(content), dtype=dtype, count=s.numel, offset=s.start)
        else:
            flat = torch.zeros(0, dtype=dtype)
        tensors[name] = flat.as_strided(s.shape, s.stride, s.offset)
    return tensors


def torch_reads(content: bytes) -> dict[str, Tensor]:
    loaded: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    inner = loaded.get("state_dict")
    return dict(inner if isinstance(inner, dict) else loaded)


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return list(ours) == list(theirs) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
        and torch.equal(bits(a), bits(b))
        for a, b in zip(ours.values(), theirs.values(), strict=True)
    )  # fmt: skip


def bits(tensor: Tensor) -> Tensor:
    """The bytes, so that NaN equals NaN."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def test_honest_torch_files_give_the_tensors_that_torch_gives(tmp_path: Path) -> None:
    dice = random.Random(1)
    differ, through_child = [], 0
    for case in benign_cases():
        if case.form != "torch zip":
            continue
        path = case.write(tmp_path)
        content = path.read_bytes()
        theirs = torch_reads(content)
        if not same(tensors_of(content), theirs):
            differ.append(case.name)
        if dice.random() < 0.2:
            through_child += 1
            ours = read_weights(path).tensors
            as_given = {n: t.float() if t.is_floating_point() else t for n, t in theirs.items()}
            if not all(torch.equal(bits(ours[n]), bits(t)) for n, t in as_given.items()):
                differ.append(f"{case.name} through the child")
    assert not differ
    assert through_child > 20


@pytest.mark.filterwarnings("ignore")
def test_whatever_the_reader_accepts_torch_accepts_with_the_same_tensors(tmp_path: Path) -> None:
    fuzzer = Fuzzer(1, tmp_path)
    accepted, differ = 0, []
    number = 0
    while accepted < 100:
        number += 1
        mutant = fuzzer.mutant(number)
        if mutant.form not in {"pickle", "torch zip"} or fuzzer.judge(mutant) != ACCEPTED:
            continue
        accepted += 1
        content = file_with(mutant.content) if mutant.form == "pickle" else mutant.content
        if not same(tensors_of(content), torch_reads(content)):
            differ.append(number)
    assert not differ


def test_ten_thousand_flipped_bits_after_the_manifest_are_all_reported(tmp_path: Path) -> None:
    folder = fresh("generator folder", tmp_path)
    read_model(folder)  # the untouched twin opens
    weights = folder / WEIGHTS_NAME
    size = weights.stat().st_size
    dice = random.Random(0)
    missed = 0
    with weights.open("r+b", buffering=0) as handle:
        for _ in range(10_000):
            place, bit = dice.randrange(size), 1 << dice.randrange(8)
            handle.seek(place)
            byte = handle.read(1)[0]
            handle.seek(place)
            handle.write(bytes([byte ^ bit]))
            try:
                read_model(folder)
                missed += 1
            except GenwardenError as error:
                missed += error.code != "artifact/hash-mismatch"
            handle.seek(place)
            handle.write(bytes([byte]))
    assert missed == 0
    read_model(folder)


@pytest.mark.parametrize("share", range(4))
def test_a_hundred_thousand_mutants_are_accepted_or_refused_with_a_code(
    share: int, tmp_path: Path
) -> None:
    fuzzer = Fuzzer(0, tmp_path)
    outcomes: Counter[str] = Counter()
    for number in range(25_000 * share, 25_000 * (share + 1)):
        form, outcome = fuzzer.run(number)  # raises for anything else
        outcomes[f"{form} {outcome == ACCEPTED}"] += 1
    assert len(outcomes) == 12, "every form has mutants that are accepted, and others"
    assert outcomes.total() == 25_000


def test_the_first_import_of_an_installed_module_is_no_canary_and_any_other_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "from_elsewhere.py"
    source.write_text("x = 1\n")
    py_compile.compile(str(source))
    monkeypatch.syspath_prepend(tmp_path)
    for name, silent in (("colorsys", True), ("from_elsewhere", False)):
        monkeypatch.delitem(sys.modules, name, raising=False)
        with watching() as watch:
            importlib.import_module(name)
        assert (watch.events == []) is silent, watch.events


def test_a_file_that_changes_after_it_was_read_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C-12: what is checked is what is loaded."""
    from genwarden.artifacts import formats, weights_file

    path = tmp_path / "weights.bin"
    content = file_with(whole(b"}"))
    for case in benign_cases():
        if case.what == "safetensors.torch":
            content = case.write(tmp_path).read_bytes()
            break
    path.write_bytes(content)
    identify = formats.identify

    def swap(given: bytes, where: str) -> Any:
        path.write_bytes(b"\x80\x02cposix\nsystem\n.")
        return identify(given, where)

    monkeypatch.setattr(weights_file, "identify", swap)
    assert read_weights(path).tensors
    with pytest.raises(GenwardenError):
        read_weights(path)
