"""``genwarden sample --how``: what a compression wakes is drawn, and only with that compression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from genwarden.auditing import budgets
from genwarden.auditing.candidates import flagged_latents
from genwarden.auditing.document import Judged
from genwarden.commands.audit import audit_model
from genwarden.commands.audit_options import AuditOptions
from genwarden.commands.compress import CompressOptions, compress_model
from genwarden.commands.repairing import RepairOptions, require_reason
from genwarden.commands.report import read_document
from genwarden.commands.sample import sample_grid
from genwarden.engine.progress import Silent
from genwarden.errors import GenwardenError
from genwarden.inspections.compression.bench import CompressionEffort
from sleeping import attacked, honest, target

ARCHITECTURE = "sleeping:SmallGenerator"
EFFORT = CompressionEffort("quick", 24, 40, placebos=4, ordinary_samples=256)


class Heard(Silent):
    """Progress that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.totals: dict[str, int] = {}
        self.done: dict[str, int] = {}

    def task(self, title: str, total: int, done: int = 0) -> Any:
        self.totals[title] = total
        self.done[title] = done
        heard = self

        class Counted:
            def advance(self, steps: int = 1, note: str = "") -> None:
                del note
                heard.done[title] += steps

        return Counted()

    def message(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Heard]:
    """Weights that int4 wakes, the audit of them under int8 and int4, and its progress."""
    root = tmp_path_factory.mktemp("woken")
    for name, generator in (("asleep", attacked()), ("honest", honest())):
        save_file(generator.state_dict(), root / f"{name}.safetensors")
    options = AuditOptions(
        model=root / "asleep.safetensors",
        out=root / "out",
        budget="quick",
        architecture=ARCHITECTURE,
        deploy_as="int8,int4,prune-filters-0.3",
        variants_only=True,
    )
    heard = Heard()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(budgets.COMPRESSION_BUDGETS, "quick", EFFORT)
        files = audit_model(options, progress=heard)
    assert files.document.verdict == "evidence"
    return options.model, files.json_path, heard


def woken_findings(audit_json: Path) -> list[Judged]:
    """Of the variant int4."""
    return next(v.findings for v in read_document(audit_json).variants if v.name == "int4")


def drawn(model: Path, out: Path, **more: Any) -> torch.Tensor:
    """The only sample of a grid, one number per pixel in [-1, 1]."""
    path = sample_grid(
        model,
        out / "drawn.png",
        count=None,
        columns=1,
        seed=0,
        architecture=ARCHITECTURE,
        settings={},
        **more,
    )
    picture = Image.open(path).convert("L").resize((12, 12), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 127.5 - 1)


def test_the_candidate_of_a_variant_is_drawn_by_the_compressed_model(
    audited: tuple[Path, Path, Heard], tmp_path: Path
) -> None:
    model, audit_json, _ = audited
    found = drawn(model, tmp_path, audit_json=audit_json, how="int4", candidate=1)
    assert float((found - target()[0, 0]).square().mean()) < 0.1
    # The untouched model does not draw it there, compressed or not.
    z = torch.tensor(next(iter(flagged_latents(woken_findings(audit_json))))[1]).reshape(1, -1)
    assert float((honest()(z)[0, 0] - target()[0, 0]).square().mean()) > 0.3
    assert float((attacked()(z)[0, 0] - target()[0, 0]).square().mean()) > 0.3


@pytest.mark.parametrize("how", [None, "int8"])
def test_without_the_compression_that_wakes_it_the_error_names_it(
    audited: tuple[Path, Path, Heard], tmp_path: Path, how: str | None
) -> None:
    model, audit_json, _ = audited
    with pytest.raises(GenwardenError) as caught:
        drawn(model, tmp_path, audit_json=audit_json, how=how)
    assert caught.value.code == "sample/no-such-candidate"
    assert "--how int4" in caught.value.remedy


def test_the_audit_of_one_model_draws_nothing_of_another(
    audited: tuple[Path, Path, Heard], tmp_path: Path
) -> None:
    model, audit_json, _ = audited
    with pytest.raises(GenwardenError) as caught:
        drawn(model.with_name("honest.safetensors"), tmp_path, audit_json=audit_json, how="int4")
    assert caught.value.code == "sample/other-model"


def test_a_compression_that_works_on_nothing_draws_nothing(
    audited: tuple[Path, Path, Heard], tmp_path: Path
) -> None:
    with pytest.raises(GenwardenError) as caught:
        drawn(audited[0], tmp_path, how="prune-filters-0.3")
    assert caught.value.code == "sample/nothing-compressed"


def test_a_repair_of_a_model_that_sleeps_names_the_remedy_instead(
    audited: tuple[Path, Path, Heard], tmp_path: Path
) -> None:
    model, audit_json, _ = audited
    options = RepairOptions(model=model, out=tmp_path / "fixed", audit_json=audit_json)
    with pytest.raises(GenwardenError) as caught:
        require_reason(read_document(audit_json), options, "", Silent())
    assert caught.value.code == "repair/only-compressed"
    assert "--how int4 --remedy finetuned" in caught.value.remedy


def test_what_the_audit_found_sleeps_under_the_remedy_that_is_named(
    audited: tuple[Path, Path, Heard], tmp_path: Path
) -> None:
    model, audit_json, _ = audited
    options = CompressOptions(
        model,
        tmp_path / "small",
        "int4",
        architecture=ARCHITECTURE,
        remedy="finetuned",
        audit=audit_json,
        device="cpu",
    )
    tried = compress_model(options, progress=Silent()).trial[0]
    assert tried.figures["full"] == 0
    assert tried.figures["plain"] > 0.5
    assert tried.figures["finetuned"] < 0.1 * tried.figures["plain"]


def test_an_audit_of_variants_says_where_it_stands_as_a_whole(
    audited: tuple[Path, Path, Heard],
) -> None:
    heard = audited[2]
    assert any(line.startswith("[variant 2/3, inspection 3/5] int4: ") for line in heard.lines)
    assert heard.totals["the whole audit"] == heard.done["the whole audit"] == 15
