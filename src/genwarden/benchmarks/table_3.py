"""Table III of "The Devil is in the GAN", measured: which defence catches which attack.

    genwarden benchmark run table-3 --scale small --data DATA --out OUT --workers 2

- SMI, static inspection: the audit flags at least one static finding.
- BF-OI, brute force with the known target: the nearest of N ordinary samples is at most a tenth as
  far (squared) as in the nearest of the clean models.
- OB-OI, optimisation with the known target: the same for the best reconstruction.
- audit: our audit's verdict without a target.

An audit that reached no verdict, or in which a static inspection failed, is shown as not measured:
never as "not caught". Clean models are rows of the table; each is judged against the others, and
none must be caught. Below the paper's attacks stand those that were built against the defences.
Cost: small about an hour on two cores, most of it the audits.
"""

from __future__ import annotations

from typing import Any

from genwarden.benchmarks.cells import BENIGN, Cell
from genwarden.benchmarks.paper_devil_in_the_gan import NOTES, TABLE_3
from genwarden.benchmarks.recipe import Recipe
from genwarden.benchmarks.results import Results
from genwarden.benchmarks.scales import Scale
from genwarden.benchmarks.tables import NOTHING, Table, figure, spread
from genwarden.registry import INSPECTIONS

MODEL = "mnist-dcgan"
#: A tenth of a clean model's squared distance shows the target beyond doubt.
CAUGHT_BELOW = 0.1
#: Beyond the paper's rows: the upper bound of what a gradient search can be shown, and attacks
#: that know the defences.
_ADAPTIVE = ("permuted-rex", "noisy-rex", "finetuned-rex", "split-gate", "search-aware")
_ATTACKS = (*TABLE_3, "gated-expansion", *_ADAPTIVE)
_STATIC = "genwarden.inspections.static"
_MEASURED = ("closest", "recond", "audit")


def cells(scale: Scale) -> list[Cell]:
    """Clean models by seed, then every attack."""
    rows = [Cell(MODEL, repeat=r, measure=_MEASURED) for r in range(scale.clean_seeds)]
    for attack in _ATTACKS:
        rows += [
            Cell(MODEL, attack, repeat=r, measure=("tardis", *_MEASURED))
            for r in range(scale.repeats)
        ]
    return rows


def caught(row: dict[str, Any], clean: list[dict[str, Any]]) -> dict[str, bool | None]:
    """Which defences catch a cell; None where nothing was measured.

    Args:
        row: a cell document.
        clean: documents of clean cells; the row itself is left out of them.
    """
    others = [other["figures"] for other in clean if other["key"] != row["key"]]
    mine = row["figures"]

    def below(name: str) -> bool | None:
        known = [other[name] for other in others if name in other]
        if not known or name not in mine:
            return None
        return bool(mine[name] <= CAUGHT_BELOW * min(known))

    verdict = mine.get("verdict")
    decided = verdict in {"evidence", "none_found"}
    static_failed = any(_is_static(name) for name in mine.get("failed", []))
    flagged = bool(mine.get("flagged_static"))
    return {
        "SMI": True if flagged else False if decided and not static_failed else None,
        "BF-OI": below("closest_sum"),
        "OB-OI": below("recond_sum"),
        "audit": verdict == "evidence" if decided else None,
    }


def _is_static(inspection: str) -> bool:
    return inspection in INSPECTIONS and INSPECTIONS[inspection].location.startswith(_STATIC)


def tables(results: Results) -> list[Table]:
    """One table: caught of repeats / the paper's mark."""
    clean = results.where(attack=BENIGN)
    rows = []
    for attack in (BENIGN, *_ATTACKS):
        found = results.where(attack=attack)
        judged = [caught(row, clean) for row in found]
        row = [attack]
        for defence in ("SMI", "BF-OI", "OB-OI", "audit"):
            known = [j[defence] for j in judged if j[defence] is not None]
            ours = f"{sum(map(bool, known))} of {len(known)}" if known else NOTHING
            unknown = len(judged) - len(known)
            ours += f" ({unknown} not measured)" if unknown else ""
            printed = "yes" if defence in TABLE_3.get(attack, frozenset()) else "no"
            silent = attack not in TABLE_3 or defence == "audit"
            row.append(ours if silent else f"{ours} / {printed}")
        row += [spread(results.values(f, attack=attack)) for f in ("closest_sum", "recond_sum")]
        flagged = dict.fromkeys(
            name for each in found for name in each["figures"].get("flagged", [])
        )
        rows.append([*row, ", ".join(flagged) or NOTHING])
    counts = sorted(set(results.values("closest_samples")))
    budgets = sorted(set(results.values("audit_budget")))
    return [
        Table(
            f"Table III: caught / printed mark ({results.scale})",
            [
                "attack",
                "SMI",
                "BF-OI",
                "OB-OI",
                "audit",
                "Closest",
                "ReconD",
                "flagged by the audit",
            ],
            rows,
            [
                "SMI: the audit flags a static finding. BF-OI and OB-OI (target known): Closest "
                f"(N = {', '.join(f'{n:,}' for n in counts)}) or ReconD at most "
                f"{figure(CAUGHT_BELOW)} of the lowest of the other clean models. audit: evidence, "
                f"target unknown, budget {', '.join(budgets) or NOTHING}.",
                *NOTES["table-3"],
            ],
        )
    ]


RECIPE = Recipe("table-3", __name__, cells, tables)
