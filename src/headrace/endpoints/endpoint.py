"""A page: what a project declares, what is asked for it, and what is answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b

import msgspec

from headrace.base.errors import ProjectError
from headrace.events.event import Event
from headrace.models import Model

_MAX_PER_ROW = 200
_MAX_ROWS = 50


@dataclass(frozen=True)
class Carousel:
    """One row of a page: where its items come from, and what ranks them (else the first of the candidates)."""

    title: str
    candidates: tuple[Model, ...] = field(kw_only=True)
    rank: Model | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.title, str) or not self.title.strip():
            raise ProjectError(f"Carousel({self.title!r}): give it the title that people read, such as 'For you'")
        found = self.candidates
        if not isinstance(found, tuple) or not found or not all(hasattr(model, "fit") for model in found):
            raise ProjectError(
                f"Carousel({self.title!r}): candidates={found!r}; give it models, as a tuple: candidates=(popular,)"
            )
        if self.rank is not None and not hasattr(self.rank, "fit"):
            raise ProjectError(f"Carousel({self.title!r}): rank={self.rank!r} is no model, such as taste(...)")

    @property
    def ranker(self) -> Model:
        """What ranks the row."""
        return self.rank or self.candidates[0]


@dataclass(frozen=True)
class Page:
    """A page of carousels, and what it falls back on.

    `explore` is the share of positions filled at random, so that what is not yet popular can become so.
    """

    name: str
    carousels: tuple[Carousel, ...] = field(kw_only=True)
    fallback: Model = field(kw_only=True)
    per_row: int = field(default=10, kw_only=True)
    explore: float = field(default=0.1, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ProjectError(f"Page({self.name!r}): give it the name that is asked for, such as 'home'")
        self._check_carousels()
        if not hasattr(self.fallback, "fit"):
            raise ProjectError(f"Page({self.name!r}): fallback={self.fallback!r} is no model")
        if not isinstance(self.per_row, int) or not 1 <= self.per_row <= _MAX_PER_ROW:
            raise ProjectError(f"Page({self.name!r}): per_row={self.per_row!r} must be 1 to {_MAX_PER_ROW}")
        if not isinstance(self.explore, int | float) or not 0 <= self.explore <= 1:
            raise ProjectError(f"Page({self.name!r}): explore={self.explore!r} must be 0 to 1")

    def _check_carousels(self) -> None:
        found = self.carousels
        if not isinstance(found, tuple) or not found or not all(isinstance(one, Carousel) for one in found):
            raise ProjectError(f"Page({self.name!r}): give it Carousels, in a tuple: carousels=(Carousel(...),)")
        if len(found) > _MAX_ROWS:
            raise ProjectError(f"Page({self.name!r}): {len(found)} carousels, a page has at most {_MAX_ROWS}")
        titles = [one.title for one in found]
        for one in found:
            if titles.count(one.title) > 1:
                raise ProjectError(
                    f"Page({self.name!r}): two carousels are called {one.title!r}; each needs its own title"
                )
            if one.rank is not None and one.rank != self.ranker:
                raise ProjectError(
                    f"Page({self.name!r}): Carousel({one.title!r}) has rank={one.rank.name!r}, and the first carousel "
                    f"is ranked by {self.ranker.name!r}: one model of a page is tested and promoted. Leave rank= out, "
                    "and the first of its candidates ranks"
                )

    @property
    def ranker(self) -> Model:
        """What is tested and promoted on the page: it ranks the first carousel, and all others that name it."""
        return self.carousels[0].ranker

    @property
    def models(self) -> tuple[Model, ...]:
        """All models of the page, the fallback first, each once."""
        named = [self.fallback]
        for carousel in self.carousels:
            named += [*carousel.candidates, carousel.ranker]
        return tuple(dict.fromkeys(named))

    @property
    def events(self) -> tuple[Event, ...]:
        """The events that its models read."""
        return tuple(dict.fromkeys(model.clicks for model in self.models))

    @property
    def definition(self) -> str:
        """The hash of all that the declaration says."""
        return blake2b(repr(self).encode(), digest_size=8).hexdigest()


class Context(msgspec.Struct, rename="camel"):
    """What the page's server knows of the browser."""

    user_agent: str | None = None


class Ask(msgspec.Struct):
    """The body of a request for a page."""

    page: str
    anonymous_id: str | None = None
    """The visitor; without one the page is served, but nobody is enrolled."""
    user_id: str | None = None
    context: Context = msgspec.field(default_factory=Context)
    explain: bool = False
    """Whether each item says which feature speaks most for it."""
    deadline_ms: int = 250
    """How long the answer may take; what is not done by then is left out and named in `degraded`."""


class ShownItem(msgspec.Struct):
    """One item of a row."""

    id: str
    position: int
    score: float
    propensity: float
    category: str
    why: str = ""
    """The feature that speaks most for it, if the bundle ranks by features."""


class Row(msgspec.Struct):
    """One carousel as it is shown."""

    title: str
    items: list[ShownItem]
    bundle: str = ""
    """What ranked it."""


class Shown(msgspec.Struct):
    """The answer: what to show, under which id."""

    recommendation_id: str | None
    """What impressions and clicks of all rows must carry; none if the decision could not be written down."""
    page: str
    anonymous_id: str | None
    served_us: int
    bundle: str
    """What ranked the first row."""
    experiment: str | None
    arm: str | None
    degraded: tuple[str, ...]
    rows: list[Row]
