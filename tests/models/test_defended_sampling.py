"""Defences while sampling: ordinary noise stays normal, a trigger does not arrive."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from bare_audits import bare_audit, bare_facts, shift_found
from genwarden.artifacts.diffusers_folder import read_diffusion, write_diffusion
from genwarden.backdoors.residual import residual_coefficient, rho_bad_diffusion
from genwarden.commands.demo import demo_model_folder
from genwarden.commands.sample import sample_grid
from genwarden.commands.sample_diffusion import DiffusionSampling, recovered_shift
from genwarden.engine.files import write_tensors
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.inspections.diffusion import trigger_search
from genwarden.metrics.target_match import target_match
from genwarden.models.dcgan import DCGAN28
from genwarden.models.diffusion.defended import (
    Defence,
    noise_laundering,
    normal_quantiles,
    random_eta,
    sample_defended,
    whiten,
)
from genwarden.models.diffusion.networks import fresh_model, small_unet
from genwarden.models.diffusion.samplers import SamplerSettings, Step, sample
from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.models.protocol import SampleSpec

ASSETS = Path(__file__).parents[1] / "assets"
SIDE = 16
SHAPE = (1, SIDE, SIDE)
ODE = SamplerSettings("ddim", 50)


def target() -> Tensor:
    """Stripes, ``(1, 16, 16)``."""
    return (torch.arange(SIDE) // 2 % 2 * 1.2 - 0.6).expand(SHAPE).clone()


def trigger() -> Tensor:
    """A square of value 1 on a zero background."""
    shift = torch.zeros(SHAPE)
    shift[:, 8:15, 8:15] = 1.0
    return shift


class Exact:
    """The exact estimate for one grey picture (and noise of it), and for poisoned rows of a law.

    Data N(-0.2, 0.3^2 I); poisoned rows a y + rho g + s eps with the target eps + c g, for
    deterministic samplers. The minimiser on both is a blend by their likelihoods.
    """

    def __init__(self, *, poisoned: bool) -> None:
        self.schedule, self.sample = NoiseSchedule.linear(), SampleSpec(SHAPE)
        self.poisoned = poisoned
        self.rho = rho_bad_diffusion(self.schedule)
        self.c = residual_coefficient(self.schedule, self.rho, 0.0)

    def epsilon(self, x: Tensor, t: Tensor | int) -> Tensor:
        t = torch.as_tensor(t).expand(len(x))
        a, s = self.schedule.a_of(t, x), self.schedule.s_of(t, x)
        spread = (a**2 * 0.09 + s**2).sqrt()
        ordinary = (x + 0.2 * a) / spread
        clean = s / spread * ordinary
        if not self.poisoned:
            return clean
        rho, c = (table[t].float().view(-1, 1, 1, 1) for table in (self.rho, self.c))
        away = (x - a * target() - rho * trigger()) / s
        logs = [
            -0.5 * r.square().flatten(1).sum(1) - SIDE**2 * width.flatten().log()
            for r, width in ((away, s), (ordinary, spread))
        ]
        gate = torch.sigmoid(logs[0] - logs[1]).view(-1, 1, 1, 1)
        return (1 - gate) * clean + gate * (away + c * trigger())


def noise(count: int = 16) -> Tensor:
    return torch.randn(count, *SHAPE, generator=random_stream(0, "defended"))


def shown(images: Tensor) -> float:
    """Share of the images that show the target."""
    return target_match(
        images,
        target()[None],
    ).share


def defended(model: Exact, defence: Defence, settings: SamplerSettings = ODE) -> Tensor:
    start = noise() + trigger()
    return sample_defended(model, start, settings, random_stream(1, "steps"), defence)


@pytest.mark.parametrize(
    "defence",
    [Defence(launder=0.95), Defence(whiten=True), Defence(random_eta=True)],
    ids=["launder", "whiten", "random-eta"],
)
def test_a_defence_keeps_the_target_away_that_an_undefended_sampler_draws(
    defence: Defence,
) -> None:
    poisoned = Exact(poisoned=True)
    undefended = shown(defended(poisoned, Defence()))
    assert undefended > 0.9
    assert shown(defended(Exact(poisoned=False), Defence())) == 0
    assert shown(defended(poisoned, defence)) < 0.2


def test_without_a_defence_the_sampler_is_the_ordinary_one() -> None:
    poisoned = Exact(poisoned=True)
    settings = SamplerSettings("ddim", 10, eta=0.5)
    start = noise(2)
    plain = sample(poisoned, start, settings, random_stream(1, "steps"))
    same = sample_defended(poisoned, start, settings, random_stream(1, "steps"), Defence())
    assert torch.equal(plain, same)


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_laundering_keeps_the_law_and_shrinks_a_shift_as_it_says(strength: float) -> None:
    start = torch.randn(400, *SHAPE, generator=random_stream(2, "law"))
    plain = noise_laundering(start, strength, random_stream(3, "law"))
    moved = noise_laundering(start + trigger(), strength, random_stream(3, "law"))
    assert abs(float(plain.var()) - 1) < 0.02
    assert torch.allclose(moved - plain, math.sqrt(1 - strength**2) * trigger(), atol=1e-5)
    kept = float((plain * start).mean())
    assert abs(kept - math.sqrt(1 - strength**2)) < 0.02


def test_no_strength_leaves_the_noise_as_it_is() -> None:
    start = noise()
    assert torch.equal(noise_laundering(start, 0.0, random_stream(3, "law")), start)


def test_whitened_noise_is_normal_and_has_no_trigger_left() -> None:
    start = torch.randn(400, *SHAPE, generator=random_stream(2, "law"))
    plain = whiten(start, random_stream(3, "law"))
    moved = whiten(start + trigger(), random_stream(3, "law"))
    patch = trigger().bool()[0]
    # 400 x 49 values of standard deviation 1: the mean of plain noise is within 0.03.
    assert abs(float((start + trigger())[:, 0, patch].mean())) > 0.9
    assert abs(float(moved[:, 0, patch].mean())) < 0.05
    assert float((moved - plain).square().mean()) < 0.01
    flat = plain.flatten(1)
    covariance = flat.mT @ flat / len(flat)
    off = covariance - torch.diag(covariance.diag())
    assert abs(float(covariance.diag().mean()) - 1) < 0.02
    assert float(off.abs().mean()) < 1.2 * math.sqrt(2 / math.pi / len(flat))


def test_one_trigger_in_one_noise_loses_what_is_low_in_frequency() -> None:
    start = noise(1)
    plain = whiten(start, random_stream(3, "law"))
    moved = whiten(start + trigger(), random_stream(3, "law"))
    assert float((moved - plain).norm()) < 0.6 * float(trigger().norm())


def test_normal_quantiles_keep_the_order_and_set_the_values() -> None:
    start = noise(2).exp()
    mapped = normal_quantiles(start)
    assert torch.equal(mapped.flatten(1).argsort(1), start.flatten(1).argsort(1))
    assert torch.allclose(mapped[0].flatten().sort()[0], mapped[1].flatten().sort()[0])
    assert abs(float(mapped.mean())) < 1e-6
    assert 0.97 < float(mapped.var()) < 1


def test_random_eta_draws_another_eta_at_every_step_and_numbers_the_steps() -> None:
    model = Exact(poisoned=False)
    numbers: list[int] = []

    def hook(step: Step) -> None:
        numbers.append(step.number)

    start = noise(2)
    one = random_eta(model, start, ODE, random_stream(1, "a"), hook=hook)
    again = random_eta(model, start, ODE, random_stream(1, "a"))
    other = random_eta(model, start, ODE, random_stream(1, "b"))
    assert numbers == list(range(50))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other, atol=1e-2)
    assert not torch.allclose(one, sample(model, start, ODE), atol=1e-2)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: Defence(launder=1.5), "usage/launder"),
        (lambda: Defence(launder=float("nan")), "usage/launder"),
        (
            lambda: defended(
                Exact(poisoned=False), Defence(random_eta=True), SamplerSettings("ddpm", 10)
            ),
            "usage/random-eta",
        ),
    ],
)
def test_a_defence_that_does_not_fit_is_refused(make: Callable[[], Any], code: str) -> None:
    with pytest.raises(GenwardenError) as refusal:
        make()
    assert refusal.value.code == code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = fresh_model(
        small_unet(8, 1, (8, 8)), NoiseSchedule.linear(50), random_stream(0, "sampled")
    )
    path = tmp_path_factory.mktemp("sampled") / "model"
    write_diffusion(path, model, {"made_by": "tests"})
    return path


def grid(folder: Path, out: Path, *, count: int | None = 4, **wish: Any) -> Tensor:
    sample_grid(
        folder,
        out,
        count=count,
        columns=4,
        seed=0,
        architecture=None,
        settings={},
        diffusion=DiffusionSampling(**{"sampler": "ddim-5", **wish}),
    )
    with Image.open(out) as picture:
        return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)


def test_the_command_starts_from_given_noise_and_launders_it(folder: Path, tmp_path: Path) -> None:
    given = tmp_path / "noise.safetensors"
    write_tensors(given, {"x_T": torch.randn(3, 1, 8, 8, generator=random_stream(0, "given"))})
    out = tmp_path / "grid.png"
    plain = grid(folder, out)
    from_file = grid(folder, out, count=None, noise=given)
    laundered = grid(folder, out, count=None, noise=given, launder=0.5)
    assert from_file.numel() < plain.numel()  # three pictures
    assert torch.equal(grid(folder, out, count=None, noise=given), from_file)
    assert not torch.equal(laundered, from_file)
    for other in ({"eta": 1.0}, {"clip": "xt"}, {"whiten": True}, {"random_eta": True}):
        assert not torch.equal(grid(folder, out, count=None, noise=given, **other), from_file)


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        ({"sampler": "magic-5"}, "usage/sampler-name"),
        ({"sampler": "ddim-51"}, "usage/sampler-steps"),
        ({"sampler": "heun-5", "eta": 0.5}, "usage/sampler-settings"),
        ({"clip": "x1"}, "usage/sampler-settings"),
        ({"launder": 2.0}, "usage/launder"),
    ],
)
def test_the_command_refuses_what_no_sampler_takes(
    folder: Path, tmp_path: Path, wish: dict[str, Any], code: str
) -> None:
    with pytest.raises(GenwardenError) as refusal:
        grid(folder, tmp_path / "grid.png", **wish)
    assert refusal.value.code == code
    assert not (tmp_path / "grid.png").exists()


def test_flags_of_one_kind_of_model_are_refused_for_the_other(
    folder: Path, tiny_model_folder: Path, tiny_generator: DCGAN28, tmp_path: Path
) -> None:
    del tiny_generator
    with pytest.raises(GenwardenError) as refusal:
        grid(tiny_model_folder, tmp_path / "grid.png", launder=0.5)
    assert refusal.value.code == "usage/sample-options"
    assert "--sampler, --launder" in refusal.value.cause
    with pytest.raises(GenwardenError) as refusal:
        sample_grid(
            folder,
            tmp_path / "grid.png",
            count=None,
            columns=4,
            seed=0,
            architecture="dcgan28",
            settings={},
        )
    assert refusal.value.code == "usage/sample-options"


def test_a_recovered_shift_of_an_audit_is_added_to_the_noise(tmp_path: Path) -> None:
    folder = demo_model_folder("ddpm-bad-diffusion")
    loaded = read_diffusion(folder)
    shift = load_file(str(ASSETS / "ddpm-bad-diffusion.backdoor.safetensors"))["g"]
    path = tmp_path / "audit.json"
    path.write_text(audit_with_shift(shift, loaded.sha256), "utf-8")
    assert torch.allclose(recovered_shift(path, 1, loaded), shift, atol=1e-5)
    with pytest.raises(GenwardenError) as beyond:
        recovered_shift(path, 2, loaded)
    assert beyond.value.code == "sample/no-such-candidate"
    path.write_text(audit_with_shift(shift, "0" * 64), "utf-8")
    with pytest.raises(GenwardenError) as other:
        recovered_shift(path, 1, loaded)
    assert other.value.code == "sample/other-model"


def audit_with_shift(shift: Tensor, sha256: str) -> str:
    """An audit whose trigger search ended at one shift."""
    return bare_audit(
        model=bare_facts(sha256=sha256),
        findings=[shift_found(trigger_search.NAME, shift)],
    ).model_dump_json()
