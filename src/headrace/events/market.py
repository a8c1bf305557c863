"""What the audience likes: the chance of each click, known exactly, so that a verdict can be held against the truth.

A click on position k needs that the slot is examined, with chance k ** -0.7, a third of that below the fold of the
page, after its first ten slots, to which not everybody scrolls; and that the title attracts: the logistic
function of the title's quality, which drifts from day to day, the visitor's taste for its genre, and a whim of that
visitor for that title, which nobody can learn. Slots are clicked independently of each other; people tire in a visit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.base.errors import CallError, did_you_mean
from headrace.events.draws import Draws

SECOND: Final = 1_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

_FOLD = 10
EXAMINED: Final = tuple(position**-0.7 * (1 if position <= _FOLD else 1 / 3) for position in range(1, 1001))
"""The chance that each position is examined, from 1 on; nobody looks beyond the last."""

# Few genres make up most of a taste: the largest share of twelve is .44 on average.
_CONCENTRATION = 0.3
# A genre with less than this part of an even share is disliked no more than one with just this part.
_LEAST_SHARE = 0.2
# What a day leaves of the days' changes before it: without it, a title's quality of years would be drift alone.
_DRIFT_KEPT = 0.98
_MOST_TASTES = 4096
_MOST_NUMBERS = 1 << 22


class Habits(msgspec.Struct, frozen=True, kw_only=True):
    """How the audience behaves. Shares are of visitors, unless said otherwise."""

    visits_per_day: float = 2.0
    """The mean over visitors, bots included."""
    activity_sigma: float = 0.6
    """The standard deviation of the logarithm of a visitor's visits per day."""
    bots: float = 0.03
    """They see lists and click nothing."""
    phones: float = 0.45
    """Of the people; they send `screen` where others send `page`."""
    accounts: float = 0.4
    """Of the people; each logs in once, a day after the world began on average, and stays so."""
    skewed: float = 0.08
    """Whose clock is wrong, by 10 seconds to a day."""
    utterances: float = 0.04
    """Of the visits of people: those in which something is asked for aloud."""
    slots: int = 10
    """How many products the world's own policy shows."""
    click: float = 0.085
    """The chance that a title of middling quality, once examined, is clicked by somebody who is new to the visit and
    likes all genres alike; position k is examined with chance k ** -0.7, below the fold a third of that."""
    taste: float = 0.75
    """How far people differ: what the logarithm of a genre's share in a taste counts for in the log-odds of a click.
    0 makes everybody alike."""
    quality: float = 0.5
    """How far titles differ: the standard deviation of their quality, in log-odds."""
    fame: float = 0.5
    """How well the world's own policy knows its titles: the correlation of an item's weight, by rank, with its
    quality."""
    noise: float = 0.5
    """The standard deviation of each visitor's whim for each title, in log-odds. It lasts, but no genre tells it."""
    drift: float = 0.05
    """How far a title's quality moves in a day: the standard deviation, in log-odds."""
    fatigue: float = 0.03
    """The rate per minute of a visit at which chances of clicks fall: after t minutes, exp(-fatigue * t) is left."""
    beats: float = 6.0
    """The mean number of heartbeats, 10 seconds apart, of what is watched after a click."""


class Item(msgspec.Struct, frozen=True, gc=False):
    """One title of the service."""

    product_id: str
    title: str
    genre: str
    seconds: int
    weight: float
    """How popular it is, as a weight against the other items."""


class ShownProduct(msgspec.Struct, frozen=True, gc=False):
    """One element of a list shown."""

    product_id: str
    position: int
    category: str


