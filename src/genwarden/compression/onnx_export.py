"""A network as an ONNX model in float, batch norm folded into its weights first."""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from genwarden.compression.folding import fold_found
from genwarden.compression.layers import layout_of
from genwarden.errors import GenwardenError

_PACKAGES: Final = ("onnx", "onnxruntime", "onnxscript")


def require_onnx() -> None:
    """Whether the optional packages are installed.

    Raises:
        GenwardenError: ``compress/backend-missing``.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise GenwardenError(
            "compress/backend-missing",
            f"Not installed: {', '.join(missing)}.",
            "Install them with `pip install genwarden[onnx]`, or leave --confirm away.",
        )


def folded_for_export(network: nn.Module, inputs: Sequence[Tensor]) -> nn.Module:
    """A copy in evaluation mode without the batch norms that can be folded."""
    folded = copy.deepcopy(network).eval()
    with torch.no_grad():
        fold_found(folded, layout_of(folded, lambda: folded(*inputs)), drop_norms=True)
    return folded


def input_names(count: int) -> list[str]:
    """Names of a model's inputs in order."""
    return [f"input_{number}" for number in range(count)]


def output_names(count: int) -> list[str]:
    """Names of a model's outputs in order."""
    return [f"output_{number}" for number in range(count)]


def export_onnx(
    network: nn.Module, inputs: Sequence[Tensor], path: Path, *, outputs: int = 1
) -> None:
    """Write a network as ONNX.

    Args:
        network: in evaluation mode.
        inputs: an example; the batch axis (the first) stays free where the network allows it.
        outputs: how many tensors it returns.

    Raises:
        GenwardenError: ``compress/backend-missing``; ``compress/export-failed`` for a network that
            torch cannot express in ONNX.
    """
    require_onnx()
    try:
        with quiet():
            program = torch.onnx.export(
                _Plain(network),
                tuple(inputs),
                dynamo=True,
                verbose=False,
                input_names=input_names(len(inputs)),
                output_names=output_names(outputs),
                dynamic_shapes=(tuple({0: torch.export.Dim.AUTO} for _ in inputs),),
            )
            assert program is not None  # noqa: S101 (dynamo=True returns it)
            program.save(str(path))
    except Exception as error:  # the exporter raises many unrelated types
        raise GenwardenError(
            "compress/export-failed",
            f"torch cannot write this network as ONNX ({type(error).__name__}).",
            "Leave --confirm away; the simulated compression does not need ONNX.",
        ) from error


class _Plain(nn.Module):
    """A network behind a signature that says nothing about its inputs but their order."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Any:
        """What the network returns."""
        return self.network(*inputs)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' warnings about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
