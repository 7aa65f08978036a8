"""Ray as the engine: the same pieces, on the machines of a cluster.

``pip install genwarden[ray]``. The driver sends what the pieces share once (``ray.put``), keeps as
many pieces in flight as there are workers, and takes results as they come; it alone writes. A
piece whose worker or node died is sent again by Ray; an error of the work itself is not.
"""

from __future__ import annotations

import os
import platform
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import torch

from genwarden import __version__
from genwarden.engine.choice import EngineChoice
from genwarden.engine.executor import Common, Lost, Told, told
from genwarden.engine.files import remove_file, write_atomic
from genwarden.errors import GenwardenError

try:
    import ray
    from ray.exceptions import AuthenticationError, RayError, TaskUnschedulableError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as missing:
    raise GenwardenError(
        "engine/ray-missing",
        "The engine ray needs the package ray, which is not installed here.",
        "Install it: pip install 'genwarden[ray]'; or leave --engine away.",
    ) from missing

P = TypeVar("P")
S = TypeVar("S")
R = TypeVar("R")

#: How often a piece is sent again after its worker or node died.
RETRIES: Final = 5
#: Seconds without any machine that could take a piece, until the command gives up.
_PATIENCE_S = 120.0
_LOOK_AROUND_S = 5.0
_PROBE_S = 120.0


@dataclass(frozen=True)
class RayExecutor:
    """Pieces as Ray tasks.

    Attributes:
        workers: pieces at a time.
        cpus: processors that a piece claims.
        gpus: GPUs that a piece claims; 0.25 lets four share one.
        waiting: pieces sent ahead, so that no worker waits for the driver; the cluster has room for
            no more than ``workers`` at a time.
    """

    workers: int
    cpus: float = 1.0
    gpus: float = 0.0
    waiting: int = 0
    here: ClassVar[bool] = False

    def each(
        self, do: Callable[[S, P], R], pieces: Sequence[P], common: Common[S]
    ) -> Iterator[tuple[P, R | Lost]]:
        """See :class:`genwarden.engine.executor.Executor`."""
        if not pieces:
            return
        shared = ray.put(common.packed())
        task = ray.remote(_in_worker).options(
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            max_retries=RETRIES,
            retry_exceptions=False,
        )
        left = deque(pieces)
        running: dict[Any, P] = {}
        watch = _Watch(self.cpus, self.gpus)
        try:
            while True:
                while left and len(running) < self.workers + self.waiting:
                    piece = left.popleft()
                    # In a list, so that Ray hands the reference over and not what it refers to:
                    # a worker unpacks the common part once, not for every piece.
                    running[task.remote(do, [shared], piece, os.getcwd())] = piece
                if not running:
                    return
                ready, _ = ray.wait(list(running), num_returns=1, timeout=_LOOK_AROUND_S)
                watch.check(progressed=bool(ready))
                for reference in ready:
                    piece = running.pop(reference)
                    yield piece, _result(reference)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _result(reference: Any) -> Any:
    try:
        outcome: Told[Any] = ray.get(reference)
    except RayError as error:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        return Lost(
            f"{RETRIES + 1} workers died of it, the last with {type(error).__name__}: {first[:200]}"
        )
    return outcome.result()


def _in_worker(do: Callable[[S, P], R], shared: list[Any], piece: P, folder: str) -> Told[R]:
    """In a worker process of Ray; relative paths are those of the driver where both see them."""
    if os.path.isdir(folder):
        os.chdir(folder)
    torch.set_num_threads(1)
    return told(do, lambda: _common_part(shared[0]), piece)


#: In a worker: the common part that it was given last, by its reference.
_OPENED: dict[str, Any] = {}


def _common_part(reference: Any) -> Any:
    key = reference.hex()
    if key not in _OPENED:
        _OPENED.clear()
        _OPENED[key] = ray.get(reference)()
    return _OPENED[key]


class _Watch:
    """Whether there is still a machine that pieces fit on."""

    def __init__(self, cpus: float, gpus: float) -> None:
        self._needs = {"CPU": cpus, "GPU": gpus}
        self._fitting = time.monotonic()

    def check(self, *, progressed: bool) -> None:
        """Raises ``engine/no-machine`` where none was there for a while."""
        if progressed or _capacity(**self._needs):
            self._fitting = time.monotonic()
        elif time.monotonic() - self._fitting > _PATIENCE_S:
            raise GenwardenError(
                "engine/no-machine",
                f"For {_PATIENCE_S:.0f} seconds no machine of the cluster could take a piece "
                f"(it needs {_in_words(self._needs)}).",
                "Bring machines back and repeat the command: it continues.",
            )


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _capacity(**needs: float) -> int:
    """How many pieces the cluster can hold at a time."""
    needed = {name: amount for name, amount in needs.items() if amount}
    has = [node["Resources"] for node in _nodes()]
    return sum(min(int(h.get(n, 0.0) / amount + 1e-9) for n, amount in needed.items()) for h in has)


def _in_words(needs: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in needs.items() if amount)


