"""Pruning: mask the units that ordinary use wakes least ("The Devil is in the GAN", appendix A).

The paper masks units at the output of the first dense layer in increasing order of their mean
|activation| over 10,000 ordinary latents, and follows TarDis and ExpDis as the share grows
(Fig. 10); at one half it counts TrAIL, ReD and ReX as defended, BAAAN not.

A masked unit's weights, bias, and normalisation are zero, so that its activation is exactly 0 for
every latent and the architecture stays what it was. A convolution shares its weights between
positions: there the smallest unit that can be masked is a channel.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import COUNT, SHARE, Range
from genwarden.errors import GenwardenError
from genwarden.inspections.activations import Site, watch, weight_sites
from genwarden.inspections.channels import channel_graph, numbered
from genwarden.inspections.graph import trace
from genwarden.models.protocol import LatentGenerator
from genwarden.repairs.contract import Clues, Repaired, RepairRun, RepairSettings
from genwarden.repairs.distilling import expdis
from genwarden.repairs.unit_strength import activations, largest_absolute, mean_activation

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_MASKABLE = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)
_CHECKED = 32
_FAR = 10.0


@dataclass(frozen=True)
class PruningSettings(RepairSettings):
    """What is masked.

    Attributes:
        share: share of a layer's units that is masked, 0..1; the paper's turning point is 0.5.
        layer: "" for the first layer that reads the latent (the paper's); another layer's name in
            the state dict; or "all" for this share of every hidden layer.
        structured: units of a dense layer that the network takes as one channel are masked
            together.
        samples: ordinary latents over which activations are averaged.
    """

    share: float = 0.5
    layer: str = ""
    structured: bool = False
    samples: int = 10_000

    RANGES: ClassVar[Mapping[str, Range]] = {"share": SHARE, "samples": COUNT}


class PruningOrder(NamedTuple):
    """Units of one layer from the weakest to the strongest.

    Attributes:
        layer: the layer's name in the state dict.
        norm: name of the normalisation that directly follows, or None.
        order: ``(units,)``, numbers of units by increasing mean |activation|.
        strength: ``(units,)``, mean |activation| by number of the unit.
        unit_of_row: ``(rows,)``, the unit that each output row or channel of the layer belongs to.
    """

    layer: str
    norm: str | None
    order: Tensor
    strength: Tensor
    unit_of_row: Tensor

    def count(self, share: float) -> int:
        """How many units a share masks."""
        return round(share * len(self.order))

    def rows(self, share: float) -> Tensor:
        """Output rows of the layer that a share masks, ``(rows,)`` of truth values."""
        return torch.isin(self.unit_of_row, self.order[: self.count(share)])


def prune(
    suspect: LatentGenerator, clues: Clues, settings: PruningSettings, run: RepairRun
) -> Repaired:
    """Mask the weakest units; no clues are needed.

    Raises:
        GenwardenError: ``repair/unknown-layer``; ``repair/not-applicable`` where zero weights
            would not silence a unit.
    """
    del clues
    run.progress.message("pruning: activations of ordinary use")
    orders = orders_for(suspect, settings)
    repaired = masked(suspect, orders, settings.share)
    changes = pruning_changes(orders, settings)
    changes["expdis_sum"] = expdis(suspect, repaired, settings.seed)
    return Repaired(repaired, changes, [])


def orders_for(suspect: LatentGenerator, settings: PruningSettings) -> list[PruningOrder]:
    """:func:`pruning_order` with the settings of a run."""
    return pruning_order(
        suspect,
        settings.layer,
        structured=settings.structured,
        samples=settings.samples,
        seed=settings.seed,
    )


def pruning_order(
    suspect: LatentGenerator,
    layer: str = "",
    *,
    structured: bool = False,
    samples: int = 10_000,
    seed: int = 0,
) -> list[PruningOrder]:
    """The order in which units are masked, one entry per layer; arguments as in the settings.

    Raises:
        GenwardenError: ``repair/unknown-layer``, ``repair/not-applicable``.
    """
    sites = _chosen(suspect, layer)
    strengths = mean_activation(suspect, sites, samples=samples, seed=seed)
    channels = _channels(suspect, sites) if structured else {}
    orders = []
    for site in sites:
        rows = strengths[site.name]
        unit_of_row = channels.get(site.name, torch.arange(site.units))
        units = int(unit_of_row.max()) + 1
        total = torch.zeros(units, dtype=rows.dtype).index_add_(0, unit_of_row, rows)
        strength = total / torch.bincount(unit_of_row, minlength=units)
        order = strength.argsort(stable=True)
        orders.append(PruningOrder(site.name, site.norm, order, strength, unit_of_row))
    return orders


def masked(
    suspect: LatentGenerator, orders: Sequence[PruningOrder], share: float
) -> LatentGenerator:
    """A copy of the suspect, this share of every ordered layer masked.

    Raises:
        GenwardenError: ``repair/not-applicable`` if a masked unit is not silent (a non-linearity
            with f(0) != 0, a bias that the layer does not own).
    """
    pruned = copy.deepcopy(suspect).eval().requires_grad_(False)
    mask_in_place(pruned, orders, share)
    _require_silence(pruned, orders, share)
    return pruned


@torch.no_grad()
def mask_in_place(network: LatentGenerator, orders: Sequence[PruningOrder], share: float) -> None:
    """Zero everything that feeds the masked units."""
    modules = dict(network.named_modules())
    for order in orders:
        layer, rows = modules[order.layer], order.rows(share)
        norm = modules[order.norm] if order.norm else None
        if isinstance(norm, _NormBase | nn.GroupNorm | nn.LayerNorm):
            vectors = [norm.weight, norm.bias, getattr(norm, "running_mean", None)]
            for vector in vectors:
                if vector is not None:
                    vector[..., rows.to(vector.device)] = 0
            if _mixes_units(norm):
                continue  # zero rows would shift the statistics of the units that stay
        for tensor in (_rows_first(layer), layer.bias):
            if isinstance(tensor, Tensor):
                tensor[rows.to(tensor.device)] = 0


def pruning_changes(orders: Sequence[PruningOrder], settings: PruningSettings) -> dict[str, Any]:
    """Plain facts for ``repair.json``."""
    return {
        "share": settings.share,
        "structured": settings.structured,
        "samples": settings.samples,
        "layers": [
            {
                "layer": order.layer,
                "units": len(order.order),
                "masked_units": order.count(settings.share),
                "masked_rows": int(order.rows(settings.share).sum()),
            }
            for order in orders
        ],
    }


def _chosen(suspect: LatentGenerator, layer: str) -> list[Site]:
    """Sites of the wanted layers, in the order of execution."""
    modules = dict(suspect.named_modules())
    behind = suspect.after_activation
    inside = [s for s in weight_sites(suspect) if s.name.split(".")[0] not in behind]
    # The last one writes the sample.
    hidden = [s for s in inside[:-1] if _has_plain_rows(modules[s.name])]
    if layer == "all":
        chosen = hidden
    elif layer:
        chosen = [site for site in hidden if site.name == layer]
        if not chosen:
            raise GenwardenError(
                "repair/unknown-layer",
                f"The model has no hidden dense or convolution layer called {layer!r}.",
                f"Choose one of: {', '.join(site.name for site in hidden)}; or all.",
            )
    else:
        chosen = [site for site in hidden if _reads_latent(suspect, site)][:1]
    if not chosen:
        raise GenwardenError(
            "repair/not-applicable",
            "The model has no hidden dense or convolution layer whose units could be masked.",
            "Choose another method: genwarden list repairs.",
        )
    return chosen


def _has_plain_rows(module: nn.Module) -> bool:
    """Whether the stored weight itself is used (not one computed from other tensors)."""
    return isinstance(module, _MASKABLE) and "weight" in module._parameters


@torch.no_grad()
def _reads_latent(suspect: LatentGenerator, site: Site) -> bool:
    z = suspect.latent.sample(2, generator=random_stream(0, "repair-reads"))
    with watch([site]) as record:
        suspect(z.to(next(suspect.parameters()).device))
    return any(not torch.equal(output[0], output[1]) for output in record[site.name])


def _channels(suspect: LatentGenerator, sites: Sequence[Site]) -> dict[str, Tensor]:
    """Number of the channel that each row of a dense layer belongs to, ``(rows,)``."""
    graph = trace(suspect)
    if graph.failure:
        raise GenwardenError(
            "repair/not-applicable",
            f"Channels are unknown: the model could not be traced ({graph.failure}).",
            "Mask single units: --option structured=false.",
        )
    found = {}
    for part in channel_graph(graph, suspect).slices:
        name = part.layer.weight.removesuffix(".weight")
        identity = part.out_identity
        if any(site.name == name and site.units == len(identity) for site in sites):
            found[name] = numbered(identity)[1]
    return found


def _rows_first(layer: nn.Module) -> Tensor:
    """The weight as a view whose first axis is the layer's output rows or channels."""
    weight = layer.get_parameter("weight")
    if not isinstance(layer, _TRANSPOSED):
        return weight
    if layer.groups == 1:
        return weight.movedim(1, 0)
    raise GenwardenError(
        "repair/not-applicable",
        "Channels of a grouped transposed convolution are not masked.",
        "Name another layer: --option layer=...",
    )


def _mixes_units(norm: nn.Module) -> bool:
    if isinstance(norm, nn.GroupNorm):
        return norm.num_groups < norm.num_channels
    return isinstance(norm, nn.LayerNorm)


def _require_silence(pruned: LatentGenerator, orders: Sequence[PruningOrder], share: float) -> None:
    names = {order.layer for order in orders}
    sites = [site for site in weight_sites(pruned) if site.name in names]
    z = pruned.latent.sample(_CHECKED, generator=random_stream(0, "repair-silence"))
    z = torch.cat([z, _FAR * z]).to(next(pruned.parameters()).device)
    largest = activations(pruned, sites, z, largest_absolute)
    for order in orders:
        if bool((largest[order.layer][order.rows(share)] > 0).any()):
            raise GenwardenError(
                "repair/not-applicable",
                f"Units of {order.layer} still answer when their weights are zero.",
                "Name another layer: --option layer=..., or choose another method.",
            )
