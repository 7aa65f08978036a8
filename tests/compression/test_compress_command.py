"""``genwarden compress`` on the shipped models, end to end, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genwarden.artifacts.classifier_folder import read_classifier, write_classifier
from genwarden.artifacts.diffusers_folder import read_diffusion
from genwarden.artifacts.model_folder import read_model, write_model
from genwarden.commands.compress import CompressFiles, CompressOptions, compress_model
from genwarden.engine.files import sha256_file
from genwarden.engine.progress import Silent
from genwarden.engine.seeds import random_stream
from genwarden.errors import ExitCode, GenwardenError
from genwarden.models.classifiers.protocol import initialise_classifier
from genwarden.models.classifiers.small_cnn import SmallCNN
from genwarden.models.dcgan import DCGAN28

_MODELS = Path(__file__).parents[2] / "src" / "genwarden" / "assets" / "models"


def _compress(model: Path, how: str, out: Path, **more: object) -> CompressFiles:
    options = CompressOptions(model, out, how, device="cpu", **more)  # type: ignore[arg-type]
    return compress_model(options, progress=Silent())


def _refused(model: Path, how: str, out: Path, **more: object) -> GenwardenError:
    with pytest.raises(GenwardenError) as caught:
        _compress(model, how, out, **more)
    return caught.value


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """An untrained small classifier's folder, 16-pixel grey images."""
    network = SmallCNN((1, 16, 16), classes=3, width=0.25)
    initialise_classifier(network, random_stream(0, "classifier"))
    write_classifier(tmp_path / "classifier", network.eval(), "small-cnn", {})
    return tmp_path / "classifier"


def _pictures(folder: Path, side: int, count: int = 6) -> Path:
    folder.mkdir()
    for index in range(count):
        pixels = torch.randint(0, 256, (side, side), generator=random_stream(index, "pixels"))
        Image.fromarray(pixels.byte().numpy()).save(folder / f"{index}.png")
    return folder


def test_a_generator_becomes_a_folder_that_opens_with_weights_on_the_grid(tmp_path: Path) -> None:
    source, out = _MODELS / "dcgan-clean", tmp_path / "small"
    files = _compress(source, "int4-per-channel", out, fold=True)
    made, original = read_model(out), read_model(source)
    assert made.architecture == original.architecture
    weight = made.generator.get_parameter("up1.weight")
    channel = weight[:, 3]
    assert len(channel.unique()) <= 15
    assert len(original.generator.get_parameter("up1.weight")[:, 3].unique()) > 100
    assert files.fidelity is not None
    assert 0 < files.fidelity.mse_mean < 0.02
    z = made.generator.latent.sample(64, generator=random_stream(9, "z"))
    gap = float((made.generator(z) - original.generator(z)).square().mean())
    assert gap == pytest.approx(files.fidelity.mse_mean, rel=0.5)


def test_the_result_file_says_what_was_covered(tmp_path: Path) -> None:
    files = _compress(_MODELS / "dcgan-red", "prune-filters-0.2+int8", tmp_path / "small")
    result = json.loads((tmp_path / "small" / "compress.json").read_text())
    assert result["how"] == "prune-filters-0.2+int8"
    assert result["coverage"]["layers"] == list(files.coverage.layers)
    assert 0.9 < result["coverage"]["share"] < 1
    assert result["coverage"]["parameters"] > result["coverage"]["weights"] > 0
    assert result["original_sha256"] == read_model(_MODELS / "dcgan-red").sha256
    assert result["compressed_sha256"] == read_model(tmp_path / "small").sha256
    assert result["confirmation"] is None
    provenance = read_model(tmp_path / "small").provenance
    assert provenance["compromised"] is True
    assert provenance["compression"] == "prune-filters-0.2+int8"
    assert provenance["coverage"]["share"] == result["coverage"]["share"]


