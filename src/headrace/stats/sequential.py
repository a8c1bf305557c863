"""Tests that may be looked at after every visitor: their chance of a false alarm holds over all looks together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from headrace.base.errors import CallError

_PRIOR = 100.0


def multinomial_evidence(counts: Sequence[int], weights: Sequence[float], *, prior: float = _PRIOR) -> float:
    """Returns the logarithm of how much better other shares than `weights` explain the counts (Lindon, Malek 2022).

    Under the weights its exponential is a martingale that begins at 1: it ever reaches 1 / alpha with a chance of alpha
    at most, however often one looks. `prior` says how near to the weights the other shares are thought to be.

    >>> [round(multinomial_evidence(counts, (0.5, 0.5)), 1) for counts in ((0, 0), (510, 490), (600, 400))]
    [0.0, -1.0, 17.1]
    """
    if len(counts) != len(weights) or any(not weight > 0 for weight in weights):
        raise CallError(f"one weight above 0 per count is needed: got {counts!r} and {weights!r}")
    whole, total = math.fsum(weights), sum(counts)
    shares = [weight / whole for weight in weights]
    parts = [
        math.lgamma(prior * share + count) - math.lgamma(prior * share) - count * math.log(share)
        for count, share in zip(counts, shares, strict=True)
    ]
    return math.fsum(parts) + math.lgamma(prior) - math.lgamma(prior + total)
