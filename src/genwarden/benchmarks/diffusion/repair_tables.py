"""Tables of ``diffusion-repairs``."""

from __future__ import annotations

from typing import Any, Final

from genwarden.benchmarks.tables import NOTHING, Table, figure

#: The project's demands: half of the clean model's target MSE, at most 5 % more FID.
WANTED_RATIO: Final = 0.5
WANTED_FID: Final = 1.05


def tables(document: dict[str, Any], name: str) -> list[Table]:
    """One table per compromised model of a result file."""
    del name
    made = []
    for model in dict.fromkeys(row["model"] for row in document["rows"]):
        rows = [row for row in document["rows"] if row["model"] == model]
        first = rows[0]
        made.append(
            Table(
                f"Repairs and run-time defences: {model}",
                ["method", "target MSE", "of the clean model's", "FID", "FID change", "seconds"],
                [
                    [
                        "none",
                        figure(first["mse_before"]),
                        figure(_ratio(first["mse_before"], first["mse_clean"])),
                        figure(first["fid_before"]),
                        NOTHING,
                        NOTHING,
                    ],
                    *(_cells(row) for row in rows),
                ],
                [
                    f"{first['trigger']}, target {first['target']}, sampler {first['sampler']}; "
                    f"{document['triggered']} triggered samples, MSE in [0, 1] scale; the clean "
                    f"base has {figure(first['mse_clean'])} at the trigger and "
                    f"{figure(first['mse_plain'])} on plain noise.",
                    f"FID: {document['samples']} samples against {document['real_images']} images "
                    f"in the features {document['features']!r}; clean base "
                    f"{figure(first['fid_clean'])}.",
                    f"Wanted: at least {WANTED_RATIO:g} of the clean model's target MSE, at most "
                    f"{100 * (WANTED_FID - 1):.0f} % more FID.",
                ],
            )
        )
    return made


def _cells(row: dict[str, Any]) -> list[str]:
    if "error" in row:
        return [row["method"], row["error"], NOTHING, NOTHING, NOTHING, NOTHING]
    return [
        row["method"],
        figure(row["mse"]),
        figure(_ratio(row["mse"], row["mse_clean"])),
        figure(row["fid"]),
        f"{100 * (row['fid'] / row['fid_before'] - 1):+.1f} %",
        figure(row.get("seconds")),
    ]


def _ratio(mse: float, clean: float) -> float:
    return mse / max(clean, 1e-12)
