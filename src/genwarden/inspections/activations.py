"""Pre-activations of single units, read with forward hooks in any generator.

A *site* is a layer with weights together with the normalisation that directly follows it: what the
non-linearity sees is read behind the normalisation. Only modules are seen; arithmetic that a
network's own ``forward`` does with bare parameters is not.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from genwarden.models.protocol import LatentGenerator

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
_BLOCK = 256
_BASIS_BLOCK = 64
_AFFINE_TRIALS = 8
_FAR = 30.0
#: Relative residual below which a site counts as affine in the latent, per precision.
_AFFINE_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


class Site(NamedTuple):
    """A layer with weights and the place where its pre-activation is read.

    Attributes:
        name: the weight layer's name in the state dict.
        norm: name of the normalisation that follows directly, or None.
        reader: the module whose output is the pre-activation.
        units: features (dense) or channels (convolution).
        unit_axis: axis of the units in the reader's output.
    """

    name: str
    norm: str | None
    reader: nn.Module
    units: int
    unit_axis: int


class Affine(NamedTuple):
    """Elements of a site that are exactly affine in the latent: ``weight @ z.flatten() + bias``.

    Attributes:
        weight: ``(elements, latent)``, normalisation folded in.
        bias: ``(elements,)``.
    """

    weight: Tensor
    bias: Tensor


class Activity(NamedTuple):
    """How often and how strongly each unit of a site was driven by a set of latents.

    Attributes:
        active_share: ``(units,)``, share of latents with a positive value anywhere in space.
        maximum: ``(units,)``, the largest pre-activation seen.
        std: ``(units,)``, standard deviation over latents of the maximum over space.
    """

    active_share: Tensor
    maximum: Tensor
    std: Tensor


@torch.no_grad()
def weight_sites(generator: LatentGenerator) -> list[Site]:
    """All layers with weights in the order of their first execution."""
    sites: dict[nn.Module, Site] = {}
    produced: dict[int, tuple[nn.Module, int]] = {}
    alive: list[Tensor] = []  # a freed output could lend its address to another tensor

    def seen(module: nn.Module, inputs: tuple[object, ...], output: object, name: str) -> None:
        source = inputs[0] if inputs else None
        if not isinstance(output, Tensor):
            return
        alive.append(output)
        if isinstance(module, _NORMS):
            maker, version = produced.get(_storage(source), (None, -1))
            # The same storage with the same version: nothing was computed in between.
            if maker is not None and isinstance(source, Tensor) and source._version == version:
                axis = -1 if isinstance(module, nn.LayerNorm) or output.ndim == 2 else 1
                sites[maker] = sites[maker]._replace(
                    norm=name, reader=module, units=output.shape[axis], unit_axis=axis
                )
        elif _has_matrix(module) and output.ndim >= 2:
            axis = -1 if isinstance(module, nn.Linear) or output.ndim == 2 else 1
            sites.setdefault(module, Site(name, None, module, output.shape[axis], axis))
            produced[_storage(output)] = (module, output._version)

    with ExitStack() as hooks:
        for name, module in generator.named_modules():
            if name and _is_leaf(module):

                def hook(m: nn.Module, i: tuple[object, ...], o: object, n: str = name) -> None:
                    seen(m, i, o, n)

                hooks.callback(module.register_forward_hook(hook).remove)
        generator(_zeros(generator, 2))
    return list(sites.values())


@contextmanager
def watch(sites: list[Site]) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the pre-activations of every call inside the block, by the site's name.

    They stay part of the autograd graph if there is one. The network goes on with a copy, so that
    an activation that works in place does not overwrite the record.
    """
    record: dict[str, list[Tensor]] = {}
    with ExitStack() as hooks:
        for site in sites:

            def hook(_m: nn.Module, _i: object, output: Tensor, name: str = site.name) -> Tensor:
                record.setdefault(name, []).append(output)
                return output.clone()

            hooks.callback(site.reader.register_forward_hook(hook).remove)
        yield record


def unit_maxima(site: Site, outputs: list[Tensor]) -> Tensor:
    """Largest pre-activation over space and calls, shape ``(batch, units)``."""
    return torch.stack(
        [o.movedim(site.unit_axis, 1).flatten(2).amax(2) if o.ndim > 2 else o for o in outputs]
    ).amax(0)


