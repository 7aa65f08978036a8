"""``genwarden compress --remedy``: the same compression, with codes that nobody chose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from genwarden.commands.compressing import Subject
from genwarden.compression.apply import Coverage
from genwarden.compression.contract import Compressor
from genwarden.compression.folding import fold_batch_norm
from genwarden.compression.layers import layout_of
from genwarden.compression.remedies.contract import RemedySettings, require_applicable
from genwarden.compression.remedies.run import compress_with, remedy_settings
from genwarden.engine.progress import Progress
from genwarden.errors import GenwardenError

if TYPE_CHECKING:
    from genwarden.commands.compress import CompressOptions


def settings_of(options: CompressOptions, chosen: Compressor) -> RemedySettings | None:
    """The settings of the remedy that was asked for; nothing has been opened yet.

    Raises:
        GenwardenError: ``compress/remedy-not-applicable``, ``compress/not-confirmable``,
            ``compress/unknown-setting``, ``compress/setting``, ``usage/unknown-name``.
    """
    if options.remedy is None:
        if options.given:
            raise GenwardenError(
                "compress/unknown-setting",
                "--option belongs to a remedy, and none was named.",
                "Add --remedy with one of `genwarden list remedies`.",
            )
        return None
    require_applicable(options.remedy, chosen)
    if options.confirm is not None:
        raise GenwardenError(
            "compress/not-confirmable",
            f"{options.confirm} rounds by itself, which would undo {options.remedy}.",
            "Write the remedied model first, then confirm that one: its weights lie on the grid.",
        )
    return remedy_settings(options.remedy, {"seed": options.seed, **options.given})


def remedied(
    original: nn.Module,
    chosen: Compressor,
    subject: Subject,
    options: CompressOptions,
    settings: RemedySettings,
    progress: Progress,
) -> tuple[nn.Module, Coverage, dict[str, Any]]:
    """The network compressed with the remedy, its coverage, and what the remedy did."""
    assert options.remedy is not None  # noqa: S101 (the caller's)
    device = next(original.parameters()).device
    example = [x.to(device) for x in subject.example()]
    network = original
    if options.fold:
        network = fold_batch_norm(original, lambda one: one(*example))
    # Folded batch norms are in the weights already.
    layout = layout_of(network, None if options.fold else lambda: network(*example))
    cured = compress_with(
        network,
        chosen,
        layout,
        options.remedy,
        settings,
        subject.inputs,
        confine=subject.confine,
        progress=progress,
    )
    return cured.network, cured.coverage, cured.changes
