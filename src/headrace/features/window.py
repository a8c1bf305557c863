"""Sawtooth windows: which events an instant counts, the same for rows of the lake and for tiles."""

from __future__ import annotations

_DAY_US = 86_400_000_000
_LADDER = ((12 * _DAY_US, _DAY_US), (_DAY_US // 2, _DAY_US // 24), (0, 300_000_000))
"""From which length on a window's tail moves in which steps: by the day, by the hour, by five minutes."""


def hop_of(window_us: int) -> int:
    """Returns the step in which a window's tail moves.

    >>> from headrace.base.clock import read_duration
    >>> [hop_of(read_duration(window)) // 60_000_000 for window in ("1h", "1d", "28d")]
    [5, 60, 1440]
    """
    return next(hop_us for least_us, hop_us in _LADDER if window_us >= least_us)


def tail_of(at_us: int, window_us: int) -> int:
    """Returns where the window that ends before an instant begins: events from there on count, those before don't.

    >>> hour = 3_600_000_000
    >>> tail_of(30 * hour + 7, 24 * hour) // hour
    6
    """
    hop_us = hop_of(window_us)
    return (at_us - window_us) // hop_us * hop_us
