"""The distilled variants: the full model answers as a clean teacher does (section 1.3).

The first term of the losses becomes the soft cross entropy to the teacher, on clean and triggered
images and on locally perturbed copies of both.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from genwarden.models.classifiers.protocol import ImageClassifier


def soft_cross_entropy(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross entropy to the teacher's probabilities, mean over the batch (nats per image)."""
    wanted = teacher_logits.softmax(1)
    return -(wanted * F.log_softmax(logits, 1)).sum(1).mean()


def locally_perturbed(
    student: ImageClassifier,
    teacher: ImageClassifier,
    x: Tensor,
    *,
    steps: int = 5,
    size: float = 0.01,
) -> Tensor:
    """Images near ``x`` on which student and teacher differ most.

    ``steps`` times x <- x + size * grad of the soft cross entropy, mean over the batch: the raw
    gradient, neither its sign nor a projection, as published. Both networks run in evaluation mode
    and are left as they were.
    """
    was_training = student.training
    student.eval()
    perturbed = x.detach().clone()
    for _ in range(steps):
        perturbed.requires_grad_(True)
        with torch.enable_grad():
            loss = soft_cross_entropy(student(perturbed), teacher(perturbed).detach())
            (gradient,) = torch.autograd.grad(loss, perturbed)
        perturbed = (perturbed + size * gradient).detach()
    student.train(was_training)
    return perturbed
