"""``genwarden compress``: the model that a device would run, as a model folder to audit."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from genwarden import __version__
from genwarden.artifacts.diffusers_layout import INDEX_NAME
from genwarden.artifacts.manifest import MANIFEST_NAME, WEIGHTS_NAME, descent
from genwarden.commands.compress_confirm import (
    ONNX_NAME,
    Confirmation,
    Fidelity,
    confirm,
    require_confirmable,
)
from genwarden.commands.compress_remedy import remedied, settings_of
from genwarden.commands.compress_trial import Tried, recovered_by, try_recovered
from genwarden.commands.compressing import Subject, open_subject
from genwarden.commands.next_audit import audit_command
from genwarden.compression.apply import (
    Coverage,
    compress,
    compressed_weights,
    coverage_of,
    idle_stage,
)
from genwarden.compression.contract import Compressor
from genwarden.compression.folding import fold_batch_norm
from genwarden.compression.how import compressor as compressor_named
from genwarden.compression.layers import layout_of
from genwarden.engine.device import pick_device
from genwarden.engine.files import (
    remove_file,
    remove_folder,
    require_no_file,
    require_writable_folder,
    write_atomic,
    write_json,
)
from genwarden.engine.progress import Progress
from genwarden.errors import ExitCode, GenwardenError
from genwarden.inspections.classifier.recalibration import DAMAGED
from genwarden.registry import COMPRESSION_REMEDIES

RESULT_NAME: Final = "compress.json"
#: Folder and file that mark what an interrupted compression left.
_WORK: Final = ".work"
#: Fewer images are no sample of what a network will read.
_LEAST_IMAGES: Final = 16
_OURS: Final = "ours"


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
    audit: Path | None = None
    restart: bool = False


@dataclass(frozen=True)
class CompressFiles:
    """What ``genwarden compress`` made.

    Attributes:
        fidelity: of what was written, None for a classifier without images.
        next_command: the audit that should follow.
        plain_fidelity: with a remedy: of the same compression without it.
        trial: with an audit: what it recovered under this compression, tried.
    """

    how: str
    coverage: Coverage
    fidelity: Fidelity | None
    plain_fidelity: Fidelity | None
    trial: list[Tried]
    confirmation: Confirmation | None
    model_path: Path
    json_path: Path
    onnx_path: Path | None
    next_command: str

    @property
    def damaged(self) -> bool:
        """Whether a classifier changes more answers than an audit bears."""
        kept = None if self.fidelity is None else self.fidelity.same_class
        return kept is not None and kept < DAMAGED


def compress_model(options: CompressOptions, *, progress: Progress) -> CompressFiles:
    """Compress one model and write it, decompressed again, as a folder of its own kind.

    Raises:
        GenwardenError: ``compress/...`` (``compress/no-coverage`` exits with 3); those of opening
            a model and of reading images.
    """
    if options.resize and options.calibration is None:
        raise GenwardenError(
            "usage/compress-options",
            "--resize scales the images of --calibration, and none were given.",
            "Leave --resize away, or add --calibration FOLDER.",
        )
    chosen = compressor_named(options.how, seed=options.seed)
    settings = settings_of(options, chosen)
    require_confirmable(options, chosen)
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
    _require_enough_images(options, subject)
    _require_free_folder(options)
    _require_same_compression(options, subject)
    found = []
    if options.audit is not None:
        found = recovered_by(options.audit, chosen.name, subject)
    device = pick_device(options.device)
    original = subject.network.to(device).eval().requires_grad_(False)
    plain, coverage = _compressed(original, chosen, subject, fold=options.fold)
    idle = idle_stage(original, chosen, layout_of(original))
    if idle or not coverage.layers:
        raise GenwardenError(
            "compress/no-coverage",
            f"{idle}, a stage of {chosen.name}, works on none of this network's weights."
            if idle
            else f"{chosen.name} works on none of this network's weights ({coverage}).",
            "Choose another --how; a model that stayed as it was says nothing about compression.",
            ExitCode.INCONCLUSIVE,
        )
    require_writable_folder(options.out)
    before = subject.outputs(original, options.seed)
    fidelity = _fidelity(subject, before, plain, options.seed)
    made, plain_fidelity, changes = plain, None, None
    if options.remedy is not None and settings is not None:
        progress.message(f"== remedy: {options.remedy} ({chosen.name}: {coverage}) ==")
        made, coverage, changes = remedied(original, chosen, subject, options, settings, progress)
        plain_fidelity, fidelity = fidelity, _fidelity(subject, before, made, options.seed)
    networks = {"full": original, "plain": plain}
    networks |= {} if options.remedy is None else {options.remedy: made}
    trial = try_recovered(found, networks, before)
    _begin_writing(options.out)
    confirmation = None
    if options.confirm is not None:
        progress.message(f"== confirming on {options.confirm} ==")
        confirmation = confirm(options, chosen, subject, original, made)
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
        "trial": [one.record() for one in trial],
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
        trial=trial,
        confirmation=confirmation,
        model_path=_what_opens(options.out),
        json_path=options.out / RESULT_NAME,
        onnx_path=None if confirmation is None else options.out / ONNX_NAME,
        next_command=_next_command(options, subject.kind),
    )


def _next_command(options: CompressOptions, kind: str) -> str:
    """The audit that says most about what was made; "" if none says more than was tried.

    Plain compression is inspected beside the full model, where a backdoor that it wakes stands
    out; what a remedy made by itself. A compressed classifier by itself says nothing: of the full
    one an audit recovers what the remedy can be tried on.
    """
    if options.remedy is not None and kind == "classifier" and options.audit is not None:
        return ""
    foreign = options.architecture is not None
    if options.remedy is not None and kind != "classifier":
        opens = _what_opens(options.out)
        words, foreign = [], foreign and opens != options.out
    else:
        opens, words = options.model, ["--deploy-as", options.how]
        words += ["--seed", str(options.seed)] if options.seed else []
    if foreign:
        words += ["--architecture", str(options.architecture)]
        words += _words("--setting", options.settings)
    data = (options.calibration or Path("IMAGES")) if kind == "classifier" else None
    return audit_command(opens, options.out, words, data=data, resize=options.resize)


def _what_opens(out: Path) -> Path:
    """The folder, or its weights file where the architecture is the user's own."""
    named = any((out / name).exists() for name in (MANIFEST_NAME, INDEX_NAME))
    return out if named else out / WEIGHTS_NAME


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
    coverage = coverage_of(folded, layout, weights)
    with torch.no_grad():
        for name, weight in weights.items():
            folded.get_parameter(name).copy_(weight)
    return folded, coverage


