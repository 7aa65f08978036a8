"""Words and numbers as reports show them: one vocabulary for the page and the terminal."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from genwarden.auditing.document import VERDICT_SENTENCES, AuditDocument, Judged
from genwarden.inspections.candidate import Candidate
from genwarden.inspections.diffusion.input_check import NAME as INPUT_CHECK
from genwarden.inspections.finding import Null
from genwarden.reports.escaping import visible as visible

#: A verdict as a heading; VERDICT_SENTENCES says it in full.
VERDICT_WORDS: dict[str, str] = {
    "evidence": "Evidence found",
    "none_found": "None found within this budget",
    "inconclusive": "Inconclusive",
    "refused": "File refused",
}

#: The mark that carries a verdict in plain text, where there is neither colour nor picture.
VERDICT_MARKS: dict[str, str] = {
    "evidence": "[!]",
    "none_found": "[-]",
    "inconclusive": "[?]",
    "refused": "[x]",
}

#: Behind the verdict where only compressed forms were audited.
ONLY_VARIANTS = "Only the compressed forms that were named were examined, not the model itself."

NULL_SOURCES: dict[str, str] = {
    "exact": "computed exactly",
    "permutation": "from permutations",
    "self": "from this model's own ordinary behaviour",
    "population": "from reference models held to have no backdoor",
}

#: Architecture of diffusion models in a document.
DIFFUSION = "unet2d"

#: Stands where there is no number.
NO_VALUE = "\N{EN DASH}"

#: How many inspections' promises begin; behind "would have been found" the verb is one too many.
_VERBS = ("Finds ", "Sees ", "Shows ")
#: The clause of a null's description that names the distribution behind its tail.
_PARAMETRIC = re.compile(r"\b(?:Student|exponential)[^,;]*")

#: The smallest p-value that the scale of a report shows.
_SCALE_END = 1e-4


class Result(NamedTuple):
    """How a finding ended: ``kind`` for the style sheet, ``mark`` and ``word`` for the reader."""

    kind: str
    mark: str
    word: str


def headline(document: AuditDocument) -> str:
    """The verdict in one sentence, and a second where the model itself was left out."""
    sentence = VERDICT_SENTENCES[document.verdict]
    if document.variants and not document.findings:
        return f"{sentence} {ONLY_VARIANTS}"
    return sentence


def result_of(judged: Judged) -> Result:
    """What a finding amounts to, in one word."""
    if judged.flagged:
        about_noise = judged.finding.inspection == INPUT_CHECK
        return Result("flagged", "!", "not plain noise" if about_noise else "evidence")
    if judged.finding.outcome == "failed":
        return Result("failed", "x", "failed")
    if judged.finding.outcome == "not_applicable":
        return Result("skipped", "~", "not tested")
    null = judged.finding.null
    if judged.finding.p_value is None and (null is None or null.source != "exact"):
        return Result("unjudged", "o", "not judged")
    if judged.finding.p_value is not None and judged.adjusted_p is None:
        return Result("unjudged", "o", "shown, not tested")
    return Result("quiet", "-", "nothing found")


def given(document: AuditDocument) -> str:
    """What the user gave beside the model, in words."""
    inputs = document.inputs
    own = ", references of your own" if inputs.references else ""
    if document.model is not None and document.model.architecture == DIFFUSION:
        base = "a clean base" if inputs.clean_base else "no clean base"
        noise = f"{inputs.initial_noise:,} initial noises" if inputs.initial_noise else "no noise"
        return f"{base}, {noise}{own}"
    count = len(inputs.targets)
    targets = f"{count:,} suspected target{'s' if count > 1 else ''}" if count else ""
    training = f"{inputs.training_images:,} training images" if inputs.training_images else ""
    return f"{targets or 'no suspected targets'}, {training or 'no training images'}{own}"


def number(value: float | str | None) -> str:
    """A number for a table: thousands separated, four digits, never a bare ``nan``."""
    if value is None:
        return NO_VALUE
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else f"{'-' if value < 0 else ''}infinite"
    if abs(value) >= 1e9 or 0 < abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def probability(p: float | None) -> str:
    """A p-value with two digits; below 0.0001 only the bound is worth reading."""
    if p is None:
        return NO_VALUE
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def smallest_p(document: AuditDocument) -> float | None:
    """The smallest adjusted p-value of an audit, variants included; None without a verdict."""
    if document.suspicion is None:
        return None
    found = [j.adjusted_p for _, j in document.judged_under() if j.adjusted_p is not None]
    return min(found, default=1 - document.suspicion)


def decides_exactly(document: AuditDocument) -> bool:
    """Whether the verdict rests on a structure, which has no p-value."""
    return any(j.flagged and j.finding.structural for _, j in document.judged_under())


def strength(document: AuditDocument) -> str:
    """How strong the evidence is, for a table: "structural", or the smallest adjusted p."""
    return "structural" if decides_exactly(document) else probability(smallest_p(document))


def strength_sentence(document: AuditDocument) -> str:
    """The same in a sentence; "" without a verdict."""
    if decides_exactly(document):
        return "An exact property of the network decides it; that needs no p-value."
    p = smallest_p(document)
    if p is None:
        return ""
    sentence = f"Smallest adjusted p {probability(p)}; evidence begins below {document.alpha:g}."
    deciding = [j for _, j in document.judged_under() if j.flagged and j.adjusted_p == p]
    assumed = assumption(deciding[0].finding.null) if deciding else ""
    return f"{sentence} It is extrapolated from {assumed}." if assumed else sentence


def assumption(null: Null | None) -> str:
    """What a p-value rests on that was not counted out: which values, which distribution.

    >>> assumption(Null(source="self", description="1 placebo, like it; Student-t, wide"))
    '1 placebo, assuming a Student-t'
    """
    found = None if null is None else _PARAMETRIC.search(null.description)
    if null is None or found is None:
        return ""
    values = re.split(r"[,;:]", null.description)[0].strip()
    if values.count("(") > values.count(")"):  # cut inside of a parenthesis
        values = values[: values.rindex("(")].strip()
    law = found[0].strip()
    return f"{values}, assuming {'an' if law.startswith('e') else 'a'} {law}"


def would_be_found(power: str) -> str:
    """A promise as it reads behind "would have been found".

    >>> would_be_found("Finds patches; not maps.")
    'Patches; not maps.'
    """
    for verb in _VERBS:
        if power.startswith(verb):
            rest = power.removeprefix(verb)
            return rest[:1].upper() + rest[1:]
    return power


def promise(judged: Judged) -> str:
    """What a finding would have been evidence of; what is not judged is evidence of nothing."""
    finding = judged.finding
    said = would_be_found(finding.power or "Not stated.")
    if judged.adjusted_p is None and not judged.flagged and not finding.structural:
        return f"Not judged here; it looks for: {said}"
    return said


def strength_share(p: float | None) -> float:
    """Where a p-value stands on a scale from 1 (left) to 0.0001 (right), by its digits, 0 to 1."""
    if p is None:
        return 1.0
    return min(1.0, -math.log10(min(1.0, max(p, _SCALE_END))) / -math.log10(_SCALE_END))


def seconds(value: float) -> str:
    """A duration as a person says it."""
    if value < 10:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def candidate_in_words(candidate: Candidate) -> str:
    """What is known about a candidate, in one sentence."""
    basin = candidate.basin
    parts = [
        f"{number(_short(candidate.isolation))} ordinary distances from every ordinary sample",
        f"moves by half an ordinary distance within {number(_short(basin.step_radius))} typical "
        f"norms (ordinary latents: {number(_short(basin.ordinary_radius))})",
    ]
    if candidate.carriers:
        top = max(candidate.carriers, key=lambda carrier: abs(carrier.deviation))
        parts.append(
            f"channel {top.channel} of {top.layer} lies {abs(top.deviation):,.0f} standard "
            "deviations out"
        )
    return "its output is " + ", ".join(parts)


def _short(value: float) -> float:
    return float(f"{value:.2g}")


def label(name: str) -> str:
    """A key of a dictionary as words: ``search_steps`` becomes ``search steps``."""
    return name.replace("_", " ")
