"""One carousel: a pure function of bundle, person, what was seen, and a seed. The same input gives the same row."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from headrace.base.errors import FormatError
from headrace.models import Scorer, Values


@dataclass(frozen=True)
class Rule:
    """How many items a row has, which share of its positions is filled at random, and what it must not show."""

    per_row: int
    explore: float
    above: Collection[str] = ()
    """What the page shows above the row."""


@dataclass(frozen=True)
class Chosen:
    """A row as it was made: items by position, with their chances."""

    items: tuple[str, ...]
    categories: tuple[str, ...]
    scores: tuple[float, ...]
    propensities: tuple[float, ...]
    num_candidates: int
    places: tuple[int, ...]
    """The numbers of the items among those of the bundle."""
    all_seen: bool = False


def choose(scorer: Scorer, person: str, seen: Collection[str], *, rule: Rule, seed: int, values: Values = ()) -> Chosen:
    """Returns a row for a person.

    At each position an item is drawn from all that are left with the chance `explore`, else the best one left is
    taken. What stands above is left out, and what was seen, unless nothing else is there.
    """
    scores, items = scorer.scores(person, values), scorer.items
    if len(scores) != len(items) or not np.isfinite(scores).all():
        raise FormatError(f"{len(items):,} items were given {len(scores):,} scores, of which some are no numbers")
    above = {scorer.places[item] for item in rule.above if item in scorer.places}
    excluded = above.union(scorer.places[item] for item in seen if item in scorer.places)
    all_seen = len(above) < len(excluded) == len(items)
    if all_seen:
        excluded = above
    left = len(items) - len(excluded)
    size = min(rule.per_row, left)
    best = iter(find_best(scores, min(size + len(excluded), len(items))).tolist())
    draw = Random(seed).random
    taken: list[int] = []
    propensities = []
    used = set(excluded)
    top = -1
    for _ in range(size):
        if top in used or top < 0:
            top = next(number for number in best if number not in used)
        chosen = _draw_left(len(items), used, draw) if draw() < rule.explore else top
        propensities.append((1 - rule.explore) * (chosen == top) + rule.explore / left)
        taken.append(chosen)
        used.add(chosen)
        left -= 1
    return Chosen(
        items=tuple(items[number] for number in taken),
        categories=tuple(scorer.categories[number] for number in taken),
        scores=tuple(float(scores[number]) for number in taken),
        propensities=tuple(propensities),
        num_candidates=len(items) - len(excluded),
        places=tuple(taken),
        all_seen=all_seen,
    )


def _draw_left(size: int, used: Collection[int], draw: Callable[[], float]) -> int:
    """Returns one of the numbers below `size` that are not used, each with the same chance."""
    if len(used) * 2 > size:
        # Where little is left, trying until one fits would take long.
        left = [number for number in range(size) if number not in used]
        return left[int(draw() * len(left))]
    chosen = int(draw() * size)
    while chosen in used:
        chosen = int(draw() * size)
    return chosen


def find_best(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Returns the numbers of the `count` highest scores, the highest first; of equals the lower number first.

    >>> find_best(np.array([0.1, 0.5, 0.5, 0.3]), 3).tolist()
    [1, 2, 3]
    """
    if count < len(scores):
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        above = np.flatnonzero(scores > least)
        chosen = np.concatenate([above, np.flatnonzero(scores == least)[: count - len(above)]])
    else:
        chosen = np.arange(len(scores))
    return chosen[np.argsort(-scores[chosen], kind="stable")]
