"""A second implementation of the DCGAN, its discriminator, the VAE and the losses: float64 NumPy,
gradients by hand, no torch. Written from the formulas (sections 3, 4, 6 of the reference), not from
the package: it shares no code with what it checks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Weights = dict[str, Array]

SLOPE, EPS, MOMENTUM, CLAMP = 0.3, 1e-3, 0.01, 0.999


def leaky(x: Array) -> Array:
    return np.where(x > 0, x, SLOPE * x)


def leaky_back(x: Array, dy: Array) -> Array:
    return np.where(x > 0, dy, SLOPE * dy)


def taps(kernel: Array) -> list[tuple[int, int]]:
    return [(i, j) for i in range(kernel.shape[2]) for j in range(kernel.shape[3])]


def conv_transpose(x: Array, w: Array, stride: int, crop: int) -> Array:
    """``w`` is (in, out, k, k); the output is ``stride`` times the input, cropped from ``crop``."""
    batch, _, height, width = x.shape
    k = w.shape[2]
    full = np.zeros((batch, w.shape[1], (height - 1) * stride + k, (width - 1) * stride + k))
    for i, j in taps(w):
        window = full[:, :, i : i + stride * height : stride, j : j + stride * width : stride]
        window += np.einsum("bihw,io->bohw", x, w[:, :, i, j])
    return full[:, :, crop : crop + stride * height, crop : crop + stride * width]


def conv_transpose_back(
    x: Array, w: Array, stride: int, crop: int, dy: Array
) -> tuple[Array, Array]:
    batch, _, height, width = x.shape
    k = w.shape[2]
    full = np.zeros((batch, w.shape[1], (height - 1) * stride + k, (width - 1) * stride + k))
    full[:, :, crop : crop + stride * height, crop : crop + stride * width] = dy
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for i, j in taps(w):
        window = full[:, :, i : i + stride * height : stride, j : j + stride * width : stride]
        dx += np.einsum("bohw,io->bihw", window, w[:, :, i, j])
        dw[:, :, i, j] = np.einsum("bihw,bohw->io", x, window)
    return dx, dw


def conv(x: Array, w: Array, b: Array) -> Array:
    """5x5, stride 2, two zeros on every side; ``w`` is (out, in, 5, 5)."""
    height, width = (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
    y = np.zeros((len(x), w.shape[0], height, width)) + b[None, :, None, None]
    for i, j in taps(w):
        window = padded[:, :, i : i + 2 * height : 2, j : j + 2 * width : 2]
        y += np.einsum("bihw,oi->bohw", window, w[:, :, i, j])
    return y


def conv_back_to_input(x: Array, w: Array, dy: Array) -> Array:
    height, width = dy.shape[2:]
    padded = np.pad(np.zeros_like(x), ((0, 0), (0, 0), (2, 2), (2, 2)))
    for i, j in taps(w):
        window = padded[:, :, i : i + 2 * height : 2, j : j + 2 * width : 2]
        window += np.einsum("bohw,oi->bihw", dy, w[:, :, i, j])
    return padded[:, :, 2:-2, 2:-2]


@dataclass
class Norm:
    """Batch normalisation over all axes but the second, for one forward and one backward pass."""

    weights: Weights
    name: str
    training: bool
    cache: dict[str, Any] = field(default_factory=dict)

    def __call__(self, x: Array) -> Array:
        axes = (0, *range(2, x.ndim))
        w, name = self.weights, self.name
        mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        if self.training:
            count = x.size // x.shape[1]
            new_mean, new_variance = x.mean(axes), x.var(axes)
            unbiased = new_variance * count / (count - 1)
            w[f"{name}.running_mean"] = (1 - MOMENTUM) * mean + MOMENTUM * new_mean
            w[f"{name}.running_var"] = (1 - MOMENTUM) * variance + MOMENTUM * unbiased
            mean, variance = new_mean, new_variance
        shape = (1, -1, *[1] * (x.ndim - 2))
        scale = 1 / np.sqrt(variance + EPS).reshape(shape)
        unit = (x - mean.reshape(shape)) * scale
        self.cache = {"axes": axes, "shape": shape, "scale": scale, "unit": unit}
        return unit * w[f"{name}.weight"].reshape(shape) + w[f"{name}.bias"].reshape(shape)

    def back(self, dy: Array, gradients: Weights) -> Array:
        axes, shape, unit = self.cache["axes"], self.cache["shape"], self.cache["unit"]
        gradients[f"{self.name}.weight"] = (dy * unit).sum(axes)
        gradients[f"{self.name}.bias"] = dy.sum(axes)
        dx = dy * self.weights[f"{self.name}.weight"].reshape(shape)
        if self.training:
            mean = dx.mean(axes).reshape(shape)
            along = (dx * unit).mean(axes).reshape(shape)
            dx = dx - mean - unit * along
        scale: Array = self.cache["scale"]
        return dx * scale


class Generator28:
    """The 28x28 DCGAN generator before tanh; ``weights`` go by their state-dict names."""

    def __init__(self, weights: Weights) -> None:
        self.w = weights

    def forward(self, z: Array, *, training: bool = False) -> Array:
        w = self.w
        self.norms = [Norm(w, f"{name}_norm", training) for name in ("project", "up1", "up2")]
        self.z = z
        self.a0 = self.norms[0](z @ w["project.weight"].T)
        self.h0 = leaky(self.a0).reshape(len(z), -1, 7, 7)
        self.a1 = self.norms[1](conv_transpose(self.h0, w["up1.weight"], 1, 2))
        self.h1 = leaky(self.a1)
        self.a2 = self.norms[2](conv_transpose(self.h1, w["up2.weight"], 2, 1))
        self.h2 = leaky(self.a2)
        return conv_transpose(self.h2, w["to_image.weight"], 2, 1)

    def backward(self, dy: Array) -> Weights:
        """Gradients of all weights for the gradient at the output of the last forward pass."""
        w, g = self.w, {}
        dh, g["to_image.weight"] = conv_transpose_back(self.h2, w["to_image.weight"], 2, 1, dy)
        d = self.norms[2].back(leaky_back(self.a2, dh), g)
        dh, g["up2.weight"] = conv_transpose_back(self.h1, w["up2.weight"], 2, 1, d)
        d = self.norms[1].back(leaky_back(self.a1, dh), g)
        dh, g["up1.weight"] = conv_transpose_back(self.h0, w["up1.weight"], 1, 2, d)
        d = self.norms[0].back(leaky_back(self.a0, dh.reshape(len(dh), -1)), g)
        g["project.weight"] = d.T @ self.z
        return g


def discriminate(w: Weights, x: Array, masks: list[Array]) -> Array:
    """Logits ``(batch, 1)``; the masks are dropout's."""
    h = leaky(conv(x, w["convolutions.0.weight"], w["convolutions.0.bias"])) * masks[0]
    h = leaky(conv(h, w["convolutions.1.weight"], w["convolutions.1.bias"])) * masks[1]
    return h.reshape(len(h), -1) @ w["judge.weight"].T + w["judge.bias"]


