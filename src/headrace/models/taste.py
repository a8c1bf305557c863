"""A fixed taste policy: what is popular, times how much more than others a person clicks its genre."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from headrace.base.errors import FormatError, ProjectError
from headrace.events.event import Event
from headrace.events.settled import EVENTS
from headrace.features import Column, Feature
from headrace.models.model import Bundle, Lake, Values, pack_texts, read_texts
from headrace.models.popular import Popularity, find_categories, read_popularity


@dataclass(frozen=True)
class Taste:
    """The declaration that `taste` returns."""

    name: str
    clicks: Event
    base: Popularity = field(kw_only=True)
    prior: float = field(default=2.0, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ProjectError(f"taste({self.name!r}): give it a name, such as 'tastes'")
        if not isinstance(self.clicks, Event) or not self.clicks.item:
            raise ProjectError(f"taste({self.name!r}): give it an Event with item=, such as the clicks")
        if not isinstance(self.base, Popularity):
            raise ProjectError(f"taste({self.name!r}): base={self.base!r} is no popularity")
        if not isinstance(self.prior, int | float) or not 0 < self.prior < 1e6:
            raise ProjectError(f"taste({self.name!r}): prior={self.prior!r} must be a number above 0")

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tables that it reads."""
        return (EVENTS,)

    @property
    def features(self) -> tuple[Feature, ...]:
        """None."""
        return ()

    def fit(self, lake: Lake) -> Bundle:
        """Returns the base's bundle with the genre shares of everybody who has clicked."""
        base = self.base.fit(lake)
        rows = lake.ask(
            "SELECT person, category, count(*)::BIGINT AS clicks "  # noqa: S608
            f"FROM ({lake.items_of(self.clicks)}) WHERE NOT bot AND category IS NOT NULL AND person != '' "
            "AND received_us <= $at_us GROUP BY ALL ORDER BY ALL",
            {"at_us": lake.at_us},
        )
        persons, genres = sorted(set(rows["person"])), sorted(set(rows["category"]))
        row = {person: number for number, person in enumerate(persons)}
        column = {genre: number for number, genre in enumerate(genres)}
        counts = np.zeros((len(persons), len(genres)), np.float32)
        for person, genre, clicks in zip(rows["person"], rows["category"], rows["clicks"], strict=True):
            counts[row[person], column[genre]] = clicks
        keys = person_keys(persons)
        order = np.argsort(keys, kind="stable")
        items = read_texts(base.arrays["items"])
        categories = find_categories(lake, self.base.clicks)
        arrays = {
            **base.arrays,
            "genres": pack_texts(genres),
            "item_genres": np.array([column.get(categories.get(item, ""), -1) for item in items], np.int32),
            "persons": keys[order],
            "genre_clicks": counts[order],
        }
        parameters = {**base.parameters, "prior": self.prior}
        return Bundle(self.name, "taste", parameters, {**base.source, "persons": len(persons)}, arrays)


def taste(name: str, clicks: Event, *, base: Popularity, prior: float = 2.0) -> Taste:
    """Returns the declaration of a policy by genre: the shares of a person's clicks, over `prior` clicks of everybody.

    The genre is the event's property `category`.
    """
    return Taste(name, clicks, base=base, prior=prior)


def person_keys(persons: Sequence[str]) -> NDArray[np.uint64]:
    """Returns persons as numbers of 64 bits, by which a bundle knows them: it holds no names."""
    digests = b"".join(blake2b(person.encode("utf-8", "surrogatepass"), digest_size=8).digest() for person in persons)
    return np.frombuffer(digests, np.uint64)


class OpenTaste:
    """A bundle of tastes, opened to rank."""

    columns: Sequence[Column] = ()

    def __init__(self, bundle: Bundle) -> None:
        items, categories, self._base = read_popularity(bundle)
        self.items: Sequence[str] = items
        self.categories: Sequence[str] = categories
        self.places = {item: number for number, item in enumerate(items)}
        self._persons = bundle.arrays["persons"]
        self._clicks = bundle.arrays["genre_clicks"]
        self._prior = float(bundle.parameters["prior"])
        if not self._prior > 0:
            raise FormatError(f"the bundle {bundle.name!r} has prior {self._prior:g}, which must be above 0")
        # Items without a genre get the number after the last one, where nobody's taste differs.
        genres = len(read_texts(bundle.arrays["genres"]))
        self._genre_of = np.where(bundle.arrays["item_genres"] < 0, genres, bundle.arrays["item_genres"])
        if self._clicks.shape != (len(self._persons), genres) or self._genre_of.shape != (len(self.items),):
            raise FormatError(f"the bundle {bundle.name!r} has arrays of sizes that do not fit together")
        if not np.isfinite(self._clicks).all() or (self._clicks < 0).any() or (self._genre_of > genres).any():
            raise FormatError(f"the bundle {bundle.name!r} has genre clicks that nobody made")
        totals = self._clicks.sum(axis=0, dtype=np.float64)
        self._shares = totals / totals.sum() if totals.sum() else np.full(genres, 1.0)

    def scores(self, person: str, values: Values = ()) -> NDArray[np.float64]:  # noqa: ARG002 - it reads no features
        """Returns each item's popularity, times how much more than others the person clicks its genre."""
        key = person_keys([person])[0]
        place = int(np.searchsorted(self._persons, key))
        if place == len(self._persons) or self._persons[place] != key:
            return self._base
        clicks = self._clicks[place].astype(np.float64)
        shares = (clicks + self._prior * self._shares) / (clicks.sum() + self._prior)
        # Nobody's taste differs in a genre that nobody has clicked.
        lifts = np.divide(shares, self._shares, out=np.ones(len(shares)), where=self._shares > 0)
        scores: NDArray[np.float64] = self._base * np.append(lifts, 1.0)[self._genre_of]
        return scores

    def whys(self, places: Sequence[int], values: Values = ()) -> Sequence[str]:  # noqa: ARG002 - it reads no features
        """Returns nothing: no feature speaks for an item."""
        return [""] * len(places)


def open_taste(bundle: Bundle) -> OpenTaste:
    """Returns a bundle of tastes, opened."""
    return OpenTaste(bundle)
