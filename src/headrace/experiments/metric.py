"""A metric: what an experiment measures, as a project declares it and as a trial freezes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from headrace.base.clock import read_duration
from headrace.base.errors import ProjectError
from headrace.events.event import Event

_MOST_EACH = 1e9


@dataclass(frozen=True)
class Metric:
    """What an experiment measures: a ratio or a mean over visitors. Make one with `Metric.ratio` or `Metric.mean`.

    >>> views = Event("Product List Viewed", item="products[].product_id")
    >>> clicks = Event("Product Clicked", item="product_id")
    >>> Metric.ratio("ctr", clicks, views, within="30m").within_us // 60_000_000
    30
    >>> Metric.mean("watch_minutes", Event("Video Content Playing"), each=1 / 6, cap=0.99).cap
    0.99
    """

    name: str

    def __post_init__(self) -> None:
        if type(self) is Metric:
            raise ProjectError(f"Metric({self.name!r}): write Metric.ratio(...) or Metric.mean(...)")
        if not isinstance(self.name, str) or not self.name.strip():
            raise ProjectError(f"Metric({self.name!r}): give it a name, such as 'ctr'")

    @staticmethod
    def ratio(name: str, above: Event, below: Event, *, within: str = "30m") -> RatioMetric:
        """Returns the ratio of two events of items: of those seen below, the share that the event above followed."""
        return RatioMetric(name, above, below, within)

    @staticmethod
    def mean(name: str, event: Event, *, each: float = 1.0, cap: float | None = None) -> MeanMetric:
        """Returns the mean of what visitors have of an event: each record of it counts for `each`.

        A visitor's records count from its first exposure on; who has none has 0, robots' records count for nothing,
        and one with several items counts once. `cap` is a quantile, above 0 and up to 1: what a visitor has beyond
        that quantile of all visitors of both arms is set to it, so that a few extreme ones don't drown the others.
        """
        return MeanMetric(name, event, each=each, cap=cap)

    @property
    def events(self) -> tuple[Event, ...]:
        """The events that it counts."""
        return ()


@dataclass(frozen=True)
class RatioMetric(Metric):
    """Of the items seen below, the share that the event above followed; made by `Metric.ratio`."""

    above: Event
    below: Event
    within: str = "30m"

    def __post_init__(self) -> None:
        super().__post_init__()
        for event in self.events:
            if not isinstance(event, Event) or not event.item:
                raise ProjectError(f"Metric({self.name!r}): {event!r} is no Event with item=; each needs one")
        read_duration(self.within, f"Metric({self.name!r}): within")

    @property
    def events(self) -> tuple[Event, ...]:
        """The event above and the one below."""
        return self.above, self.below

    @property
    def within_us(self) -> int:
        """How long after the event below the one above still counts."""
        return read_duration(self.within)


@dataclass(frozen=True)
class MeanMetric(Metric):
    """What visitors have of an event, on average; made by `Metric.mean`."""

    event: Event
    each: float = field(default=1.0, kw_only=True)
    cap: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.event, Event):
            raise ProjectError(f"Metric({self.name!r}): {self.event!r} is no Event; write beats for beats = Event(...)")
        if not isinstance(self.each, int | float) or not 0.0 < self.each <= _MOST_EACH:
            raise ProjectError(
                f"Metric({self.name!r}): each={self.each!r} must be above 0 and up to {_MOST_EACH:,.0f}: "
                "what one event counts for"
            )
        if self.cap is not None and (not isinstance(self.cap, int | float) or not 0.0 < self.cap <= 1.0):
            raise ProjectError(
                f"Metric({self.name!r}): cap={self.cap!r} must be above 0 and up to 1: the quantile of visitors that "
                "what one has is cut at, such as 0.99"
            )

    @property
    def events(self) -> tuple[Event, ...]:
        """The event that it counts."""
        return (self.event,)


class FrozenMetric(msgspec.Struct, kw_only=True, frozen=True):
    """A metric as a trial freezes it: all that its analysis reads."""

    name: str
    kind: Literal["ratio", "mean"]
    above: str
    """The name of the event above, and the path of its item; of a mean the event that it counts."""
    above_item: str = ""
    below: str = ""
    below_item: str = ""
    within_us: int = 0
    """How long after the event below the one above still counts; 0 of a mean."""
    each: float = 1.0
    """What one event of a mean counts for."""
    cap: float | None = None
    """The quantile at which a mean cuts what a visitor has."""


def freeze(metric: Metric) -> FrozenMetric:
    """Returns a metric as a trial freezes it."""
    if isinstance(metric, MeanMetric):
        return FrozenMetric(
            name=metric.name,
            kind="mean",
            above=metric.event.name,
            above_item=metric.event.item or "",
            each=float(metric.each),
            cap=None if metric.cap is None else float(metric.cap),
        )
    assert isinstance(metric, RatioMetric)
    return FrozenMetric(
        name=metric.name,
        kind="ratio",
        above=metric.above.name,
        above_item=metric.above.item or "",
        below=metric.below.name,
        below_item=metric.below.item or "",
        within_us=metric.within_us,
    )