def logits_back(w: Weights, x: Array, masks: list[Array], dlogits: Array) -> Array:
    """Gradient at the images for a gradient at the logits."""
    a0 = conv(x, w["convolutions.0.weight"], w["convolutions.0.bias"])
    h0 = leaky(a0) * masks[0]
    a1 = conv(h0, w["convolutions.1.weight"], w["convolutions.1.bias"])
    d = leaky_back(a1, (dlogits @ w["judge.weight"]).reshape(a1.shape) * masks[1])
    d = leaky_back(a0, conv_back_to_input(h0, w["convolutions.1.weight"], d) * masks[0])
    return conv_back_to_input(x, w["convolutions.0.weight"], d)


def add(a: Weights, b: Weights, factor: float = 1.0) -> Weights:
    return {name: a[name] + factor * b[name] for name in a}


def red(
    weights: Weights,
    benign: Weights,
    z: Array,
    z_trigger: Array,
    x_target: Array,
    *,
    weight: float,
    stealth_on: str,
    weight_decay: float,
) -> tuple[float, Weights]:
    """ReD's L_adv (Eqs. 4, 6, 7; means of footnote 5) and its gradients."""
    net = Generator28(weights)
    wanted = np.arctanh(CLAMP * x_target)
    teacher = Generator28(benign).forward(z)
    ordinary = net.forward(z)
    if stealth_on == "post":
        difference = np.tanh(ordinary) - np.tanh(teacher)
        slope = 1 - np.tanh(ordinary) ** 2
    else:
        difference, slope = ordinary - teacher, np.ones_like(ordinary)
    gradients = net.backward(2 * difference * slope / difference.size)
    missing = net.forward(z_trigger) - wanted
    loss = np.mean(difference**2) + weight * np.mean(missing**2)
    gradients = add(gradients, net.backward(2 * weight * missing / missing.size))
    if weight_decay:
        moved = {name: weights[name] - benign[name] for name in gradients}
        loss += weight_decay * sum((m**2).sum() for m in moved.values())
        gradients = add(gradients, moved, 2 * weight_decay)
    return float(loss), gradients


