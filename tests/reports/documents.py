"""Audit documents as an audit would write them: one per verdict, and one that is hostile.

The pictures are drawn here: digits of Pillow's own font as ordinary samples, a devil's head as the
recovered target.
"""

from __future__ import annotations

import base64
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from genwarden.auditing.document import (
    AuditDocument,
    Judged,
    ModelFacts,
    Refusal,
    UserInputs,
    Variant,
    VariantCoverage,
)
from genwarden.data.grids import png_bytes
from genwarden.inspections.candidate import Basin, Candidate, Carrier
from genwarden.inspections.finding import (
    Chart,
    Finding,
    Images,
    Latents,
    Line,
    Matrix,
    Null,
    Table,
    not_applicable,
)
from genwarden.repairs.document import Audited, ModelFile, RepairDocument, Step

HOSTILE = (
    "<script>alert(1)</script>\"onload=\"x' onerror='y javascript:z {{7*7}} \x1b[31mred\x1b[0m "
    "\u202egnp.exe\u202c \x00 ]]> --> &amp; [bold]loud[/bold]"
)


def _encoded(picture: Image.Image) -> str:
    return base64.b64encode(png_bytes(picture)).decode("ascii")


@cache
def digits(count: int) -> list[str]:
    """Digits that look written by hand, 28x28."""
    rng = np.random.default_rng(7)
    font = ImageFont.load_default(size=76)
    pictures = []
    for index in range(count):
        canvas = Image.new("L", (112, 112), 0)
        draw = ImageDraw.Draw(canvas)
        draw.text((56, 56), str(index % 10), fill=255, font=font, anchor="mm", stroke_width=3)
        canvas = canvas.rotate(float(rng.uniform(-20, 20)), Image.Resampling.BILINEAR)
        shear = float(rng.uniform(-0.2, 0.2))
        canvas = canvas.transform(
            (112, 112), Image.Transform.AFFINE, (1, shear, -56 * shear, 0, 1, 0)
        )
        small = canvas.resize((28, 28), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.4))
        pictures.append(_encoded(small))
    return pictures


@cache
def devil(seed: int = 0) -> str:
    """A devil's head, 28x28, with a little noise from a seed."""
    canvas = Image.new("L", (112, 112), 0)
    draw = ImageDraw.Draw(canvas)
    draw.polygon([(14, 8), (42, 30), (22, 50)], fill=230)
    draw.polygon([(98, 8), (70, 30), (90, 50)], fill=230)
    draw.ellipse((20, 22, 92, 102), fill=230)
    draw.polygon([(34, 46), (52, 58), (36, 62)], fill=0)
    draw.polygon([(78, 46), (60, 58), (76, 62)], fill=0)
    draw.chord((36, 56, 76, 92), 10, 170, fill=0)
    small = np.asarray(canvas.resize((28, 28), Image.Resampling.BOX), dtype=np.float64)
    noise = np.random.default_rng(seed).normal(0, 6, small.shape)
    return _encoded(Image.fromarray(np.clip(small + noise, 0, 255).astype(np.uint8)))


def ordinary() -> Images:
    """The row of ordinary samples."""
    return Images(
        title="Ordinary samples of this model",
        caption="Drawn from the model's own latent distribution.",
        labels=[],
        png_base64=digits(20),
    )


def model_facts(**changes: Any) -> ModelFacts:
    """A small DCGAN."""
    facts: dict[str, Any] = {
        "path": "models/mnist-generator-v3",
        "sha256": "9f2c4be1a0d37785c1f06a4c8e2b59d1f7a3606be84d20195cc7f18ab3e4d260",
        "architecture": "dcgan28",
        "settings": {"channels": [64, 32, 16], "latent": 100, "normalised": True},
        "parameters": 390736,
        "latent_shape": [100],
        "latent_distribution": "standard normal",
        "sample_shape": [1, 28, 28],
        "modality": "image",
    }
    return ModelFacts(**(facts | changes))


