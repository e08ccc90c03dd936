"""One seed sequence per (study seed, purpose, ...): no result depends on the order in which centres or notebooks run."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def seed_sequence(seed: int, *keys: str | int) -> np.random.SeedSequence:
    """A seed sequence that depends on the study's seed and on these keys alone, the same on every machine and run.

    Args:
        seed: the study's seed, >= 0.
        keys: what the numbers are for, e.g. ("A", "order", 3); strings enter by their CRC-32.
    """
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    words = [key if isinstance(key, int) else zlib.crc32(key.encode()) for key in keys]
    return np.random.SeedSequence([seed, *words])


@contextmanager
def torch_seed(sequence: np.random.SeedSequence) -> Iterator[None]:
    """Within the block torch's global CPU generator starts from `sequence`; afterwards it is as it was. For module initialisation."""
    import torch  # here: `vfmgl predict` reads volumes on machines that have no torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
        yield
