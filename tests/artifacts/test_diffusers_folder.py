"""Diffusers folders: what is written is read back and sampled alike; what is odd is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_folders import forget_hashes
from safetensors.torch import load_file, save_file
from torch import Tensor

from genwarden.artifacts.check import check_file, describe
from genwarden.artifacts.diffusers_folder import (
    LoadedDiffusion,
    is_diffusers_folder,
    read_diffusion,
    write_diffusion,
)
from genwarden.errors import ExitCode, GenwardenError
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.networks import fresh_model, preset, small_unet
from genwarden.models.diffusion.samplers import SamplerSettings, sample
from genwarden.models.diffusion.schedule import NoiseSchedule

CONFIG = "unet/config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"
INDEX = "model_index.json"
STEPS = 12


def tiny_model(schedule: NoiseSchedule | None = None) -> DiffusionModel:
    config = small_unet(8, 1, (8, 8), attention=(4,), norm_groups=4)
    schedule = schedule or NoiseSchedule.linear(STEPS, 1e-3, 0.4)
    return fresh_model(config, schedule, torch.Generator().manual_seed(0)).eval()


def written(folder: Path, *given: Any, **named: Any) -> str:
    """A folder as other software leaves it: without hashes, so that parts may be replaced."""
    digest = write_diffusion(folder, *given, **named)
    forget_hashes(folder)
    return digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good folder; every test of a bad one changes one thing."""
    path = tmp_path / "model"
    written(path, tiny_model(), {"made_by": "tests"})
    read_diffusion(path)  # the benign twin of every test below
    return path


def refusal(folder: Path) -> GenwardenError:
    with pytest.raises(GenwardenError) as caught:
        read_diffusion(folder)
    assert caught.value.cause.isprintable()
    assert len(caught.value.cause.replace(str(folder), "")) < 500
    return caught.value


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def noise() -> torch.Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_folder_reproduces_the_model(tmp_path: Path) -> None:
    model = tiny_model(NoiseSchedule.cosine(STEPS, "v_prediction"))
    model.defaults = SamplerSettings("ddpm", STEPS, clip="x0", spacing="leading", variance="large")
    digest = written(tmp_path / "a", model, {"compromised": True})
    loaded = read_diffusion(tmp_path / "a")
    read, kept = loaded.model.state_dict(), model.state_dict()
    assert read.keys() == kept.keys()
    assert all(torch.equal(read[name], kept[name]) for name in kept)
    with torch.no_grad():  # on some processors the last bits follow where tensors lie in memory
        close(loaded.model.epsilon(noise(), 5), model.epsilon(noise(), 5))
    assert loaded.model.schedule == model.schedule
    assert loaded.model.defaults == model.defaults
    assert loaded.model.settings() == model.settings() == loaded.settings
    assert loaded.sha256 == digest
    assert set(loaded.files) == {CONFIG, WEIGHTS, SCHEDULER, INDEX}
    assert loaded.architecture == "unet2d"
    assert loaded.provenance == {"compromised": True}
    assert loaded.nonfinite == {}
    assert loaded.notes == ()
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_same_model_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    written(tmp_path / "again", tiny_model(), {"made_by": "tests"})
    for name in (CONFIG, WEIGHTS, SCHEDULER, INDEX, "genwarden.json"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_every_file_counts_in_the_hash_except_the_provenance(folder: Path) -> None:
    before = read_diffusion(folder).sha256
    edit(folder / "genwarden.json", provenance={})
    assert read_diffusion(folder).sha256 == before
    for name in (CONFIG, SCHEDULER, INDEX):
        edit(folder / name, _diffusers_version="0.39.0")
        after = read_diffusion(folder).sha256
        assert after != before
        before = after


SAMPLERS = [
    SamplerSettings("ddpm", STEPS, clip="x0"),
    SamplerSettings("ddpm", STEPS),
    SamplerSettings("ddpm", 6, spacing="leading", variance="large"),
    SamplerSettings("ddim", 6),
]


@pytest.mark.parametrize("settings", SAMPLERS, ids=[s.label for s in SAMPLERS])
def test_stock_pipeline_opens_the_folder_and_samples_as_we_do(
    settings: SamplerSettings, tmp_path: Path
) -> None:
    import diffusers

    model = tiny_model()
    model.defaults = settings
    written(tmp_path, model, {})
    name = "DDIMPipeline" if settings.name == "ddim" else "DDPMPipeline"
    pipeline: Any = getattr(diffusers, name).from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        batch_size=2,
        generator=torch.Generator().manual_seed(4),
        num_inference_steps=settings.steps,
        output_type="np",
    ).images
    stream = torch.Generator().manual_seed(4)
    begin = torch.randn(2, 1, 8, 8, generator=stream)
    with torch.no_grad():
        x = sample(read_diffusion(tmp_path).model, begin, settings, stream)
    ours = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert abs(ours - theirs).max() < 1e-4
    assert ours.std() > 0.1


