"""``genwarden compress``: the model that a device would run, as a model folder to audit."""

from __future__ import annotations

import json
import shlex
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from genwarden import __version__
from genwarden.artifacts.diffusers_layout import INDEX_NAME
from genwarden.artifacts.manifest import MANIFEST_NAME, WEIGHTS_NAME, descent
from genwarden.commands.compress_remedy import remedied, settings_of
from genwarden.commands.compressing import Subject, open_subject
from genwarden.compression.apply import Coverage, compress, compressed_weights, coverage_of
from genwarden.compression.chain import Chain, stages_of
from genwarden.compression.contract import Compressor
from genwarden.compression.folding import fold_batch_norm
from genwarden.compression.how import compressor as compressor_named
from genwarden.compression.layers import layout_of
from genwarden.compression.uniform import Uniform
from genwarden.engine.device import pick_device
from genwarden.engine.files import (
    remove_file,
    remove_folder,
    require_writable_folder,
    write_atomic,
    write_json,
)
from genwarden.engine.progress import Progress
from genwarden.errors import ExitCode, GenwardenError

if TYPE_CHECKING:
    from genwarden.compression.backends.onnxruntime import CodesFound
    from genwarden.compression.backends.self_test import LayerError

RESULT_NAME: Final = "compress.json"
ONNX_NAME: Final = "int8.onnx"
#: Folder and file that mark what an interrupted compression left.
_WORK: Final = ".work"
_OURS: Final = "ours"
BACKENDS: Final = ("onnxruntime",)
#: Samples with which a runtime is calibrated, and on which it is compared.
_CONFIRMED_ON: Final = 256
_CONFIRMABLE: Final = ("int8", "int8-per-channel")


@dataclass(frozen=True)
class CompressOptions:
    """What the user asked for; see ``genwarden compress --help``."""

    model: Path
    out: Path
    how: str
    fold: bool = False
    confirm: str | None = None
    calibration: Path | None = None
    resize: bool = False
    architecture: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"
    remedy: str | None = None
    given: dict[str, Any] = field(default_factory=dict)
    restart: bool = False


@dataclass(frozen=True)
class Fidelity:
    """Outputs of the compressed model against the original's on the same ordinary inputs.

    Attributes:
        samples: how many.
        mse_mean: squared distance, mean over a sample's numbers (pixels in [-1, 1], or logits).
        mse_sum: sum over a sample's numbers, mean over samples.
        same_class: of a classifier: share of images that keep their class.
    """

    samples: int
    mse_mean: float
    mse_sum: float
    same_class: float | None = None

    @classmethod
    def of(cls, original: Tensor, compressed: Tensor, *, classes: bool) -> Fidelity:
        """Compare outputs ``(samples, ...)``."""
        squares = (original.double() - compressed.double()).square().flatten(1)
        same = (original.argmax(1) == compressed.argmax(1)).double().mean() if classes else None
        return cls(
            samples=len(original),
            mse_mean=float(squares.mean()),
            mse_sum=float(squares.sum(1).mean()),
            same_class=None if same is None else float(same),
        )


@dataclass(frozen=True)
class Confirmation:
    """What a real runtime made of the same compression.

    Attributes:
        backend: with its version.
        self_test: per distinct layer shape, the error in steps of the output (None: run in float).
        layers: weights that the runtime holds in 8 bits; ``left_out``: those that it does not.
        codes_equal: share of their codes that are the simulated ones.
        to_original: its outputs against the original's.
        to_simulated: its outputs against the simulated compression's; what activations in 8 bits
            add.
    """

    backend: str
    self_test: list[dict[str, Any]]
    layers: tuple[str, ...]
    left_out: tuple[str, ...]
    codes_equal: float
    to_original: Fidelity
    to_simulated: Fidelity


@dataclass(frozen=True)
class CompressFiles:
    """What ``genwarden compress`` made.

    Attributes:
        fidelity: of what was written, None for a classifier without images.
        next_command: the audit that should follow.
        plain_fidelity: with a remedy: of the same compression without it.
    """

    how: str
    coverage: Coverage
    fidelity: Fidelity | None
    plain_fidelity: Fidelity | None
    confirmation: Confirmation | None
    model_path: Path
    json_path: Path
    onnx_path: Path | None
    next_command: str


