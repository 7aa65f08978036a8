"""What a compression does, in sentences for people who compress models and do not read code."""

from __future__ import annotations

from genwarden.compression.block_formats import NF4, Q4_0, Q8_0
from genwarden.compression.chain import stages_of
from genwarden.compression.contract import Compressor
from genwarden.compression.pruning import FilterPruning, MagnitudePruning, TwoOfFour
from genwarden.compression.uniform import Uniform

_KEPT = "Biases, batch norms and activations stay as they are."
_FOLDED = (
    "Batch norm is multiplied into the weights before the grid is laid, as deployment tools do. "
    f"{_KEPT}"
)


def in_words(compressor: Compressor) -> str:
    """The stages of a compression, one paragraph each."""
    stages = stages_of(compressor)
    texts = [_stage(stage) for stage in stages]
    if len(stages) == 1:
        return texts[0]
    named = zip(stages, texts, strict=True)
    return "\n\n".join(f"{n}. {s.name}: {t}" for n, (s, t) in enumerate(named, start=1))


def _stage(compressor: Compressor) -> str:
    if isinstance(compressor, Uniform):
        return _uniform(compressor)
    if isinstance(compressor, MagnitudePruning):
        where = "all layers together" if compressor.across else "every layer"
        return (
            f"Sets {_percent(compressor.rate)} of the weights of {where}, those nearest to 0, to "
            "exactly 0; the others stay as they are."
        )
    if isinstance(compressor, FilterPruning):
        return (
            f"Sets {_percent(compressor.rate)} of the filters of every convolution to 0, those "
            "with the smallest sums of absolute weights. Dense layers are left alone."
        )
    if isinstance(compressor, TwoOfFour):
        return (
            "Of every four neighbouring weights the two nearest to 0 become exactly 0, the pattern "
            "that sparse matrix units of GPUs compute with."
        )
    if isinstance(compressor, Q8_0 | Q4_0):
        bits = 8 if isinstance(compressor, Q8_0) else 4
        return (
            f"GGUF's {compressor.name}: every 32 weights share a scale and are rounded to {bits} "
            f"bits each. {_KEPT}"
        )
    if isinstance(compressor, NF4):
        return (
            "4-bit NormalFloat: every 64 weights are divided by the largest of them and rounded to "
            f"the nearest of 16 values, which are denser around 0. {_KEPT}"
        )
    return f"{compressor.name} maps weights to weights."


def _uniform(one: Uniform) -> str:
    values = 2**one.bits - (0 if one.affine else 1)
    shared = {
        "tensor": "All weights of a layer share one grid",
        "channel": "The weights of each output channel have a grid of their own",
        "group": f"Every {one.group_size} weights have a grid of their own",
    }[one.granularity]
    span = (
        "it reaches from their smallest to their largest weight"
        if one.affine
        else "it reaches equally far to both sides of 0, to the largest of them"
    )
    sentences = [
        f"Rounds every weight of dense and convolution layers to the nearest of {values} values at "
        f"equal distances ({one.bits} bits).",
        f"{shared}; {span}.",
    ]
    if one.power_of_two:
        sentences.append("The distance of two values is rounded up to a power of two.")
    if one.rounding == "stochastic":
        sentences[0] = sentences[0].replace("to the nearest of", "at random to a neighbour among")
        sentences.append("Which of the two neighbours is drawn so that it is right on average.")
    if one.scale_factor != 1:
        sentences.append(f"All distances are multiplied by {one.scale_factor:g}.")
    return " ".join([*sentences, _FOLDED])


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
