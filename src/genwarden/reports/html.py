"""The audit as one HTML page: no script, no network, the same bytes for the same document.

Everything from the document passes two gates: invisible characters are spelled out (``finalize``)
and markup is escaped (``autoescape``). Only our own SVG is exempt (:mod:`.charts`).
"""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from genwarden.auditing.document import AuditDocument
from genwarden.inspections.candidate import Candidate
from genwarden.inspections.finding import Images, Latents, Null, Table, Trigger
from genwarden.reports import words
from genwarden.reports.advice import advice, variant_sample
from genwarden.reports.charts import chart_svg, matrix_svg, null_svg
from genwarden.reports.highlights import every_finding, flagged_first, highlight, pictures
from genwarden.reports.variants import (
    coverage_in_words,
    state_of,
    tested_variants,
    variant_matrix,
)

#: More than this is counted on the page and kept in audit.json, so that a page stays under 2 MB.
MAX_PICTURES = 48
MAX_TABLE_ROWS = 100
MAX_LATENTS = 20
#: A table of more rows than the first number shows as many as the second; the rest is folded.
MAX_OPEN_ROWS = 8
OPEN_ROWS = 5


def render_html(document: AuditDocument) -> str:
    """The page of one audit.

    Args:
        document: what the audit found.

    Returns:
        A complete HTML file as text.
    """
    findings = flagged_first(document.findings)
    return (
        page_environment()
        .get_template("audit.html.j2")
        .render(
            document=document,
            model_name=model_name(document),
            findings=list(enumerate(findings, start=1)),
            flagged=[found for found in every_finding(document) if found.judged.flagged],
            tested_variants=tested_variants(document) if document.variants else [],
            hero=highlight(document),
            matrix=variant_matrix(document) if document.variants else None,
        )
    )


def model_name(document: AuditDocument) -> str:
    """The last part of the model's path, loaded or refused."""
    path = document.audited_path
    if not path and document.model is None:
        return "file not loaded"
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2] or "model"


@cache
def page_environment() -> Environment:
    """The templates with autoescape, strict variables and the vocabulary of :mod:`.words`."""
    environment = Environment(
        loader=PackageLoader("genwarden.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_spell_out,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": words.number,
        "probability": words.probability,
        "strength": words.strength,
        "seconds": words.seconds,
        "label": words.label,
        "promise": words.promise,
        "would_be_found": words.would_be_found,
        "result": words.result_of,
        "in_words": words.candidate_in_words,
        "coverage": coverage_in_words,
        "state": state_of,
    }
    environment.globals |= {
        "VERDICT_WORDS": words.VERDICT_WORDS,
        "NULL_SOURCES": words.NULL_SOURCES,
        "MAX_PICTURES": MAX_PICTURES,
        "MAX_TABLE_ROWS": MAX_TABLE_ROWS,
        "MAX_LATENTS": MAX_LATENTS,
        "DIFFUSION": words.DIFFUSION,
        "MAX_OPEN_ROWS": MAX_OPEN_ROWS,
        "OPEN_ROWS": OPEN_ROWS,
        "given": words.given,
        "headline": words.headline,
        "strength_sentence": words.strength_sentence,
        "strength_share": words.strength_share,
        "smallest_p": words.smallest_p,
        "decides_exactly": words.decides_exactly,
        "advice": advice,
        "variant_sample": variant_sample,
        "pictures": pictures,
        "chart_svg": chart_svg,
        "matrix_svg": matrix_svg,
        "null_figure": _null_figure,
        "one_line": _one_line,
        "carrier_table": _carrier_table,
        "latent_of": _latent_of,
        "trigger_picture": _trigger_picture,
        "total_seconds": _total_seconds,
        "model_name": model_name,
    }
    return environment


def _spell_out(value: Any) -> Any:
    return (
        words.visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
    )


def _null_figure(null: Null | None, score: float | None, name: str) -> Markup | None:
    """The score on its null distribution, if there is anything to draw."""
    if null is None or score is None or not math.isfinite(score):
        return None
    if not any(math.isfinite(value) for value in null.values):
        return None
    return null_svg(null.values, score, name or "score")


def _carrier_table(candidate: Candidate) -> Table:
    """The channels that carry a candidate."""
    return Table(
        title="Layers and channels that carry it",
        caption="Largest activation over space behind each layer, at the candidate and over "
        "ordinary latents; the channels of each layer that stand out most. Usual: 99 % of ordinary "
        "latents have no channel of the layer further out. Layers that are not listed do nothing "
        "unusual.",
        columns=[
            "layer",
            "channel",
            "at the candidate",
            "ordinary, from",
            "to",
            "standard deviations out",
            "usual",
        ],
        rows=[
            [
                c.layer,
                str(c.channel),
                c.value,
                c.ordinary_low,
                c.ordinary_high,
                c.deviation,
                c.usual_deviation,
            ]
            for c in candidate.carriers
        ],
    )


def _latent_of(candidate: Candidate) -> Latents:
    return Latents(title="The latent", values=[candidate.latent])


def _trigger_picture(trigger: Trigger) -> Images:
    """The stored picture as one of a row."""
    return Images(title=trigger.title, labels=[""], png_base64=[trigger.png_base64])


def _one_line(latents: Latents) -> str:
    """Latents as one line of JSON, to be copied whole."""
    return json.dumps(latents.values[:MAX_LATENTS], separators=(",", ":"))


def _total_seconds(timing: dict[str, float]) -> float | None:
    if not timing:
        return None
    return timing["total"] if "total" in timing else math.fsum(timing.values())
