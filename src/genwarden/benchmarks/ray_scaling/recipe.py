"""Recipe ``ray-scaling``: two workers against one, and a scan whose parts are killed.

    genwarden benchmark run ray-scaling --option clean=DIR --out results/ray-scaling

DIR is the folder of the generator that is timed. The scan with accidents takes a small untrained
one of ``channels``: all that is asked of it is to be the same in the end. The recipe starts a Ray
cluster of three nodes on this machine: a head that computes nothing, and two nodes of one
processor. First a scan with one worker and with two, in turn, ``rounds`` times. Then a scan of
``samples`` in this process, and the same on the cluster with accidents: at a quarter a worker is
killed, at a half a node (another one joins), at three quarters the driver, which is then started
again; all with SIGKILL. Cost with a full-width DCGAN: about 15 minutes on two cores. Ratios mean
something on an idle machine only.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from genwarden.artifacts.model_folder import LoadedModel, read_model, write_model
from genwarden.auditing.audit import environment
from genwarden.auditing.scanning import scan_pieces
from genwarden.benchmarks.options import whole_numbers
from genwarden.benchmarks.ray_scaling.scan_once import pieces_kept
from genwarden.benchmarks.robustness.snapshots import code_digest
from genwarden.benchmarks.store import write_result
from genwarden.engine.files import remove_folder
from genwarden.engine.ledger import Ledger
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.dcgan import DCGAN28, initialise
from genwarden.models.protocol import parameter_count

_LOOK_S = 0.05
_PATIENCE_S = 30.0


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    clean: str = "",
    channels: str = "16+8+4",
    samples: int = 10_000_000,
    scaling_samples: int = 200_000,
    rounds: int = 3,
) -> Path:
    """Measure, kill, compare.

    Args:
        clean: folder of the generator that is timed; only needed with ``rounds``.
        channels: of the generator of the scan with accidents.
        samples: of the scan with accidents.
        scaling_samples: of a scan that is timed.
        rounds: timed scans with each number of workers.
    """
    del data  # the model is all that is needed
    if rounds and not clean:
        raise GenwardenError(
            "benchmark/clean-missing",
            "The recipe ray-scaling needs a model to time.",
            "Add --option clean=DIR, or --option rounds=0.",
        )
    work = out / "work"
    asked: dict[str, Any] = {"samples": samples, "scaling_samples": scaling_samples, "seed": seed}
    timed_model = read_model(Path(clean)) if rounds else None
    asked |= {"channels": channels, "code": code_digest(), "environment": environment(device)}
    asked["clean"] = timed_model.sha256 if timed_model else ""
    Ledger(work / "asked", asked)  # scans of another run are not continued
    small = _untrained(work / "model", tuple(whole_numbers(channels)), seed)
    load = os.getloadavg()[0]
    bar = progress.task("scans", 2 * rounds + 2)
    with _Cluster() as cluster:

        def timed(workers: int, number: int) -> dict[str, Any]:
            folder = work / f"{workers}-{number}"
            done = (
                _finished(folder)
                or _Driver(
                    clean, folder, scaling_samples, seed, (workers, cluster.address)
                ).finish()
            )
            bar.advance(1, f"{workers} workers")
            return done

        scaling = [{str(w): timed(w, number) for w in (1, 2)} for number in range(rounds)]
        local = work / "local"
        reference = _finished(local) or _Driver(small, local, samples, seed, None).finish()
        bar.advance(1, "local")
        remove_folder(work / "accidents")
        accidents = _with_accidents(small, work / "accidents", samples, seed, cluster, progress)
        bar.advance(1, "accidents")
    ratios = [_rate(pair["2"]) / _rate(pair["1"]) for pair in scaling]
    path = write_result(
        out / "result.json",
        {
            "recipe": "ray-scaling",
            "command": "genwarden benchmark run ray-scaling "
            + (f"--option clean={Path(clean).name} " if rounds else "")
            + f"--option channels={channels} --option samples={samples} "
            f"--option scaling_samples={scaling_samples} --option rounds={rounds} "
            f"--seed {seed} --out DIR",
            "timed": _described(timed_model),
            "channels": channels,
            "samples": samples,
            "scaling_samples": scaling_samples,
            "scaling": scaling,
            "ratio": median(ratios) if ratios else None,
            "ratios": ratios,
            "local": reference,
            "accidents": accidents,
            "identical": accidents["last"]["sha256"] == reference["sha256"]
            and len({done["sha256"] for pair in scaling for done in pair.values()}) <= 1,
            "load": load,
            "environment": environment(device),
        },
    )
    remove_folder(work)
    return path


def _untrained(folder: Path, channels: tuple[int, ...], seed: int) -> str:
    """A DCGAN with fresh weights, written as a model folder."""
    first, second, third = channels
    generator = DCGAN28(channels=(first, second, third))
    initialise(generator, random_stream(seed, "ray-scaling"))
    write_model(folder, generator.eval(), "dcgan28", {"made_by": "benchmark ray-scaling"})
    return str(folder)


def _described(model: LoadedModel | None) -> dict[str, Any] | None:
    if model is None:
        return None
    return {
        "architecture": model.architecture,
        "settings": model.settings,
        "parameters": parameter_count(model.generator),
    }


def _rate(done: dict[str, Any]) -> float:
    return float(done["samples_per_s"])


def _finished(folder: Path) -> dict[str, Any] | None:
    path = folder / "done.json"
    done: dict[str, Any] | None = json.loads(path.read_text("utf-8")) if path.exists() else None
    return done


class _Driver:
    """A scan in a process of its own."""

    def __init__(
        self,
        model: str,
        out: Path,
        samples: int,
        seed: int,
        engine: tuple[int, str] | None,
    ) -> None:
        self.out = out
        words = [model, out, samples, seed, *(engine or ())]
        command = [sys.executable, "-m", "genwarden.benchmarks.ray_scaling.scan_once"]
        self._process = subprocess.Popen([*command, *map(str, words)])  # noqa: S603

    def wait_for(self, pieces: int) -> None:
        """Until so many pieces are recorded.

        Raises:
            GenwardenError: ``benchmark/driver`` if the scan ends before.
        """
        while pieces_kept(self.out / "ledger") < pieces:
            if self._process.poll() is not None:
                raise self._ended()
            time.sleep(_LOOK_S)

    def kill(self) -> int:
        """Kill it; how many pieces are then recorded."""
        self._process.kill()
        self._process.wait()
        return pieces_kept(self.out / "ledger")

    def finish(self) -> dict[str, Any]:
        """Until the end."""
        self._process.wait()
        done = _finished(self.out)
        if done is None:
            raise self._ended()
        return done

    def _ended(self) -> GenwardenError:
        return GenwardenError(
            "benchmark/driver",
            f"A scan in {self.out} ended with status {self._process.returncode}.",
            "What it printed above says why; repeat the command.",
        )


def _with_accidents(
    model: str, out: Path, samples: int, seed: int, cluster: _Cluster, progress: Progress
) -> dict[str, Any]:
    """The scan with a worker, a node and the driver killed: what was recorded at each moment."""
    pieces = len(scan_pieces(samples))
    told: dict[str, Any] = {"pieces": pieces}
    began = time.perf_counter()
    driver = _Driver(model, out, samples, seed, (2, cluster.address))
    moments: list[tuple[str, float, Callable[[], None]]] = [
        ("worker", 0.25, cluster.kill_worker),
        ("node", 0.5, cluster.kill_node),
    ]
    for name, share, kill in moments:
        driver.wait_for(int(share * pieces))
        kill()
        told[name] = pieces_kept(out / "ledger")
        progress.message(f"killed the {name} at piece {told[name]} of {pieces}")
    driver.wait_for(int(0.75 * pieces))
    told["driver"] = driver.kill()
    progress.message(f"killed the driver at piece {told['driver']} of {pieces}")
    told["last"] = _Driver(model, out, samples, seed, (2, cluster.address)).finish()
    told["seconds"] = time.perf_counter() - began
    return told


class _Cluster:
    """A Ray cluster of a head without processors and two nodes of one, with a token of its own."""

    def __init__(self) -> None:
        os.environ |= {  # Ray reads them when it is imported
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        from genwarden.engine import ray_executor  # noqa: F401  # says what to install

    def __enter__(self) -> _Cluster:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes = [self._cluster.add_node(num_cpus=1) for _ in range(2)]
        self._cluster.wait_for_nodes()
        self.address: str = self._cluster.address
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.shutdown()

    def kill_worker(self) -> None:
        """Kill a process that is at a piece.

        Raises:
            GenwardenError: ``benchmark/no-worker`` where none is for a while.
        """
        for _ in range(int(_PATIENCE_S / _LOOK_S)):
            if found := self._busy():
                break
            time.sleep(_LOOK_S)
        else:
            raise GenwardenError(
                "benchmark/no-worker",
                "No worker was at a piece when one was to be killed.",
                "Take more --option samples, so that the scan does not end before.",
            )
        os.kill(found[0], signal.SIGKILL)

    def kill_node(self) -> None:
        """Kill a node with all its processes; another one joins."""
        self._cluster.remove_node(self._nodes.pop(), allow_graceful=False)
        self._nodes.append(self._cluster.add_node(num_cpus=1))

    def _busy(self) -> list[int]:
        """Workers of our own nodes that are at a piece (Linux: Ray names them after it)."""
        session = str(self._cluster.head_node.get_session_dir_path()).encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                if not (entry / "cmdline").read_bytes().startswith(b"ray::_in_worker"):
                    continue
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if session in (Path("/proc") / parent / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:  # gone meanwhile
                continue
        return found
