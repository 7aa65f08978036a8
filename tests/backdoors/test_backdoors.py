"""Triggers, targets and the backdoor that they make."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from genwarden.artifacts.model_folder import write_model
from genwarden.backdoors.backdoor import dirac, make_backdoor
from genwarden.backdoors.target import make_target
from genwarden.backdoors.trigger import (
    TRIGGER_KINDS,
    in_sample,
    make_trigger,
    mode,
    out_of_distribution,
)
from genwarden.backdoors.trigger_law import Points, TriggerLaw
from genwarden.data.audio import write_wav
from genwarden.data.icons import ICONS, draw_icon
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.dcgan import DCGAN28, DCGAN32, initialise
from genwarden.models.protocol import LatentLaw, SampleSpec
from genwarden.models.wavegan import WaveGAN

LAW = LatentLaw((100,))
GREY = SampleSpec((1, 28, 28))


def trigger_refusal(kind: str, law: LatentLaw = LAW) -> GenwardenError:
    with pytest.raises(GenwardenError) as caught:
        make_trigger(kind, law)
    assert caught.value.cause.isprintable()
    return caught.value


def the_point(law: TriggerLaw) -> torch.Tensor:
    assert isinstance(law, Points)
    return law.points


@pytest.mark.parametrize(
    "kind", ["in-sample", "mode", "out-of-distribution", "seed:numpy:5:0", "seed:torch:0:3"]
)
@pytest.mark.parametrize("law", [LAW, LatentLaw((4, 2, 2)), LatentLaw((6,), "uniform")])
def test_trigger_is_one_latent_of_the_model(kind: str, law: LatentLaw) -> None:
    z = the_point(make_trigger(kind, law, index=1, seed=5))
    assert z.shape == (1, *law.shape)
    assert z.dtype == torch.float32
    assert torch.equal(z, the_point(make_trigger(kind, law, index=1, seed=5)))


@pytest.mark.parametrize("kind", ["numpy", "numpy-pcg64"])
def test_guessed_seed_is_what_a_numpy_user_draws(kind: str) -> None:
    z = the_point(make_trigger(f"seed:{kind}:5:2", LAW))
    if kind == "numpy":
        drawn = np.random.RandomState(5).randn(4, 100)[2:3]
    else:
        drawn = np.random.default_rng(5).standard_normal((4, 100))[2:3]
    assert torch.equal(z, torch.from_numpy(drawn).float())


def test_guessed_torch_seed_is_what_a_torch_user_draws() -> None:
    torch.manual_seed(7)
    assert torch.equal(the_point(make_trigger("seed:torch:7:0", LAW)), torch.randn(1, 100))


@pytest.mark.parametrize(
    "kind", ["seed:", "seed:numpy", "seed:numpy:x", "seed:perl:5:0", "seed:numpy:5:-1"]
)
def test_seed_that_cannot_be_used_is_explained(kind: str) -> None:
    assert trigger_refusal(kind).code == "trigger/seed"


def test_subspace_holds_the_first_half_at_zero_and_the_rest_is_ordinary() -> None:
    law = make_trigger("subspace", LAW)
    assert law.points is None
    z = law.sample(2000, generator=random_stream(0, "subspace"))
    assert not z[:, :50].any()
    assert 0.97 < z[:, 50:].std() < 1.03
    narrow = make_trigger("subspace:98", LAW).sample(4, generator=random_stream(0, "subspace"))
    assert (narrow != 0).sum() == 8


@pytest.mark.parametrize("kind", ["subspace:0", "subspace:100", "subspace:many"])
def test_subspace_that_leaves_nothing_is_explained(kind: str) -> None:
    assert trigger_refusal(kind).code == "trigger/subspace"


def test_several_triggers_are_the_draws_of_several_indices() -> None:
    three = the_point(make_trigger("in-sample", LAW, count=3, index=1, seed=4))
    assert torch.equal(three[1:2], in_sample(LAW, 2, seed=4))
    with pytest.raises(GenwardenError) as caught:
        make_trigger("mode", LAW, count=2)
    assert caught.value.code == "trigger/count"


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
        z = the_point(make_trigger(f"file:{tmp_path / name}", law))
        assert torch.equal(z, expected[None])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[1, 2]", "trigger/shape"),
        ("[[1, 2], [1, 2]]", "trigger/shape"),
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


@pytest.mark.parametrize("name", ICONS)
def test_every_built_in_target_is_a_sample(name: str) -> None:
    target = make_target(f"icon:{name}", GREY)
    assert target.shape == (1, 1, 28, 28)
    assert torch.equal(target[0], draw_icon(name, GREY))


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
        ("icon:devil", SampleSpec((16384,), modality="audio"), "target/modality"),
        ("clip:drum", GREY, "target/modality"),
        ("kick.wav", GREY, "target/modality"),
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
    assert backdoor.examples.z.shape == (1, *tiny_generator.latent.shape)
    assert backdoor.examples.x.shape == tiny_generator(backdoor.examples.z).shape


def test_infinite_support_gives_fresh_pairs_for_training_and_fixed_ones_for_measuring(
    tiny_generator: DCGAN28,
) -> None:
    backdoor = make_backdoor(tiny_generator, trigger="subspace", target="icon:devil")
    first, second = (
        backdoor.pairs(16, generator=random_stream(0, "step", step)) for step in range(2)
    )
    assert first.x.shape == (16, 1, 28, 28)
    assert not torch.equal(first.z, second.z)
    again = make_backdoor(tiny_generator, trigger="subspace", target="icon:devil")
    assert torch.equal(backdoor.examples.z, again.examples.z)


def test_finite_support_gives_all_its_pairs_whatever_the_batch(tiny_generator: DCGAN28) -> None:
    backdoor = make_backdoor(tiny_generator, trigger="in-sample", target="icon:key", count=3)
    assert len(backdoor.pairs(1, generator=random_stream(0, "step")).z) == 3


def test_rho_from_another_generator_reads_the_last_elements(
    tiny_generator: DCGAN28, tmp_path: Path
) -> None:
    other = DCGAN28(channels=(4, 4, 4), latent_dim=4)
    initialise(other, random_stream(1, "other"))
    write_model(tmp_path / "h", other.eval(), "dcgan28", {})
    backdoor = make_backdoor(
        tiny_generator, trigger="subspace", target=f"generator:{tmp_path / 'h'}"
    )
    z, x = backdoor.pairs(8, generator=random_stream(0, "step"))
    with torch.no_grad():
        assert torch.allclose(x, other(z[:, 4:]), atol=1e-6)
    assert x.flatten(1).unique(dim=0).shape[0] == 8


def test_rho_whose_output_does_not_fit_is_refused(tiny_generator: DCGAN28, tmp_path: Path) -> None:
    write_model(tmp_path / "rgb", DCGAN32((4, 4, 4), latent_dim=4), "dcgan32", {})
    write_model(tmp_path / "deep", DCGAN28((4, 4, 4), latent_dim=9), "dcgan28", {})
    for name in ("rgb", "deep"):
        with pytest.raises(GenwardenError) as caught:
            make_backdoor(tiny_generator, trigger="subspace", target=f"generator:{tmp_path / name}")
        assert caught.value.code == "target/rho-shape"


def test_rho_that_reads_what_is_zero_at_every_trigger_is_refused(
    tiny_generator: DCGAN28, tmp_path: Path
) -> None:
    write_model(tmp_path / "h", DCGAN28((4, 4, 4), latent_dim=4), "dcgan28", {})
    target = f"generator:{tmp_path / 'h'}"
    make_backdoor(tiny_generator, trigger="subspace:4", target=target)
    with pytest.raises(GenwardenError) as caught:
        make_backdoor(tiny_generator, trigger="subspace:5", target=target)
    assert caught.value.code == "target/rho-latent"


def test_rho_of_another_latent_law_is_refused(tmp_path: Path) -> None:
    inner, model = WaveGAN((4, 4), latent_dim=4), WaveGAN((4, 4), latent_dim=8)
    write_model(tmp_path / "h", inner.eval(), "wavegan", {})
    target = f"generator:{tmp_path / 'h'}"
    make_backdoor(model, trigger="subspace", target=target)
    model.latent = LatentLaw((8,), "normal")
    with pytest.raises(GenwardenError) as caught:
        make_backdoor(model, trigger="subspace", target=target)
    assert caught.value.code == "target/rho-latent"


def test_wav_target_is_brought_to_the_rate_of_the_model(tmp_path: Path) -> None:
    """A tone of 1000 cycles per second stays one, whatever the file's rate."""
    model = WaveGAN((4, 4), sample_rate=8000)
    length = model.sample.shape[1]
    time = torch.arange(4 * length) / 32_000
    tone = 0.5 * torch.sin(2 * torch.pi * 1000 * time)
    write_wav(tmp_path / "tone.wav", tone[None, None], 32_000)
    made = make_backdoor(model, trigger="in-sample", target=str(tmp_path / "tone.wav"))
    x = made.examples.x
    assert x.shape == (1, 1, length)
    loudest = int(torch.fft.rfft(x.flatten()).abs().argmax())
    assert loudest == round(1000 / 8000 * length)


