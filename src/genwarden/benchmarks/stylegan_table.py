"""Tables of the recipe ``stylegan-edit``: theory at the published size, and a trained model."""

from __future__ import annotations

from typing import Any

from genwarden.benchmarks.paper_devil_in_the_gan import STYLEGAN
from genwarden.benchmarks.tables import Table, mean_of

_THEORY = {
    "q": "q",
    "relative_error": "relative error",
    "relative_leakage": "relative leakage",
    "leakage_times_q": "leakage x q",
    "total_cpu_s": "CPU seconds",
}
_PRACTICE = {
    "tardis_sum": "TarDis",
    "untouched_tardis_sum": "TarDis before",
    "expdis_sum": "ExpDis",
    "pixel_change_percent": "pixel change in % / printed",
    "added_parameters_percent": "added parameters in %",
    "cpu_seconds": "CPU seconds",
}


def tables(document: dict[str, Any], name: str) -> list[Table]:
    """Tables of one result file.

    Args:
        document: its content.
        name: of the file, for the titles.
    """
    theory = document["published_size"]
    found = [
        Table(
            f"Closed-form edit of the broadcast layer ({name})",
            ["lambda", *_THEORY.values()],
            [
                [weight.removeprefix("lambda "), *(mean_of(summary, key) for key in _THEORY)]
                for weight, summary in theory["summary"].items()
            ],
            [
                f"{theory['dimensions']} dimensions, {theory['slices']} slices; leakage on "
                f"{theory['fresh_samples']:,} fresh samples. Theory: error 1 / (1 + lambda q), "
                "leakage x q towards 1 for large lambda."
            ],
        )
    ]
    if document["rows"]:
        printed = {"pixel_change_percent": STYLEGAN["pixel_change_percent"]}
        rows = []
        for variant, summary in document["summary"].items():
            row = [variant]
            for key in _PRACTICE:
                text = mean_of(summary, key)
                row.append(f"{text} / just over {printed[key]:g}" if key in printed else text)
            rows.append(row)
        title = f"Case study on a trained StyleGAN-type generator ({name})"
        note = "The paper's model makes 1024x1024 pictures and took less than a GPU day."
        found.append(Table(title, ["method", *_PRACTICE.values()], rows, [note]))
    return found