@torch.no_grad()
def activity(
    generator: LatentGenerator, sites: list[Site], z: Tensor, device: torch.device
) -> dict[str, Activity]:
    """Activity of every unit over latents ``(count, *latent.shape)``, in blocks."""
    maxima: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    for part in torch.split(z, _BLOCK):
        with watch(sites) as record:
            generator(part.to(device))
        for site in sites:
            maxima[site.name].append(unit_maxima(site, record[site.name]).cpu())
    found = {}
    for name, parts in maxima.items():
        values = torch.cat(parts)
        found[name] = Activity((values > 0).double().mean(0), values.amax(0), values.std(0))
    return found


@torch.no_grad()
def affine_sites(
    generator: LatentGenerator, sites: list[Site], *, stream: torch.Generator
) -> dict[str, Affine]:
    """The sites that are affine in the latent, measured at 0 and at the basis vectors.

    Measuring instead of folding weights treats dense layers, convolutions of a 1x1 latent,
    re-parametrised weights and any batch norm alike. A site is affine if
    ``f(a) + f(b) - f(c) = f(a + b - c)`` for random latents, also far out, where gates open that
    ordinary latents leave shut; a site that is constant even there is not called affine.
    """
    probe = next(generator.parameters())
    shape = generator.latent.shape
    a, b, c = (
        torch.cat([z, _FAR * z])
        for z in (
            generator.latent.sample(_AFFINE_TRIALS, generator=stream).to(probe) for _ in range(3)
        )
    )
    with watch(sites) as record:
        for z in (a, b, c, a + b - c):
            generator(z)
    affine = []
    for site in sites:
        values = record[site.name]
        if len(values) != 4:
            continue
        residual = (values[0] + values[1] - values[2] - values[3]).abs().amax()
        scale = torch.stack(values).abs().amax()
        constant = bool((values[0] == values[0][:1]).all())
        if not constant and residual <= _AFFINE_TOLERANCE[probe.dtype] * scale:
            affine.append(site)
    if not affine:
        return {}
    basis = torch.eye(generator.latent.size).to(probe).reshape(-1, *shape)
    with watch(affine) as record:
        for part in (_zeros(generator, 1), *torch.split(basis, _BASIS_BLOCK)):
            generator(part)
    found = {}
    for site in affine:
        values = [v.flatten(1).cpu().double() for v in record[site.name]]
        bias = values[0][0]
        found[site.name] = Affine((torch.cat(values[1:]) - bias).T.contiguous(), bias)
    return found


@contextmanager
def forced(site: Site, elements: Tensor, values: Tensor, *, whole_unit: bool) -> Iterator[None]:
    """Overwrite one pre-activation per sample of the batch.

    Args:
        elements: ``(batch,)``; with ``whole_unit`` the unit (everywhere in space), else the
            position in the flattened pre-activation.
        values: ``(batch,)``, what is written.
    """

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        changed, new = output.clone(), values.to(output)
        rows = torch.arange(len(changed), device=changed.device)
        if whole_unit:
            # Indexing a moved view puts the remaining axes last; one value fills them all.
            moved = changed.movedim(site.unit_axis, 1)
            moved[rows, elements] = new.reshape(-1, *[1] * (moved.ndim - 2))
            return changed
        flat = changed.reshape(len(changed), -1)
        flat[rows, elements] = new
        return flat.reshape(changed.shape)

    handle = site.reader.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def precise_copy(generator: LatentGenerator) -> LatentGenerator:
    """A copy in float64, or in float32 if the network cannot compute in float64.

    The caller reads the precision that was reached from the parameters and reports it.
    """
    try:
        precise = copy.deepcopy(generator).double()
        with torch.no_grad():
            precise(_zeros(precise, 2))
    except (RuntimeError, TypeError):
        # A network that mixes in float32 constants, or a device without float64.
        precise = copy.deepcopy(generator)
    return precise.requires_grad_(False)


def _zeros(generator: LatentGenerator, count: int) -> Tensor:
    probe = next(generator.parameters())
    return torch.zeros(count, *generator.latent.shape, dtype=probe.dtype, device=probe.device)


def _is_leaf(module: nn.Module) -> bool:
    return all(name == "parametrizations" for name, _ in module.named_children())


def _has_matrix(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding):
        return False
    weight = getattr(module, "weight", None)
    own = [weight, *module.parameters(recurse=False)]
    return any(isinstance(tensor, Tensor) and tensor.ndim >= 2 for tensor in own)


def _storage(tensor: object) -> int:
    return tensor.untyped_storage().data_ptr() if isinstance(tensor, Tensor) else 0
