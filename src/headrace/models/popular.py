"""Popularity: what most people clicked lately, each click worth half after a half-life."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.base.clock import read_duration
from headrace.base.errors import FormatError, ProjectError
from headrace.events.event import Event
from headrace.events.settled import EVENTS
from headrace.features import Column, Feature
from headrace.models.model import Bundle, Lake, Values, pack_texts, read_texts

# Ages are counted in sixteenths of a half-life: sums of whole numbers are equal in whatever order an engine adds.
_STEPS = 16
_MAX_HALF_LIVES = 20
# A click more than everybody has: what was clicked once is not infinitely better than what was clicked never.
_PRIOR_CLICKS = 1.0


@dataclass(frozen=True)
class Popularity:
    """The declaration that `popularity` returns."""

    name: str
    clicks: Event
    half_life: str = field(default="3d", kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ProjectError(f"popularity({self.name!r}): give it a name, such as 'popular'")
        if not isinstance(self.clicks, Event) or not self.clicks.item:
            raise ProjectError(f"popularity({self.name!r}): give it an Event with item=, such as the clicks")
        read_duration(self.half_life, f"popularity({self.name!r}): half_life")

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tables that it reads."""
        return (EVENTS,)

    @property
    def features(self) -> tuple[Feature, ...]:
        """None."""
        return ()

    def fit(self, lake: Lake) -> Bundle:
        """Returns the bundle of everything that was clicked within twenty half-lives."""
        half_life_us = read_duration(self.half_life)
        step_us = max(half_life_us // _STEPS, 1)
        rows = lake.ask(
            f"SELECT item, (($at_us - event_us) // $step_us)::BIGINT AS age, count(*)::BIGINT AS clicks "  # noqa: S608
            f"FROM ({lake.items_of(self.clicks)}) WHERE NOT bot AND item IS NOT NULL AND item != '' "
            "AND received_us <= $at_us AND event_us > $at_us - $reach_us GROUP BY ALL ORDER BY ALL",
            {"at_us": lake.at_us, "step_us": step_us, "reach_us": _MAX_HALF_LIVES * half_life_us},
        )
        items = sorted(set(rows["item"]))
        place = {item: number for number, item in enumerate(items)}
        counts = np.zeros(len(items))
        for item, age, clicks in zip(rows["item"], rows["age"], rows["clicks"], strict=True):
            counts[place[item]] += clicks * 2.0 ** (-age / _STEPS)
        categories = find_categories(lake, self.clicks)
        arrays: dict[str, NDArray[Any]] = {
            "items": pack_texts(items),
            "categories": pack_texts([categories.get(item, "") for item in items]),
            "counts": counts,
        }
        source = {**lake.source, "at_us": lake.at_us, "rows": sum(rows["clicks"])}
        return Bundle(self.name, "popularity", {"half_life_us": half_life_us}, source, arrays)


def popularity(name: str, clicks: Event, *, half_life: str = "3d") -> Popularity:
    """Returns the declaration of what is popular: clicks, each worth half after `half_life`.

    >>> popularity("popular", Event("Product Clicked", item="product_id")).half_life
    '3d'
    """
    return Popularity(name, clicks, half_life=half_life)


def find_categories(lake: Lake, event: Event) -> Mapping[str, str]:
    """Returns the category of each item: the most frequent one, of equals the first by name."""
    rows = lake.ask(
        f"SELECT item, category, count(*)::BIGINT AS found FROM ({lake.items_of(event)}) "  # noqa: S608
        "WHERE received_us <= $at_us AND item IS NOT NULL AND category IS NOT NULL GROUP BY ALL "
        "ORDER BY found, category DESC, item",
        {"at_us": lake.at_us},
    )
    return dict(zip(rows["item"], rows["category"], strict=True))


class OpenPopularity:
    """A bundle of popularity, opened to rank."""

    columns: Sequence[Column] = ()

    def __init__(self, items: Sequence[str], categories: Sequence[str], scores: NDArray[np.float64]) -> None:
        self.items = items
        self.places = {item: number for number, item in enumerate(items)}
        self.categories = categories
        self._scores = scores

    def scores(self, person: str, values: Values = ()) -> NDArray[np.float64]:  # noqa: ARG002 - the same for everybody
        """Returns each item's share of the clicks."""
        return self._scores

    def whys(self, places: Sequence[int], values: Values = ()) -> Sequence[str]:  # noqa: ARG002 - it reads no features
        """Returns nothing: no feature speaks for an item."""
        return [""] * len(places)


def open_popularity(bundle: Bundle) -> OpenPopularity:
    """Returns a bundle of popularity, opened."""
    return OpenPopularity(*read_popularity(bundle))


def read_popularity(bundle: Bundle) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """Returns items, their categories and their shares of the clicks; raises FormatError if these cannot be any."""
    items, categories = read_texts(bundle.arrays["items"]), read_texts(bundle.arrays["categories"])
    if len(set(items)) != len(items) or len(categories) != len(items):
        raise FormatError(f"the bundle {bundle.name!r} has {len(items):,} items and {len(categories):,} categories")
    counts = bundle.arrays["counts"]
    if counts.shape != (len(items),) or not np.isfinite(counts).all() or (counts < 0).any():
        raise FormatError(f"the bundle {bundle.name!r} has counts that no clicks give")
    smoothed = counts + _PRIOR_CLICKS
    shares: NDArray[np.float64] = smoothed / smoothed.sum() if items else smoothed
    return items, categories, shares