@pytest.mark.parametrize("name", ["dpm-solver++", "unipc", "euler", "heun", "ddim", "ddpm"])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
def test_scheduler_as_diffusers_saves_it_is_read(name: Any, folder: Path) -> None:
    import diffusers

    model = tiny_model()
    model.defaults = SamplerSettings(name, 6)
    written(folder, model, {})
    document = json.loads((folder / SCHEDULER).read_text())
    theirs: Any = getattr(diffusers, document["_class_name"]).from_config(document)
    theirs.save_pretrained(folder / "scheduler")
    saved = json.loads((folder / SCHEDULER).read_text())
    assert len(saved) > len(document)
    loaded = read_diffusion(folder)
    assert loaded.model.schedule == model.schedule
    assert loaded.model.defaults.name == name
    assert loaded.model.defaults.spacing == "trailing"
    # what was read can be written again beside a repaired network
    written(folder, loaded.model, {}, scheduler=loaded.scheduler)
    saved.pop("lambda_min_clipped", None)  # minus infinity, which JSON has no word for
    assert json.loads((folder / SCHEDULER).read_text()) == saved
    assert read_diffusion(folder).model.schedule == model.schedule


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
def test_scheduler_defaults_are_those_of_diffusers(folder: Path) -> None:
    import diffusers

    index = json.loads((folder / INDEX).read_text())
    del index["scheduler"]
    (folder / INDEX).write_text(json.dumps(index))
    for name in ("DDPMScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"):
        (folder / SCHEDULER).write_text(json.dumps({"_class_name": name}))
        theirs: Any = getattr(diffusers, name)()
        ours = read_diffusion(folder).model
        abar = theirs.alphas_cumprod.double()
        assert torch.allclose(ours.schedule.alphas_cumprod, abar, rtol=2e-4)
        assert ours.defaults.spacing == theirs.config.timestep_spacing
        assert (ours.defaults.clip == "x0") == theirs.config.get("clip_sample", False)


def test_trained_betas_are_read_and_written(folder: Path, tmp_path: Path) -> None:
    betas = torch.linspace(0.01, 0.3, STEPS).double()
    edit(folder / SCHEDULER, trained_betas=betas.tolist())
    schedule = read_diffusion(folder).model.schedule
    assert torch.allclose(schedule.betas, betas, atol=1e-12)
    written(tmp_path / "again", tiny_model(NoiseSchedule(schedule.alphas_cumprod)), {})
    again = read_diffusion(tmp_path / "again").model.schedule
    assert torch.allclose(again.alphas_cumprod, schedule.alphas_cumprod, atol=1e-12)


def test_half_precision_is_read_as_float32_and_halves_the_file(tmp_path: Path) -> None:
    model = fresh_model(preset("tiny"), NoiseSchedule.linear(), torch.Generator().manual_seed(0))
    written(tmp_path, model, {}, dtype=torch.float16)
    size = (tmp_path / WEIGHTS).stat().st_size
    assert size < 600_000
    assert {t.dtype for t in load_file(tmp_path / WEIGHTS).values()} == {torch.float16}
    loaded = read_diffusion(tmp_path).model
    for name, parameter in loaded.unet.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.allclose(
            parameter, dict(model.unet.named_parameters())[name], rtol=1e-3, atol=1e-6
        )