def _fidelity(
    subject: Subject, before: Tensor | None, made: nn.Module, seed: int
) -> Fidelity | None:
    after = subject.outputs(made, seed)
    if before is None or after is None:
        return None
    return Fidelity.of(before, after, classes=subject.kind == "classifier")


def _require_enough_images(options: CompressOptions, subject: Subject) -> None:
    """What is fitted to a handful of images is measured on the same and may be anything."""
    count = None if subject.images is None else len(subject.images)
    remedy = options.remedy
    learns = remedy is not None and COMPRESSION_REMEDIES[remedy].options.get("learns")
    fitted = " and ".join(filter(None, [remedy if learns else "", options.confirm]))
    if fitted and count is not None and count < _LEAST_IMAGES:
        raise GenwardenError(
            "compress/too-few-images",
            f"{fitted} would be fitted to {count} image(s) of --calibration.",
            f"Give at least {_LEAST_IMAGES}, better some hundreds, like those that it will read.",
        )


def _require_free_folder(options: CompressOptions) -> None:
    """Nothing of the input is in reach of what is written, nor anything foreign."""
    require_no_file(options.out)
    source, out = options.model.resolve(), options.out.resolve()
    if out == source or source in out.parents or out in source.parents:
        raise GenwardenError(
            "compress/overwrites-input",
            f"What is written in {options.out} would share a folder with {options.model}.",
            "Choose an --out folder away from the model.",
        )
    there = options.out.iterdir() if options.out.is_dir() else ()
    foreign = sorted(one.name for one in there if not one.name.startswith("."))
    ours = (options.out / RESULT_NAME).exists() or (options.out / _WORK / _OURS).exists()
    if foreign and not ours:
        raise GenwardenError(
            "compress/not-ours",
            f"{options.out} holds something else: {', '.join(foreign[:3])}"
            f"{' ...' * (len(foreign) > 3)}.",
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
    if options.audit is not None:
        words += ["--audit", str(options.audit)]
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