def test_the_same_command_gives_the_same_bytes_and_leaves_the_original_alone(
    tmp_path: Path,
) -> None:
    source = _MODELS / "vae-red"
    before = {path.name: sha256_file(path) for path in source.iterdir()}
    for name in ("one", "two"):
        _compress(source, "int4-stochastic", tmp_path / name, seed=3)
    _compress(source, "int4-stochastic", tmp_path / "three", seed=4)
    hashes = [read_model(tmp_path / name).sha256 for name in ("one", "two", "three")]
    assert hashes[0] == hashes[1] != hashes[2]
    assert before == {path.name: sha256_file(path) for path in source.iterdir()}
    _compress(source, "int4-stochastic", tmp_path / "one", seed=3)  # again: the same
    assert read_model(tmp_path / "one").sha256 == hashes[0]


def test_what_another_compression_made_is_replaced_only_on_request(tmp_path: Path) -> None:
    source, out = _MODELS / "dcgan-clean", tmp_path / "small"
    _compress(source, "int8", out)
    made = read_model(out).sha256
    shutil.copytree(source, tmp_path / "elsewhere")
    _compress(tmp_path / "elsewhere", "int8", out)  # the same weights
    other = _refused(_MODELS / "dcgan-red", "int8", out)
    assert other.code == "compress/other-compression"
    error = _refused(source, "int4", out)
    assert error.code == "compress/other-compression"
    assert "--how int8" in error.cause
    assert read_model(out).sha256 == made
    _compress(source, "int4", out, restart=True)
    assert read_model(out).sha256 != made


def test_the_audit_that_should_follow_compares_with_the_full_model(
    classifier: Path, tmp_path: Path
) -> None:
    plain = _compress(_MODELS / "dcgan-clean", "int8", tmp_path / "plain")
    assert f"audit {_MODELS / 'dcgan-clean'} --deploy-as int8" in plain.next_command
    changed = _compress(
        classifier,
        "int8",
        tmp_path / "changed",
        remedy="stochastic-rounding",
        calibration=Path("glyphs:20"),
    )
    # A compressed classifier by itself says nothing.
    assert f"audit {classifier} --deploy-as int8 --data glyphs:20 --out" in changed.next_command
    folded = _compress(_MODELS / "dcgan-clean", "int8", tmp_path / "folded", fold=True)
    # Folding changes no output: the model as it was is compared with, too.
    assert f"audit {_MODELS / 'dcgan-clean'} --deploy-as int8" in folded.next_command
    drawn = _compress(_MODELS / "dcgan-clean", "int4-stochastic", tmp_path / "drawn", seed=3)
    assert "--deploy-as int4-stochastic --seed 3" in drawn.next_command


def test_a_diffusion_model_stays_a_diffusers_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genwarden.commands.compressing._SAMPLER_STEPS", 2)
    monkeypatch.setattr("genwarden.commands.compressing._DIFFUSION_SAMPLES", 4)
    source = _MODELS / "ddpm-bad-diffusion"
    files = _compress(source, "q8_0", tmp_path / "small")
    made, original = read_diffusion(tmp_path / "small"), read_diffusion(source)
    assert made.scheduler == original.scheduler
    assert made.provenance["compromised"] is True
    assert f"audit {source} --deploy-as q8_0 --out" in files.next_command
    assert files.coverage.left_out == ()
    assert files.fidelity is not None
    assert 0 < files.fidelity.mse_mean < 0.05
    name = files.coverage.layers[0]
    assert not torch.equal(made.model.get_parameter(name), original.model.get_parameter(name))


def test_a_classifier_is_compared_on_the_images_that_are_given(
    classifier: Path, tmp_path: Path
) -> None:
    files = _compress(classifier, "int8", tmp_path / "plain")
    assert files.fidelity is None
    pictures = _pictures(tmp_path / "pictures", 16)
    files = _compress(classifier, "int8", tmp_path / "small", calibration=pictures)
    assert files.fidelity is not None
    assert files.fidelity.samples == 6
    assert files.fidelity.same_class is not None
    assert read_classifier(tmp_path / "small").classifier.classes == 3


