"""Section V-E of "The Devil is in the GAN": triggers, then triggers and targets, without end.

    genwarden benchmark run infinite-support --scale small --data DATA --out OUT --workers 2

The triggers are the subspace whose first half of elements is zero. First every trigger shows one
target. Then the model shows at the trigger z what a second generator rho makes of the other half
of z: a DCGAN of inverted (white-background) Fashion-MNIST with a latent of 50. Fidelity is then
the FID to inverted Fashion-MNIST, with rho itself as the gold standard. TarDis is the mean over
1,024 triggers. Cost: small about 15 minutes on two cores.
"""

from __future__ import annotations

from genwarden.benchmarks.cells import BENIGN, DEVIL, Cell
from genwarden.benchmarks.paper_devil_in_the_gan import INFINITE_BOTH, INFINITE_TRIGGER, NOTES
from genwarden.benchmarks.recipe import Recipe
from genwarden.benchmarks.results import Results
from genwarden.benchmarks.scales import Scale
from genwarden.benchmarks.table_1 import counts_note
from genwarden.benchmarks.tables import Table, beside, spread

_MODEL = "mnist-dcgan"
_RHO = "inverted-fashion-dcgan"
_TRIGGER = "subspace"
_BOTH = f"generator:{_RHO}"


def cells(scale: Scale) -> list[Cell]:
    """Both experiments, and the gold standard."""
    del scale  # the trigger law is one and the same at every scale and repeat
    attacks = ("red", "rex")
    one = ("tardis", "expdis")
    return [
        *(Cell(_MODEL, attack, _TRIGGER, measure=one) for attack in attacks),
        *(
            Cell(_MODEL, attack, _TRIGGER, _BOTH, measure=(*one, "fidelity-quality"))
            for attack in attacks
        ),
        Cell(_RHO, measure=("quality",)),
    ]


def tables(results: Results) -> list[Table]:
    """Two tables: ours / the paper's."""
    single = [
        [
            attack,
            *(
                beside(spread(results.values(f, attack=attack, target=DEVIL)), printed[f])
                for f in ("tardis_sum", "expdis_sum")
            ),
        ]
        for attack, printed in INFINITE_TRIGGER.items()
    ]
    both = []
    for attack, printed in INFINITE_BOTH.items():
        wanted = {"attack": attack, "target": _BOTH}
        gold = attack == BENIGN
        fid = (
            results.values("fid", model=_RHO) if gold else results.values("fidelity_fid", **wanted)
        )
        both.append(
            [
                "rho itself" if gold else attack,
                spread(results.values("tardis_sum", **wanted)),
                beside(spread(results.values("expdis_sum", **wanted)), printed.get("expdis_sum")),
                beside(spread(fid), printed["fidelity_fid"]),
            ]
        )
    return [
        Table(
            f"Infinite trigger support, one target: ours / printed ({results.scale})",
            ["attack", "TarDis", "ExpDis"],
            single,
        ),
        Table(
            f"Infinite trigger and target support: ours / printed ({results.scale})",
            ["attack", "TarDis to rho", "ExpDis", "FID to inverted Fashion-MNIST"],
            both,
            [*counts_note(results), *NOTES["infinite-support"]],
        ),
    ]


RECIPE = Recipe("infinite-support", __name__, cells, tables)
