"""Triggers, targets and the backdoor that they make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from genwarden.backdoors.backdoor import Backdoor, make_backdoor
from genwarden.backdoors.target import make_target, target_names
from genwarden.backdoors.trigger import (
    TRIGGER_KINDS,
    in_sample,
    make_trigger,
    mode,
    out_of_distribution,
)
from genwarden.data.icons import draw_icon
from genwarden.errors import GenwardenError
from genwarden.models.dcgan import DCGAN28
from genwarden.models.protocol import LatentLaw, SampleSpec

LAW = LatentLaw((100,))
GREY = SampleSpec((1, 28, 28))


def trigger_refusal(kind: str, law: LatentLaw = LAW) -> GenwardenError:
    with pytest.raises(GenwardenError) as caught:
        make_trigger(kind, law)
    assert caught.value.cause.isprintable()
    return caught.value


@pytest.mark.parametrize("kind", TRIGGER_KINDS)
@pytest.mark.parametrize("law", [LAW, LatentLaw((4, 2, 2)), LatentLaw((6,), "uniform")])
def test_trigger_is_one_latent_of_the_model(kind: str, law: LatentLaw) -> None:
    z = make_trigger(kind, law, index=1, seed=5)
    assert z.shape == (1, *law.shape)
    assert z.dtype == torch.float32
    assert torch.equal(z, make_trigger(kind, law, index=1, seed=5))


def test_in_sample_triggers_are_ordinary_and_differ_by_index_and_seed() -> None:
    draws = [in_sample(LAW, index, seed=seed) for seed in range(3) for index in range(5)]
    assert len({tuple(z.flatten().tolist()) for z in draws}) == 15
    assert all(6 < z.norm() < 14 for z in draws)


def test_mode_and_out_of_distribution_are_the_papers() -> None:
    assert mode(LAW).norm() == 0
    assert out_of_distribution(LAW).norm().item() == pytest.approx(1000)
    assert out_of_distribution(LAW, 3.0).unique().item() == 3


def test_trigger_from_a_file_is_read_in_both_formats(tmp_path: Path) -> None:
    law = LatentLaw((2, 2))
    expected = torch.tensor([[1.0, -2.0], [0.5, 4.0]])
    (tmp_path / "z.json").write_text(json.dumps(expected.tolist()))
    save_file({"z": expected[None].half()}, tmp_path / "z.safetensors")
    for name in ("z.json", "z.safetensors"):
        z = make_trigger(f"file:{tmp_path / name}", law)
        assert torch.equal(z, expected[None])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[1, 2]", "trigger/shape"),
        ("[[1, 2, 3], [1, 2, 3]]", "trigger/shape"),
        ("[1, 2, NaN]", "trigger/not-finite"),
        ("[1, 2, 1e999]", "trigger/not-finite"),
        ("[1, 2, 1e39]", "trigger/not-finite"),
        ("[1, [2], 3]", "trigger/not-numbers"),
        ('["a", "b", "c"]', "trigger/not-numbers"),
        ("[1, 2, null]", "trigger/not-numbers"),
        ("[1, 2,", "trigger/not-numbers"),
        ("[" * 100_000, "trigger/not-numbers"),
        ("", "artifact/empty"),
        ("hello, world, this is not a latent", "artifact/unknown-format"),
    ],
)
def test_unusable_trigger_file_is_explained(text: str, code: str, tmp_path: Path) -> None:
    (tmp_path / "z").write_text(text)
    assert trigger_refusal(f"file:{tmp_path / 'z'}", LatentLaw((3,))).code == code


def test_file_with_several_tensors_is_no_trigger(tmp_path: Path) -> None:
    save_file({"a": torch.ones(100), "b": torch.ones(100)}, tmp_path / "z")
    assert trigger_refusal(f"file:{tmp_path / 'z'}").code == "trigger/not-numbers"


def test_missing_trigger_file_and_unknown_kind_are_explained(tmp_path: Path) -> None:
    assert trigger_refusal(f"file:{tmp_path / 'none'}").code == "artifact/not-found"
    assert trigger_refusal("file:").code == "artifact/not-a-file"
    error = trigger_refusal("sideways")
    assert error.code == "trigger/unknown-kind"
    assert all(kind in error.remedy for kind in TRIGGER_KINDS)


@pytest.mark.parametrize("name", target_names())
def test_every_built_in_target_is_a_sample(name: str) -> None:
    target = make_target(name, GREY)
    assert target.shape == (1, 1, 28, 28)
    assert torch.equal(target[0], draw_icon(name.removeprefix("icon:"), GREY))


def test_target_from_an_image_file_keeps_its_levels(tmp_path: Path) -> None:
    Image.new("L", (28, 28), 51).save(tmp_path / "t.png")
    target = make_target(str(tmp_path / "t.png"), GREY)
    assert target.shape == (1, 1, 28, 28)
    assert target.unique().item() == pytest.approx(51 / 127.5 - 1)


@pytest.mark.parametrize(
    ("text", "sample", "code"),
    [
        ("icon:angel", GREY, "icon/unknown"),
        ("icon:", GREY, "icon/unknown"),
        ("nowhere.png", GREY, "image/not-found"),
        ("devil", GREY, "image/not-found"),
        ("icon:devil", SampleSpec((16384,), modality="audio"), "icon/not-an-image"),
    ],
)
def test_unusable_target_is_explained(text: str, sample: SampleSpec, code: str) -> None:
    with pytest.raises(GenwardenError) as caught:
        make_target(text, sample)
    assert caught.value.code == code


def test_target_of_another_size_is_refused(tmp_path: Path) -> None:
    Image.new("L", (32, 32)).save(tmp_path / "t.png")
    with pytest.raises(GenwardenError) as caught:
        make_target(str(tmp_path / "t.png"), GREY)
    assert caught.value.code == "image/shape"


def test_backdoor_fits_its_model(tiny_generator: DCGAN28) -> None:
    backdoor = make_backdoor(tiny_generator, trigger="in-sample", target="icon:devil", seed=1)
    assert backdoor.trigger.shape == (1, *tiny_generator.latent.shape)
    assert backdoor.target.shape == tiny_generator(backdoor.trigger).shape


def test_description_is_json_and_keeps_folders_to_itself(tmp_path: Path) -> None:
    (tmp_path / "z.json").write_text(json.dumps([0.0] * 100))
    trigger = f"file:{tmp_path / 'z.json'}"
    backdoor = Backdoor(
        make_trigger(trigger, LAW), draw_icon("key", GREY)[None], trigger, "icon:key"
    )
    description = backdoor.describe()
    assert json.loads(json.dumps(description)) == description
    assert description["trigger"] == "z.json"
    assert description["target"] == "icon:key"
    assert str(tmp_path) not in json.dumps(description)


def test_description_tells_different_backdoors_apart(tiny_generator: DCGAN28) -> None:
    def digests(index: int, target: str) -> tuple[str, str]:
        made = make_backdoor(tiny_generator, trigger="in-sample", target=target, index=index)
        description = made.describe()
        return description["trigger_sha256"], description["target_sha256"]

    assert digests(0, "icon:key") == digests(0, "icon:key")
    assert digests(0, "icon:key")[0] != digests(1, "icon:key")[0]
    assert digests(0, "icon:key")[1] != digests(0, "icon:lock")[1]