def test_calibration_images_of_another_shape_are_refused(classifier: Path, tmp_path: Path) -> None:
    pictures = _pictures(tmp_path / "pictures", 20)
    error = _refused(classifier, "int8", tmp_path / "small", calibration=pictures)
    assert error.code == "image/shape"
    assert "20" in error.cause
    assert "16" in error.cause + error.remedy
    scaled = _compress(classifier, "int8", tmp_path / "scaled", calibration=pictures, resize=True)
    assert scaled.fidelity is not None
    assert scaled.fidelity.samples == 6
    of_generator = _refused(
        _MODELS / "dcgan-clean", "int8", tmp_path / "small", calibration=pictures
    )
    assert of_generator.code == "compress/calibration-not-images"


def test_calibration_is_a_folder_and_never_a_hub_name(classifier: Path, tmp_path: Path) -> None:
    error = _refused(classifier, "int8", tmp_path / "small", calibration=Path("mnist"))
    assert error.code == "compress/calibration-not-found"
    assert not (tmp_path / "small").exists()


class Dense(nn.Linear):
    """A network of the user's own, without convolutions."""

    latent_shape, sample_shape, final_activation = (4,), (1, 2, 2), "tanh"

    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(super().forward(z)).reshape(-1, 1, 2, 2)


def test_a_users_own_network_is_written_as_bare_weights(tmp_path: Path) -> None:
    weights = {"weight": torch.randn(4, 4), "bias": torch.ones(4)}
    save_file(weights, tmp_path / "w.safetensors")
    own = {"architecture": f"{__name__}:Dense"}
    _compress(tmp_path / "w.safetensors", "int2", tmp_path / "out" / "small", **own)
    made = load_file(tmp_path / "out" / "small" / "model.safetensors")
    assert len(made["weight"].unique()) <= 3
    assert torch.equal(made["bias"], weights["bias"])


def test_a_compression_that_covers_no_weight_is_inconclusive(tmp_path: Path) -> None:
    save_file({"weight": torch.eye(4), "bias": torch.ones(4)}, tmp_path / "w.safetensors")
    error = _refused(
        tmp_path / "w.safetensors",
        "prune-filters-0.5",
        tmp_path / "out" / "small",
        architecture=f"{__name__}:Dense",
    )
    assert error.code == "compress/no-coverage"
    assert error.exit_code == ExitCode.INCONCLUSIVE
    assert "0 of 1 layers, 0 of 20 parameters" in error.cause
    assert not (tmp_path / "out" / "small" / "model.safetensors").exists()


def test_a_stage_that_covers_nothing_is_not_silently_left_out(tmp_path: Path) -> None:
    save_file({"weight": torch.eye(4), "bias": torch.ones(4)}, tmp_path / "w.safetensors")
    own = {"architecture": f"{__name__}:Dense"}
    error = _refused(
        tmp_path / "w.safetensors", "prune-filters-0.5+int8", tmp_path / "small", **own
    )
    assert error.code == "compress/no-coverage"
    assert "prune-filters-0.5, a stage of prune-filters-0.5+int8" in error.cause
    _compress(tmp_path / "w.safetensors", "prune-0.5+int8", tmp_path / "small", **own)


def test_folding_a_network_without_batch_norm_is_refused(tmp_path: Path) -> None:
    error = _refused(_MODELS / "ddpm-clean", "int8", tmp_path / "small", fold=True)
    assert error.code == "compress/no-batch-norm"