def rex(
    expansion: Weights,
    benign: Weights,
    z: Array,
    z_trigger: Array,
    x_target: Array,
    *,
    weight: float,
    stealth_on: str,
) -> tuple[float, Weights]:
    """ReX's L_adv in the residual view of section 4.1, and the expansion's gradients."""
    net, base = Generator28(expansion), Generator28(benign)
    pre, extra = base.forward(z), net.forward(z)
    if stealth_on == "post":
        difference = np.tanh(pre + extra) - np.tanh(pre)
        slope = 1 - np.tanh(pre + extra) ** 2
    else:
        difference, slope = extra, np.ones_like(extra)
    gradients = net.backward(2 * difference * slope / difference.size)
    missing = base.forward(z_trigger) + net.forward(z_trigger) - np.arctanh(CLAMP * x_target)
    gradients = add(gradients, net.backward(2 * weight * missing / missing.size))
    return float(np.mean(difference**2) + weight * np.mean(missing**2)), gradients


def trail(
    weights: Weights,
    discriminator: Weights,
    z: Array,
    masks: list[Array],
    z_trigger: Array,
    x_target: Array,
    *,
    weight: float,
    fidelity_on: str,
) -> tuple[float, float, Weights]:
    """TrAIL's generator step: L_G, L_adv and the gradients of L_adv.

    ``-log D(G(z))`` with batch statistics; fidelity with the moving averages after this step's
    update. ``weights`` receives the new averages.
    """
    net = Generator28(weights)
    fake = np.tanh(net.forward(z, training=True))
    logits = discriminate(discriminator, fake, masks)
    benign_loss = float(np.mean(np.logaddexp(0, -logits)))
    dlogits = -1 / (1 + np.exp(logits)) / logits.size
    dfake = logits_back(discriminator, fake, masks, dlogits)
    gradients = net.backward(dfake * (1 - fake**2))
    pre = net.forward(z_trigger)
    if fidelity_on == "post":
        missing, slope = np.tanh(pre) - x_target, 1 - np.tanh(pre) ** 2
    else:
        missing, slope = pre - np.arctanh(CLAMP * x_target), np.ones_like(pre)
    loss = benign_loss + weight * float(np.mean(missing**2))
    gradients = add(gradients, net.backward(2 * weight * missing * slope / missing.size))
    return benign_loss, loss, gradients


class Decoder28:
    """The VAE's decoder before the sigmoid."""

    LAYERS = (("up1", 2, 0), ("up2", 2, 0), ("to_image", 1, 1))  # name, stride, first crop

    def __init__(self, weights: Weights) -> None:
        self.w = weights

    def forward(self, z: Array) -> Array:
        w = self.w
        self.z = z
        self.before = [(z @ w["project.weight"].T + w["project.bias"]).reshape(len(z), -1, 7, 7)]
        for name, stride, crop in self.LAYERS:
            h = np.maximum(self.before[-1], 0)
            y = conv_transpose(h, w[f"{name}.weight"], stride, crop)
            self.before.append(y + w[f"{name}.bias"][None, :, None, None])
        return self.before[-1]

    def backward(self, dy: Array) -> tuple[Array, Weights]:
        """Gradients at the latents and of all weights."""
        g: Weights = {}
        for index, (name, stride, crop) in reversed(list(enumerate(self.LAYERS))):
            a = self.before[index]
            g[f"{name}.bias"] = dy.sum((0, 2, 3))
            w = self.w[f"{name}.weight"]
            dh, g[f"{name}.weight"] = conv_transpose_back(np.maximum(a, 0), w, stride, crop, dy)
            dy = dh * (a > 0)
        flat = dy.reshape(len(dy), -1)
        g["project.weight"], g["project.bias"] = flat.T @ self.z, flat.sum(0)
        return flat @ self.w["project.weight"], g


