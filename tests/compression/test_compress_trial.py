"""A recovered trigger put to several networks: what is stored of it, and shifts of diffusion."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from bare_audits import bare_audit, shift_found
from genwarden.artifacts.diffusers_folder import read_diffusion
from genwarden.auditing.document import Variant
from genwarden.commands.compress_trial import Tried, shifts_of, try_recovered
from genwarden.commands.compressing import DiffusionSubject
from genwarden.commands.demo import demo_model_folder
from genwarden.compression.apply import compress
from genwarden.compression.how import compressor
from genwarden.engine.seeds import random_stream
from genwarden.inspections.compression import differential_trigger_search
from genwarden.inspections.finding import Trigger, mask_and_pattern, trigger_of

ASSETS = Path(__file__).parents[1] / "assets"


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_stored_trigger_is_read_back(channels: int) -> None:
    stream = random_stream(0, "trigger")
    mask = torch.rand(1, 5, 7, generator=stream)
    pattern = 2 * torch.rand(channels, 5, 7, generator=stream) - 1
    stored = trigger_of(mask, pattern, 2, title="of class 2")
    read, drawn = mask_and_pattern(Trigger.model_validate_json(stored.model_dump_json()))
    torch.testing.assert_close(read, mask, atol=1 / 255, rtol=0)
    torch.testing.assert_close(drawn, pattern, atol=2 / 255, rtol=0)


def _png(width: int, height: int, mode: str = "L") -> str:
    held = io.BytesIO()
    Image.new(mode, (width, height)).save(held, format="PNG")
    return base64.b64encode(held.getvalue()).decode("ascii")


@pytest.mark.parametrize(
    "content",
    [
        _png(5, 5),
        _png(20_000, 20_000),
        _png(5, 10, "RGB"),
        _png(5, 10)[:60],
        base64.b64encode(b"GIF89a").decode("ascii"),
        "",
        "#",
    ],
)
def test_a_trigger_of_an_edited_file_is_refused(content: str) -> None:
    assert len(mask_and_pattern(_stored(_png(5, 10)))) == 2
    with pytest.raises(ValueError, match=r"."):
        mask_and_pattern(_stored(content))


def _stored(content: str) -> Trigger:
    return Trigger(title="", target=0, shape=(1, 5, 5), png_base64=content)


def test_what_is_no_number_is_written_as_null() -> None:
    tried = Tried("latent", "usual distances", {"full": 0.0, "plain": float("nan")})
    assert json.loads(json.dumps(tried.record(), allow_nan=False))["figures"]["plain"] is None
    assert "nan" in str(tried)


def test_a_shift_that_wakes_one_network_moves_it_far_and_its_honest_twin_hardly() -> None:
    """As if a compression had turned the clean shipped model into the backdoored one."""
    clean, awake = (
        read_diffusion(demo_model_folder(name)) for name in ("ddpm-clean", "ddpm-bad-diffusion")
    )
    shift = load_file(str(ASSETS / "ddpm-bad-diffusion.backdoor.safetensors"))["g"]
    found = shift_found(differential_trigger_search.NAME, shift)
    document = bare_audit(variants=[Variant(name="int8", findings=[found])])
    subject = DiffusionSubject(clean)
    honest, _ = compress(clean.model, compressor("int8"), lambda m: m.epsilon(shift[None], 0))
    networks = {"full": clean.model, "plain": awake.model, "honest": honest}
    shifts = shifts_of(document, "int8", subject)
    tried = try_recovered(list(shifts), networks, subject.outputs(clean.model, 0))
    assert [one.name.split(", ")[1] for one in tried] == ["eta 0", "eta 1"]
    stochastic = tried[1].figures
    assert stochastic["full"] == 0
    assert stochastic["plain"] > 5 * stochastic["honest"]
    assert stochastic["plain"] > 0.3
