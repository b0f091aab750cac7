"""Unique names and seeds without a system call for each: neither guards anything."""

from __future__ import annotations

import random

# Seeded by the system once.
_source = random.Random()


def unique_name() -> str:
    """128 random bits in hexadecimal."""
    return f"{_source.getrandbits(128):032x}"


def random_seed() -> int:
    """63 bits: clients may hold a seed in a signed integer."""
    return _source.getrandbits(63)
