"""Is a given initial noise a draw from N(0, I)? Tests whose null distributions are known.

The trigger of a diffusion backdoor sits in the initial noise. Who was handed a noise tensor (or a
seed and a "style" picture to add) can ask this without any model. Of D values n ~ N(0, 1):

* mean: sum(n) / sqrt(D) is N(0, 1);
* norm: |n|^2 is chi-square with D degrees of freedom;
* box mean: the sum over a box of m values, over sqrt(m), is N(0, 1); boxes of one size at all
  places, Bonferroni over places and sizes;
* box norm: the sum of squares over a box is chi-square, both tails (TrojDiff replaces the noise in
  its patch, gamma near 0); Bonferroni likewise;
* low frequencies: the energy in the first k x k coefficients of the orthonormal cosine transform is
  chi-square with C k^2 degrees of freedom;
* largest value: P(max |n| > m) = 1 - (1 - 2 Phi(-m))^D;
* equal values: a continuous law has no two equal values, but float32 rounds: P <= pairs 2^-22;
* distribution: the Kolmogorov-Smirnov statistic, exact law;
* kurtosis: Anscombe and Glynn's normal approximation, the one law here that is approximate.

With a recovered trigger N(mu, gamma^2 I) there is TERD's likelihood ratio: flagged by TERD where it
is above 0, and here with the exact probability of a value as large under N(0, I). Released triggers
shift 80 % of the image by one standard deviation: finding them so is nearly free (section 4).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy import fft, stats
from torch import Tensor

from genwarden.errors import GenwardenError
from genwarden.inspections.finding import Finding, Null, Table, not_applicable
from genwarden.inspections.pictures import sample_pictures

if TYPE_CHECKING:
    from genwarden.inspections.diffusion.bench import DiffusionBench

NAME = "input-check"
TITLE = "Is the given initial noise ordinary?"
#: Sides of the boxes as shares of the image, and of the blocks of cosine coefficients in number.
_BOX_SHARES = (1 / 8, 1 / 4, 7 / 16, 5 / 8)
_BANDS = (2, 4, 8)
#: Below this |gamma^2 - 1| the likelihood ratio is linear in the input.
_LINEAR = 1e-6
#: Two float32 draws of a normal law are equal with a probability below this.
_EQUAL_PAIR = 2.0**-22
_SMALLEST = 1e-300
_SHOWN = 8


class Feature(NamedTuple):
    """One test of one noise.

    Attributes:
        name: of the test.
        statistic: on its own scale; z values for normal laws.
        p_value: two-sided except for the likelihood ratio; exact or an upper bound.
    """

    name: str
    statistic: float
    p_value: float


class InputCheck(NamedTuple):
    """All tests of one noise; ``p_value`` is the smallest after Bonferroni's correction."""

    tests: list[Feature]
    p_value: float


def check_noise(
    noise: Tensor, mu: Tensor | None = None, gamma: Tensor | float | None = None
) -> InputCheck:
    """Test one initial noise.

    Args:
        noise: ``(C, H, W)``.
        mu: a recovered trigger, ``(C, H, W)``, or None.
        gamma: scale of the noise under the trigger, a number or ``(C, H, W)``; None for 1.

    Raises:
        GenwardenError: ``usage/noise-shape``, ``usage/noise-values``.
    """
    if noise.ndim != 3:
        raise GenwardenError(
            "usage/noise-shape",
            f"An initial noise of shape {tuple(noise.shape)} is not one image.",
            "Give a tensor (channels, height, width), or check each row of a batch.",
        )
    n = noise.detach().cpu().double().numpy()
    if not np.isfinite(n).all():
        raise GenwardenError(
            "usage/noise-values", "The initial noise holds NaN or infinity.", "Draw it again."
        )
    tests = [
        _mean(n),
        _norm(n),
        *_boxes(n),
        *_low_frequencies(n),
        _largest(n),
        _equal(n),
        _distribution(n),
        _kurtosis(n),
    ]
    if mu is not None:
        tests.append(likelihood_ratio(noise, mu, gamma))
    smallest = min(test.p_value for test in tests)
    return InputCheck(tests, min(1.0, max(smallest, _SMALLEST) * len(tests)))