def test_numbers_too_large_for_half_precision_are_not_written(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = 1e6
    written(tmp_path, model, {})
    with pytest.raises(GenwardenError) as caught:
        written(tmp_path, model, {}, dtype=torch.float16)
    assert caught.value.code == "output/half-precision"


def test_clipping_that_no_scheduler_does_is_not_written(tmp_path: Path) -> None:
    model = tiny_model()
    for settings in (SamplerSettings(clip="xt"), SamplerSettings("unipc", 5, clip="x0")):
        model.defaults = settings
        with pytest.raises(GenwardenError) as caught:
            written(tmp_path, model, {})
        assert caught.value.code == "usage/sampler-not-in-diffusers"


# Layouts


def test_flat_folder_is_read(folder: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    shutil.copytree(folder / "unet", flat)
    shutil.copy(folder / SCHEDULER, flat)
    shutil.copy(folder / INDEX, flat)
    assert is_diffusers_folder(flat)
    assert read_diffusion(flat).sha256 == read_diffusion(folder).sha256


def test_bare_network_folder_is_read_with_the_scheduler_beside_it(folder: Path) -> None:
    (folder / INDEX).unlink()
    assert is_diffusers_folder(folder)
    assert is_diffusers_folder(folder / "unet")
    alone = read_diffusion(folder / "unet")
    assert alone.sha256 == read_diffusion(folder).sha256
    told = f"The noise schedule is that of {SCHEDULER} beside this folder."
    assert told in alone.notes
    assert told not in read_diffusion(folder).notes
    shutil.rmtree(folder / "scheduler")
    error = refusal(folder / "unet")
    assert error.code == "artifact/not-found"
    assert "scheduler_config.json: without it nobody knows" in error.cause


@pytest.mark.parametrize("named_in", [INDEX, SCHEDULER])
def test_the_file_that_names_an_unknown_scheduler_is_named(folder: Path, named_in: str) -> None:
    if named_in == INDEX:
        edit(folder / INDEX, scheduler=["diffusers", "LMSDiscreteScheduler"])
    else:
        (folder / INDEX).unlink()
        edit(folder / SCHEDULER, _class_name="LMSDiscreteScheduler")
    error = refusal(folder)
    assert error.code == "artifact/unknown-scheduler"
    assert error.cause.startswith(str(folder / named_in))
    told = describe(check_file(folder))
    assert "does not know what it names" in told
    assert "not safe" not in told


def test_what_was_not_read_has_no_size(folder: Path) -> None:
    assert "bytes" in describe(check_file(folder)).split("Limits")[0]
    add_program(folder)
    told = describe(check_file(folder)).split("Limits")[0]
    assert "its weights were not read" in told
    assert "Refused: not safe to open." in describe(check_file(folder))
    assert "bytes" not in told


def test_other_folders_are_not_taken_for_diffusers(
    tiny_model_folder: Path, tmp_path: Path, folder: Path
) -> None:
    assert not is_diffusers_folder(tiny_model_folder)
    assert not is_diffusers_folder(tmp_path / "missing")
    assert not is_diffusers_folder(folder / INDEX)
    assert is_diffusers_folder(folder)


def test_published_cifar10_names_of_attention_are_read(folder: Path) -> None:
    """google/ddpm-cifar10-32 was written before the projections were renamed."""
    tensors = load_file(folder / WEIGHTS)
    new_to_old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value."}
    new_to_old[".to_out.0."] = ".proj_attn."
    old = {}
    for name, tensor in tensors.items():
        for new, former in new_to_old.items():
            name = name.replace(new, former)
        old[name] = tensor
    assert set(old) != set(tensors)
    save_file(old, folder / WEIGHTS)
    with torch.no_grad():
        ours = read_diffusion(folder).model.epsilon(noise(), 3)
        close(ours, tiny_model().epsilon(noise(), 3))


# Bad input; the fixture has read the same folder before it was changed


def add_program(folder: Path) -> None:
    (folder / "unet" / "my_unet.py").write_text("print('hello')")


def add_compiled_program(folder: Path) -> None:
    (folder / "native.SO").write_bytes(b"\x7fELF")


def foreign_class(folder: Path) -> None:
    edit(folder / INDEX, unet=["my_unet", "MyUNet"])


def foreign_pipeline(folder: Path) -> None:
    edit(folder / INDEX, _class_name=["my_pipeline", "MyPipeline"])


def remote_network(folder: Path) -> None:
    edit(folder / CONFIG, auto_map={"AutoModel": "my_unet.MyUNet"})


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(tiny_model().unet.state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")


def pickled_under_another_name(folder: Path) -> None:
    torch.save(tiny_model().unet.state_dict(), folder / WEIGHTS)


def unknown_network(folder: Path) -> None:
    edit(folder / INDEX, unet=["diffusers", "UNet3DConditionModel"])


def unknown_network_in_config(folder: Path) -> None:
    edit(folder / CONFIG, _class_name="os.system")


def unknown_pipeline(folder: Path) -> None:
    edit(folder / INDEX, _class_name="ScoreSdeVePipeline")


def unknown_part(folder: Path) -> None:
    edit(folder / INDEX, watermark=["diffusers", "Watermark"])


def unknown_scheduler(folder: Path) -> None:
    edit(folder / INDEX, scheduler=["diffusers", "LMSDiscreteScheduler"])


def fourier(folder: Path) -> None:
    edit(folder / CONFIG, time_embedding_type="fourier")


def indivisible_groups(folder: Path) -> None:
    edit(folder / CONFIG, norm_num_groups=3)


def huge(folder: Path) -> None:
    edit(folder / CONFIG, block_out_channels=[4096, 4096])


def without_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["conv_in.bias"]
    save_file(tensors, folder / WEIGHTS)


def conditional(folder: Path) -> None:
    edit(folder / CONFIG, num_class_embeds=10)


def sharded(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / f"{WEIGHTS[:-12]}-00001-of-00002.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text("{}")


def truncated(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-4])


def linked_weights(folder: Path) -> None:
    shutil.move(folder / WEIGHTS, folder.parent / "outside")
    os.symlink(folder.parent / "outside", folder / WEIGHTS)


def linked_folder(folder: Path) -> None:
    shutil.move(folder / "unet", folder.parent / "outside")
    os.symlink(folder.parent / "outside", folder / "unet")


def no_json(folder: Path) -> None:
    (folder / INDEX).write_text("[" * 100_000)


def twice(folder: Path) -> None:
    (folder / CONFIG).write_text('{"sample_size": 8, "sample_size": 9}')


BAD: list[tuple[Callable[[Path], None], str]] = [
    (add_program, "custom-code"),
    (add_compiled_program, "custom-code"),
    (foreign_class, "custom-code"),
    (foreign_pipeline, "custom-code"),
    (remote_network, "custom-code"),
    (pickled, "pickled-weights"),
    (pickled_under_another_name, "pickled-weights"),
    (unknown_network, "unknown-class"),
    (unknown_network_in_config, "unknown-class"),
    (unknown_pipeline, "unknown-class"),
    (unknown_part, "unknown-class"),
    (unknown_scheduler, "unknown-scheduler"),
    (fourier, "bad-settings"),
    (indivisible_groups, "bad-settings"),
    (huge, "wrong-architecture"),
    (without_tensor, "wrong-architecture"),
    (conditional, "class-conditional"),
    (sharded, "sharded-weights"),
    (truncated, "truncated"),
    (linked_weights, "link"),
    (linked_folder, "link"),
    (no_json, "bad-json"),
    (twice, "bad-json"),
]


@pytest.mark.parametrize(("spoil", "code"), BAD, ids=[spoil.__name__ for spoil, _ in BAD])
def test_bad_folder_is_refused_by_its_code(
    spoil: Callable[[Path], None], code: str, folder: Path
) -> None:
    spoil(folder)
    error = refusal(folder)
    assert error.code == f"artifact/{code}"
    assert error.exit_code == ExitCode.ERROR


def with_vae(folder: Path) -> None:
    edit(folder / INDEX, vqvae=["diffusers", "VQModel"], _class_name="LDMPipeline")


def with_text(folder: Path) -> None:
    edit(
        folder / INDEX,
        _class_name="StableDiffusionPipeline",
        unet=["diffusers", "UNet2DConditionModel"],
        text_encoder=["transformers", "CLIPTextModel"],
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        requires_safety_checker=True,
        vae=["diffusers", "AutoencoderKL"],
    )


def with_unlisted_vae(folder: Path) -> None:
    (folder / INDEX).unlink()
    (folder / "vae").mkdir()


def with_conditional_network(folder: Path) -> None:
    (folder / INDEX).unlink()
    edit(folder / CONFIG, _class_name="UNet2DConditionModel", cross_attention_dim=768)


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (with_vae, ["vqvae"]),
        (with_text, ["text_encoder", "vae", "UNet2DConditionModel"]),
        (with_unlisted_vae, ["vae"]),
        (with_conditional_network, ["UNet2DConditionModel"]),
    ],
)
def test_latent_diffusion_is_inconclusive_and_names_its_parts(
    change: Callable[[Path], None], missing: list[str], folder: Path
) -> None:
    change(folder)
    error = refusal(folder)
    assert error.code == "artifact/latent-diffusion"
    assert error.exit_code == ExitCode.INCONCLUSIVE
    assert all(part in error.cause for part in missing)


def test_network_folder_of_a_latent_model_is_not_taken_for_a_pixel_model(folder: Path) -> None:
    (folder / "vae").mkdir()
    assert refusal(folder / "unet").code == "artifact/latent-diffusion"


def test_nothing_in_the_folder_is_executed(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (folder / "exploded",))

    bomb = pickle.dumps(Bomb())
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(bomb)
    loaded = read_diffusion(folder)
    assert "diffusion_pytorch_model.bin" in loaded.notes[0]
    (folder / WEIGHTS).write_bytes(bomb)
    refusal(folder)
    assert not (folder / "exploded").exists()
    pickle.loads(bomb)  # noqa: S301 - ours; the bomb does go off when it is loaded
    assert (folder / "exploded").exists()


def test_numbers_that_are_not_finite_are_counted(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["conv_in.bias"][:2] = float("nan")
    save_file(tensors, folder / WEIGHTS)
    assert read_diffusion(folder).nonfinite == {"conv_in.bias": 2}


SCHEDULER_REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("DDPMScheduler", {"num_train_timesteps": 10**9}, "bad-settings"),
    ("DDPMScheduler", {"beta_end": 1.5}, "bad-settings"),
    ("DDPMScheduler", {"beta_end": 0.9999}, "bad-settings"),  # abar falls to zero
    ("DDPMScheduler", {"steps_offset": 1}, "bad-settings"),  # to t = 1000 of 0..999
    ("UniPCMultistepScheduler", {"num_train_timesteps": 1}, "bad-settings"),
    ("DDPMScheduler", {"beta_start": float("nan")}, "bad-settings"),
    ("DDPMScheduler", {"beta_schedule": "exp"}, "bad-settings"),
    ("DDPMScheduler", {"trained_betas": [0.1, 0.2]}, "bad-settings"),
    ("DDPMScheduler", {"variance_type": "mine"}, "bad-settings"),
    ("DDPMScheduler", {"solver_order": 2}, "bad-settings"),
    ("DDPMScheduler", {"thresholding": True}, "unsupported-scheduler"),
    ("DDPMScheduler", {"thresholding": 0}, "unsupported-scheduler"),
    ("DDPMScheduler", {"rescale_betas_zero_snr": True}, "unsupported-scheduler"),
    ("DDPMScheduler", {"clip_sample_range": 2.0}, "unsupported-scheduler"),
    ("DDPMScheduler", {"variance_type": "fixed_large_log"}, "unsupported-scheduler"),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, "unsupported-scheduler"),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}, "unsupported-scheduler"),
    ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -1.0}, "unsupported-scheduler"),
    ("UniPCMultistepScheduler", {"final_sigmas_type": "sigma_min"}, "unsupported-scheduler"),
]


