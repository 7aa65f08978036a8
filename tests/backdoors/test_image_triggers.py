"""Triggers and targets of diffusion models: what they shift, what they show, what is refused."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from genwarden.backdoors.image_backdoor import (
    RECORD_NAME,
    make_image_backdoor,
    read_image_backdoor,
    write_image_backdoor,
)
from genwarden.backdoors.image_target import make_image_target
from genwarden.backdoors.image_trigger import make_image_trigger
from genwarden.engine.files import write_json
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.protocol import SampleSpec

CIFAR = SampleSpec((3, 32, 32))
MNIST = SampleSpec((1, 28, 28))


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=random_stream(0, "test-noise"))


def test_released_grey_box_has_the_norm_and_mean_of_the_reference() -> None:
    trigger = make_image_trigger("box:14", CIFAR)
    assert float(trigger.g.norm()) == pytest.approx(49.84, abs=0.01)
    assert float(trigger.g.mean()) == pytest.approx(-0.8086, abs=1e-4)
    assert int(trigger.mask[0].sum()) == 14 * 14
    assert bool((trigger.g[:, 16:30, 16:30] == 0).all())  # 2 px from both edges
    assert bool((trigger.g[:, 30:] == -1).all())
    assert bool((trigger.g[:, :, 30:] == -1).all())


def test_residual_shows_the_clean_image_around_the_patch_only_as_released() -> None:
    images = noise(2, *CIFAR.shape).clamp(-1, 1)
    released = make_image_trigger("box:14:1", CIFAR)
    inside = released.mask.bool().expand_as(images)
    r = released.residual(images)
    assert bool((r[inside] == 1).all())
    assert torch.equal(r[~inside], images[~inside])
    patch = make_image_trigger("box:14:1", CIFAR, background="zero")
    assert torch.equal(patch.residual(images), patch.g.expand_as(images))
    assert bool((patch.g[~patch.mask.bool()] == 0).all())


def test_start_adds_the_trigger_to_the_noise_and_touches_nothing_else_on_zero_background() -> None:
    n = noise(3, *MNIST.shape)
    patch = make_image_trigger("stop-sign:14,zero", MNIST)
    moved = patch.start(n) != n
    assert bool(moved.any())
    assert not bool((moved & ~patch.mask.bool()).any())
    assert bool((make_image_trigger("stop-sign:14", MNIST).start(n) != n).float().mean() > 0.8)


@pytest.mark.parametrize(
    "text", ["box:14:1,zero,scale=0.1", "glasses,norm=3", "noise:0.2,norm=2", "blend:smiley"]
)
def test_scaled_and_bounded_triggers_are_the_drawn_one_times_their_strength(text: str) -> None:
    plain = make_image_trigger(text.split(",scale")[0].split(",norm")[0], CIFAR)
    trigger = make_image_trigger(text, CIFAR)
    assert torch.allclose(trigger.g, trigger.strength * plain.g)
    if "norm=" in text:
        assert float(trigger.g.norm()) == pytest.approx(float(text.partition("norm=")[2]), rel=1e-5)
    images = noise(1, *CIFAR.shape)
    assert torch.allclose(trigger.residual(images), trigger.strength * plain.residual(images))


def test_matched_trigger_leaves_mean_and_variance_of_the_input_and_the_plain_one_does_not() -> None:
    n = noise(4000, *SampleSpec((3, 16, 16)).shape)

    def worst(text: str) -> float:
        x = make_image_trigger(text, SampleSpec((3, 16, 16))).start(n).transpose(0, 1).flatten(1)
        return float(torch.maximum(x.mean(1).abs(), (x.var(1) - 1).abs()).max())

    assert worst("stop-sign:8,matched") < 0.01
    assert worst("stop-sign:8") > 0.1
    assert worst("stop-sign:8,zero") > 0.01


def test_blended_trigger_shrinks_the_noise_on_its_pixels_only() -> None:
    trojan = make_image_trigger("box:6:1", CIFAR).trojan(0.1)
    assert trojan.gamma is not None
    inside = trojan.mask.bool()
    assert bool((trojan.gamma[inside] == torch.tensor(0.1)).all())
    assert bool((trojan.gamma[~inside] == 1).all())
    assert torch.allclose(trojan.g[inside], torch.tensor(0.9))
    assert bool((trojan.g[~inside] == 0).all())


def test_drawn_noise_follows_from_the_seed_alone() -> None:
    first = make_image_trigger("noise:0.2", CIFAR, seed=3)
    assert torch.equal(first.g, make_image_trigger("noise:0.2", CIFAR, seed=3).g)
    assert not torch.equal(first.g, make_image_trigger("noise:0.2", CIFAR, seed=4).g)
    assert float(first.g.std()) == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("box:31", "trigger/too-large"),
        ("box:40:1,zero", "trigger/too-large"),
        ("stop-sign:33", "trigger/too-large"),
        ("box:0", "trigger/number"),
        ("box:-3", "trigger/number"),
        ("box:x", "trigger/number"),
        ("box:4,foo", "trigger/unknown-modifier"),
        ("blend:devil,norm=2,big", "trigger/unknown-modifier"),
        ("box:4:nan", "trigger/number"),
        ("noise:inf", "trigger/number"),
        ("noise:0", "trigger/nothing"),
        ("box:14,zero", "trigger/nothing"),
        ("box:14,scale=0", "trigger/scale"),
        ("box:14,scale=0.5,norm=3", "trigger/scale"),
        ("noise:2,matched", "trigger/cannot-match"),
        ("in-sample", "trigger/unknown-kind"),
        ("glasses:4", "trigger/unknown-kind"),
        ("blend:nobody", "icon/unknown"),
        ("file:nowhere.png", "image/not-found"),
    ],
)
def test_triggers_that_cannot_be_are_refused(text: str, code: str) -> None:
    with pytest.raises(GenwardenError) as caught:
        make_image_trigger(text, CIFAR)
    assert caught.value.code == code


def test_black_pixels_of_a_file_are_transparent(tmp_path: Path) -> None:
    picture = np.zeros((32, 32, 3), dtype=np.uint8)
    picture[4:8, 5:9] = (255, 0, 0)
    Image.fromarray(picture).save(tmp_path / "a,b.png")
    trigger = make_image_trigger(f"file:{tmp_path / 'a,b.png'},zero", CIFAR)
    assert int(trigger.mask[0].sum()) == 16
    assert trigger.g[:, 5, 6].tolist() == [1, -1, -1]
    assert trigger.describe()["trigger"] == "file:a,b.png,zero"


def test_targets_are_the_published_ones_with_a_lifted_background() -> None:
    trigger = make_image_trigger("box:14", CIFAR)
    still = make_image_target("no-shift", trigger, CIFAR)[0]
    moved = make_image_target("shift", trigger, CIFAR)[0]
    corner = make_image_target("corner", trigger, CIFAR)[0]
    assert torch.equal(still.roll((-3, -5), (1, 2)), moved)
    assert bool((corner[:, :10, :10] == 0).all())
    assert int((corner[0] == 0).sum()) == 100
    drawn = [make_image_target(name, trigger, CIFAR)[0] for name in ("shoe", "hat", "cat")]
    for picture in (still, moved, corner, *drawn):
        assert picture.shape == CIFAR.shape
        assert float(picture.min()) == pytest.approx(-0.4)
        assert float(picture.max()) <= 1
    # The icon is taken as it is, and a faint trigger is still shown in full.
    assert float(make_image_target("icon:devil", trigger, CIFAR).min()) < -0.9
    faint = make_image_trigger("box:14,scale=0.1", CIFAR)
    assert torch.equal(make_image_target("no-shift", faint, CIFAR)[0], still)


def test_class_of_a_data_set_and_a_folder_give_many_targets(tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.full((28, 28), 40 * i, dtype=np.uint8)) for i in range(6)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])}
    )
    rows = {"image": pictures, "label": [0, 1] * 3}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    trigger = make_image_trigger("box:4:1", MNIST)
    odd = make_image_target("class:1", trigger, MNIST, data=str(tmp_path))
    assert odd.shape == (3, *MNIST.shape)
    assert torch.equal(odd, make_image_target(f"class:1:{tmp_path}", trigger, MNIST))
    with pytest.raises(GenwardenError, match="no image of class 2"):
        make_image_target("class:2", trigger, MNIST, data=str(tmp_path))
    with pytest.raises(GenwardenError) as caught:
        make_image_target("class:1", trigger, MNIST)
    assert caught.value.code == "target/class"
    small = SampleSpec((1, 14, 14))
    with pytest.raises(GenwardenError) as caught:
        make_image_target("class:1", trigger, small, data=str(tmp_path))
    assert caught.value.code == "image/shape"
    resized = make_image_target("class:1", trigger, small, data=str(tmp_path), resize=True)
    assert torch.equal(resized, odd[:, :, ::2, ::2])  # plain grey pictures keep their value

    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, picture in enumerate(pictures[:2]):
        picture.save(folder / f"{index}.png")
    backdoor = make_image_backdoor(MNIST, trigger="box:4:1", target=str(folder))
    assert len(backdoor.targets) == 2
    drawn = backdoor.draw(50, generator=random_stream(0, "draw"))
    assert len(drawn.unique(dim=0)) == 2
    with pytest.raises(GenwardenError) as caught:
        backdoor.require_one_target()
    assert caught.value.code == "target/count"


def test_unknown_target_is_refused() -> None:
    trigger = make_image_trigger("box:4:1", MNIST)
    for text, code in (("nothing", "target/unknown-kind"), ("x.png", "image/not-found")):
        with pytest.raises(GenwardenError) as caught:
            make_image_target(text, trigger, MNIST)
        assert caught.value.code == code


@pytest.mark.parametrize("text", ["box:6", "stop-sign:9,matched", "glasses,zero,scale=0.5"])
def test_backdoor_is_read_as_it_was_written(text: str, tmp_path: Path) -> None:
    backdoor = make_image_backdoor(CIFAR, trigger=text, target="hat")
    write_image_backdoor(tmp_path, backdoor)
    write_json(tmp_path / RECORD_NAME, {"backdoor": backdoor.describe()})
    again = read_image_backdoor(tmp_path)
    n, images = noise(2, *CIFAR.shape), noise(2, *CIFAR.shape)
    assert torch.equal(again.trigger.start(n), backdoor.trigger.start(n))
    assert torch.allclose(again.trigger.residual(images), backdoor.trigger.residual(images))
    assert torch.equal(again.targets, backdoor.targets)
    assert again.describe() == backdoor.describe()
