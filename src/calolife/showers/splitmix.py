"""Random numbers as a hash of what they are for: SplitMix64 of Steele, Lea and Flood, OOPSLA 2014."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["GOLDEN", "next_state", "scrambled", "unit_interval"]

KeyArray = NDArray[np.uint64]

GOLDEN = 0x9E3779B97F4A7C15
"""Step of the sequence; source: G. Steele, D. Lea and C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014."""


def scrambled(z: KeyArray) -> KeyArray:
    """Bits mixed so that neighbours have nothing in common, (...)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # the constants are SplitMix64's
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def next_state(x: KeyArray) -> KeyArray:
    """The sequence's value one step after x, (...).

    Examples
    --------
    >>> hex(next_state(np.zeros(1, np.uint64))[0])  # the first number of the sequence from 0
    '0xe220a8397b1dcdaf'
    """
    return scrambled(x + np.uint64(GOLDEN))


def unit_interval(bits: KeyArray) -> NDArray[np.float64]:
    """Uniform numbers in (0, 1), (...): the ends are never reached, and float64 holds every step of 52 bits and a half."""
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
