"""ART beside ours: what can be tested without ART, and with it where it is installed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genwarden.artifacts.model_folder import write_model
from genwarden.benchmarks.against_art import art_side
from genwarden.benchmarks.against_art.recipe import _times_art, run
from genwarden.benchmarks.against_art.tables import tables
from genwarden.engine.progress import Silent
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.dcgan import DCGAN28, initialise

#: The interpreter of an environment with ART; without it the test of the whole is skipped.
ART = os.environ.get("GENWARDEN_ART_PYTHON", "")


@pytest.fixture
def clean(tmp_path: Path) -> str:
    generator = DCGAN28((8, 4, 4), latent_dim=16)
    initialise(generator, random_stream(0, "art"))
    write_model(tmp_path / "clean", generator.eval(), "dcgan28", {"compromised": False})
    return str(tmp_path / "clean")


def measured(out: Path, **options: Any) -> Any:
    fixed: dict[str, Any] = {
        "data": None,
        "seed": 0,
        "device": torch.device("cpu"),
        "progress": Silent(),
    }
    return json.loads(run(out, **fixed, **options).read_text("utf-8"))


def test_order_of_rows_goes_there_and_back() -> None:
    rows = np.arange(3 * 49 * 2, dtype="f4").reshape(3 * 49, 2)
    placed = art_side._by_place(rows, 3)
    # Channel 2 at position 5: row 2 * 49 + 5 of PyTorch, row 5 * 3 + 2 of Keras.
    assert (placed[5 * 3 + 2] == rows[2 * 49 + 5]).all()
    assert (art_side._by_channel(placed, 3) == rows).all()
    vector = rows[:, 0]
    assert (art_side._by_channel(art_side._by_place(vector, 3), 3) == vector).all()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"art": ""}, "benchmark/clean-missing"),
        ({"batches": "8+x"}, "benchmark/option"),
        ({"batches": "64+128"}, "benchmark/option"),
        ({"iterations": "0"}, "benchmark/option"),
        ({"ours": "60:64"}, "benchmark/option"),
        ({"ours": "9:60:64:1e-3:0.1", "iterations": "2+3"}, "benchmark/option"),
        ({"art": "no-such-interpreter"}, "benchmark/art-failed"),
        ({"art": sys.executable}, "benchmark/art-failed"),  # without TensorFlow
    ],
)
def test_what_cannot_be_compared_is_refused(
    options: dict[str, Any], code: str, clean: str, tmp_path: Path
) -> None:
    given = {"clean": clean, "art": sys.executable, "iterations": "2"} | options
    with pytest.raises(GenwardenError) as refused:
        measured(tmp_path / "out", **given)
    assert refused.value.code == code


def _document(ours_s: float, tardis: float) -> dict[str, Any]:
    art = {"iterations": 200, "seconds": 100.0, "tardis_sum": 2.0, "expdis_sum": 3.0}
    ours = {"seconds": ours_s, "tardis_sum": tardis, "expdis_sum": 1.0}
    return {
        "latents_per_s": {
            "red": {
                "art": {"32": 50.0, "64": 40.0},
                "art bfloat16": {"32": 30.0, "64": 60.0},
                "float32": {"32": 400.0, "64": 300.0},
                "bfloat16": {"32": 500.0, "64": 600.0},
            },
            "prediction": {"art": {"32": 50.0}, "float32": {"32": 400.0}},
        },
        "times_art": {
            "red": {"float32": 8.0, "bfloat16": 10.0},
            "prediction": {"float32": 8.0},
        },
        "ends": [
            {
                **{n: {"tardis_sum": 7.0, "expdis_sum": 0.5} for n in ("float32", "bfloat16")},
                "steps": 9,
                "batch_size": 4,
                "fidelity_weight": 0.1,
            }
        ],
        "versions": {"art": "1", "tensorflow": "2"},
        "threads": 2,
        "seed": 1,
        "architecture_settings": {"channels": [8, 4, 4]},
        "untouched": {"tardis_sum": 900.0},
        "compared_samples": 64,
        "rows": [
            {
                "art": art,
                "ours": {
                    **ours,
                    "reached": tardis <= art["tardis_sum"],
                    "settings": {"first_layer_steps": 9, "steps": 60, "batch_size": 64},
                },
            }
        ],
    }


@pytest.mark.parametrize(
    ("seconds", "tardis", "as_near", "met"),
    [(4.0, 1.0, "yes", "yes"), (4.0, 2.5, "no", "no"), (6.0, 1.0, "yes", "no")],
)
def test_sooner_counts_only_where_ours_is_as_near(
    seconds: float, tardis: float, as_near: str, met: str
) -> None:
    speed, sooner = tables(_document(seconds, tardis), "x")
    assert [row[5] for row in speed.rows] == ["8", "7.5", "8"]
    # At 64 ART's own bfloat16 is the faster one.
    assert [row[7] for row in speed.rows] == ["10", "10", ""]
    assert "8 times ART in float32 (short), 10 times ART in bfloat16 (reached)" in speed.notes[0]
    (row,) = sooner.rows
    assert (row[8], row[10]) == (as_near, met)


def test_bfloat16_is_held_against_the_better_of_arts_precisions() -> None:
    rates = {
        "art": {"32": 50.0, "64": 40.0},
        "art bfloat16": {"32": 30.0, "64": 60.0},
        "float32": {"32": 400.0, "64": 300.0},
        "bfloat16": {"32": 500.0, "64": 600.0},
    }
    assert _times_art(rates) == {"float32": 8.0, "bfloat16": 10.0}
    del rates["art bfloat16"], rates["bfloat16"]
    assert _times_art(rates) == {"float32": 8.0}


@pytest.mark.slow
@pytest.mark.skipif(not ART, reason="GENWARDEN_ART_PYTHON names no environment with ART")
def test_art_and_ours_on_one_network(clean: str, tmp_path: Path) -> None:
    document = measured(
        tmp_path / "out",
        clean=clean,
        art=ART,
        batches="32",
        steps=2,
        rounds=1,
        iterations="3",
        ours="0:40:8:5e-3:0.1",
    )
    (row,) = document["rows"]
    untouched = document["untouched"]
    # ART moved the network a little; what came back is that network, not the clean one.
    assert row["art"]["expdis_sum"] > 0
    assert row["art"]["tardis_sum"] != untouched["tardis_sum"]
    assert untouched["expdis_sum"] == 0
    assert row["ours"]["tardis_sum"] < untouched["tardis_sum"]
