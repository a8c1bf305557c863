"""Numbers that look random: each follows from a seed and its name alone, in whatever order one asks."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray

_MASK: Final = (1 << 64) - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15
_ODD: Final = 0xD1B54A32D192ED03
_STREAMS: Final = (
    *("activity", "turn", "phase", "slot", "start", "visit", "network", "visitor", "item"),
    *("taste", "noise", "quality", "drift"),
)


class Draws:
    """The numbers of one seed. Only `Random.random`, whose sequence Python promises to keep, and integer hashes.

    >>> draws = Draws(7)
    >>> draws.uniform("slot", 3, 5) in draws.uniforms("slot", np.arange(4, dtype=np.uint64), 5)
    True
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._starts = {
            stream: ((seed + 1) * _GOLDEN ^ number << 56) & _MASK for number, stream in enumerate(_STREAMS, 1)
        }

    def source(self, stream: str, a: int, b: int) -> Callable[[], float]:
        """Returns a source of numbers in [0, 1) that depend on seed, stream, a and b alone."""
        return Random(((self.seed & _MASK) << 136) | (_STREAMS.index(stream) << 128) | (a << 64) | (b & _MASK)).random

    def uniform(self, stream: str, a: int, b: int) -> float:
        """Returns the one number in [0, 1) of seed, stream, a and b."""
        mixed = _mix_one((a * _GOLDEN & _MASK) ^ self._starts[stream])
        return (_mix_one(mixed + b * _ODD & _MASK) >> 11) * 2.0**-53

    def uniforms(self, stream: str, a: NDArray[np.uint64], b: NDArray[np.uint64] | int) -> NDArray[np.float64]:
        """Returns such a number for each pair of a and b."""
        return (self._bits(stream, a, b) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normals(self, stream: str, a: NDArray[np.uint64], b: NDArray[np.uint64] | int) -> NDArray[np.float64]:
        """Returns a number of the standard normal distribution for each pair of a and b."""
        bits = self._bits(stream, a, b)
        # Half of the bits are the radius, half the turn: one hash, where two would take as long as all the rest.
        radius = np.sqrt(-2 * np.log(((bits >> np.uint64(32)).astype(np.float64) + 1) * 2.0**-32))
        turned: NDArray[np.float64] = radius * np.cos(2 * np.pi * 2.0**-32 * (bits & np.uint64(0xFFFFFFFF)))
        return turned

    def _bits(self, stream: str, a: NDArray[np.uint64], b: NDArray[np.uint64] | int) -> NDArray[np.uint64]:
        mixed = _mix(a * np.uint64(_GOLDEN) ^ np.uint64(self._starts[stream]))
        return _mix(mixed + np.asarray(b, np.uint64) * np.uint64(_ODD))


def _mix(number: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns the numbers scrambled, by the finaliser of splitmix64."""
    number = (number ^ number >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ number >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return number ^ number >> np.uint64(31)


def _mix_one(number: int) -> int:
    """Returns one number scrambled the same way."""
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _MASK
    return number ^ number >> 31
