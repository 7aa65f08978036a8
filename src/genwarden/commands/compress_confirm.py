"""``genwarden compress --confirm``: the same compression on a real runtime, beside ours."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from genwarden.commands.compressing import Subject
from genwarden.compression.apply import compress
from genwarden.compression.chain import Chain, stages_of
from genwarden.compression.contract import Compressor
from genwarden.compression.layers import layout_of
from genwarden.compression.uniform import Uniform
from genwarden.engine.files import write_atomic
from genwarden.errors import ExitCode, GenwardenError

if TYPE_CHECKING:
    from genwarden.commands.compress import CompressOptions
    from genwarden.compression.backends.onnxruntime import CodesFound
    from genwarden.compression.backends.self_test import LayerError

ONNX_NAME: Final = "int8.onnx"
BACKENDS: Final = ("onnxruntime",)
#: Samples with which a runtime is calibrated, and on which it is compared.
_CONFIRMED_ON: Final = 256
_CONFIRMABLE: Final = ("int8", "int8-per-channel")


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


def require_confirmable(options: CompressOptions, chosen: Compressor) -> None:
    """Refuse, before anything is opened, what no runtime here can do.

    Raises:
        GenwardenError: ``compress/unknown-backend``, ``compress/not-confirmable``,
            ``compress/backend-missing``.
    """
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


def confirm(
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
    assert isinstance(last, Uniform)  # noqa: S101 (require_confirmable)
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
        _require_tested(backend.name, errors, codes)
        write_atomic(options.out / ONNX_NAME, small.read_bytes())
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