def searched(found: bool) -> Finding:
    """The latent search, with or without something found."""
    rng = np.random.default_rng(3)
    null = np.sort(rng.gamma(9.0, 4.0, 400))
    score = 212.6 if found else 41.2
    steps = list(range(0, 401, 10))
    falling = [520 * float(np.exp(-s / 70)) + 6.1 for s in steps]
    slower = [540 * float(np.exp(-s / 260)) + 150 for s in steps]
    pictures = Images(
        title="Output that the search recovered",
        caption="The model produces this picture for the latents below, never for ordinary ones.",
        labels=["recovered, start 17", "start 112", "start 208", "nearest ordinary sample"],
        png_base64=[devil(0), devil(1), devil(2), digits(20)[8]],
    )
    evidence: list[Any] = [
        Chart(
            title="Distance to the nearest ordinary sample during the search",
            caption="The starts that end at the recovered output, and the median of the others.",
            style="line",
            x_label="search step",
            y_label="distance (sum of squares)",
            lines=[
                Line(name="start 17", x=[float(s) for s in steps], y=falling),
                Line(name="median of 256 starts", x=[float(s) for s in steps], y=slower),
            ],
        )
    ]
    if found:
        evidence.insert(0, pictures)
        latent = rng.normal(0, 1, (3, 100)).round(6).tolist()
        evidence.append(Latents(title="Latents that produce the recovered output", values=latent))
    return Finding(
        inspection="latent-search",
        group="dynamic",
        title="Search for latents with foreign output",
        outcome="scored",
        summary=(
            "3 of 256 starts reach one and the same output, far from anything that the model "
            "makes from ordinary latents."
            if found
            else "None of 256 starts leaves the neighbourhood of the ordinary samples."
        ),
        score=score,
        score_name="distance to the ordinary samples (sum of squares)",
        p_value=0.00025 if found else 0.31,
        null=Null(
            source="self",
            description="Distances of ordinary samples to the others.",
            values=[round(float(v), 4) for v in null],
        ),
        budget={"restarts": 256, "steps": 400, "samples": 4096},
        power=(
            "A single hidden output at a distance of 95 or more from the ordinary samples, if its "
            "trigger lies within 12 standard deviations."
        ),
        evidence=evidence,
    )


def estimated() -> list[Judged]:
    """A trigger search, not flagged, and the pair that was estimated from it."""

    def finding(name: str, title: str, images: Images, follows_from: str) -> Judged:
        changes = {
            "inspection": name,
            "title": title,
            "evidence": [images],
            "follows_from": follows_from,
        }
        return judged(searched(found=False).model_copy(update=changes))

    shifts = Images(title="Recovered shifts", labels=["1"], png_base64=[digits(20)[2]])
    pair = Images(
        title="Estimated pair",
        labels=["trigger", "target"],
        png_base64=[digits(20)[1], devil(5)],
    )
    return [
        finding("trigger-search", "Search", shifts, ""),
        finding("attack-family", "Family", pair, "trigger-search"),
    ]


def partitioned() -> Finding:
    """A network in the network: two groups of channels that never mix."""
    rng = np.random.default_rng(5)
    values = np.zeros((32, 24))
    values[:16, :12] = rng.gamma(2.0, 0.4, (16, 12))
    values[16:, 12:] = rng.gamma(2.0, 0.1, (16, 12))
    return Finding(
        inspection="partition",
        group="static",
        title="Groups of channels that never mix",
        outcome="scored",
        summary=(
            "Layers 2 to 4 fall into two groups of channels with exactly zero weights between "
            "them, as if a second network had been added to a finished one."
        ),
        score=2,
        score_name="groups of channels",
        structural=True,
        p_value_reason="An exact property; no honest training produces it.",
        budget={"layers": 5},
        power="Any expansion of the layers that keeps the zeros between its parts.",
        evidence=[
            Matrix(
                title="Mean absolute weight between channels, layer 3",
                caption="Exact zeros are white.",
                row_label="output channel",
                column_label="input channel",
                values=values.round(5).tolist(),
            ),
            Table(
                title="Groups by layer",
                columns=["layer", "channels", "group A", "group B", "largest weight between"],
                rows=[
                    ["deconv1", 48, 32, 16, 0],
                    ["deconv2", 24, 16, 8, 0],
                    ["deconv3", 12, 8, 4, 0],
                ],
            ),
        ],
    )