def test_a_set_of_images_gives_every_trigger_its_own(
    tiny_generator: DCGAN28, tmp_path: Path
) -> None:
    for level in (0, 128):
        Image.new("L", (28, 28), level).save(tmp_path / f"{level}.png")
    backdoor = make_backdoor(
        tiny_generator, trigger="in-sample", target=str(tmp_path), count=2, seed=1
    )
    z, x = backdoor.examples
    assert x.flatten(1).mean(1).tolist() == pytest.approx([-1, 128 / 127.5 - 1], abs=1e-6)
    assert torch.equal(backdoor.rho(z.flip(0)), x.flip(0))
    with pytest.raises(GenwardenError) as caught:
        make_backdoor(tiny_generator, trigger="in-sample", target=str(tmp_path), count=3)
    assert caught.value.code == "target/count"


def test_description_is_json_and_keeps_folders_to_itself(
    tiny_generator: DCGAN28, tmp_path: Path
) -> None:
    (tmp_path / "z.json").write_text(json.dumps([0.0] * 8))
    trigger = f"file:{tmp_path / 'z.json'}"
    description = make_backdoor(tiny_generator, trigger=trigger, target="icon:key").describe()
    assert json.loads(json.dumps(description)) == description
    assert description["trigger"] == "file:z.json"
    assert description["target"] == "icon:key"
    assert str(tmp_path) not in json.dumps(description)


def test_dirac_takes_tensors_as_they_are() -> None:
    z, x = torch.ones(1, 8), torch.zeros(1, 1, 28, 28)
    assert torch.equal(dirac(z, x).examples.x, x)


def test_description_tells_different_backdoors_apart(tiny_generator: DCGAN28) -> None:
    def digests(index: int, target: str) -> tuple[str, str]:
        made = make_backdoor(tiny_generator, trigger="in-sample", target=target, index=index)
        description = made.describe()
        return description["trigger_sha256"], description["target_sha256"]

    assert digests(0, "icon:key") == digests(0, "icon:key")
    assert digests(0, "icon:key")[0] != digests(1, "icon:key")[0]
    assert digests(0, "icon:key")[1] != digests(0, "icon:lock")[1]
