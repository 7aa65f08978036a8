"""Tables of the recipe ``ray-scaling``."""

from __future__ import annotations

from statistics import median
from typing import Any, Final

from genwarden.benchmarks.tables import Table, figure

_BILLION: Final = 10**9
_WORKERS: Final = (1, 2, 16, 128)


def tables(document: dict[str, Any], name: str) -> list[Table]:
    """Samples per second with one worker and two, and what the accidents cost.

    Args:
        document: content of a result file.
        name: of the file, for the titles.
    """
    scaling = [
        [
            str(number + 1),
            *(figure(pair[workers]["samples_per_s"]) for workers in ("1", "2")),
            figure(ratio),
            *(figure(pair[workers]["seconds"]) for workers in ("1", "2")),
        ]
        for number, (pair, ratio) in enumerate(
            zip(document["scaling"], document["ratios"], strict=True)
        )
    ]
    rate = (
        f"Median ratio {document['ratio'] and figure(document['ratio'])}. Rates once every "
        "worker has done a piece; seconds with the start of the workers."
    )
    accidents, pieces = document["accidents"], document["accidents"]["pieces"]
    rows = [
        [f"{what} killed", f"{accidents[key]} of {pieces}"]
        for key, what in (("worker", "a worker"), ("node", "a node"), ("driver", "the driver"))
    ]
    rows += [
        ["the same command again begins with", f"{accidents['last']['pieces_kept']} of {pieces}"],
        ["result identical to this process's", "yes" if document["identical"] else "NO"],
        ["seconds in this process", figure(document["local"]["seconds"])],
        ["seconds with the accidents", figure(accidents["seconds"])],
    ]
    machine = document["environment"]
    load = "not recorded" if "load" not in document else figure(document["load"])
    note = (
        f"{machine['device']}, {machine['cores']} cores; one processor per node of the cluster; "
        f"load of the machine before the run: {load}."
    )
    small = f"An untrained DCGAN of channels {document['channels'].replace('+', ', ')}. {note}"
    timed = (
        [
            Table(
                f"Ray: two workers against one, {document['scaling_samples']:,} samples ({name})",
                [
                    "round",
                    "samples/s, one worker",
                    "two workers",
                    "ratio",
                    "seconds in all, one",
                    "two",
                ],
                scaling,
                [
                    rate,
                    f"{document['timed']['architecture']} of "
                    f"{document['timed']['parameters']:,} parameters. {note}",
                ],
            )
        ]
        if document["timed"]
        else []
    )
    return [
        *timed,
        *([_billion(document, name)] if document["timed"] else []),
        Table(
            f"Ray: a scan of {document['samples']:,} samples with accidents ({name})",
            ["what", "pieces recorded"],
            rows,
            [small],
        ),
    ]


def _billion(document: dict[str, Any], name: str) -> Table:
    """What a billion samples take at the measured rate."""
    rates = [pair["1"]["samples_per_s"] for pair in document["scaling"]]
    # More than twice the rate of one is other work on the machine, from which nothing follows.
    measured = document["ratio"] <= 2
    rate, efficiency = median(rates), document["ratio"] / 2
    rows = []
    for workers in _WORKERS if measured else _WORKERS[:1]:
        speed = rate * (1 if workers == 1 else workers * efficiency)
        rows.append([str(workers), figure(speed), figure(_BILLION / speed / 3600)])
    return Table(
        f"A billion samples at the measured rate ({name})",
        ["workers, one processor each", "samples/s", "hours"],
        rows,
        [
            "Beyond two extrapolated: the efficiency of two workers, nothing lost to the driver."
            if measured
            else "No plan for more workers: a ratio above 2 says that the machine had other work, "
            "so their efficiency is not known. Repeat the recipe on an idle machine."
        ],
    )
