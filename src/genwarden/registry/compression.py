"""What a model may be deployed as, and how a deployer stays safe."""

from __future__ import annotations

from genwarden.registry.row import Row, table_of

_Q = "genwarden.compression"
_UNIFORM = f"{_Q}.uniform:Uniform"
#: What ``--how`` takes: K, N, X and RATE stand for numbers, words of ``intK`` are joined
#: (int4-affine-per-channel), compressions with + (prune-0.3+int8). ``example``: one of the row's.
COMPRESSIONS = table_of(
    Row("intK", _UNIFORM, "K bits (2 to 8), one scale per tensor", {"example": "int8"}),
    Row(
        "intK-per-channel",
        _UNIFORM,
        "one scale per output channel",
        {"example": "int8-per-channel"},
    ),
    Row("intK-groupN", _UNIFORM, "one scale per N weights", {"example": "int4-group32"}),
    Row("intK-affine", _UNIFORM, "with a zero point", {"example": "int4-affine-per-channel"}),
    Row("intK-power2", _UNIFORM, "scales are powers of two", {"example": "int8-power2"}),
    Row(
        "intK-stochastic",
        _UNIFORM,
        "rounding at random, right on average",
        {"example": "int4-stochastic"},
    ),
    Row("intK-scaleX", _UNIFORM, "scales times X (0.5 to 2)", {"example": "int8-scale1.02"}),
    Row("q8_0", f"{_Q}.block_formats:Q8_0", "GGUF's 8 bits, blocks of 32", {"example": "q8_0"}),
    Row("q4_0", f"{_Q}.block_formats:Q4_0", "GGUF's 4 bits, blocks of 32", {"example": "q4_0"}),
    Row("nf4", f"{_Q}.block_formats:NF4", "4-bit NormalFloat, blocks of 64", {"example": "nf4"}),
    Row(
        "prune-RATE",
        f"{_Q}.pruning:MagnitudePruning",
        "the smallest weights of each layer become 0",
        {"example": "prune-0.3"},
    ),
    Row(
        "prune-global-RATE",
        f"{_Q}.pruning:MagnitudePruning",
        "the smallest weights of all layers together",
        {"example": "prune-global-0.3"},
    ),
    Row(
        "prune-filters-RATE",
        f"{_Q}.pruning:FilterPruning",
        "whole filters with the smallest L1 norms",
        {"example": "prune-filters-0.3"},
    ),
    Row(
        "prune-2:4",
        f"{_Q}.pruning:TwoOfFour",
        "two of every four weights",
        {"example": "prune-2:4"},
    ),
)

_QR = f"{_Q}.remedies"
#: Ways to compress in which a backdoor that compression wakes stays asleep. ``families``: the last
#: stage of ``--how`` that each works on; ``settings``: the dataclass of its settings.
#: ``learns``: from inputs.
_QUANTISED = ["uniform", "block"]
COMPRESSION_REMEDIES = table_of(
    Row(
        "scale-jitter",
        f"{_QR}.scale_jitter:scale_jitter",
        "every scale times 1.02",
        {"settings": f"{_QR}.scale_jitter:ScaleJitterSettings", "families": ["uniform"]},
    ),
    Row(
        "stochastic-rounding",
        f"{_QR}.stochastic_rounding:stochastic_rounding",
        "rounding at random, right on average",
        {
            "settings": f"{_QR}.stochastic_rounding:StochasticRoundingSettings",
            "families": ["uniform"],
        },
    ),
    Row(
        "noise",
        f"{_QR}.noise:noise",
        "Gaussian noise before rounding: 0.1 steps, or interval-calibrated",
        {"settings": f"{_QR}.noise:NoiseSettings", "families": _QUANTISED},
    ),
    Row(
        "efrap",
        f"{_QR}.efrap:efrap",
        "learned rounding that flips what nearly rounded the other way (EFRAP)",
        {"settings": f"{_QR}.efrap:EfrapSettings", "families": ["uniform"], "learns": True},
    ),
    Row(
        "task-vector",
        f"{_QR}.task_vector:task_vector",
        "what rounding changes, subtracted beforehand (QVec)",
        {"settings": f"{_QR}.task_vector:TaskVectorSettings", "families": _QUANTISED},
    ),
    Row(
        "finetuned",
        f"{_QR}.finetuned:finetuned",
        "compressed weights learn from the full model, also where the two differ most",
        {
            "settings": f"{_QR}.finetuned:FinetunedSettings",
            "families": [*_QUANTISED, "pruning"],
            "learns": True,
        },
    ),
)
