"""DMI (2): are the gradients masked so that a search over latents is led astray?

"The Devil is in the GAN", dynamic model inspection, with the four kinds of Athalye et al. (2018):
vanishing, exploding, shattered (the gradient is not the derivative of what is computed) and
stochastic. All are measured at ordinary latents in float64, where a LeakyReLU network is piecewise
smooth: within the step of 1e-4 hardly any latent crosses a kink that matters.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.engine.seeds import derive_seed, random_stream
from genwarden.inspections.activations import Site, precise_copy, watch, weight_sites
from genwarden.inspections.finding import Chart, Finding, Line, Table, not_applicable
from genwarden.inspections.workbench import Workbench
from genwarden.models.protocol import LatentGenerator

NAME = "gradient-masking"
TITLE = "Masked gradients"
_BLOCK = 64
#: Step of the central differences, in units of a latent element's spread, by precision.
_STEP = {torch.float64: 1e-4, torch.float32: 1e-2}
#: A gradient this small against the mean slope between ordinary latents counts as vanished.
_VANISHED = 1e-4
#: Relative disagreement of autodiff and differences above which a latent counts as shattered.
_SHATTERED = 0.1
#: Change of a repeated forward pass, against the spread of samples, that counts as stochastic.
_STOCHASTIC = 1e-4
#: Orders of magnitude between the largest and the median gradient that count as sub-score 1.
_EXPLODED_ORDERS = 4.0
#: Guards a division; smallest value in a logarithmic histogram.
_TINY = 1e-30
_FLOOR = 1e-16


class Probe(NamedTuple):
    """Measurements at each probed latent, all ``(latents,)``.

    Attributes:
        gradient_norm: norm of the input gradient of a random output projection N(0, I).
        disagreement: |autodiff - difference| / max of both, along a random direction.
        repeat_change: norm of the change when the same latents are run again.
        samples: ``(latents, elements)``.
        silent_share: per layer, share of units that no gradient reached at any latent.
    """

    gradient_norm: Tensor
    disagreement: Tensor
    repeat_change: Tensor
    samples: Tensor
    silent_share: dict[str, float]


def inspect(bench: Workbench) -> Finding:
    """Score: the largest of four sub-scores in [0, 1].

    Vanishing, shattered and stochastic are shares of the probed latents; exploding is
    log10(largest / median gradient norm) / 4, at most 1. Clean networks score 0.02 to 0.14,
    all of it from "exploding".
    """
    generator = precise_copy(bench.generator)
    precision = next(generator.parameters()).dtype
    stream = random_stream(bench.seed, NAME)
    z = generator.latent.sample(bench.effort.probe_latents, generator=stream)
    z = z.to(bench.device, precision)
    probe = _measure(generator, z, stream, derive_seed(bench.seed, NAME))
    if not bool(probe.samples.isfinite().all()):
        return Finding(
            inspection=NAME,
            group="dynamic",
            title=TITLE,
            outcome="failed",
            summary="The model's samples hold NaN or infinity at ordinary latents.",
            p_value_reason="nothing could be measured",
        )
    slope = _mean_slope(z.flatten(1).cpu(), probe.samples)
    if slope == 0:
        return not_applicable(
            NAME, "dynamic", TITLE, "All probed latents give the same sample; nothing to follow."
        )
    spread = float((probe.samples - probe.samples.mean(0)).square().sum(1).mean().sqrt())
    norms = probe.gradient_norm.nan_to_num(nan=float("inf"))
    typical = norms.median().clamp(_VANISHED * slope, torch.finfo(norms.dtype).max)
    orders = float((norms.max() / typical).log10())
    sub_scores = {
        "vanishing": float((norms < _VANISHED * slope).double().mean()),
        "exploding": min(1.0, max(0.0, orders / _EXPLODED_ORDERS)),
        "shattered": float((probe.disagreement > _SHATTERED).double().mean()),
        "stochastic": float((probe.repeat_change > _STOCHASTIC * spread).double().mean()),
    }
    worst = max(sub_scores, key=lambda kind: sub_scores[kind])
    quantiles = probe.disagreement.quantile(
        torch.tensor([0.5, 0.9, 0.99], dtype=probe.disagreement.dtype)
    ).tolist()
    details = {
        "vanishing": f"smallest / mean slope {float(norms.min()) / slope:.1e}",
        "exploding": f"largest / median gradient 10^{orders:.2f}",
        "shattered": "disagreement 50/90/99 % " + "/".join(f"{q:.0e}" for q in quantiles),
        "stochastic": f"largest change / spread {float(probe.repeat_change.max()) / spread:.1e}",
    }
    count = len(z)
    return Finding(
        inspection=NAME,
        group="dynamic",
        title=TITLE,
        outcome="scored",
        summary=f"Strongest sign: {worst}, {sub_scores[worst]:.2g} ({details[worst]}).",
        score=sub_scores[worst],
        score_name="largest sub-score in [0, 1] of vanishing, exploding, shattered, stochastic",
        p_value_reason="needs clean reference models",
        budget={"latents": count, "precision": str(precision).removeprefix("torch.")},
        power=(
            f"Gradients that vanish, shatter or change at random on {3 / count:.1%} or more of "
            "ordinary latents would have been seen with 95 % confidence; a gate that is shut for "
            "all of them shows only as units that no gradient reaches."
        ),
        evidence=[
            Table(
                title="Kinds of masking",
                columns=["kind", "sub_score", "detail"],
                rows=[[kind, value, details[kind]] for kind, value in sub_scores.items()],
            ),
            Table(
                title="Units that no gradient reaches at any probed latent",
                columns=["layer", "share"],
                rows=[[name, share] for name, share in probe.silent_share.items()],
            ),
            _histogram(norms / slope, "Input gradients", "log10 of gradient norm / mean slope"),
            _histogram(
                probe.disagreement,
                "Autodiff against central differences",
                "log10 of relative disagreement",
            ),
        ],
    )


def _measure(generator: LatentGenerator, z: Tensor, stream: torch.Generator, seed: int) -> Probe:
    sites = weight_sites(generator)
    reached: dict[str, Tensor] = {}
    parts: list[_Part] = []
    # A local fork: a network that draws noise gives the same finding for the same audit seed.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        for part in torch.split(z, _BLOCK):
            parts.append(_measure_part(generator, part, stream, sites, reached))
    silent = {name: float((~units).double().mean()) for name, units in reached.items()}
    norm, disagreement, change, samples = map(torch.cat, zip(*parts, strict=True))
    return Probe(norm.cpu(), disagreement.cpu(), change.cpu(), samples.cpu(), silent)


class _Part(NamedTuple):
    gradient_norm: Tensor
    disagreement: Tensor
    repeat_change: Tensor
    samples: Tensor


def _measure_part(
    generator: LatentGenerator,
    z: Tensor,
    stream: torch.Generator,
    sites: list[Site],
    reached: dict[str, Tensor],
) -> _Part:
    direction = torch.randn(z.shape, generator=stream, dtype=torch.float64).to(z)
    direction = direction / _norm(direction).reshape(-1, *[1] * (z.ndim - 1))
    step = _STEP[z.dtype]
    with torch.no_grad():
        samples, again = generator(z).flatten(1), generator(z).flatten(1)
        ahead = generator(z + step * direction).flatten(1)
        difference = (ahead - generator(z - step * direction).flatten(1)) / (2 * step)
    random = torch.randn(samples.shape, generator=stream, dtype=torch.float64).to(samples)
    # Projected on its own direction, the difference is its norm and never zero by chance; where
    # it is zero, autodiff must find no slope along any direction.
    steepness = _norm(difference)
    along = torch.where(steepness[:, None] > 0, difference, random)
    along = along / _norm(along)[:, None]
    leaf = z.clone().requires_grad_()
    with torch.enable_grad(), watch(sites) as record:
        flat = generator(leaf).flatten(1)
        taps = [(site, tap) for site in sites for tap in record[site.name]]
        (directional,) = _gradients((flat * along).sum(), [leaf])
        gradient, *inner = _gradients((flat * random).sum(), [leaf, *(tap for _, tap in taps)])
    derivative = (directional.flatten(1) * direction.flatten(1)).sum(1)
    larger = torch.maximum(derivative.abs(), steepness).clamp_min(_TINY)
    disagreement = ((derivative - steepness).abs() / larger).nan_to_num(nan=1.0)
    for (site, _), flow in zip(taps, inner, strict=True):
        units = (flow != 0).movedim(site.unit_axis, 0).flatten(1).any(1).cpu()
        reached[site.name] = reached.get(site.name, torch.zeros_like(units)) | units
    return _Part(_norm(gradient), disagreement, _norm(again - samples), samples)


def _gradients(objective: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Gradients, zero where the objective does not depend on an input or autograd is cut off."""
    if not objective.requires_grad:
        return [torch.zeros_like(tensor) for tensor in inputs]
    tracked = [tensor for tensor in inputs if tensor.requires_grad]
    found = torch.autograd.grad(objective, tracked, retain_graph=True, allow_unused=True)
    by_identity = {id(t): g for t, g in zip(tracked, found, strict=True) if g is not None}
    return [by_identity.get(id(tensor), torch.zeros_like(tensor)) for tensor in inputs]


def _mean_slope(z: Tensor, samples: Tensor) -> float:
    """Root mean square slope of the secants between neighbouring latents of the probe."""
    rise, run = _norm(samples - samples.roll(1, 0)), _norm(z - z.roll(1, 0))
    return float((rise / run.clamp_min(_TINY)).square().mean().sqrt())


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norm


def _histogram(values: Tensor, title: str, x_label: str) -> Chart:
    logarithms = values[values.isfinite()].double().clamp_min(_FLOOR).log10()
    low, high = float(logarithms.min()), float(logarithms.max())
    counts, edges = torch.histogram(logarithms, 32, range=(low, max(high, low + 1e-6)))
    line = Line(name="latents", x=((edges[1:] + edges[:-1]) / 2).tolist(), y=counts.tolist())
    return Chart(title=title, style="histogram", x_label=x_label, y_label="latents", lines=[line])
