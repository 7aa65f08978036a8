"""Tables of the recipe ``red-against-art``."""

from __future__ import annotations

from typing import Any, Final

from genwarden.benchmarks.tables import Table, figure

_FASTER: Final = 10.0
_SOONER: Final = 20.0
_TITLES: Final = {"red": "training", "prediction": "prediction"}


def tables(document: dict[str, Any], name: str) -> list[Table]:
    """Latents per second of both, and how soon ours is where ART's ends.

    Args:
        document: content of a result file.
        name: of the file, for the titles.
    """
    return [_speed(document, name), _sooner(document, name)]


def _speed(document: dict[str, Any], name: str) -> Table:
    rows = []
    for what, rates in document["latents_per_s"].items():
        for size, art in rates["art"].items():
            half = rates.get("art bfloat16", {}).get(size)
            cells = ["" if half is None else figure(half)]
            for precision, theirs in (("float32", art), ("bfloat16", max(art, half or 0.0))):
                ours = rates.get(precision, {}).get(size)
                cells += ["", ""] if ours is None else [figure(ours), figure(ours / theirs)]
            rows.append([_TITLES[what], size, figure(art), *cells])
    best = document["times_art"]
    versions = document["versions"]
    training = [
        f"{figure(times)} times ART in {precision} ({'reached' if times >= _FASTER else 'short'})"
        for precision, times in best["red"].items()
    ]
    notes = [
        f"Each at the batch size that it likes best, asked {_FASTER:g}: training "
        f"{', '.join(training)}; prediction {figure(best['prediction']['float32'])} times. "
        "bfloat16 is held against whichever precision ART is faster in.",
        *map(_ends, document["ends"]),
        f"ART {versions['art']} with TensorFlow {versions['tensorflow']} (bfloat16: oneDNN's mode "
        f"for it), {document['threads']} threads each, in turns, the fastest of them; DCGAN of "
        f"channels {_channels(document)}; latents of the stealth term; the benign model's outputs "
        "are computed in every step by ART, once before by us.",
    ]
    columns = ["what", "batch", "ART, float32", "ART, bfloat16"]
    columns += ["genwarden, float32", "ratio", "genwarden, bfloat16", "ratio"]
    return Table(f"ReD of ART and ours, latents/s ({name})", columns, rows, notes)


def _ends(end: dict[str, Any]) -> str:
    found = [
        f"{name} TarDis {figure(end[name]['tardis_sum'])}, ExpDis {figure(end[name]['expdis_sum'])}"
        for name in ("float32", "bfloat16")
    ]
    return (
        f"Our precisions after {end['steps']} steps of {end['batch_size']} latents, lambda "
        f"{end['fidelity_weight']:g}: {'; '.join(found)}."
    )


def _sooner(document: dict[str, Any], name: str) -> Table:
    rows = []
    for row in document["rows"]:
        art, ours = row["art"], row["ours"]
        settings = ours["settings"]
        ratio = art["seconds"] / ours["seconds"]
        rows.append(
            [
                f"{art['iterations']:,}",
                *(figure(art[key]) for key in ("seconds", "tardis_sum", "expdis_sum")),
                f"{settings['first_layer_steps']} + {settings['steps']} of "
                f"{settings['batch_size']}",
                *(figure(ours[key]) for key in ("seconds", "tardis_sum", "expdis_sum")),
                "yes" if ours["reached"] else "no",
                figure(ratio),
                "yes" if ours["reached"] and ratio >= _SOONER else "no",
            ]
        )
    columns = ["iterations of ART", "s", "TarDis", "ExpDis", "our steps", "s", "TarDis", "ExpDis"]
    columns += ["as near", "ART's time / ours", f"at least {_SOONER:g}"]
    untouched = document["untouched"]["tardis_sum"]
    notes = [
        f"Untouched model: TarDis {figure(untouched)}. ExpDis over "
        f"{document['compared_samples']:,} ordinary latents. Seconds of ours: the whole attack "
        "with the teacher's outputs, without the evaluation at its end (ART makes none), the "
        "fastest of some runs. ART: that of its run, or its fastest iteration times their number.",
        f"Trigger and latents of seed {document['seed']}; our settings were found by trying with "
        "seeds 0 to 2.",
        "Our steps: of the dense layer alone, then of all layers (latents per step).",
        "ART with its own settings (Adam at 1e-4, batches of 32, lambda 0.1); as near: ours has "
        "neither a higher TarDis nor a higher ExpDis.",
    ]
    return Table(f"Time to the same compromise ({name})", columns, rows, notes)


def _channels(document: dict[str, Any]) -> str:
    return ", ".join(map(str, document["architecture_settings"]["channels"]))