def compress_model(options: CompressOptions, *, progress: Progress) -> CompressFiles:
    """Compress one model and write it, decompressed again, as a folder of its own kind.

    Raises:
        GenwardenError: ``compress/...`` (``compress/no-coverage`` exits with 3); those of opening
            a model and of reading images.
    """
    chosen = compressor_named(options.how, seed=options.seed)
    settings = settings_of(options, chosen)
    _require_confirmable(options, chosen)
    subject = open_subject(
        options.model,
        architecture=options.architecture,
        settings=options.settings,
        calibration=options.calibration,
        resize=options.resize,
    )
    if options.confirm is not None and subject.kind == "classifier" and subject.images is None:
        raise GenwardenError(
            "compress/no-calibration",
            "A classifier has no inputs of its own with which a runtime could be calibrated.",
            "Add --calibration with a folder of images.",
        )
    _require_free_folder(options)
    _require_same_compression(options, subject)
    device = pick_device(options.device)
    original = subject.network.to(device).eval().requires_grad_(False)
    plain, coverage = _compressed(original, chosen, subject, fold=options.fold)
    if not coverage.layers:
        raise GenwardenError(
            "compress/no-coverage",
            f"{chosen.name} works on none of this network's weights ({coverage}).",
            "Choose another --how; a model that stayed as it was says nothing about compression.",
            ExitCode.INCONCLUSIVE,
        )
    require_writable_folder(options.out)
    fidelity = _fidelity(subject, original, plain, options.seed)
    made, plain_fidelity, changes = plain, None, None
    if options.remedy is not None and settings is not None:
        progress.message(f"== remedy: {options.remedy} ({chosen.name}: {coverage}) ==")
        made, coverage, changes = remedied(original, chosen, subject, options, settings, progress)
        plain_fidelity, fidelity = fidelity, _fidelity(subject, original, made, options.seed)
    _begin_writing(options.out)
    confirmation = None
    if options.confirm is not None:
        progress.message(f"== confirming on {options.confirm} ==")
        confirmation = _confirm(options, chosen, subject, original, made)
    provenance = _provenance(subject, chosen, coverage, folded=options.fold, remedy=options.remedy)
    digest = subject.write(options.out, made.cpu(), provenance)
    document = {
        "genwarden_version": __version__,
        "command": command_line(options),
        "how": chosen.name,
        "folded": options.fold,
        "kind": subject.kind,
        "architecture": subject.loaded.architecture,
        "original_sha256": subject.loaded.sha256,
        "compressed_sha256": digest,
        "coverage": _coverage(coverage),
        "fidelity": None if fidelity is None else asdict(fidelity),
        "remedy": None
        if settings is None
        else {
            "name": options.remedy,
            "settings": asdict(settings),
            "changes": changes,
            "plain_fidelity": None if plain_fidelity is None else asdict(plain_fidelity),
        },
        "confirmation": None if confirmation is None else asdict(confirmation),
        "seed": options.seed,
    }
    write_json(options.out / RESULT_NAME, document)
    remove_folder(options.out / _WORK)
    return CompressFiles(
        how=chosen.name,
        coverage=coverage,
        fidelity=fidelity,
        plain_fidelity=plain_fidelity,
        confirmation=confirmation,
        model_path=options.out,
        json_path=options.out / RESULT_NAME,
        onnx_path=None if confirmation is None else options.out / ONNX_NAME,
        next_command=_next_command(options),
    )


def _next_command(options: CompressOptions) -> str:
    """The audit that says most about what was made.

    Plain compression is inspected beside the full model, where a backdoor that it wakes stands
    out; a folded one and what a remedy made by themselves.
    """
    foreign = options.architecture is not None
    if options.remedy is not None or options.fold:
        bare = foreign and not (options.out / MANIFEST_NAME).exists()
        audited = options.out / WEIGHTS_NAME if bare else options.out
        words, foreign = ["genwarden", "audit", str(audited)], bare
    else:
        words = ["genwarden", "audit", str(options.model), "--deploy-as", options.how]
        words += ["--seed", str(options.seed)] if options.seed else []
    if foreign:
        words += ["--architecture", str(options.architecture)]
        words += _words("--setting", options.settings)
    return shlex.join([*words, "--out", f"{options.out}-audit"])


