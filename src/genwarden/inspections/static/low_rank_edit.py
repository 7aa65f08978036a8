"""SMI (4): a dense layer of equal blocks that an edit has made unequal in a few directions.

StyleGAN copies w to every style slice; an attacker stores that copy as a dense layer, stacked
identities, and adds a change P (section V-F of "The Devil is in the GAN"; sections 7, 9 and 17.4
of the reference). The best change for one trigger with features c is ``P = r u^T`` with
``u ~ C^-1 c`` and C = E[h h^T]: the blocks differ from their mean along one right singular vector,
and ``C u`` is the direction of c. For m triggers there are m.

The test needs no reference model, since the blocks are each other's reference: with D the
differences of the blocks from their mean, stacked, an exact tie has D = 0. Structural evidence is a
D of at most ``_MOST_DIRECTIONS`` directions under blocks that themselves have many. A trained edit
keeps some of its random start in every direction: its spectrum is shown with the share of the first
direction, but it is no proof, as honest training could also untie a layer. Of a matrix without
such blocks nothing can be said: dominant directions are ordinary in trained layers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from genwarden.engine.seeds import random_stream
from genwarden.inspections.finding import (
    EXACT,
    Chart,
    Evidence,
    Finding,
    Line,
    Table,
    latents_of,
    not_applicable,
)
from genwarden.inspections.graph import ExecutedGraph
from genwarden.inspections.pictures import sample_pictures
from genwarden.inspections.workbench import BLOCK_SAMPLES, Workbench
from genwarden.models.protocol import LatentGenerator
from genwarden.search.latent_search import ordinary_bounds, search

NAME = "low-rank-edit"
TITLE = "Equal blocks made unequal in a few directions"
#: Directions count until this share of the energy is theirs (float16 storage leaves about 1e-5).
_ENERGY = 0.999
_MOST_DIRECTIONS = 8
#: Blocks themselves must have this many times the directions of their differences.
_RICHER = 4
#: Share of a layer's energy, beyond chance, in the mean block: from here on blocks "nearly agree".
_NEARLY_TIED = 0.3
#: Smaller blocks win if they agree nearly as well as larger ones (two blocks make one of twice the
#: size).
_AS_GOOD = 0.9
_SMALLEST_BLOCK = 4
#: Rows of D that are looked at first: they have no more directions than D.
_SKETCHED_ROWS = 64
#: Eigenvalues of C below this share of their mean count as this (features that never vary).
_RIDGE = 1e-6
_RESTARTS = 32
#: Latents for C. Its estimate bounds how well C u recovers c: 2048 are too few for 64 features.
_MOMENT_SAMPLES = 16_384
#: Energy of D over that of the layer below which it is rounding.
_LEAST_ENERGY = 1e-8
#: Share of D's entries that an edit changes (beyond a thousandth of the largest change), at least.
_TOUCHED = 1e-3
_LEAST_TOUCHED = 0.05
_SHOWN = 8


class TiedLayer(NamedTuple):
    """A dense layer of equal, or nearly equal, blocks.

    Attributes:
        weight: state-dict name.
        blocks, size: number of blocks and rows of each.
        singular: singular values of D, descending, ``(inputs,)``; D holds the blocks' differences
            from their mean, ``(blocks * size, inputs)``.
        right: right singular vectors of D as rows, ``(inputs, inputs)``.
        directions: how many carry 99.9 % of D's energy; 0 for an exact tie.
        low_rank: whether so few that no training explains it.
    """

    weight: str
    blocks: int
    size: int
    singular: Tensor
    right: Tensor
    directions: int
    low_rank: bool

    @property
    def first_share(self) -> float:
        """Share of D's energy in its first direction; 0 for an exact tie."""
        energy = self.singular.square()
        return float(energy[0] / energy.sum()) if energy.any() else 0.0


class Recovered(NamedTuple):
    """What an edit reacts to.

    Attributes:
        direction: C u as a unit vector in the layer's inputs, its sign that of the features at
            the best latent, ``(inputs,)`` float64.
        z: latents whose features lie most along it, the best first, ``(count, *latent.shape)``.
        alignment: squared cosine between features and edit in the metric of C; 1 at the trigger.
        ordinary: the largest of these among ordinary latents.
    """

    direction: Tensor
    z: Tensor
    alignment: Tensor
    ordinary: float


def inspect(bench: Workbench) -> Finding:
    """Score = share of the blocks' differences in one direction, the largest of all layers."""
    graph = bench.graph
    if graph.failure:
        return Finding(
            inspection=NAME,
            group="static",
            title=TITLE,
            outcome="failed",
            summary=f"The network could not be traced: {graph.failure}",
            p_value_reason="not carried out",
        )
    layers = tied_layers(graph, bench.generator)
    if not layers:
        return not_applicable(
            NAME, "static", TITLE, "No dense layer consists of equal or nearly equal blocks."
        )
    worst = max(layers, key=lambda layer: (layer.low_rank, layer.first_share))
    evidence: list[Evidence] = [_table(layers)]
    if worst.directions:
        evidence += [_spectrum(worst), *_recovered(bench, worst)]
    return Finding(
        inspection=NAME,
        group="static",
        title=TITLE,
        outcome="scored",
        summary=_summary(worst),
        score=round(worst.first_share, 6),
        score_name="share of the blocks' differences in one direction",
        structural=worst.low_rank,
        p_value_reason="An exact property of the weights; where many directions differ, no clean "
        "models with untied blocks are known to compare with.",
        null=EXACT,
        budget={"layers": len(layers), "restarts": _RESTARTS if worst.directions else 0},
        power="Finds closed-form edits for up to "
        f"{_MOST_DIRECTIONS} triggers in a dense layer of equal blocks, also at half precision; "
        "shows but does not judge trained edits; nothing in layers without such blocks.",
        evidence=evidence,
    )


