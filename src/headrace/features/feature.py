"""A feature: what a project declares of people and items by their events, and the columns that it becomes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Literal

import msgspec

from headrace.base.clock import read_duration
from headrace.base.errors import ProjectError
from headrace.events.dimension import Attribute
from headrace.events.event import Event
from headrace.features.window import hop_of

VERSION = 1

Kind = Literal["count", "total", "last"]


@dataclass(frozen=True)
class Part:
    """Who or what an event is about: `person` or `item`."""

    name: str


person = Part("person")
item = Part("item")

By = Part | Attribute


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One feature over one window: all that decides its value. Tiles, rows and bundles know features as columns.

    An event with an item counts once for each item that it names; robots' events and calls that are no `track` count
    for nothing.
    """

    version: int
    """The version of this contract."""
    name: str
    """The feature and the window, such as `taste_28d`; another name is still the same column."""
    kind: Kind
    event: str
    """The name of the event."""
    item: str
    """The path of its item in the properties; empty if it has none."""
    dimension: str
    """The dimension that knows the item; empty if none does."""
    by: tuple[str, ...]
    """What its key is made of: `person`, `item`, and attributes as `@genre`, in this order."""
    value: str
    """What is added up or remembered: a path in the properties, `item` or `@genre`; empty for counts."""
    window_us: int
    hop_us: int
    """In which steps the window's tail moves."""

    @property
    def identity(self) -> str:
        """The hash of the definition: columns of the same identity have the same values."""
        return _identity(self)

    @property
    def family(self) -> str:
        """The hash of what its tiles are made of: columns of a family and hop share them."""
        return _family(self)

    @property
    def is_text(self) -> bool:
        """Whether its values are texts, or None; others are numbers, 0 where nothing was counted."""
        return self.kind == "last"


# Pages ask for both all the time.
@lru_cache(maxsize=1024)
def _identity(column: Column) -> str:
    return _hash(msgspec.structs.replace(column, name=""))


@lru_cache(maxsize=1024)
def _family(column: Column) -> str:
    return _hash(msgspec.structs.replace(column, name="", window_us=0, hop_us=0))


def _hash(column: Column) -> str:
    return blake2b(msgspec.json.encode(column, order="deterministic"), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Feature:
    """The declaration that `count`, `total` and `last` return."""

    name: str
    kind: Kind
    event: Event
    by: tuple[By, ...] = field(kw_only=True)
    windows: tuple[str, ...] = field(kw_only=True)
    value: By | str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        what = f"{self.kind}({self.name!r})"
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ProjectError(f"{what}: write a name as Python writes them, such as 'taste'")
        if not isinstance(self.event, Event):
            raise ProjectError(f"{what}: {self.event!r} is no Event; give it one, such as the clicks")
        if not self.by or len(set(self.by)) < len(self.by):
            raise ProjectError(f"{what}: by={self.by!r}; name each of person, item and attributes once at most")
        for part in (*self.by, *([self.value] if isinstance(self.value, Part | Attribute) else [])):
            _check_part(what, part, self.event)
        if not isinstance(self.windows, tuple) or not self.windows:
            raise ProjectError(f"{what}: windows={self.windows!r}; give them as a tuple: windows=('1d', '28d')")
        for window in self.windows:
            read_duration(window, f"{what}: a window")

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns, one for each window."""
        return tuple(self._column(window) for window in self.windows)

    def _column(self, window: str) -> Column:
        window_us = read_duration(window)
        value = self.value if isinstance(self.value, str) else "" if self.value is None else _name_of(self.value)
        return Column(
            version=VERSION,
            name=f"{self.name}_{window.replace('.', '_')}",
            kind=self.kind,
            event=self.event.name,
            item=self.event.item or "",
            dimension=self.event.of.name if self.event.of else "",
            by=tuple(sorted(map(_name_of, self.by), key=_rank)),
            value=value,
            window_us=window_us,
            hop_us=hop_of(window_us),
        )


def _check_part(what: str, part: object, event: Event) -> None:
    if isinstance(part, Attribute):
        known = event.of.attributes if event.of else ()
        if part not in known:
            listed = ", ".join(one.name for one in known) or "none: declare it with of=, a Dimension"
            raise ProjectError(
                f"{what}: {event.name!r} knows no attribute {part.name!r} of its item. It knows {listed}"
            )
    elif not isinstance(part, Part):
        raise ProjectError(f"{what}: by={part!r}; use person, item, or an Attribute")
    elif part == item and not event.item:
        raise ProjectError(f"{what}: {event.name!r} names no item. Declare it with item=, the path of its id")


def _name_of(part: By) -> str:
    return f"@{part.name}" if isinstance(part, Attribute) else part.name


def attribute_names(parts: Iterable[str]) -> list[str]:
    """Returns the names of the attributes among parts of columns' keys, and values, each once and sorted.

    >>> attribute_names(["person", "@title", "price", "@genre", "@title"])
    ['genre', 'title']
    """
    return sorted({part[1:] for part in parts if part.startswith("@")})


def _rank(name: str) -> tuple[int, str]:
    return ({"person": 0, "item": 1}.get(name, 2), name)


def _parts(by: By | tuple[By, ...]) -> tuple[By, ...]:
    return by if isinstance(by, tuple) else (by,)


def count(name: str, event: Event, *, by: By | tuple[By, ...], windows: tuple[str, ...]) -> Feature:
    """Returns the feature of how often something happened.

    >>> clicks = Event("Product Clicked", item="product_id")
    >>> [column.name for column in count("appeal", clicks, by=item, windows=("1d", "7d")).columns]
    ['appeal_1d', 'appeal_7d']
    """
    return Feature(name, "count", event, by=_parts(by), windows=windows)


def total(name: str, event: Event, value: str, *, by: By | tuple[By, ...], windows: tuple[str, ...]) -> Feature:
    """Returns the feature of the sum of a number in the properties, kept to the millionth."""
    if not isinstance(value, str) or not value:
        raise ProjectError(f"total({name!r}): value={value!r} must be the path of a number, such as 'price'")
    return Feature(name, "total", event, by=_parts(by), windows=windows, value=value)


def last(name: str, event: Event, value: By, *, by: By | tuple[By, ...], windows: tuple[str, ...]) -> Feature:
    """Returns the feature of the newest item, or attribute of an item, in a window; of two at once the later offset."""
    if not isinstance(value, Part | Attribute) or value == person:
        raise ProjectError(f"last({name!r}): value={value!r} must be item, or an Attribute of it")
    return Feature(name, "last", event, by=_parts(by), windows=windows, value=value)


def list_columns(features: Sequence[Feature]) -> tuple[Column, ...]:
    """Returns the columns of features, each once; raises ProjectError where two that differ have one name."""
    found: dict[str, Column] = {}
    for column in (column for feature in features for column in feature.columns):
        if found.setdefault(column.name, column) != column:
            raise ProjectError(f"two features have a column {column.name!r} and differ; give one another name")
    return tuple(found.values())