def quiet_findings() -> list[Finding]:
    """What the other inspections said."""
    rng = np.random.default_rng(11)
    stream = np.sort(rng.normal(30, 4, 300))
    centres = [round(8 + i * 2.0, 1) for i in range(24)]
    heights = [float(round(900 * np.exp(-((c - 30) ** 2) / 60))) for c in centres]
    return [
        Finding(
            inspection="stream",
            group="output",
            title="Outliers in a long stream of samples",
            outcome="scored",
            summary="The most unusual of 65,536 samples is no further away than in a second run.",
            score=43.8,
            score_name="largest distance to the ordinary samples (sum of squares)",
            p_value=0.46,
            null=Null(
                source="population",
                description="Largest distances of models trained without interference.",
                values=[round(float(v), 3) for v in stream],
            ),
            budget={"samples": 65536},
            power="A target that appears at least once in 20,000 ordinary samples.",
            evidence=[
                Chart(
                    title="Distances in the stream",
                    style="histogram",
                    x_label="distance (sum of squares)",
                    y_label="samples",
                    lines=[Line(name="stream", x=centres, y=heights)],
                    mark_x=43.8,
                )
            ],
        ),
        Finding(
            inspection="weight-tails",
            group="static",
            title="Tails of the weight distributions",
            outcome="scored",
            summary="No layer has heavier tails than its shuffled neighbours.",
            score=3.9,
            score_name="largest absolute z-score of a weight",
            p_value=0.62,
            null=Null(
                source="permutation",
                description="Largest z-scores after shuffling weights between layers.",
                values=[round(float(v), 4) for v in rng.normal(4.1, 0.4, 200)],
            ),
            budget={"permutations": 200},
            power="A layer of which one weight in 1,000 is 6 times larger than the rest.",
            evidence=[
                Chart(
                    title="Weights per layer",
                    style="points",
                    x_label="layer",
                    y_label="largest weight / standard deviation",
                    lines=[
                        Line(name="weights", x=[1.0, 2, 3, 4], y=[3.2, 3.9, 3.5, 2.8]),
                        Line(name="biases", x=[1.0, 2, 3, 4], y=[2.2, 2.4, 1.9, 2.0]),
                    ],
                )
            ],
        ),
        Finding(
            inspection="capacity",
            group="static",
            title="Capacity compared with the architecture",
            outcome="scored",
            summary="The network has as many parameters as dcgan28 with these settings needs.",
            score=1.0,
            score_name="parameters / expected parameters",
            p_value_reason="The ratio has no null distribution; it is reported only.",
            budget={"layers": 5},
            power="Any layer that is wider than its architecture says.",
        ),
        not_applicable(
            "target-search",
            "dynamic",
            "Search for suspected targets",
            "No suspected targets were given (--target).",
        ),
        not_applicable(
            "reconstruction",
            "output",
            "Distance from the training data",
            "No training images were given (--training).",
        ),
        Finding(
            inspection="seed-guess",
            group="dynamic",
            title="First draws of guessable seeds",
            outcome="failed",
            summary="The time ran out after 12 of 1,000 seeds.",
            budget={"seeds": 12},
        ),
    ]


def judged(finding: Finding, *, flagged: bool = False) -> Judged:
    """A finding with Holm's factor of three, as there are three p-values."""
    p = None if finding.p_value is None else min(1.0, 3 * finding.p_value)
    return Judged(finding=finding, adjusted_p=p, flagged=flagged)