def tied_layers(graph: ExecutedGraph, generator: LatentGenerator) -> list[TiedLayer]:
    """Every dense layer on the path whose outputs are a stack of equal or nearly equal blocks."""
    state = {name: value.detach().cpu() for name, value in generator.state_dict().items()}
    found: dict[str, TiedLayer] = {}
    for layer in graph.layers:
        if layer.kind == "linear" and layer.weight not in found:
            weight = state[layer.weight].double()
            tied = _tied(layer.weight, weight.T if layer.transposed else weight)
            if tied is not None:
                found[layer.weight] = tied
    return list(found.values())


def _tied(name: str, weight: Tensor) -> TiedLayer | None:
    """The finest split of ``(outputs, inputs)`` into blocks that agree but for a few directions,
    else the one into blocks that nearly agree."""
    rows, inputs = weight.shape
    energy = float(weight.square().sum())
    if energy == 0 or not weight.isfinite().all():
        return None
    gram = weight.T @ weight if inputs <= rows else weight @ weight.T
    richness = _directions(torch.linalg.eigvalsh(gram))
    nearly: list[tuple[float, int]] = []
    for size in range(_SMALLEST_BLOCK, rows // 2 + 1):
        if rows % size:
            continue
        blocks = weight.reshape(-1, size, inputs)
        count = len(blocks)
        mean = blocks.mean(0)
        # Unrelated blocks leave 1 / count of the energy in their mean.
        share = count * float(mean.square().sum()) / energy
        nearly.append(((share - 1 / count) / (1 - 1 / count), size))
        difference = (blocks - mean).flatten(0, 1)
        some = difference[torch.randperm(rows, generator=random_stream(0, NAME))[:_SKETCHED_ROWS]]
        if _directions(torch.linalg.svdvals(some).square()) > _MOST_DIRECTIONS:
            continue
        spectrum = torch.linalg.eigvalsh(difference.T @ difference).clamp_min(0)
        directions = _directions(spectrum)
        if directions <= _MOST_DIRECTIONS and _RICHER * max(directions, 1) <= richness:
            edited = directions > 0 and _is_edit(difference, energy)
            return _described(name, size, difference, low_rank=edited)
    best = max(nearly, default=(0.0, 0))[0]
    if best < _NEARLY_TIED:
        return None
    size = next(size for agreement, size in nearly if agreement >= _AS_GOOD * best)
    blocks = weight.reshape(-1, size, inputs)
    return _described(name, size, (blocks - blocks.mean(0)).flatten(0, 1), low_rank=False)


def _is_edit(difference: Tensor, energy: float) -> bool:
    """Whether D is large and dense enough to be an edit.

    Rounding leaves next to nothing; pruning that cuts through tied values leaves a few single
    entries, which are of low rank by their number alone.
    """
    if float(difference.square().sum()) < _LEAST_ENERGY * energy:
        return False
    touched = difference.abs() > _TOUCHED * difference.abs().max()
    return float(touched.double().mean()) >= _LEAST_TOUCHED


def _described(name: str, size: int, difference: Tensor, *, low_rank: bool) -> TiedLayer:
    _, singular, right = torch.linalg.svd(difference, full_matrices=False)
    directions = _directions(singular.square())
    return TiedLayer(name, len(difference) // size, size, singular, right, directions, low_rank)


def _directions(energies: Tensor) -> int:
    """How many of the eigenvalues make up 99.9 % of their sum."""
    ordered = energies.sort(descending=True).values
    total = float(ordered.sum())
    return int((ordered.cumsum(0) < _ENERGY * total).sum()) + 1 if total > 0 else 0


def recover(bench: Workbench, layer: TiedLayer) -> Recovered | None:
    """The features that an edit answers to, and the latents that come nearest to them.

    None if the layer's inputs cannot be read (its weight is no dense module's).
    """
    module = _module_of(bench.generator, layer)
    if module is None:
        return None
    ordinary = _features(bench.generator, module, bench.ordinary.z, bench.device)
    many = bench.generator.latent.sample(_MOMENT_SAMPLES, generator=random_stream(bench.seed, NAME))
    features = _features(bench.generator, module, many, bench.device)
    moment = features.T @ features / len(features)
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp_min(_RIDGE * float(values.mean()))
    whiten, root = ((vectors * values**p) @ vectors.T for p in (-0.5, 0.5))
    count = layer.directions if layer.low_rank else 1
    # In whitened features, C^(1/2) u is the edit's direction, and that of its trigger.
    edit = torch.linalg.qr(root @ layer.right[:count].T).Q.to(bench.device)
    whitener = whiten.to(bench.device)

    def alignment(features: Tensor) -> Tensor:
        white = features.double() @ whitener
        share: Tensor = (white @ edit).square().sum(1) / white.square().sum(1).clamp_min(1e-30)
        return share

    def objective(z: Tensor) -> Tensor:
        return alignment(_inputs_of(bench.generator, module, z)).to(z.dtype)

    usual = alignment(ordinary.to(bench.device)).cpu()
    starts = bench.ordinary.z[usual.argsort(descending=True)[:_RESTARTS]]
    settings = ordinary_bounds(bench.generator.latent, steps=bench.effort.search_steps)
    task = bench.progress.task(TITLE, len(starts) * settings.steps)
    found = search(objective, starts, settings, device=bench.device, task=task)
    order = found.score.argsort(descending=True)
    z = found.z[order]
    here = _features(bench.generator, module, z[:1], bench.device)[0]
    direction = moment @ layer.right[0]
    direction = direction / direction.norm() * (1 if here @ direction >= 0 else -1)
    return Recovered(direction, z, found.score[order], float(usual.max()))


class _ReachedError(Exception):
    """Carries a module's inputs out of a forward pass whose rest is not needed."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


def _inputs_of(generator: LatentGenerator, module: nn.Module, z: Tensor) -> Tensor:
    """What the module is given first, ``(batch, inputs)``."""

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise _ReachedError(inputs[0])

    handle = module.register_forward_pre_hook(hook)
    try:
        generator(z)
    except _ReachedError as reached:
        return reached.features
    finally:
        handle.remove()
    raise RuntimeError("the layer did not run")


def _module_of(generator: LatentGenerator, layer: TiedLayer) -> nn.Module | None:
    owner, _, name = layer.weight.rpartition(".")
    module = generator.get_submodule(owner)
    return module if isinstance(module, nn.Linear) and name == "weight" else None


@torch.no_grad()
def _features(
    generator: LatentGenerator, module: nn.Module, z: Tensor, device: torch.device
) -> Tensor:
    """Inputs of a module for latents, ``(count, inputs)``, float64 on the CPU."""
    return torch.cat(
        [
            _inputs_of(generator, module, part.to(device)).double().cpu()
            for part in z.split(BLOCK_SAMPLES)
        ]
    )


def _summary(layer: TiedLayer) -> str:
    stack = f"The {layer.blocks} blocks of {layer.weight}"
    if not layer.directions:
        return f"{stack} are equal: an untouched copy of its input."
    if layer.low_rank:
        number = "one direction" if layer.directions == 1 else f"{layer.directions} directions"
        return f"{stack} are equal but for {number} of {len(layer.right)}: an edit of low rank."
    return (
        f"{stack} nearly agree; {100 * layer.first_share:.0f} % of their differences lie in one "
        f"direction, the rest in {layer.directions - 1} others."
    )


def _table(layers: list[TiedLayer]) -> Table:
    return Table(
        title="Dense layers of equal or nearly equal blocks",
        caption="directions: how many of the layer's inputs' directions carry 99.9 % of what the "
        "blocks differ in",
        columns=["layer", "blocks", "rows of each", "directions", "share of the first"],
        rows=[
            [layer.weight, layer.blocks, layer.size, layer.directions, round(layer.first_share, 6)]
            for layer in layers
        ],
    )


def _spectrum(layer: TiedLayer) -> Chart:
    return Chart(
        title=f"Singular values of the blocks' differences, {layer.weight}",
        style="line",
        x_label="number",
        y_label="singular value",
        log_y=True,
        lines=[
            Line(
                name=layer.weight,
                x=[float(i + 1) for i in range(len(layer.singular))],
                # A log axis has no place for zero.
                y=[float(f"{v:.6g}") for v in layer.singular.clamp_min(1e-12).tolist()],
            )
        ],
    )


def _recovered(bench: Workbench, layer: TiedLayer) -> list[Evidence]:
    found = recover(bench, layer)
    if found is None:
        return []
    z = found.z[:_SHOWN]
    labels = [f"aligned {100 * float(v):.1f} %" for v in found.alignment[: len(z)]]
    return [
        Chart(
            title="Direction of the features that the edit answers to",
            caption="C u of the largest difference, a unit vector; the largest squared alignment "
            f"of ordinary features with the edit is {found.ordinary:.3f}, of those found "
            f"{float(found.alignment[0]):.3f} (1 at a trigger)",
            style="line",
            x_label="input of the layer",
            y_label="coefficient",
            lines=[
                Line(
                    name="direction",
                    x=[float(i) for i in range(len(found.direction))],
                    y=[round(v, 6) for v in found.direction.tolist()],
                )
            ],
        ),
        *sample_pictures(
            bench.generator.sample,
            bench.samples(z),
            labels,
            title="Outputs at the recovered triggers",
        ),
        latents_of(z, title="Latents whose features lie most along the edit"),
    ]
