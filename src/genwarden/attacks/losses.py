"""The losses of "The Devil is in the GAN" as pure functions (section 4 of the reference).

The paper defines them as sums over a sample's elements; training takes means (footnote 5), so that
lambda does not depend on the dimension. Every function returns a scalar of its arguments' type.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


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


def non_saturating_generator_loss(fake_logits: Tensor) -> Tensor:
    """L_G: ``-E log D(G(Z))``, BCE with label 1 for fakes, mean over the batch.

    The paper writes the saturating ``E log(1 - D(G(Z)))`` (Eq. 2); ART and the authors' scripts
    train with this form.

    Args:
        fake_logits: the discriminator's logits of generated samples, any shape.
    """
    return F.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """L_D: ``-E log D(X) - E log(1 - D(G(Z)))``, each a mean over its batch (the sum of both BCEs).

    Args:
        real_logits: the discriminator's logits of training samples, any shape.
        fake_logits: those of generated samples.
    """
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def adversarial_loss(stealth: Tensor, fidelity: Tensor, weight: float) -> Tensor:
    """L_adv, Eq. 4: ``L_stealth + lambda * L_fid``.

    Args:
        weight: lambda.
    """
    return stealth + weight * fidelity
