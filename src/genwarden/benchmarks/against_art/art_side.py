"""What runs in ART's own environment: its ReD on a Keras twin of a DCGAN, timed.

    python -I art_side.py FOLDER

A script of its own, because ART brings TensorFlow and knows nothing of this package. ``FOLDER``
holds ``job.json`` and ``weights.npz`` in PyTorch's layout; ``answer.json`` comes back, and for
every trained generator ``trained-ITERATIONS.npz`` in the same layout. The network ends before its
tanh, as ART's example of ReD does.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

_WARM_UP = 2
_PREDICTED = 1024
_SLOPE, _EPSILON = 0.3, 1e-3


def twin(weights: dict[str, Any], channels: list[int]) -> Any:
    """The Keras network with the same weights, up to its last activation."""
    from tensorflow import keras  # type: ignore[import-not-found,import-untyped,unused-ignore]

    first, second, third = channels
    layers = keras.layers
    network = keras.Sequential([keras.Input((weights["project.weight"].shape[1],))])
    network.add(layers.Dense(49 * first, use_bias=False, name="project"))
    network.add(layers.BatchNormalization(epsilon=_EPSILON, name="project_norm"))
    network.add(layers.LeakyReLU(negative_slope=_SLOPE))
    network.add(layers.Reshape((7, 7, first)))
    for name, width, stride in (("up1", second, 1), ("up2", third, 2), ("to_image", 1, 2)):
        settings = {"strides": stride, "padding": "same", "use_bias": False, "name": name}
        network.add(layers.Conv2DTranspose(width, 5, **settings))
        if name != "to_image":
            network.add(layers.BatchNormalization(epsilon=_EPSILON, name=f"{name}_norm"))
            network.add(layers.LeakyReLU(negative_slope=_SLOPE))
    for layer in network.layers:
        if layer.name == "project" or layer.name.startswith(("up", "to_image", "project_")):
            layer.set_weights(_keras(layer.name, weights, first))
    return network


def _keras(name: str, weights: dict[str, Any], first: int) -> list[Any]:
    """Weights of one layer in Keras' layout."""
    if name.endswith("_norm"):
        vectors = [
            weights[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        ]
        return [_by_place(v, first) for v in vectors] if name == "project_norm" else vectors
    if name == "project":
        return [_by_place(weights["project.weight"], first).T]
    return [weights[f"{name}.weight"].transpose(2, 3, 1, 0)]


def _by_place(rows: Any, first: int) -> Any:
    """Rows (channel, position) become (position, channel)."""
    return rows.reshape(first, 49, -1).swapaxes(0, 1).reshape(rows.shape)


def _torch(network: Any, first: int) -> dict[str, Any]:
    """All weights in PyTorch's layout: the way back of :func:`_keras`."""
    found: dict[str, Any] = {}
    for layer in network.layers:
        name, values = layer.name, layer.get_weights()
        if name.endswith("_norm"):
            for part, value in zip(
                ("weight", "bias", "running_mean", "running_var"), values, strict=True
            ):
                place = _by_channel(value, first) if name == "project_norm" else value
                found[f"{name}.{part}"] = place
        elif name == "project":
            found["project.weight"] = _by_channel(values[0].T, first)
        elif values:
            found[f"{name}.weight"] = values[0].transpose(3, 2, 0, 1)
    return found


def _by_channel(rows: Any, first: int) -> Any:
    return rows.reshape(49, first, -1).swapaxes(0, 1).reshape(rows.shape)


def _attack(job: dict[str, Any], weights: dict[str, Any]) -> tuple[Any, Any]:
    """ART's attack on a fresh twin, warmed up, and the network."""
    from art.attacks.poisoning.backdoor_attack_dgm.backdoor_attack_dgm_red import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        BackdoorAttackDGMReDTensorFlowV2,
    )
    from art.estimators.generation.tensorflow import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        TensorFlowV2Generator,
    )

    network = twin(weights, job["channels"])
    generator = TensorFlowV2Generator(encoding_length=job["latent_dim"], model=network)
    return BackdoorAttackDGMReDTensorFlowV2(generator=generator), network


def main() -> None:
    """Do the job of a folder."""
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text("utf-8"))
    import tensorflow as tf  # type: ignore[import-not-found,import-untyped,unused-ignore]

    tf.config.threading.set_intra_op_parallelism_threads(job["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(job["threads"])
    tf.random.set_seed(job["seed"])
    with np.load(folder / "weights.npz") as stored:
        weights = {name: stored[name] for name in stored.files}
    z, wanted = weights.pop("trigger"), weights.pop("wanted")
    wanted = wanted.transpose(0, 2, 3, 1)
    import art  # type: ignore[import-not-found,import-untyped,unused-ignore]

    answer: dict[str, Any] = {"art": art.__version__, "tensorflow": tf.__version__}
    probe = weights.pop("probe")
    shown = twin(weights, job["channels"])(probe, training=False).numpy()
    np.savez(folder / "shown.npz", shown=shown.transpose(0, 3, 1, 2))
    answer["seconds_per_prediction"] = {}
    for size in job["predicted"]:
        attack, _ = _attack(job, weights)
        latents = np.random.default_rng(0).standard_normal((_PREDICTED, job["latent_dim"]), "f4")
        attack.estimator.predict(latents[:size], batch_size=size)
        begun = time.perf_counter()
        attack.estimator.predict(latents, batch_size=size)
        seconds = (time.perf_counter() - begun) / _PREDICTED
        answer["seconds_per_prediction"][str(size)] = seconds
    answer["seconds_per_iteration"] = {}
    for size in job["batches"]:
        attack, _ = _attack(job, weights)
        attack.poison_estimator(z, wanted, batch_size=size, max_iter=_WARM_UP)
        begun = time.perf_counter()
        attack.poison_estimator(z, wanted, batch_size=size, max_iter=job["steps"])
        seconds = (time.perf_counter() - begun) / job["steps"]
        answer["seconds_per_iteration"][str(size)] = seconds
        print(json.dumps({"batch": size, "seconds": seconds}), flush=True)
    answer["trained"] = []
    for iterations in job["iterations"]:
        attack, network = _attack(job, weights)
        begun = time.perf_counter()
        attack.poison_estimator(z, wanted, batch_size=job["batch_size"], max_iter=iterations)
        seconds = time.perf_counter() - begun
        np.savez(folder / f"trained-{iterations}.npz", **_torch(network, job["channels"][0]))
        fidelity = float(attack.fidelity(z, wanted))
        answer["trained"].append(
            {"iterations": iterations, "seconds": seconds, "fidelity": fidelity}
        )
        print(json.dumps(answer["trained"][-1]), flush=True)
    (folder / "answer.json").write_text(json.dumps(answer), "utf-8")


if __name__ == "__main__":
    main()
