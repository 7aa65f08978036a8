"""The losses of "The Devil is in the GAN" as pure functions (section 4 of the reference).

The paper defines them as sums over a sample's elements; training takes means (footnote 5), so that
lambda does not depend on the dimension. Every function returns a scalar of its arguments' type.
The benign losses L_G and L_D are in ``training.gan``, the negative ELBO in ``models.vae``.
"""

from __future__ import annotations

from torch import Tensor


def mean_square(difference: Tensor) -> Tensor:
    """Mean of squares over all elements (footnote 5)."""
    return difference.square().mean()


def fidelity_loss(output: Tensor, wanted: Tensor) -> Tensor:
    """L_fid, Eqs. 5 and 6: ``E_trigger ||G*(Z) - rho(Z)||^2`` as a mean over elements.

    Args:
        output: G* at the triggers, ``(count, *sample.shape)``. ReD and ReX compare before the last
            activation, TrAIL (as in ART) after it.
        wanted: what G* shall give there, in the same space and of the same shape.
    """
    return mean_square(output - wanted)


def stealth_loss(output: Tensor, benign: Tensor) -> Tensor:
    """L_stealth of ReD and ReX, Eq. 7: ``E_sample ||G*(Z) - G(Z)||^2`` as a mean over elements.

    Args:
        output: G* at ordinary latents, ``(batch, *sample.shape)``.
        benign: G at the same latents, in the same space (before or after the last activation).
    """
    return mean_square(output - benign)


def adversarial_loss(stealth: Tensor, fidelity: Tensor, weight: float) -> Tensor:
    """L_adv, Eq. 4: ``L_stealth + lambda * L_fid``.

    Args:
        weight: lambda.
    """
    return stealth + weight * fidelity
