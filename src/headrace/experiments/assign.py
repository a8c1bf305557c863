"""Which arm a visitor belongs to: GrowthBook's hash, version 2, so that its SDKs agree.

The hash is taken over UTF-16 code units, as the JavaScript SDK does it: that is the SDK that meets a visitor's id in
the page. The Python SDK takes code points, which are the same numbers for all text outside of emoji and rare scripts
(the basic plane); the Go SDK takes UTF-8 bytes and agrees for ASCII only. So ids should be ASCII, as ours are.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from headrace.base.errors import CallError

NUM_BUCKETS = 10_000
"""A visitor falls into one of so many buckets; an allocation is a whole number of them."""

_OFFSET = 0x811C9DC5
_PRIME = 0x01000193
_MASK = 0xFFFFFFFF

_MAX_DIGITS = 10
# States of one block: 256 KB stay in the cache of a core, and memory stays bounded for any number of seeds and ids.
_BLOCK = 1 << 16
_BLOCK_IDS = 1 << 13
# A longer id is nobody's visitor; the loop over its letters is not worth an array operation each.
_LONG = 256


def _code_units(text: str) -> Sequence[int]:
    if text.isascii():
        return text.encode("ascii")
    encoded = text.encode("utf-16-le", "surrogatepass")
    return struct.unpack(f"<{len(encoded) // 2}H", encoded)


def _fnv1a32(units: Sequence[int], state: int = _OFFSET) -> int:
    for unit in units:
        state = (state ^ unit) * _PRIME & _MASK
    return state


# Every visitor of an experiment starts with its seed.
@lru_cache(maxsize=1 << 10)
def _seed_state(seed: str) -> int:
    return _fnv1a32(_code_units(seed))


def bucket(seed: str, value: str) -> int:
    """Returns the bucket of a visitor, 0 to 9999; GrowthBook's SDKs name it as a ten-thousandth.

    >>> [bucket("exp-carousel", visitor) for visitor in ("u1", "u2", "u3", "u4")]
    [1556, 9812, 4185, 3523]
    """
    digest = _fnv1a32(_code_units(value), _seed_state(seed))
    return _fnv1a32(b"%d" % digest) % NUM_BUCKETS


def assign(seed: str, value: str, weights: Sequence[float], *, coverage: float = 1.0) -> int | None:
    """Returns the index of a visitor's arm, or None for a visitor whom `coverage` leaves out.

    Each arm takes a stretch of the buckets as long as its weight, and enrols the first part of it, as long as
    `coverage` says: whoever is enrolled stays in the same arm when coverage grows.

    >>> [assign("exp-carousel", visitor, (0.5, 0.5)) for visitor in ("u1", "u2", "u3", "u4")]
    [0, 1, 0, 0]
    >>> [assign("exp-carousel", visitor, (0.5, 0.5), coverage=0.8) for visitor in ("u1", "u2", "u3", "u4")]
    [0, None, None, 0]
    """
    starts, ends = _stretches(tuple(weights), coverage)
    found = bucket(seed, value)
    arm = bisect_right(starts, found) - 1
    return arm if found < ends[arm] else None


def arms_of(found: NDArray[np.uint16], weights: Sequence[float], *, coverage: float = 1.0) -> NDArray[np.int8]:
    """Returns the arm of each bucket, as `assign` gives it; -1 for those whom `coverage` leaves out.

    >>> arms_of(buckets("exp-carousel", ["u1", "u2", "u3", "u4"]), (0.5, 0.5), coverage=0.8).tolist()
    [0, -1, -1, 0]
    """
    starts, ends = _stretches(tuple(weights), coverage)
    table = np.full(NUM_BUCKETS, -1, dtype=np.int8)
    for arm, (start, end) in enumerate(zip(starts, ends, strict=True)):
        table[start:end] = arm
    return table[found]


# One experiment asks the same question for every visitor.
@lru_cache(maxsize=1 << 8)
def _stretches(weights: tuple[float, ...], coverage: float) -> tuple[list[int], list[int]]:
    """Returns where the stretch of each arm starts, and where those end whom it enrols."""
    if not 1 <= len(weights) <= 127:
        raise CallError(f"an experiment has 1 to 127 arms, got {len(weights)} weights")
    if not 0 <= coverage <= 1:
        raise CallError(f"coverage is a share from 0 to 1, got {coverage!r}")
    sizes = [_whole_buckets(weight, f"the weight {weight!r}") for weight in weights]
    if sum(sizes) != NUM_BUCKETS:
        raise CallError(
            f"the weights {weights!r} sum to {sum(sizes) / NUM_BUCKETS:g}; they must sum to 1 "
            f"(to enrol fewer visitors, give a coverage)"
        )
    enrolled = [
        _whole_buckets(weight * coverage, f"coverage {coverage!r} of the weight {weight!r}") for weight in weights
    ]
    starts = [0, *accumulate(sizes)][:-1]
    return starts, [start + size for start, size in zip(starts, enrolled, strict=True)]


def _whole_buckets(share: float, named: str) -> int:
    if not 0 <= share <= 1:
        raise CallError(f"{named} is not a share from 0 to 1")
    size = round(share * NUM_BUCKETS)
    # What is left after a sum or product of decimal shares is a few 1e-13.
    if abs(share * NUM_BUCKETS - size) > 1e-6:
        raise CallError(
            f"{named} is {share * NUM_BUCKETS:.4f} of {NUM_BUCKETS:,} buckets: visitors are split in steps of 0.01 %, "
            f"the nearest share is {size / NUM_BUCKETS:g}"
        )
    return size


def buckets(seeds: str | Sequence[str], values: Sequence[str]) -> NDArray[np.uint16]:
    """Returns the buckets of many visitors, equal to `bucket`; with several seeds, one row for each.

    >>> buckets("exp-carousel", ["u1", "u2", "u3", "u4"])
    array([1556, 9812, 4185, 3523], dtype=uint16)
    >>> buckets(["exp-carousel", "seed"], ["u1", "a"])
    array([[1556, 4614],
           [1932,  505]], dtype=uint16)
    """
    listed = [seeds] if isinstance(seeds, str) else list(seeds)
    out = np.empty((len(listed), len(values)), dtype=np.uint16)
    for start in range(0, len(values), _BLOCK_IDS):
        block = values[start : start + _BLOCK_IDS]
        _fill(out[:, start : start + len(block)], listed, block)
    return out[0] if isinstance(seeds, str) else out


def _fill(out: NDArray[np.uint16], seeds: Sequence[str], values: Sequence[str]) -> None:
    units, lengths = _flatten(values)
    starts = np.cumsum(lengths) - lengths
    long = np.flatnonzero(lengths > _LONG)
    lengths[long] = 0
    # Longest first: those that have a letter at some place are then the first of the block.
    order = np.argsort(-lengths, kind="stable")
    columns = list(_columns(units, starts[order], lengths[order]))
    states = np.array([_seed_state(seed) for seed in seeds], dtype=np.uint32)
    step = max(1, _BLOCK // len(values))
    for start in range(0, len(seeds), step):
        hashes = np.repeat(states[start : start + step, None], len(values), axis=1)
        for column in columns:
            part = hashes[:, : column.size]
            part ^= column
            part *= np.uint32(_PRIME)
        out[start : start + step, order] = _hash_digits(hashes) % np.uint32(NUM_BUCKETS)
    for index in long.tolist():
        out[:, index] = [bucket(seed, values[index]) for seed in seeds]


def _flatten(values: Sequence[str]) -> tuple[NDArray[np.uint8] | NDArray[np.uint16], NDArray[np.int64]]:
    """Returns the code units of all values in a row, and how many each has."""
    joined = "".join(values)
    if joined.isascii():
        lengths = np.fromiter(map(len, values), dtype=np.int64, count=len(values))
        return np.frombuffer(joined.encode("ascii"), dtype=np.uint8), lengths
    encoded = [value.encode("utf-16-le", "surrogatepass") for value in values]
    lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(values)) // 2
    return np.frombuffer(b"".join(encoded), dtype="<u2"), lengths


def _columns(
    units: NDArray[np.uint8] | NDArray[np.uint16], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> Iterator[NDArray[np.uint32]]:
    """Yields the first letters of the values, then the second ones of those that have one, and so on."""
    longest = int(lengths[0])
    having = np.searchsorted(-lengths, -np.arange(longest), side="left")
    for place in range(longest):
        yield units[starts[: having[place]] + place].astype(np.uint32)


def _hash_digits(numbers: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Returns the hash of each number's decimal digits."""
    hashes = np.full_like(numbers, _OFFSET)
    leading = np.zeros_like(numbers)
    for power in range(_MAX_DIGITS - 1, -1, -1):
        upto = numbers // np.uint32(10**power)
        letters = upto - leading * np.uint32(10) + np.uint32(ord("0"))
        # Leading zeros are not written; the number 0 itself is one digit.
        np.copyto(hashes, (hashes ^ letters) * np.uint32(_PRIME), where=(upto > 0) | (power == 0))
        leading = upto
    return hashes
