"""Pieces of work come back whole wherever they are done, whatever becomes of the workers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from genwarden.engine.choice import EngineChoice, executor_for, in_use, local_executor
from genwarden.engine.executor import Executor, InProcess, Lost, Nothing, Processes, told
from genwarden.errors import ExitCode, GenwardenError


class Offset:
    """A common part: a number here, and how another process makes it."""

    def __init__(self, value: int) -> None:
        self.value = value

    def here(self) -> int:
        return self.value

    def packed(self) -> Callable[[], int]:
        return Made(self.value)


@dataclass(frozen=True)
class Made:
    value: int

    def __call__(self) -> int:
        return self.value


def add(offset: int, piece: int) -> int:
    return offset + piece


def kill_once(_: None, mark: Path) -> str:
    """Die, unless somebody has before; a fatal one when "once" beside it has been tried."""
    while mark.suffix == ".fatal" and not mark.with_name("once").exists():
        time.sleep(0.01)
    if mark.suffix == ".fatal" or not mark.exists():
        mark.touch()
        os._exit(9)
    return mark.name


def refuse(_: None, piece: int) -> int:
    if piece == 2:
        raise GenwardenError("test/refused", "It is two.", "Give another.")
    if piece == 3:
        raise ZeroDivisionError("three")
    if piece == 4:
        raise GenwardenError("test/untested", "Four.", "Wait.", ExitCode.INCONCLUSIVE)
    return piece


@pytest.mark.parametrize("executor", [InProcess(), Processes(2)])
def test_every_piece_comes_back_once_with_the_common_part(executor: Executor) -> None:
    assert sorted(executor.each(add, range(5), Offset(10))) == [(n, n + 10) for n in range(5)]
    assert list(executor.each(add, [], Offset(10))) == []


def test_a_piece_that_its_worker_died_of_is_done_again_and_given_up_if_that_one_dies_too(
    tmp_path: Path,
) -> None:
    once, always = tmp_path / "once", tmp_path / "always.fatal"
    done = dict(Processes(2).each(kill_once, [once, always], Nothing()))
    assert done[once] == "once"
    assert isinstance(done[always], Lost)


def test_an_error_of_the_work_is_raised_as_it_is_and_any_other_with_its_name() -> None:
    with pytest.raises(GenwardenError, match="test/refused") as caught:
        list(Processes(1).each(refuse, [1, 2], Nothing()))
    assert caught.value.remedy == "Give another."
    with pytest.raises(GenwardenError, match=r"engine/piece-failed.*ZeroDivisionError: three"):
        list(Processes(1).each(refuse, [3], Nothing()))


def test_an_error_of_the_work_keeps_its_exit_code() -> None:
    with pytest.raises(GenwardenError, match="test/untested") as caught:
        list(Processes(1).each(refuse, [4], Nothing()))
    assert caught.value.exit_code is ExitCode.INCONCLUSIVE
    with pytest.raises(GenwardenError, match="test/refused") as plain:
        told(refuse, lambda: None, 2).result()
    assert plain.value.exit_code is ExitCode.ERROR


def test_the_executor_in_use_takes_all_work_and_only_inside_its_block() -> None:
    chosen = Processes(3)
    with in_use(chosen):
        assert executor_for(1) is chosen
    assert executor_for(1) == local_executor(1) or isinstance(executor_for(1), InProcess)
    assert executor_for(2) == Processes(2)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"name": "dask"}, "dask"),
        ({"workers": 0}, "one worker"),
        ({"address": "auto"}, "--address"),
        ({"gpus_per_worker": 0.5}, "--gpus-per-worker"),
        ({"name": "ray", "gpus_per_worker": 1.5}, "1.5 GPUs"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(GenwardenError, match="usage/engine") as caught:
        EngineChoice(**wrong)  # type: ignore[arg-type]
    assert named in caught.value.cause
