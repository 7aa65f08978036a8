"""The device of a run."""

from __future__ import annotations

import torch

from genwarden.errors import GenwardenError


def pick_device(name: str) -> torch.device:
    """``auto`` takes the GPU if there is one; a device that is named but absent is an error."""
    # TF32 would change the fourth digit of every convolution, and with it scores and verdicts.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in {"cpu", "cuda"}:
            raise RuntimeError("only cpu and cuda are supported")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise GenwardenError(
            "usage/device",
            f"Device {name!r} cannot be used ({str(error).splitlines()[0][:120]}).",
            "Use --device auto or --device cpu.",
        ) from error
    return device