@contextmanager
def ray_executor(choice: EngineChoice, *, cpus: int, folder: Path | None) -> Iterator[RayExecutor]:
    """Connect to a cluster, or start Ray on this machine, for as long as the block lasts.

    Args:
        choice: what the user chose.
        cpus: threads that a piece computes with.
        folder: one that every machine must see, or None.

    Raises:
        GenwardenError: ``engine/no-cluster``, ``engine/ray-versions``, ``engine/resources``,
            ``engine/other-version``, ``engine/folder-not-shared``.
    """
    _connect(choice, cpus)
    try:
        most = max(node["Resources"].get("CPU", 0.0) for node in _nodes())
        # A piece keeps its number of threads (that is arithmetic); they share what there is.
        claimed = float(max(1, min(cpus, int(most))))
        room = _capacity(CPU=claimed, GPU=choice.gpus_per_worker)
        if not room:
            needs = {"CPU": claimed, "GPU": choice.gpus_per_worker}
            raise GenwardenError(
                "engine/resources",
                f"No machine of the cluster has the {_in_words(needs)} that a worker needs.",
                "Lower --gpus-per-worker, or start Ray with --num-cpus and --num-gpus.",
            )
        _look_at_machines(folder)
        workers = choice.workers or room
        waiting = room if choice.workers is None else 0
        yield RayExecutor(workers, claimed, choice.gpus_per_worker, waiting)
    finally:
        ray.shutdown()


def _connect(choice: EngineChoice, cpus: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # an audit tells nobody
    plain: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if choice.address is not None and ":" in choice.address:
        _require_listener(choice.address)
    ends = signal.getsignal(signal.SIGTERM)
    try:
        if choice.address is None:
            ray.init(
                address="local",
                num_cpus=(choice.workers or os.cpu_count() or 1) * cpus,
                include_dashboard=False,
                **plain,
            )
        else:
            ray.init(address=choice.address, **plain)
    except (ConnectionError, AuthenticationError) as error:
        raise _no_cluster(choice.address or "this machine") from error
    except RuntimeError as error:
        if "ersion" not in str(error):
            raise
        raise GenwardenError(
            "engine/ray-versions",
            f"The cluster at {choice.address} runs another Ray or Python than this machine "
            f"(Ray {ray.__version__}, Python {platform.python_version()}).",
            "Install the same versions on all machines.",
        ) from error
    if ends is not None and threading.current_thread() is threading.main_thread():
        # Ray's own handler prints a stack and ends the process at once; SLURM sends SIGTERM.
        signal.signal(signal.SIGTERM, ends)


def _require_listener(address: str) -> None:
    """Ray itself would try for minutes where nobody listens."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_LOOK_AROUND_S).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address) from error


def _no_cluster(address: str) -> GenwardenError:
    return GenwardenError(
        "engine/no-cluster",
        f"There is no Ray cluster at {address} that lets this machine in.",
        "Start one (ray start --head) and give what it prints as --address HOST:PORT; where it "
        "wants a token, set RAY_AUTH_MODE=token here, too.",
    )


@dataclass(frozen=True)
class _Seen:
    """What a machine has."""

    versions: tuple[str, str, str]
    token: bytes | None
    at_home: bool


def _versions() -> tuple[str, str, str]:
    return (__version__, str(torch.__version__), platform.python_version())


def _look(path: str | None, home: str) -> _Seen:
    """On a machine of the cluster: what it has, whether it sees a file and the driver's folder."""
    token = Path(path).read_bytes() if path and os.path.exists(path) else None
    return _Seen(_versions(), token, os.path.isdir(home))


def _look_at_machines(folder: Path | None) -> None:
    """Every machine must have our versions, and see the folder if there is one."""
    token = os.urandom(16)
    path = None if folder is None else folder.resolve() / f".seen-{os.getpid()}"
    if path is not None:
        write_atomic(path, token)
    try:
        for node in _nodes():
            where = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            seen = _ask(node, None if path is None else str(path), where)
            if seen is None:
                continue
            if seen.versions != _versions():
                raise GenwardenError(
                    "engine/other-version",
                    f"{where} has genwarden, torch and Python {', '.join(seen.versions)}; this "
                    f"machine has {', '.join(_versions())}.",
                    "Install the same versions on all machines: results must not depend on where "
                    "they are computed.",
                )
            if path is not None and (seen.token != token or not seen.at_home):
                unseen = Path.cwd() if seen.token == token else folder
                raise GenwardenError(
                    "engine/folder-not-shared",
                    f"{where} does not see the folder {unseen}.",
                    "Work in a folder, and give --out, --data and --cache, on a file system that "
                    "all machines mount at the same path.",
                )
    finally:
        if path is not None:
            remove_file(path)


def _ask(node: dict[str, Any], path: str | None, where: str) -> _Seen | None:
    """What a machine has; None if it has left. One that died is listed for a while longer."""
    there = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
    look = ray.remote(_look).options(num_cpus=0, scheduling_strategy=there)
    deadline = time.monotonic() + _PROBE_S
    while True:
        try:
            seen: _Seen = ray.get(look.remote(path, os.getcwd()), timeout=_PROBE_S)
        except RayError as error:
            if not any(other["NodeID"] == node["NodeID"] for other in _nodes()):
                return None
            if isinstance(error, TaskUnschedulableError) and time.monotonic() < deadline:
                time.sleep(_LOOK_AROUND_S / 5)
                continue
            last = (str(error).strip().splitlines() or ["no message"])[-1]
            raise GenwardenError(
                "engine/machine-unfit",
                f"{where} cannot run genwarden ({type(error).__name__}: {last[:200]}).",
                "Install genwarden[ray] there, in the environment that `ray start` runs in.",
            ) from error
        return seen
