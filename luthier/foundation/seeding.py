"""Every random choice is a function of (seed, where it is made), so a resumed run makes the same ones.

`torch` is imported inside functions only: configs are checked without it.
"""

from __future__ import annotations

import hashlib
import random


def derive_seed(seed: int, *where: int | str) -> int:
    """A 63-bit seed from a base seed and a place, e.g. `derive_seed(42, "order", epoch)`."""
    text = "/".join(map(str, (seed, *where)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def permutation(count: int, seed: int, *where: int | str) -> list[int]:
    """A shuffled `range(count)`, the same for the same arguments on every machine and version of Python 3."""
    order = list(range(count))
    random.Random(derive_seed(seed, *where)).shuffle(order)  # noqa: S311 - an order, not a secret
    return order


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's (every device's) generators."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Reseed all generators for one optimizer step of one rank: a run resumed at any step draws the same numbers."""
    seed_everything(derive_seed(seed, "step", step, rank))