def _compressed(
    original: nn.Module, chosen: Compressor, subject: Subject, *, fold: bool
) -> tuple[nn.Module, Coverage]:
    device = next(original.parameters()).device
    example = [x.to(device) for x in subject.example()]
    if not fold:
        return compress(original, chosen, lambda network: network(*example))
    folded = fold_batch_norm(original, lambda network: network(*example))
    layout = layout_of(folded)  # without batch norms: they are in the weights already
    weights = compressed_weights(folded, chosen, layout)
    with torch.no_grad():
        for name, weight in weights.items():
            folded.get_parameter(name).copy_(weight)
    return folded, coverage_of(folded, layout, weights)


def _fidelity(subject: Subject, original: nn.Module, made: nn.Module, seed: int) -> Fidelity | None:
    before, after = subject.outputs(original, seed), subject.outputs(made, seed)
    if before is None or after is None:
        return None
    return Fidelity.of(before, after, classes=subject.kind == "classifier")


def _confirm(
    options: CompressOptions,
    chosen: Compressor,
    subject: Subject,
    original: nn.Module,
    made: nn.Module,
) -> Confirmation:
    """Export, quantise and run on onnxruntime; its stages before the last are applied by us."""
    from genwarden.compression.backends import onnxruntime
    from genwarden.compression.backends.self_test import self_test
    from genwarden.compression.onnx_export import export_onnx, folded_for_export

    *before, last = stages_of(chosen)
    assert isinstance(last, Uniform)  # noqa: S101 (_require_confirmable)
    backend = onnxruntime.OnnxRuntime()
    original, made = original.cpu(), made.cpu()
    example = subject.example()
    full = original
    if before:
        stage = before[0] if len(before) == 1 else Chain(tuple(before))
        full, _ = compress(original, stage, lambda network: network(*example))
    calibration = subject.inputs(_CONFIRMED_ON, options.seed, "calibration")
    held_out = subject.inputs(_CONFIRMED_ON, options.seed, "confirmation")
    assert calibration is not None and held_out is not None  # noqa: S101, PT018
    blocks = list(onnxruntime.batches(calibration))
    folded = folded_for_export(full, blocks[0])
    errors = self_test(backend, folded, lambda: folded(*blocks[0]), last)
    with tempfile.TemporaryDirectory() as folder:
        path, small = Path(folder) / "float.onnx", Path(folder) / ONNX_NAME
        export_onnx(folded, blocks[0], path)
        onnxruntime.quantise(path, small, blocks, last)
        codes = onnxruntime.codes_found(path, small, folded, layout_of(folded), last)
        theirs = onnxruntime.run_in_batches(small, held_out)
        write_atomic(options.out / ONNX_NAME, small.read_bytes())
    _require_tested(backend.name, errors, codes)
    with torch.no_grad():
        ours = torch.cat([made(*block) for block in onnxruntime.batches(held_out)])
        wanted = torch.cat([original(*block) for block in onnxruntime.batches(held_out)])
    classes = subject.kind == "classifier"
    return Confirmation(
        backend=backend.name,
        self_test=[asdict(error) for error in errors],
        layers=codes.layers,
        left_out=codes.left_out,
        codes_equal=codes.equal,
        to_original=Fidelity.of(wanted, theirs, classes=classes),
        to_simulated=Fidelity.of(ours, theirs, classes=classes),
    )


def _require_tested(backend: str, errors: list[LayerError], codes: CodesFound) -> None:
    """Something is held in 8 bits, and nothing of that escaped the self-test."""
    untested = {error.name for error in errors if error.error_lsb is None} & set(codes.layers)
    if untested:
        raise GenwardenError(
            "compress/backend-wrong",
            f"{backend} holds {sorted(untested)[0]} in 8 bits but did not when it was tested.",
            "Use another version; constraints.txt names the one that is tested.",
        )
    if not codes.layers:
        raise GenwardenError(
            "compress/no-coverage",
            f"{backend} leaves every layer of this network in float.",
            "Leave --confirm away; nothing could be confirmed.",
            ExitCode.INCONCLUSIVE,
        )


