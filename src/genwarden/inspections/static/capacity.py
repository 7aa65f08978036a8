"""SMI (5): excessive capacity against the published generators of the same samples.

Doubling every internal layer of the MNIST DCGAN (ReX) takes 2.9 times the numbers of the published
network. A large network is no evidence by itself; the count sets the other findings in proportion.
"""

from __future__ import annotations

from typing import NamedTuple

from genwarden.inspections.finding import Evidence, Finding, Table, not_applicable
from genwarden.inspections.workbench import Workbench
from genwarden.models.protocol import parameter_count

NAME = "capacity"
TITLE = "Capacity against published generators"


class Published(NamedTuple):
    """A generator of the literature; numbers include batch-normalisation statistics."""

    name: str
    sample_shape: tuple[int, ...]
    numbers: int
    source: str
    architecture: str = ""


#: Section 6 of the implementer's reference; sources as stated there.
PUBLISHED = (
    Published(
        "DCGAN-MNIST", (1, 28, 28), 2_330_944, "Devil is in the GAN, authors' code", "dcgan28"
    ),
    Published("DCGAN-MNIST, quarter width", (1, 28, 28), 390_736, "ART demo"),
    Published(
        "VAE-MNIST decoder", (1, 28, 28), 195_617, "Devil is in the GAN; CVAE tutorial", "vae28"
    ),
    Published("DCGAN-CIFAR10", (3, 32, 32), 1_380_096, "authors' script", "dcgan32"),
    Published("WaveGAN", (1, 16384), 19_065_857, "authors' notebook"),
    Published("StyleGAN", (3, 1024, 1024), 29_320_971, "authors' notebook"),
)


def inspect(bench: Workbench) -> Finding:
    """Score = stored numbers / those of the published generator; 1 or less is ordinary.

    Compared with the published network of the same architecture where there is one, else with the
    largest of the same sample shape: a doubled VAE is still smaller than a DCGAN.
    """
    shape = bench.generator.sample.shape
    count = parameter_count(bench.generator)
    rivals = [published for published in PUBLISHED if published.sample_shape == shape]
    if not rivals:
        return not_applicable(
            NAME,
            "static",
            TITLE,
            f"No published generator of {'x'.join(map(str, shape))} samples is on record "
            f"(this one stores {count:,} numbers).",
        )
    own = [rival for rival in rivals if rival.architecture == bench.architecture != ""]
    yardstick = max(own or rivals, key=lambda rival: rival.numbers)
    score = count / yardstick.numbers
    rows: list[list[str | int | float]] = [
        [rival.name, rival.numbers, round(count / rival.numbers, 4), rival.source]
        for rival in rivals
    ]
    evidence: list[Evidence] = [
        Table(
            title="Published generators of the same samples",
            caption=f"this generator stores {count:,} numbers",
            columns=["generator", "numbers", "this one / published", "source"],
            rows=rows,
        )
    ]
    summary = f"{count:,} stored numbers, {score:.2f} times those of {yardstick.name}."
    if bench.partition is not None:
        sizes = [bench.partition.parameters(c) for c in range(bench.partition.components)]
        apart = sum(sizes[1:]) / sum(sizes)
        summary += f" {apart:.1%} of what works lies outside the largest group of channels."
        evidence.append(
            Table(
                title="Numbers per group of connected channels",
                caption="numbers that one group alone uses; zero slices between groups and shared "
                "biases count for none",
                columns=["group", "numbers", "share"],
                rows=[[c, size, round(size / sum(sizes), 4)] for c, size in enumerate(sizes)],
            )
        )
    return Finding(
        inspection=NAME,
        group="static",
        title=TITLE,
        outcome="scored",
        summary=summary,
        score=round(score, 6),
        score_name=f"stored numbers / {yardstick.name}",
        p_value_reason="Architectures differ for honest reasons; capacity alone is no evidence.",
        budget={"numbers": count, "published_generators": len(rivals)},
        power="Sees a network wider than the literature; not an attack that keeps the "
        "architecture (ReD, TrAIL).",
        evidence=evidence,
    )
