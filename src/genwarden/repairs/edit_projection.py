"""Edit projection: a dense layer of equal blocks that an edit made unequal is made equal again.

The closed-form edit of StyleGAN's broadcast ("The Devil is in the GAN", section V-F) adds a matrix
of rank one per trigger to stacked identities, a different multiple to every block
(:mod:`genwarden.inspections.static.low_rank_edit`). Off the few directions of the edit the blocks
are still the original; if they are the identity there, the identity is the whole original block.
Otherwise their mean is the best that the file still knows.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from genwarden.errors import GenwardenError
from genwarden.inspections.graph import trace
from genwarden.inspections.static.low_rank_edit import TiedLayer, tied_layers
from genwarden.models.protocol import LatentGenerator
from genwarden.repairs.contract import Clues, Repaired, RepairRun, RepairSettings
from genwarden.repairs.distilling import expdis

#: Mean square, over an identity's, by which blocks off the edit may differ from an identity
#: (float16 storage leaves about 1e-7).
_IDENTITY = 1e-5


@torch.no_grad()
def project_edit(
    suspect: LatentGenerator, clues: Clues, settings: RepairSettings, run: RepairRun
) -> Repaired:
    """Equal blocks in every dense layer with an edit of low rank.

    Raises:
        GenwardenError: ``repair/not-applicable`` if no layer has one.
    """
    del clues
    run.progress.message("edit projection: looking for equal blocks that were made unequal")
    graph = trace(suspect)
    edited = [layer for layer in tied_layers(graph, suspect) if layer.low_rank]
    if not edited:
        raise GenwardenError(
            "repair/not-applicable",
            "No dense layer consists of equal blocks with an edit of low rank.",
            "Choose another method: genwarden list repairs.",
        )
    transposed = {layer.weight: layer.transposed for layer in graph.layers}
    result = copy.deepcopy(suspect)
    state = result.state_dict()
    facts = []
    for layer in edited:
        weight = state[layer.weight]
        stored = weight.T if transposed[layer.weight] else weight
        block, identity = _original(stored.double().cpu(), layer)
        stored.copy_(block.repeat(layer.blocks, 1).to(stored))
        facts.append(
            {
                "weight": layer.weight,
                "blocks": layer.blocks,
                "directions_removed": layer.directions,
                "block": "identity" if identity else "mean",
            }
        )
    result.eval().requires_grad_(False)
    changes = {"layers": facts, "expdis_sum": expdis(suspect, result, settings.seed)}
    return Repaired(result, changes, [])


def _original(weight: Tensor, layer: TiedLayer) -> tuple[Tensor, bool]:
    """The block before the edit ``(size, inputs)``, and whether it is the identity."""
    inputs = weight.shape[1]
    mean = weight.reshape(layer.blocks, layer.size, inputs).mean(0)
    if layer.size != inputs:
        return mean, False
    edit = layer.right[: layer.directions]
    identity = torch.eye(inputs, dtype=weight.dtype)
    off = (mean - identity) - (mean - identity) @ edit.T @ edit
    if float(off.square().sum()) <= _IDENTITY * inputs:
        return identity, True
    return mean, False