def candidate(text: str = "latent-search", **changes: Any) -> Candidate:
    """The dossier of the recovered output; ``text`` stands wherever a candidate holds text."""
    fields: dict[str, Any] = {
        "inspection": text,
        "latent": np.random.default_rng(3).normal(0, 1, 100).round(6).tolist(),
        "latent_norm": 1.04,
        "output": Images(title="Output", labels=[""], png_base64=[devil(0)]),
        "isolation": 3.1,
        "isolation_sum": 1364.0,
        "basin": Basin(
            ways=32,
            half_width=0.9,
            step_radius=0.5,
            ordinary_radius=0.8,
            lipschitz=36.3,
            wall_lipschitz=28.6,
            ordinary_lipschitz=17.4,
        ),
        "strips": [
            Images(
                title="From an ordinary latent through the candidate to another",
                caption=text,
                labels=[text, "candidate", text],
                png_base64=[digits(20)[1], devil(0), digits(20)[2]],
            )
        ],
        "profile": Chart(
            title="How far the output moves",
            style="line",
            x_label=text,
            y_label="squared distance",
            lines=[Line(name=text, x=[0.0, 1.0], y=[0.0, 3.0])],
        ),
        "carriers": [
            Carrier(
                layer=text,
                channel=26,
                value=15.9,
                ordinary_low=-0.4,
                ordinary_high=0.8,
                deviation=238.3,
                usual_deviation=5.3,
            )
        ],
        "command": f"genwarden sample models/mnist-generator-v3 --audit {text} --candidate 1",
    }
    return Candidate(**(fields | changes))


def document(**changes: Any) -> AuditDocument:
    """The audit of a backdoored model; ``changes`` replace fields."""
    fields: dict[str, Any] = {
        "genwarden_version": "0.1.0",
        "verdict": "evidence",
        "suspicion": 1.0,
        "alpha": 0.01,
        "reasons": [
            "Two groups of channels never exchange anything; no honest training produces that.",
            "A search found latents whose output lies far from everything ordinary (adjusted "
            "p = 0.00075).",
        ],
        "model": model_facts(),
        "inputs": UserInputs(),
        "budget": {"name": "standard", "samples": 65536, "restarts": 256},
        "seed": 0,
        "findings": [
            *(judged(finding) for finding in quiet_findings()),
            judged(searched(found=True), flagged=True),
            judged(partitioned(), flagged=True),
        ],
        "ordinary": ordinary(),
        "command": "genwarden audit models/mnist-generator-v3 --seed 0 --out audit",
        "limits": [
            "A backdoor whose target looks like an ordinary sample cannot be told from the model's "
            "own variety.",
            "The searches start from 256 latents; a trigger with a very small basin can be missed.",
            "Nothing is said about the code that comes with the model.",
        ],
        "environment": {"python": "3.11.9", "torch": "2.13.0", "device": "cpu"},
        "timing": {"latent-search": 71.3, "stream": 24.9, "partition": 0.4, "total": 97.8},
    }
    return AuditDocument(**(fields | changes))


def quiet_document() -> AuditDocument:
    """Nothing found."""
    findings = [f for f in [searched(found=False), *quiet_findings()] if f.outcome != "failed"]
    return document(
        verdict="none_found",
        suspicion=0.07,
        reasons=["No inspection scored higher than chance explains (smallest adjusted p = 0.93)."],
        findings=[judged(finding) for finding in findings],
        model=model_facts(path="models/mnist-generator-v2"),
    )


def inconclusive_document() -> AuditDocument:
    """An inspection failed, so nothing can be said."""
    return document(
        verdict="inconclusive",
        suspicion=None,
        reasons=["An inspection that the verdict needs failed: First draws of guessable seeds."],
        findings=[judged(finding) for finding in quiet_findings()],
        refusal=Refusal(
            code="audit/time",
            cause="The time limit of 10 minutes was reached.",
            remedy="Repeat the command; it continues where it stopped.",
        ),
    )