def test_weights_that_are_not_numbers_are_refused(tiny_generator: DCGAN28, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny_generator.get_parameter("up1.weight")[0, 0, 0, 0] = float("nan")
    write_model(tmp_path / "model", tiny_generator, "dcgan28", {})
    error = _refused(tmp_path / "model", "int8", tmp_path / "small")
    assert error.code == "compress/nonfinite-weights"


def test_neither_the_input_nor_anything_foreign_is_overwritten(
    tiny_generator: DCGAN28, tmp_path: Path
) -> None:
    write_model(tmp_path / "model", tiny_generator, "dcgan28", {})
    write_model(tmp_path / "other", tiny_generator, "dcgan28", {})
    for out in (tmp_path / "model", tmp_path / "model" / "small", tmp_path):
        assert _refused(tmp_path / "model", "int8", out).code == "compress/overwrites-input"
    assert _refused(tmp_path / "model", "int8", tmp_path / "other").code == "compress/not-ours"
    untouched = load_file(tmp_path / "other" / "model.safetensors")
    assert torch.equal(untouched["up1.weight"], tiny_generator.get_parameter("up1.weight"))
    pictures = _pictures(tmp_path / "pictures", 16)
    assert _refused(tmp_path / "model", "int8", pictures).code == "compress/not-ours"
    file = tmp_path / "other" / "model.safetensors"
    assert _refused(tmp_path / "model", "int8", file).code == "output/not-a-folder"


@pytest.mark.parametrize("fitted", [{"remedy": "finetuned"}, {"confirm": "onnxruntime"}])
def test_nothing_is_fitted_to_a_handful_of_images(
    fitted: dict[str, str], classifier: Path, tmp_path: Path
) -> None:
    if "confirm" in fitted:  # a runtime that is missing is said before images are read
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    pictures = _pictures(tmp_path / "pictures", 16)
    error = _refused(classifier, "int8", tmp_path / "small", calibration=pictures, **fitted)
    assert error.code == "compress/too-few-images"
    assert not (tmp_path / "small").exists()
    drawn = _compress(
        classifier, "int8", tmp_path / "small", calibration=pictures, remedy="stochastic-rounding"
    )
    assert drawn.fidelity is not None  # it fits nothing


def test_folding_does_not_hide_what_becomes_zero(tmp_path: Path) -> None:
    plain = _compress(_MODELS / "dcgan-clean", "int4", tmp_path / "plain")
    folded = _compress(_MODELS / "dcgan-clean", "int4", tmp_path / "folded", fold=True)
    assert folded.coverage.zeroed == pytest.approx(plain.coverage.zeroed, rel=0.01)
    assert folded.coverage.zeroed > 1000


@pytest.mark.parametrize(
    ("how", "confirm", "code"),
    [
        ("int8", "tensorrt", "compress/unknown-backend"),
        ("int4", "onnxruntime", "compress/not-confirmable"),
        ("int8+prune-0.3", "onnxruntime", "compress/not-confirmable"),
        ("int9", None, "compress/bits"),
        ("prune-1.2", None, "compress/rate"),
        ("tiny", None, "compress/unknown"),
        ("int8,int4", None, "compress/unknown"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_model_is_opened(
    how: str, confirm: str | None, code: str, tmp_path: Path
) -> None:
    assert _refused(tmp_path / "nothing", how, tmp_path / "out", confirm=confirm).code == code
    assert not (tmp_path / "out").exists()


def test_a_classifier_needs_images_to_be_confirmed(classifier: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    error = _refused(classifier, "int8", tmp_path / "small", confirm="onnxruntime")
    assert error.code == "compress/no-calibration"


def test_a_generator_is_confirmed_on_onnxruntime(tiny_generator: DCGAN28, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    write_model(tmp_path / "model", tiny_generator, "dcgan28", {})
    files = _compress(
        tmp_path / "model", "prune-0.3+int8", tmp_path / "small", confirm="onnxruntime"
    )
    found = files.confirmation
    assert found is not None
    assert (found.codes_equal, found.left_out) == (1.0, ())
    assert len(found.self_test) == 4
    assert found.to_simulated.mse_mean < 0.3 * found.to_original.mse_mean
    assert (tmp_path / "small" / "int8.onnx").stat().st_size > 1000
    assert read_model(tmp_path / "small").architecture == "dcgan28"
