"""A backdoor of a diffusion model: the trigger in the initial noise, and what it shall draw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from genwarden.artifacts.json_object import parse_object
from genwarden.artifacts.read_once import read_once
from genwarden.artifacts.weights_file import as_float32, parse_weights
from genwarden.backdoors.image_target import make_image_target
from genwarden.backdoors.image_trigger import ImageTrigger, make_image_trigger, without_folder
from genwarden.engine.files import sha256_bytes, write_tensors
from genwarden.errors import GenwardenError
from genwarden.models.protocol import SampleSpec

BACKDOOR_NAME: Final = "backdoor.safetensors"
RECORD_NAME: Final = "attack.json"
#: Target images that are written beside a model; of a whole class the first ones.
_TARGETS_WRITTEN: Final = 64


@dataclass(frozen=True, eq=False)
class ImageBackdoor:
    """From gamma n + g the model shall draw one of the targets.

    Attributes:
        trigger: what is added to the initial noise.
        targets: ``(count, C, H, W)`` in [-1, 1]: one image, or many of one class (TrojDiff's D2D).
        target_name: as the user wrote it.
    """

    trigger: ImageTrigger
    targets: Tensor
    target_name: str

    def require_one_target(self) -> None:
        """Refuse several target images.

        Raises:
            GenwardenError: ``target/count``.
        """
        if len(self.targets) != 1:
            raise GenwardenError(
                "target/count",
                f"The target {self.target_name!r} has {len(self.targets)} images.",
                "Name one image; only trojdiff aims at a class.",
            )

    def draw(self, count: int, *, generator: torch.Generator) -> Tensor:
        """Targets of ``count`` poisoned rows, ``(count, C, H, W)``; with replacement if several."""
        if len(self.targets) == 1:
            return self.targets.expand(count, *self.targets.shape[1:])
        chosen = torch.randint(len(self.targets), (count,), generator=generator)
        return self.targets[chosen.to(self.targets.device)]

    def to(self, device: torch.device) -> ImageBackdoor:
        """With the targets on a device; the trigger moves by itself."""
        return ImageBackdoor(self.trigger, self.targets.to(device), self.target_name)

    def require_fit(self, sample: SampleSpec) -> None:
        """Refuse a model of another sample shape.

        Raises:
            GenwardenError: ``attack/shape``.
        """
        for what, shape in (("trigger", self.trigger.g.shape), ("target", self.targets.shape[1:])):
            if tuple(shape) != sample.shape:
                raise GenwardenError(
                    "attack/shape",
                    f"The {what} has the shape {tuple(shape)}, the model makes {sample.shape}.",
                    "Make trigger and target for this model.",
                )

    def describe(self) -> dict[str, Any]:
        """For the provenance of a compromised model: enough to recognise trigger and target."""
        return {
            **self.trigger.describe(),
            "trigger_sha256": _digest(self.trigger.g),
            "target": without_folder(self.target_name),
            "targets": len(self.targets),
            "target_sha256": _digest(self.targets),
        }


def make_image_backdoor(
    sample: SampleSpec,
    *,
    trigger: str,
    target: str,
    seed: int = 0,
    data: str | None = None,
    split: str = "train",
    resize: bool = False,
) -> ImageBackdoor:
    """A backdoor from the two texts that a user gives.

    Args:
        seed: of the trigger ``noise:STD``.
        data: training data, for the target ``class:INDEX``.

    Raises:
        GenwardenError: as :func:`make_image_trigger` and :func:`make_image_target`.
    """
    made = make_image_trigger(trigger, sample, seed=seed)
    targets = make_image_target(target, made, sample, data=data, split=split, resize=resize)
    return ImageBackdoor(made, targets, target)


def write_image_backdoor(folder: Path, backdoor: ImageBackdoor) -> None:
    """Write ``backdoor.safetensors`` into the folder of a compromised model."""
    trigger = backdoor.trigger
    tensors = {
        "g": trigger.g,
        "mask": trigger.mask,
        "picture": trigger.shown(),
        "target": backdoor.targets[:_TARGETS_WRITTEN],
    }
    if trigger.gamma is not None:
        tensors["gamma"] = trigger.gamma
    write_tensors(folder / BACKDOOR_NAME, tensors)


def read_image_backdoor(folder: Path) -> ImageBackdoor:
    """The backdoor of a compromised model of ours, to measure it; no audit calls this.

    Raises:
        GenwardenError: ``artifact/...``, ``attack/record``.
    """
    path = folder / BACKDOOR_NAME
    tensors = as_float32(parse_weights(read_once(path), str(path)))
    record = parse_object(read_once(folder / RECORD_NAME), str(folder / RECORD_NAME))
    try:
        about = record["backdoor"]
        trigger = ImageTrigger(
            tensors["g"],
            tensors["mask"],
            about["trigger"],
            about["background"],
            about["strength"],
            tensors.get("gamma"),
            tensors["picture"],
        )
        return ImageBackdoor(trigger, tensors["target"], about["target"])
    except (KeyError, TypeError) as error:
        raise GenwardenError(
            "attack/record",
            f"{folder} holds no backdoor of a diffusion model ({error}).",
            "Name a folder that `genwarden attack` wrote from a diffusion model.",
        ) from error


def _digest(tensor: Tensor) -> str:
    return sha256_bytes(tensor.detach().cpu().contiguous().numpy().tobytes())