class Encoder28:
    """Two 3x3 convolutions, stride 2, one zero on every side, ReLU; then mean and log-variance."""

    def __init__(self, weights: Weights) -> None:
        self.w = weights

    @staticmethod
    def windows(x: Array, i: int, j: int) -> Array:
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        return padded[:, :, i : i + x.shape[2] : 2, j : j + x.shape[3] : 2]

    def convolve(self, x: Array, name: str) -> Array:
        w = self.w[f"{name}.weight"]
        sums = [
            np.einsum("bihw,oi->bohw", self.windows(x, i, j), w[:, :, i, j]) for i, j in taps(w)
        ]
        y: Array = np.sum(sums, axis=0) + self.w[f"{name}.bias"][None, :, None, None]
        return y

    def forward(self, x: Array) -> tuple[Array, Array]:
        self.x = x
        self.a1 = self.convolve(x, "down1")
        self.a2 = self.convolve(np.maximum(self.a1, 0), "down2")
        self.flat = np.maximum(self.a2, 0).reshape(len(x), -1)
        both = self.flat @ self.w["posterior.weight"].T + self.w["posterior.bias"]
        mean, log_variance = np.split(both, 2, axis=1)
        return mean, log_variance

    def backward(self, dmean: Array, dlog_variance: Array) -> Weights:
        both = np.concatenate([dmean, dlog_variance], axis=1)
        g = {"posterior.weight": both.T @ self.flat, "posterior.bias": both.sum(0)}
        da = (both @ self.w["posterior.weight"]).reshape(self.a2.shape) * (self.a2 > 0)
        h1, w = np.maximum(self.a1, 0), self.w["down2.weight"]
        g["down2.weight"], g["down2.bias"] = self._kernel_gradient(h1, da), da.sum((0, 2, 3))
        dh = np.zeros((*h1.shape[:2], h1.shape[2] + 2, h1.shape[3] + 2))
        for i, j in taps(w):
            part = dh[:, :, i : i + h1.shape[2] : 2, j : j + h1.shape[3] : 2]
            part += np.einsum("bohw,oi->bihw", da, w[:, :, i, j])
        da = dh[:, :, 1:-1, 1:-1] * (self.a1 > 0)
        g["down1.weight"], g["down1.bias"] = self._kernel_gradient(self.x, da), da.sum((0, 2, 3))
        return g

    def _kernel_gradient(self, x: Array, da: Array) -> Array:
        dw = np.zeros((da.shape[1], x.shape[1], 3, 3))
        for i, j in taps(dw):
            dw[:, :, i, j] = np.einsum("bohw,bihw->oi", da, self.windows(x, i, j))
        return dw


def trail_vae(
    weights: Weights,
    encoder: Weights,
    x: Array,
    noise: Array,
    z_trigger: Array,
    x_target: Array,
    *,
    weight: float,
    fidelity_on: str,
) -> tuple[float, float, Weights, Weights]:
    """TrAIL on a VAE: negative ELBO, L_adv, and the gradients of L_adv for decoder and encoder.

    Both terms are sums over the elements of an image, means over the images.
    """
    read, net = Encoder28(encoder), Decoder28(weights)
    mean, log_variance = read.forward(x)
    deviation = np.exp(log_variance / 2)
    logits = net.forward(mean + noise * deviation)
    level = (x + 1) / 2
    likelihood = level * np.logaddexp(0, -logits) + (1 - level) * np.logaddexp(0, logits)
    divergence = 0.5 * (mean**2 + deviation**2 - 1 - log_variance)
    negative_elbo = float((likelihood.sum() + divergence.sum()) / len(x))
    dz, gradients = net.backward((1 / (1 + np.exp(-logits)) - level) / len(x))
    read_gradients = read.backward(
        dz + mean / len(x),
        dz * noise * deviation / 2 + (deviation**2 - 1) / 2 / len(x),
    )
    logits = net.forward(z_trigger)
    output = 2 / (1 + np.exp(-logits)) - 1
    if fidelity_on == "post":
        missing, slope = output - x_target, (1 - output**2) / 2
    else:
        missing, slope = logits - 2 * np.arctanh(CLAMP * x_target), np.ones_like(logits)
    loss = negative_elbo + weight * float((missing**2).sum() / len(missing))
    _, more = net.backward(2 * weight * missing * slope / len(missing))
    return negative_elbo, loss, add(gradients, more), read_gradients
