"""Randomness without hidden state: every random act derives from (run seed, purpose, index)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(run_seed: int, purpose: str, index: int = 0) -> int:
    """A 63-bit seed that depends on its three arguments alone (SHA-256).

    Neighbouring run seeds and indices give unrelated streams, and the number of workers or the
    order of blocks cannot change any of them.
    """
    digest = hashlib.sha256(f"{run_seed}\x1f{purpose}\x1f{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def random_stream(run_seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A CPU generator seeded by :func:`derive_seed`.

    Always on the CPU, so that the same seed gives the same latents on every device.
    """
    return torch.Generator("cpu").manual_seed(derive_seed(run_seed, purpose, index))


@contextmanager
def noise_fixed(
    device: torch.device, run_seed: int, purpose: str, index: int = 0
) -> Iterator[None]:
    """Noise that networks draw inside the block, from torch's global streams, is always the same.

    It depends on the last three arguments alone, and what is drawn after the block is what would
    have been drawn without it: work that is done once, for whoever asks first, shifts nothing.

    Args:
        device: where the networks compute.
    """
    cuda = [device] if device.type == "cuda" else []
    seed = derive_seed(run_seed, purpose, index)
    with torch.random.fork_rng(devices=cuda):
        # Not torch.manual_seed: it notes the call stack for a GPU that may never be used, which
        # costs more than a small network's block.
        torch.default_generator.manual_seed(seed)
        for each in cuda:
            place = torch.cuda.current_device() if each.index is None else each.index
            torch.cuda.default_generators[place].manual_seed(seed)
        yield
