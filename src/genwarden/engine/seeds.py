"""Randomness without hidden state: every random act derives from (run seed, purpose, index)."""

from __future__ import annotations

import hashlib

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