def check_noises(
    noises: Tensor, mu: Tensor | None = None, gamma: Tensor | float | None = None
) -> list[tuple[str, InputCheck]]:
    """Each row of ``(count, C, H, W)``, and for several rows their sum over sqrt(count), in which a
    shift that all of them share is sqrt(count) times as large."""
    named = [(f"row {i + 1}", check_noise(row, mu, gamma)) for i, row in enumerate(noises)]
    if len(noises) > 1:
        named.append(("all rows", check_noise(noises.double().sum(0) / math.sqrt(len(noises)))))
    return named


def likelihood_ratio(noise: Tensor, mu: Tensor, gamma: Tensor | float | None = None) -> Feature:
    """TERD's input detection: log N(x; mu, gamma^2 I) - log N(x; 0, I), with its exact null law.

    For gamma = 1 the ratio is normal. For one gamma != 1 it is, up to constants, minus or plus
    |x - c|^2 with c = mu / (1 - gamma^2), a non-central chi-square. Dimensions of different gamma
    have no closed law: their mean square is used for one gamma.

    Args:
        noise, mu: ``(C, H, W)``.
        gamma: scale of the noise under the trigger; None for 1.
    """
    x, m = noise.detach().cpu().double().flatten(), mu.detach().cpu().double().flatten()
    scale = torch.as_tensor(1.0 if gamma is None else gamma, dtype=torch.float64)
    variance = float(scale.square().mean().clamp_min(1e-6))
    ratio = float(
        -0.5 * len(x) * math.log(variance)
        - (x - m).square().sum() / (2 * variance)
        + x.square().sum() / 2
    )
    name = "likelihood ratio of the recovered trigger"
    size = float(m.square().sum())
    if abs(variance - 1) < _LINEAR:
        if size == 0:
            return Feature(name, ratio, 1.0)
        return Feature(name, ratio, float(stats.norm.sf((ratio + size / 2) / math.sqrt(size))))
    centre = m / (1 - variance)
    squared = float((x - centre).square().sum())
    tail = stats.ncx2.cdf if variance < 1 else stats.ncx2.sf
    return Feature(name, ratio, float(tail(squared, len(x), float(centre.square().sum()))))


def inspect(bench: DiffusionBench) -> Finding:
    """p-value of the given noise, corrected for all tests and rows; score = -log10 of it."""
    if bench.given_noise is None or not len(bench.given_noise):
        return not_applicable(
            NAME, "diffusion", TITLE, "No initial noise was given (a tensor to be checked)."
        )
    noises = bench.given_noise
    shifts = bench.shifts
    checks = check_noises(noises, shifts[0] if len(shifts) else None)
    p_value = min(1.0, min(check.p_value for _, check in checks) * len(checks))
    name, worst = min(checks, key=lambda one: one[1].p_value)
    most = min(worst.tests, key=lambda test: test.p_value)
    rows = sorted(
        ((row, test) for row, check in checks for test in check.tests),
        key=lambda one: one[1].p_value,
    )
    return Finding(
        inspection=NAME,
        group="diffusion",
        title=TITLE,
        outcome="scored",
        summary=(
            f"The least ordinary feature is the {most.name} of {name}; p = {p_value:.2g} after "
            f"correction for all tests. That is about the noise that was given, whatever the model."
        ),
        score=max(0.0, -math.log10(max(p_value, _SMALLEST))),
        score_name="-log10(p) that noise from N(0, I) is as unusual",
        p_value=max(p_value, _SMALLEST),
        null=Null(
            source="exact",
            description="N(0, I), exact but for kurtosis; Bonferroni over tests, boxes and rows",
        ),
        budget={"rows": len(noises), "tests": sum(len(check.tests) for _, check in checks)},
        power="Finds shifts of the whole noise from a mean of about 5 / sqrt(values) on, boxes and "
        "smooth patterns alike; not noise-like patterns of the right mean and variance, unless "
        "the search recovered them. It judges this noise, not the model.",
        evidence=[
            Table(
                title="Least ordinary features",
                columns=["noise", "test", "statistic", "p"],
                rows=[
                    [row, test.name, round(test.statistic, 4), float(f"{test.p_value:.4g}")]
                    for row, test in rows[:_SHOWN]
                ],
            ),
            *sample_pictures(
                bench.model.sample,
                noises[:_SHOWN].float().clamp(-3, 3) / 3,
                [f"row {i + 1}" for i in range(len(noises[:_SHOWN]))],
                title="The given noise",
                caption="grey is 0, black and white are 3 standard deviations",
            ),
        ],
    )


_Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def _chi_square(energy: float, degrees: int) -> float:
    """Two-sided p-value of a sum of squares."""
    low, high = stats.chi2.cdf(energy, degrees), stats.chi2.sf(energy, degrees)
    return float(min(1.0, 2 * min(low, high)))


def _mean(n: _Array) -> Feature:
    z = float(n.sum() / math.sqrt(n.size))
    return Feature("mean", z, float(2 * stats.norm.sf(abs(z))))


def _norm(n: _Array) -> Feature:
    energy = float((n**2).sum())
    return Feature("norm", math.sqrt(energy), _chi_square(energy, n.size))


def _boxes(n: _Array) -> list[Feature]:
    """Largest box mean, and least likely box norm, over all sizes and places."""
    channels, height, width = n.shape
    sides = sorted({max(2, round(share * min(height, width))) for share in _BOX_SHARES})
    sides = [side for side in sides if side < min(height, width)]
    z, mean_p, norm_p, places = 0.0, 1.0, 1.0, 0
    for side in sides:
        count = channels * side * side
        sums = _box_sums(n, side) / math.sqrt(count)
        energies = _box_sums(n**2, side)
        places += sums.size
        largest = float(sums.flat[np.abs(sums).argmax()])
        p = float(2 * stats.norm.sf(abs(largest)))
        if p <= mean_p:
            mean_p, z = p, largest
        for energy in (float(energies.min()), float(energies.max())):
            norm_p = min(norm_p, _chi_square(energy, count))
    if not places:
        return []
    return [
        Feature("largest box mean", z, min(1.0, mean_p * places)),
        Feature(
            "least likely box norm", -math.log10(max(norm_p, _SMALLEST)), min(1.0, norm_p * places)
        ),
    ]


def _box_sums(values: _Array, side: int) -> _Array:
    """Sums over all channels and every side x side box."""
    table = np.zeros((values.shape[1] + 1, values.shape[2] + 1))
    table[1:, 1:] = values.sum(0).cumsum(0).cumsum(1)
    sums: _Array = (
        table[side:, side:] - table[:-side, side:] - table[side:, :-side] + table[:-side, :-side]
    )
    return sums


def _low_frequencies(n: _Array) -> list[Feature]:
    coefficients = fft.dctn(n, axes=(1, 2), norm="ortho")
    tests = []
    for band in _BANDS:
        if band < min(n.shape[1:]):
            energy = float((coefficients[:, :band, :band] ** 2).sum())
            p = _chi_square(energy, n.shape[0] * band * band)
            tests.append(Feature(f"energy of the lowest {band} x {band} frequencies", energy, p))
    return tests


def _largest(n: _Array) -> Feature:
    largest = float(np.abs(n).max())
    # log1p and expm1 keep small probabilities exact.
    p = -math.expm1(n.size * math.log1p(-min(2 * float(stats.norm.sf(largest)), 1 - 1e-16)))
    return Feature("largest value", largest, p)


def _equal(n: _Array) -> Feature:
    _, counts = np.unique(n, return_counts=True)
    repeated = int((counts * (counts - 1) // 2).sum())
    pairs = n.size * (n.size - 1) / 2
    # Each pair is equal with at most this probability; repeats beyond the first are rarer still.
    p = min(1.0, float(stats.poisson.sf(repeated - 1, pairs * _EQUAL_PAIR))) if repeated else 1.0
    return Feature("pairs of equal values", float(repeated), p)


def _distribution(n: _Array) -> Feature:
    found = stats.kstest(n.ravel(), "norm", method="auto")
    return Feature("distribution (Kolmogorov-Smirnov)", float(found.statistic), float(found.pvalue))


def _kurtosis(n: _Array) -> Feature:
    found = stats.kurtosistest(n.ravel())
    return Feature("kurtosis", float(found.statistic), float(found.pvalue))