@pytest.mark.parametrize(("name", "change", "code"), SCHEDULER_REFUSALS)
def test_scheduler_that_samples_otherwise_is_refused(
    name: str, change: dict[str, Any], code: str, folder: Path
) -> None:
    def write(extra: dict[str, Any]) -> None:
        document = {"_class_name": name, "clip_sample": True} if "DDPM" in name else {}
        (folder / SCHEDULER).write_text(json.dumps({**document, **extra}))
        edit(folder / INDEX, scheduler=["diffusers", name])

    write({})
    read_diffusion(folder)
    write(change)
    assert refusal(folder).code == f"artifact/{code}"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("PNDMScheduler", {}, "PNDM"),
        ("DDPMScheduler", {"variance_type": "learned_range"}, "posterior variance"),
        ("DDIMScheduler", {"set_alpha_to_one": False}, "clean image"),
    ],
)
def test_what_our_sampler_does_otherwise_is_said(
    name: str, change: dict[str, Any], words: str, folder: Path
) -> None:
    def notes(extra: dict[str, Any]) -> LoadedDiffusion:
        (folder / SCHEDULER).write_text(json.dumps({"_class_name": name, **extra}))
        edit(folder / INDEX, scheduler=["diffusers", name])
        return read_diffusion(folder)

    assert words in notes(change).notes[0]
    if change:
        assert notes({}).notes == ()


def test_ddim_pipeline_samples_with_ddim_whatever_its_scheduler(folder: Path) -> None:
    assert read_diffusion(folder).model.defaults.name == "ddpm"
    edit(folder / INDEX, _class_name="DDIMPipeline")
    assert read_diffusion(folder).model.defaults.name == "ddim"
