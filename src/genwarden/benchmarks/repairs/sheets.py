"""Picture sheets: one PNG per repair (and sample shape), one row per suspect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from genwarden.artifacts.weights_file import read_weights
from genwarden.benchmarks.repairs.cell import DONE
from genwarden.benchmarks.repairs.measuring import SHOWN
from genwarden.data.grids import png_bytes, tile

#: Above the columns of a sheet: first column and text.
HEADS = (
    (0, "suspect"),
    (SHOWN, "repaired"),
    (2 * SHOWN, "trigger: clean, suspect, repaired"),
    (2 * SHOWN + 3, "target"),
)
_GAP = 2
_LABEL_WIDTH = 330
_HEAD_HEIGHT = 14
_SCALE = 2


def draw_sheets(recipe: str, rows: Sequence[dict[str, Any]], pictures: Path) -> dict[str, bytes]:
    """File name to PNG.

    Args:
        rows: cells; those that are not done, or have no picture, are left out.
        pictures: folder of the tensors that the cells left.
    """
    groups: dict[str, list[tuple[str, Tensor]]] = {}
    for row in rows:
        path = pictures / f"{row['key']}.safetensors"
        if row["status"] == DONE and path.exists():
            x = read_weights(path).tensors["x"]
            if x.ndim == 4:
                shape = "x".join(map(str, x.shape[1:]))
                name = f"{recipe}-{row['repair']}-{shape}.png"
                groups.setdefault(name, []).append((_label(row), x))
    return {name: _sheet(group) for name, group in groups.items()}


def _label(row: dict[str, Any]) -> str:
    words = str(row["member"]).split(".")
    return f"{' '.join(words[:-1])}  {row['figures']['ratio']:.2f}"


def _sheet(group: Sequence[tuple[str, Tensor]]) -> bytes:
    """Labels on the left with the ratio of TarDis after the repair to the clean model's."""
    columns = len(group[0][1])
    height, width = (side + _GAP for side in group[0][1].shape[2:])
    samples = tile(torch.cat([x for _, x in group]), columns=columns, gap=_GAP)
    samples = samples.resize(
        (samples.width * _SCALE, samples.height * _SCALE), Image.Resampling.NEAREST
    )
    white = 255 if samples.mode == "L" else (255, 255, 255)
    sheet = Image.new(
        samples.mode, (_LABEL_WIDTH + samples.width, _HEAD_HEIGHT + samples.height), white
    )
    sheet.paste(samples, (_LABEL_WIDTH, _HEAD_HEIGHT))
    pen = ImageDraw.Draw(sheet)
    for column, text in HEADS:
        pen.text((_LABEL_WIDTH + column * width * _SCALE, 1), text, fill=0)
    for place, (label, _) in enumerate(group):
        top = _HEAD_HEIGHT + place * height * _SCALE + height // 2
        pen.text((4, top), label, fill=0)
    return png_bytes(sheet)
