"""What follows from a network's weights: draws that nobody knows before the weights are final."""

from __future__ import annotations

from torch import nn

from genwarden.engine.files import sha256_bytes


def fingerprint_of(network: nn.Module) -> str:
    """Hash of parameters and buffers.

    Where an inspection draws something that an attacker could train for (signs of placebos,
    timesteps), the draw follows from this: to change it, the weights must change, and with them
    the draw.
    """
    state = network.state_dict()
    parts = (state[name].cpu().contiguous().numpy().tobytes() for name in sorted(state))
    return sha256_bytes(b"".join(parts))