def _require_confirmable(options: CompressOptions, chosen: Compressor) -> None:
    if options.confirm is None:
        return
    if options.confirm not in BACKENDS:
        raise GenwardenError(
            "compress/unknown-backend",
            f"There is no backend called {options.confirm!r}.",
            f"Choose one of: {', '.join(BACKENDS)}.",
        )
    if stages_of(chosen)[-1].name not in _CONFIRMABLE:
        raise GenwardenError(
            "compress/not-confirmable",
            f"{options.confirm} cannot quantise as {chosen.name} does.",
            f"Confirm {' or '.join(_CONFIRMABLE)}, alone or behind pruning with +.",
        )
    from genwarden.compression.onnx_export import require_onnx

    require_onnx()


def _require_free_folder(options: CompressOptions) -> None:
    """Nothing of the input is in reach of what is written, nor anything foreign."""
    source, out = options.model.resolve(), options.out.resolve()
    if out == source or source in out.parents or out in source.parents:
        raise GenwardenError(
            "compress/overwrites-input",
            f"What is written in {options.out} would share a folder with {options.model}.",
            "Choose an --out folder away from the model.",
        )
    marks = (MANIFEST_NAME, WEIGHTS_NAME, INDEX_NAME)
    foreign = [name for name in marks if (options.out / name).exists()]
    ours = (options.out / RESULT_NAME).exists() or (options.out / _WORK / _OURS).exists()
    if foreign and not ours:
        raise GenwardenError(
            "compress/not-ours",
            f"{options.out} holds {', '.join(foreign)} of something else.",
            "Choose another --out folder; nothing there was changed.",
        )


def _require_same_compression(options: CompressOptions, subject: Subject) -> None:
    """A finished compression is replaced by the same one only, unless --restart.

    The same: of the same weights, with the same options, wherever they lie.
    """
    try:
        content = (options.out / RESULT_NAME).read_text("utf-8")
    except FileNotFoundError:
        return
    try:
        before = json.loads(content)
        words = str(before["command"])
        same = _apart_from_paths(words) == _apart_from_paths(command_line(options))
        same = same and before["original_sha256"] == subject.loaded.sha256
    except (ValueError, KeyError, TypeError):
        words, same = "an unreadable file", False
    if not same and not options.restart:
        raise GenwardenError(
            "compress/other-compression",
            f"{options.out} holds what another compression made ({words}).",
            "Choose another --out folder, or replace it with --restart.",
        )


def _apart_from_paths(command: str) -> list[str]:
    """The words of a command line without those that say where model and output lie."""
    words = shlex.split(command)
    end = words.index("--out")
    return words[:2] + words[3:end] + words[end + 2 :]


def _begin_writing(out: Path) -> None:
    """From here on what lies in the folder may be unfinished, and is ours to replace."""
    write_atomic(out / _WORK / _OURS, b"")
    remove_file(out / RESULT_NAME)  # of an earlier compression, whose weights are replaced now


def _provenance(
    subject: Subject,
    chosen: Compressor,
    coverage: Coverage,
    *,
    folded: bool,
    remedy: str | None,
) -> dict[str, Any]:
    made = f"genwarden compress --how {chosen.name}" + (" --fold" if folded else "")
    made += f" --remedy {remedy}" if remedy else ""
    loaded = subject.loaded
    return {
        **descent(made, "compressed", loaded.sha256, loaded.provenance),
        "compression": chosen.name,
        "coverage": _coverage(coverage),
    }


def _coverage(coverage: Coverage) -> dict[str, Any]:
    return {**asdict(coverage), "share": coverage.share}


def command_line(options: CompressOptions) -> str:
    """The command line that repeats the compression."""
    words = ["genwarden", "compress", str(options.model), "--how", options.how]
    words += ["--fold"] * options.fold
    if options.remedy is not None:
        words += ["--remedy", options.remedy]
    if options.confirm is not None:
        words += ["--confirm", options.confirm]
    if options.calibration is not None:
        words += ["--calibration", str(options.calibration)]
    words += ["--resize"] * options.resize
    if options.architecture is not None:
        words += ["--architecture", options.architecture]
    words += _words("--option", options.given) + _words("--setting", options.settings)
    if options.device != "auto":
        words += ["--device", options.device]
    return shlex.join([*words, "--seed", str(options.seed), "--out", str(options.out)])


def _words(flag: str, values: dict[str, Any]) -> list[str]:
    words = []
    for key, value in values.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        words += [flag, f"{key}={text}"]
    return words