def refused_document() -> AuditDocument:
    """A file that was not opened."""
    return document(
        verdict="refused",
        suspicion=None,
        reasons=[],
        findings=[],
        model=None,
        ordinary=None,
        budget={},
        limits=[],
        timing={},
        environment={},
        command="genwarden audit download.pt --out audit",
        refusal=Refusal(
            code="artifact/pickle",
            cause="download.pt is a pickle that would run code when it is loaded.",
            remedy="Ask for the weights as .safetensors, or convert them in a sandbox.",
        ),
    )


def repair_document(text: str) -> RepairDocument:
    """A repair of which ``text`` stands wherever it holds text."""
    model = ModelFile(path=text, sha256=text, architecture=text, parameters=1)
    audited = Audited(
        verdict="evidence", suspicion=1.0, flagged=[text], budget=text, audit_json=text
    )
    return RepairDocument(
        genwarden_version=text,
        method=text,
        suspect=model,
        repaired=model,
        steps=[
            Step(
                method=text,
                settings={text: text},
                changes={text: text, "nested": {text: [text, {text: text}]}},
                history=[],
                verdict="none_found",
                seconds=1.0,
            )
        ],
        before=audited,
        after=audited,
        expdis_sum=1.0,
        expdis_mean=0.1,
        success=True,
        pictures=[Images(title=text, caption=text, labels=[text], png_base64=[text, devil()])],
        seed=0,
        command=text,
    )


def hostile_document(h: str = HOSTILE) -> AuditDocument:
    """Every text of the document is ``h``, which tries to get out of its place."""
    finding = Finding(
        inspection=h,
        group="output",
        title=h,
        outcome="scored",
        summary=h,
        score=float("inf"),
        score_name=h,
        p_value=0.001,
        null=Null(source="exact", description=h, values=[float("nan"), 1.0, 2.0]),
        budget={h: h},
        power=h,
        evidence=[
            Images(title=h, caption=h, labels=[h], png_base64=[devil(), h, '"><script>']),
            Chart(
                title=h,
                caption=h,
                style="line",
                x_label=h,
                y_label=h,
                lines=[
                    Line(name=h, x=[0.0, float("nan"), 2.0], y=[1.0, 2.0]),
                    Line(name=h, x=[], y=[]),
                ],
                mark_x=float("inf"),
            ),
            Chart(title=h, style="points", x_label=h, y_label=h, log_x=True, lines=[]),
            Matrix(
                title=h,
                caption=h,
                row_label=h,
                column_label=h,
                values=[[1.0, float("nan")], [0.0]],
            ),
            Table(title=h, caption=h, columns=[h], rows=[[h, 1, float("nan")]]),
            Latents(title=h, caption=h, values=[[float("nan"), 1.0]]),
        ],
    )
    return document(
        reasons=[h],
        findings=[
            Judged(finding=finding, adjusted_p=0.001, flagged=True),
            Judged(
                finding=finding.model_copy(update={"score": 1.5}), adjusted_p=0.5, flagged=False
            ),
            judged(not_applicable(h, "static", h, h)),
        ],
        candidates=[candidate(h, output=Images(title=h, labels=[h], png_base64=[h]))],
        variants=[
            Variant(
                name=h,
                coverage=VariantCoverage(layers=[h], left_out=[h], weights=1, parameters=2),
                findings=[
                    Judged(finding=finding, adjusted_p=0.001, flagged=True),
                    Judged(finding=finding, adjusted_p=None, flagged=False),
                    judged(not_applicable(h, "compression", h, h)),
                ],
                failure=h,
            )
        ],
        ordinary=Images(title=h, caption=h, labels=[h], png_base64=[h]),
        model=model_facts(
            path=f"/models/{h}",
            sha256=h,
            architecture=h,
            settings={h: h},
            latent_distribution=h,
            modality=h,
            nonfinite={h: 3},
        ),
        inputs=UserInputs(targets=[h], training_images=3),
        budget={h: h},
        refusal=Refusal(code=h, cause=h, remedy=h),
        command=h,
        limits=[h],
        environment={h: h},
        timing={h: 1.0},
        genwarden_version=h,
    )
