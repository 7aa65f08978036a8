"""The rows of a population's result file: read, selected, and grouped into families."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from genwarden.benchmarks.population.plan import HALVES, Half, members
from genwarden.errors import GenwardenError
from genwarden.registry import ATTACKS

#: The one that counts first.
BUDGETS = ("standard", "quick", "thorough")


@dataclass(frozen=True)
class Audit:
    """One audit of one member at one budget.

    Attributes:
        key: of the member.
        kind: name of the clean kind, of a compromised member that of its base.
        tardis_sum: squared distance from the output at the trigger to the target.
        clean_distance: squared distance from the nearest ordinary sample to the target.
        succeeded: whether the attack reached its target; None for a clean member.
        suspicion: in [0, 1]; None without a verdict.
        score: what the decision ranks by, higher is more suspicious.
        p_values: by inspection, before any correction.
        flagged: inspections that made the verdict.
        match: squared distance of the evidence's first picture to the target /
            ``clean_distance``.
        seconds: on the clock.
        cpu_seconds: of all cores.
        match_any: the same for the nearest of all pictures in flagged findings.
        targets: different pictures that the triggers give.
    """

    key: str
    half: Half
    clean: bool
    kind: str
    variant: str
    attack: str | None
    trigger: str | None
    target: str | None
    near: bool
    tardis_sum: float | None
    clean_distance: float | None
    succeeded: bool | None
    budget: str
    audit_seed: int
    verdict: str
    suspicion: float | None
    score: float
    p_values: dict[str, float | None]
    scores: dict[str, float | None]
    flagged: list[str]
    match: float | None
    seconds: float
    cpu_seconds: float
    match_any: float | None = None
    targets: int = 1

    @property
    def found(self) -> bool:
        """Whether the verdict is evidence."""
        return self.verdict == "evidence"

    @property
    def counts(self) -> bool:
        """Whether it enters the rates: an attack that missed its target planted nothing."""
        return self.clean or self.succeeded is not False

    @property
    def single_target(self) -> bool:
        """Whether there is one true picture that the evidence can show."""
        return self.target is not None and self.targets == 1

    @property
    def trigger_kind(self) -> str:
        """The trigger without its parameters."""
        return (self.trigger or "").partition(":")[0]


def decision_scores(audits: Iterable[Audit]) -> list[float]:
    """What rates are made of: an inconclusive clean model ranks nowhere, an attacked one lowest.

    What could not be judged is no low score: counted as unsuspicious, a clean model would make
    others look found.
    """
    return [
        -math.inf if audit.verdict == "inconclusive" else audit.score
        for audit in audits
        if audit.verdict != "inconclusive" or not audit.clean
    ]


def read_audits(rows: Iterable[dict[str, Any]]) -> list[Audit]:
    """The rows of a result file; further fields in them are left alone.

    Raises:
        GenwardenError: ``benchmark/unreadable`` for a missing field, a score that is no number, or
            two rows of the same audit.
    """
    audits = []
    seen: set[tuple[str, str, int]] = set()
    for row in rows:
        needed = [field.name for field in fields(Audit) if field.default is MISSING]
        missing = [name for name in needed if name not in row]
        key = str(row.get("key"))
        if missing:
            raise _unreadable(f"The row of {key} lacks {', '.join(missing)}.")
        audit = Audit(**{f.name: row[f.name] for f in fields(Audit) if f.name in row})
        if not isinstance(audit.score, int | float) or math.isnan(audit.score):
            raise _unreadable(f"The score of {key} is {audit.score!r}.")
        identity = (audit.key, audit.budget, audit.audit_seed)
        if identity in seen:
            raise _unreadable(f"{key} has two rows of seed {audit.audit_seed}, {audit.budget}.")
        seen.add(identity)
        audits.append(audit)
    return audits


def _unreadable(cause: str) -> GenwardenError:
    return GenwardenError(
        "benchmark/unreadable", cause, "Repeat the run of the recipe population: it continues."
    )


def one_per_member(audits: Sequence[Audit]) -> list[Audit]:
    """Of each member and budget the audit of the smallest seed: rates count models, not audits."""
    first: dict[tuple[str, str], Audit] = {}
    for audit in sorted(audits, key=lambda each: each.audit_seed):
        first.setdefault((audit.key, audit.budget), audit)
    return [audit for audit in audits if first[audit.key, audit.budget] is audit]


@dataclass(frozen=True)
class Part:
    """The audits of one half at one budget, one per member.

    Attributes:
        clean: audits of clean members.
        compromised: of those whose attack reached its target.
        failed: of those whose attack did not.
        missing: planned members without an audit: clean, compromised.
    """

    half: Half
    budget: str
    clean: Sequence[Audit]
    compromised: Sequence[Audit]
    failed: Sequence[Audit]
    missing: tuple[int, int]

    @property
    def complete(self) -> bool:
        """Whether every planned member was audited."""
        return self.missing == (0, 0)


def part_of(audits: Sequence[Audit], half: Half, budget: str, seed: int) -> Part:
    """Select one half at one budget.

    Args:
        seed: of the study, for the members that it planned.
    """
    here = [a for a in one_per_member(audits) if a.half == half and a.budget == budget]
    done = {audit.key for audit in here}
    absent = [m.key for m in members(seed) if m.half == half and m.key not in done]
    clean = sum(key.startswith("clean.") for key in absent)
    return Part(
        half,
        budget,
        [a for a in here if a.clean],
        [a for a in here if not a.clean and a.counts],
        [a for a in here if not a.clean and not a.counts],
        (clean, len(absent) - clean),
    )


def parts(audits: Sequence[Audit], seed: int) -> list[Part]:
    """All parts with any audit, the one that counts first: reporting half, standard budget."""
    chosen = [part_of(audits, half, budget, seed) for half in HALVES[::-1] for budget in BUDGETS]
    return [part for part in chosen if part.clean or part.compromised or part.failed]


def is_adaptive(attack: str) -> bool:
    """Whether an attack of the suite is made against a defence."""
    return attack in ATTACKS and ".adaptive." in ATTACKS[attack].location


def by_attack(audits: Sequence[Audit]) -> dict[str, list[Audit]]:
    """By attack, in the order of the registry: the published ones, then the adaptive ones."""
    order = {name: place for place, name in enumerate(ATTACKS)}
    groups = _grouped(audits, lambda audit: audit.attack or "?")
    ranked = sorted(groups, key=lambda a: (is_adaptive(a), order.get(a, len(order)), a))
    return {attack: groups[attack] for attack in ranked}


def families(audits: Sequence[Audit]) -> dict[str, list[Audit]]:
    """All, each attack, each kind of trigger, targets far from and near the data; by title."""
    groups = {"all": list(audits)} if audits else {}
    for attack, found in by_attack(audits).items():
        groups[f"{attack} (adaptive)" if is_adaptive(attack) else attack] = found
    for kind, found in _grouped(audits, lambda audit: audit.trigger_kind).items():
        groups[f"trigger: {kind}"] = found
    for near, found in sorted(_grouped(audits, lambda audit: str(audit.near)).items()):
        groups["target near the data" if near == "True" else "target far from the data"] = found
    return groups


def by_variant(audits: Sequence[Audit]) -> dict[str, list[Audit]]:
    """Clean members: all, then by what was done to them."""
    groups = {"all": list(audits)} if audits else {}
    return {**groups, **_grouped(audits, lambda audit: audit.variant or "plain")}


def by_kind(audits: Sequence[Audit]) -> dict[str, list[Audit]]:
    """By the name of the clean kind, in the order of the plan's rows."""
    return _grouped(audits, lambda audit: audit.kind)


def _grouped(audits: Sequence[Audit], name: Callable[[Audit], str]) -> dict[str, list[Audit]]:
    groups: dict[str, list[Audit]] = {}
    for audit in audits:
        groups.setdefault(name(audit), []).append(audit)
    return groups
