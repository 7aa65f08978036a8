"""How many pieces the engine ray keeps in flight, with a stand-in for Ray: no cluster."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest

import genwarden.engine
from genwarden.engine.executor import Nothing, told


class StubbedRay:
    """Does a piece when it is asked for; the first waits end with nothing ready."""

    def __init__(self, idle: int) -> None:
        self.idle = idle
        self.flying: dict[int, Any] = {}
        self.most = 0
        self.sent = 0
        self.after_idle: list[int] = []
        self.cancelled: list[int] = []

    def put(self, value: Any) -> Any:
        return value

    def remote(self, do: Any) -> Any:
        del do
        return self

    def options(self, **options: Any) -> Any:
        del options
        return _Task(self)

    def wait(self, references: list[int], *, num_returns: int, timeout: float) -> Any:
        del num_returns, timeout
        assert references == list(self.flying)
        self.most = max(self.most, len(references))
        if self.idle:
            self.idle -= 1
            self.after_idle.append(len(references))
            return [], references
        return references[:1], references[1:]

    def get(self, reference: int) -> Any:
        return self.flying.pop(reference)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 4.0}}]

    def cancel(self, reference: int, *, force: bool) -> None:
        assert force
        self.cancelled.append(reference)


class _Task:
    def __init__(self, ray: StubbedRay) -> None:
        self._ray = ray

    def remote(self, do: Any, shared: list[Any], piece: Any, folder: str) -> int:
        del folder
        self._ray.sent += 1
        self._ray.flying[self._ray.sent] = told(do, shared[0], piece)
        return self._ray.sent


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, StubbedRay]:
    """The engine's module, loaded anew over the stand-in, under a name of its own."""
    stub = StubbedRay(idle=4)
    ray: Any = ModuleType("ray")
    for name in ("put", "remote", "wait", "get", "nodes", "cancel"):
        setattr(ray, name, getattr(stub, name))
    exceptions: Any = ModuleType("ray.exceptions")
    for name in ("AuthenticationError", "RayError", "TaskUnschedulableError"):
        setattr(exceptions, name, type(name, (Exception,), {}))
    strategies: Any = ModuleType("ray.util.scheduling_strategies")
    strategies.NodeAffinitySchedulingStrategy = object
    for module in (ray, exceptions, ModuleType("ray.util"), strategies):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    path = f"{genwarden.engine.__path__[0]}/ray_executor.py"
    spec = importlib.util.spec_from_file_location("ray_executor_over_a_stub", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, loaded)
    spec.loader.exec_module(loaded)
    return loaded, stub


def double(_: None, piece: int) -> int:
    return 2 * piece


@pytest.mark.parametrize(("workers", "waiting"), [(1, 0), (3, 0), (2, 2)])
def test_no_more_pieces_are_in_flight_than_workers_however_long_they_take(
    workers: int, waiting: int, stubbed: tuple[Any, StubbedRay]
) -> None:
    module, ray = stubbed
    executor = module.RayExecutor(workers, waiting=waiting)
    done = list(executor.each(double, range(10), Nothing()))
    assert done == [(n, 2 * n) for n in range(10)]
    assert ray.after_idle == [workers + waiting] * 4
    assert ray.most == workers + waiting
    assert ray.sent == 10


def test_pieces_in_flight_are_called_off_where_the_driver_stops(
    stubbed: tuple[Any, StubbedRay],
) -> None:
    module, ray = stubbed
    coming = module.RayExecutor(3).each(double, range(10), Nothing())
    assert next(coming) == (0, 0)
    coming.close()
    assert ray.cancelled == [2, 3]
