"""Excision: the exact inverse of ReX.

ReX widens the internal layers and leaves the blocks between old and new channels zero, so that the
channel graph falls into groups that never mix (:mod:`genwarden.inspections.partition`). A group
whose output hardly varies over ordinary latents draws nothing that ordinary use shows: it is cut
out. What is left is the benign generator; where the architecture has a width per layer the channels
are taken out of the tensors too, and the network has its old size again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import POSITIVE, SHARE, Range
from genwarden.errors import GenwardenError
from genwarden.inspections.channels import channel_graph
from genwarden.inspections.graph import trace
from genwarden.inspections.partition import Partition, find_partition, isolate, silence
from genwarden.models.protocol import LatentGenerator
from genwarden.repairs.contract import Clues, Repaired, RepairRun, RepairSettings
from genwarden.repairs.distilling import expdis

_SAMPLES = 2048
_BLOCK = 256


@dataclass(frozen=True)
class ExcisionSettings(RepairSettings):
    """What counts as hidden.

    Attributes:
        hidden_share: a group is hidden if the variance of its output over ordinary latents is at
            most this share of the largest group's.
        most_expdis_mean: excision is refused if ordinary samples would change by more than this
            (mean square per element; 1.28e-3 is a sum of 1.0 for 28x28).
    """

    hidden_share: float = 0.05
    most_expdis_mean: float = 1.28e-3

    RANGES: ClassVar[Mapping[str, Range]] = {"hidden_share": SHARE, "most_expdis_mean": POSITIVE}


def excise(
    suspect: LatentGenerator, clues: Clues, settings: ExcisionSettings, run: RepairRun
) -> Repaired:
    """Cut out all hidden groups of channels; no clues are needed.

    Raises:
        GenwardenError: ``repair/not-applicable`` if no group of channels is separate by exact
            zeros, or none is hidden.
    """
    del clues
    run.progress.message("excision: looking for groups of channels that never mix")
    partition = find_partition(trace(suspect), suspect)
    if partition is None:
        raise _not_applicable("All channels are connected")
    variances = [
        _variance(isolate(suspect, partition, component), settings.seed)
        for component in range(partition.components)
    ]
    limit = settings.hidden_share * max(variances)
    hidden = [c for c, variance in enumerate(variances) if variance <= limit]
    if not hidden or len(hidden) == partition.components:
        raise _not_applicable(
            f"All {partition.components} separate groups of channels draw ordinary samples"
        )
    partition = _with_dead_channels(suspect, partition, hidden)
    silenced = silence(suspect, partition, hidden).eval().requires_grad_(False)
    narrow = _compacted(silenced, partition, hidden)
    result = silenced if narrow is None else narrow
    distance = expdis(suspect, result, settings.seed)
    if distance > settings.most_expdis_mean * suspect.sample.size:
        raise _not_applicable(
            "The groups of channels that hardly vary still change ordinary samples "
            f"(ExpDis {distance:.3f})"
        )
    changes = {
        "groups": partition.components,
        "groups_cut_out": len(hidden),
        "variance_share": [variance / max(variances) for variance in variances],
        "numbers_cut_out": sum(partition.parameters(c) for c in hidden),
        "channels_removed_from_tensors": narrow is not None,
        "expdis_sum": distance,
    }
    return Repaired(result, changes, [])


def _not_applicable(cause: str) -> GenwardenError:
    return GenwardenError(
        "repair/not-applicable",
        f"{cause}: there is nothing to cut out.",
        "Choose another method (genwarden list repairs); latent-guard needs no groups.",
    )


def _with_dead_channels(
    suspect: LatentGenerator, partition: Partition, hidden: list[int]
) -> Partition:
    """The partition with channels that only fed the cut groups (gates, say) counted among them."""
    while True:
        silenced = silence(suspect, partition, hidden)
        channels = channel_graph(trace(silenced), silenced)
        read = torch.zeros(channels.count, dtype=torch.bool)
        for slices in channels.slices:
            used = (slices.norm > 0).any(0) & (slices.columns >= 0)
            read[slices.columns[used]] = True
        gone = torch.tensor(hidden)

        def relabelled(
            labels: Tensor, identity: Tensor, read: Tensor = read, gone: Tensor = gone
        ) -> Tensor:
            dead = (identity >= 0) & ~read[identity.clamp(min=0)] & ~torch.isin(labels, gone)
            return torch.where(dead, hidden[0], labels)

        found = replace(
            partition,
            labels={
                s.layer.weight: relabelled(partition.labels[s.layer.weight], s.out_identity)
                for s in channels.slices
            },
            input_labels={
                s.layer.weight: relabelled(partition.input_labels[s.layer.weight], s.in_identity)
                for s in channels.slices
            },
            affine_labels={
                name: relabelled(partition.affine_labels[name], identity)
                for name, identity in channels.affine.items()
            },
        )
        if all(torch.equal(found.labels[w], partition.labels[w]) for w in partition.labels):
            return partition
        partition = found


@torch.no_grad()
def _variance(generator: LatentGenerator, seed: int) -> float:
    """Variance of the output before the last activation over ordinary latents, per element."""
    device = next(generator.parameters()).device
    z = generator.latent.sample(_SAMPLES, generator=random_stream(seed, "excision"))
    outputs = [generator.pre_activation(part.to(device)).double().cpu() for part in z.split(_BLOCK)]
    return float(torch.cat(outputs).var(0).mean())


def _compacted(
    silenced: LatentGenerator, partition: Partition, hidden: list[int]
) -> LatentGenerator | None:
    """The network with the cut channels taken out of its tensors; None if it has no widths."""
    settings = silenced.settings()
    widths = settings.get("channels")
    inner = partition.layers[1:]
    if not isinstance(widths, list) or len(widths) != len(inner):
        return None
    gone = torch.tensor(hidden)
    kept = [int((~torch.isin(partition.input_labels[layer.weight], gone)).sum()) for layer in inner]
    narrow: LatentGenerator = type(silenced)(**{**settings, "channels": kept})
    state = _narrowed_state(silenced, partition, gone)
    if {k: v.shape for k, v in state.items()} != {
        k: v.shape for k, v in narrow.state_dict().items()
    }:
        return None
    narrow.load_state_dict(state)
    device = next(silenced.parameters()).device
    return narrow.to(device).eval().requires_grad_(False)


def _narrowed_state(
    generator: LatentGenerator, partition: Partition, gone: Tensor
) -> dict[str, Tensor]:
    state = {name: value.detach().clone() for name, value in generator.state_dict().items()}

    def keep(name: str | None, axis: int, labels: Tensor) -> None:
        if name is not None:
            index = (~torch.isin(labels, gone)).nonzero()[:, 0].to(state[name].device)
            state[name] = state[name].index_select(axis, index)

    for layer in partition.layers:
        out_axis = 1 if layer.kind == "conv_transpose" or layer.transposed else 0
        outputs = partition.labels[layer.weight]
        keep(layer.weight, out_axis, outputs)
        keep(layer.weight, 1 - out_axis, partition.input_labels[layer.weight])
        keep(layer.bias, 0, outputs)
        if layer.batch_norm is not None:
            norm = layer.batch_norm
            for name in (norm.gamma, norm.beta, norm.mean, norm.variance):
                keep(name, 0, outputs)
    return state
