"""``genwarden demo`` with several models at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from genwarden.artifacts.model_folder import write_model
from genwarden.commands import demo
from genwarden.engine.progress import Silent
from genwarden.errors import GenwardenError
from genwarden.models.dcgan import DCGAN28

#: The first is begun last.
NAMES = ("ddpm-clean", "dcgan-red", "dcgan-rex")


@pytest.fixture
def models(tmp_path: Path, tiny_generator: DCGAN28, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three models whose audits end at once, because each has a weight that is no number."""
    folder = tmp_path / "models"
    for index, name in enumerate(NAMES):
        with torch.no_grad():
            tiny_generator.up1.weight[0, 0, 0, index] = float("nan")
        write_model(folder / name, tiny_generator, "dcgan28", {})
    monkeypatch.setattr(demo, "DEMO_MODELS", tuple((name, f"is {name}") for name in NAMES))
    monkeypatch.setattr(demo, "demo_model_folder", lambda name: folder / name)
    return folder


@pytest.mark.usefixtures("models")
def test_the_demo_says_the_same_with_any_number_of_workers(tmp_path: Path) -> None:
    found = {}
    for workers in (1, 2):
        out = tmp_path / str(workers)
        results, page = demo.run_demo(out, seed=0, progress=Silent(), workers=workers)
        assert [(r.name, r.description) for r in results] == [(n, f"is {n}") for n in NAMES]
        # Each document is its own model's.
        facts = [r.files.document.model for r in results]
        assert [fact and sum(fact.nonfinite.values()) for fact in facts] == [1, 2, 3]
        assert all((out / name / "audit.html").exists() for name in NAMES)
        assert all(name in page.read_text() for name in NAMES)
        found[workers] = [r.files.document.content_sha256() for r in results]
    assert found[1] == found[2]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_folder_with_another_models_audit_is_kept(
    models: Path, tmp_path: Path, tiny_generator: DCGAN28, workers: int
) -> None:
    demo.run_demo(tmp_path / "out", seed=0, progress=Silent(), workers=workers)
    write_model(models / "dcgan-red", tiny_generator, "dcgan28", {})
    with pytest.raises(GenwardenError) as raised:
        demo.run_demo(tmp_path / "out", seed=0, progress=Silent(), workers=workers)
    assert raised.value.code == "audit/other-audit"