class Market:
    """Titles and what people think of them.

    >>> items = [Item(f"item-{n}", f"Title {n}", "drama" if n % 2 else "comedy", 60, 1.0) for n in range(4)]
    >>> market = Market(Draws(7), items, habits=Habits(), born_us=0)
    >>> first, second = market.chances(3, ["item-0", "item-1"], at_us=0, tired_us=0)
    >>> 0 < first < 1 and 0 < second < 1
    True
    """

    def __init__(self, draws: Draws, items: Sequence[Item], *, habits: Habits, born_us: int) -> None:
        self.habits = habits
        self.items = items
        self.draws = draws
        self.born_us = born_us
        self._numbers = {item.product_id: number for number, item in enumerate(items)}
        self._everything = np.arange(len(items), dtype=np.uint64)
        self.genres = sorted({item.genre for item in items})
        """The names of the genres, in the order of a taste."""
        self._genre_of = np.array([self.genres.index(item.genre) for item in items])
        self._quality = self._draw_quality()
        self._products: dict[tuple[str, int], ShownProduct] = {}
        self._drifts: list[NDArray[np.float64]] = [np.zeros(len(items))]
        most = max(1, min(_MOST_TASTES, _MOST_NUMBERS // len(items)))
        self.attractions: Callable[[int], memoryview[float]] = lru_cache(most)(self._attractions)
        """Returns the log-odds of each title for a visitor, as when the world began; `memoryview` reads as floats."""

    def item(self, product_id: str) -> Item:
        """Returns the title of that id; raises CallError for an id that the world does not have."""
        return self.items[self._number(product_id)]

    def product(self, product_id: str, position: int) -> ShownProduct:
        """Returns a product as it stands at a position of a list."""
        found = self._products.get((product_id, position))
        if found is None:
            genre = self.item(product_id).genre
            found = self._products[product_id, position] = ShownProduct(product_id, position, genre)
        return found

    def chances(self, visitor: int, product_ids: Sequence[str], *, at_us: int, tired_us: int) -> list[float]:
        """Returns the chance of a click on each position of a list, for somebody who has been there for `tired_us`."""
        attraction, drift = self.attractions(visitor), self.drift(at_us)
        fresh = math.exp(-self.habits.fatigue * tired_us / MINUTE)
        numbers, exp = self._numbers, math.exp
        try:
            places = [numbers[product_id] for product_id in product_ids]
        except KeyError:
            places = [self._number(product_id) for product_id in product_ids]
        return [
            fresh * examined / (1.0 + exp(-attraction[place] - drift[place]))
            for examined, place in zip(EXAMINED, places, strict=False)
        ]

    def taste(self, visitor: int) -> NDArray[np.float64]:
        """Returns the logarithm of each genre's share in a visitor's taste, over an even share."""
        draw = self.draws.source("taste", visitor, 0)
        portions = np.array([_draw_gamma(_CONCENTRATION, draw) for _ in self.genres])
        affinity: NDArray[np.float64] = np.log(np.maximum(portions / portions.mean(), _LEAST_SHARE))
        return affinity

    def drift(self, at_us: int) -> memoryview[float]:
        """Returns how far each title's quality has moved by the day of that instant."""
        day = max(0, (at_us - self.born_us) // DAY)
        while len(self._drifts) <= day:
            step = self.draws.normals("drift", self._everything, len(self._drifts))
            self._drifts.append(_DRIFT_KEPT * self._drifts[-1] + self.habits.drift * step)
        return _floats(self._drifts[day])

    def _draw_quality(self) -> NDArray[np.float64]:
        fame = self.habits.fame
        ranks = np.argsort(np.argsort([item.weight for item in self.items], kind="stable"))
        normal = NormalDist().inv_cdf
        known = np.array([normal((rank + 0.5) / len(ranks)) for rank in ranks.tolist()])
        unknown = self.draws.normals("quality", self._everything, 0)
        best = fame * known + math.sqrt(1 - fame**2) * unknown
        return _log_odds(self.habits.click) + self.habits.quality * best

    def _attractions(self, visitor: int) -> memoryview[float]:
        whim = self.draws.normals("noise", self._everything, visitor)
        liking = (self.habits.taste * self.taste(visitor))[self._genre_of]
        # Beyond 500 either way nothing changes, and the exponential function stays finite.
        return _floats(np.clip(self._quality + liking + self.habits.noise * whim, -500, 500))

    def _number(self, product_id: str) -> int:
        found = self._numbers.get(product_id)
        if found is None:
            near = did_you_mean(product_id, self._numbers)
            seed, others = self.draws.seed, len(self.items)
            raise CallError(f"World({seed}) has no product {product_id!r}, only {others} others.{near}")
        return found


def _floats(numbers: NDArray[np.float64]) -> memoryview[float]:
    """Returns what reads one by one as Python's floats, three times as fast as an array."""
    return numbers.data.cast("B").cast("d")


def _log_odds(chance: float) -> float:
    if not 0 <= chance <= 1:
        raise CallError(f"Habits(click={chance}) is no chance; give a number from 0 to 1")
    return math.log(max(chance, 1e-200)) - math.log(max(1 - chance, 1e-200))


def _draw_gamma(shape: float, draw: Callable[[], float]) -> float:
    """Returns a number of the gamma distribution of a shape below 1 (Ahrens and Dieter 1974, GS)."""
    whole = 1 + shape / math.e
    while True:
        part = whole * draw()
        if part <= 1:
            found: float = part ** (1 / shape)
            if draw() <= math.exp(-found):
                return found
        else:
            found = -math.log((whole - part) / shape)
            if draw() <= found ** (shape - 1):
                return found
