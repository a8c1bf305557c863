"""Features at the instant that a page is made: tiles read and evaluated for all items at once, as rows would be."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from headrace.base.errors import StopError, UnavailableError
from headrace.features.feature import Column
from headrace.features.online import Place, Snapshot, State
from headrace.features.tiles import MICRO, Latest, Rest, Tiles, entity_of, unpack
from headrace.features.window import tail_of

Values = list[NDArray[Any]]
Families = Mapping[str, Mapping[Rest, Mapping[int, Tiles]]]

_MOST = 9.2e18


class Readable(Protocol):
    """What of an online store is read here."""

    def read_columns(self, generation: int) -> tuple[Column, ...]:
        """Returns the columns that a generation has tiles for."""

    def snapshot(self, entities: Sequence[bytes], *, since: tuple[int, int] | None = None) -> Snapshot:
        """Returns the blobs of entities, and what changed since a revision, as of one instant."""


@dataclass(frozen=True)
class Read:
    """The features of all items for one person."""

    at_us: int
    """The instant: never before an event that was counted."""
    known: tuple[int, ...]
    """Of each partition of `events` how many events were counted."""
    values: Values
    """An array for each column: of floats, or of texts and None. They are shared and must not be changed."""
    state: State
    """Where the online store stood."""


@dataclass(frozen=True)
class _Subjects:
    """Whom the keys of a column are about, among some items."""

    places: Mapping[Any, int]
    """The number of each key: a rest for columns by person, else an entity with a rest."""
    codes: NDArray[np.intp] | None
    """The number of each item's key, that of nothing where an attribute is not known; None if they are in order."""

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """Returns the value of each item, from those of the keys and of nothing, which comes last."""
        # Of 10k items: 7 us; a plain index takes 20.
        return values[:-1] if self.codes is None else values.take(self.codes, mode="clip")


class Items:
    """The items that features are read for, with the attributes that are known of them, by their names."""

    def __init__(self, ids: Sequence[str], attributes: Mapping[str, Sequence[str | None]] | None = None) -> None:
        self.ids = tuple(ids)
        self._parts = {f"@{name}": tuple(texts) for name, texts in (attributes or {}).items()} | {"item": self.ids}
        self._subjects: dict[tuple[str, ...], _Subjects] = {}

    def subjects(self, by: tuple[str, ...]) -> _Subjects:
        """Returns whom keys are about; raises UnavailableError if an attribute is not known of any item."""
        if by not in self._subjects:
            self._subjects[by] = self._find(by)
        return self._subjects[by]

    def _find(self, by: tuple[str, ...]) -> _Subjects:
        names = by[1:] if by[0] == "person" else by
        for name in names:
            if name not in self._parts:
                raise UnavailableError(f"nobody has said which {name.removeprefix('@')!r} the items have")
        places: dict[Any, int] = {}
        codes = np.full(len(self.ids), -1, np.intp)
        # Without a part but the person, all items have the same key.
        for number, parts in enumerate(zip(*(self._parts[name] for name in names), strict=True)):
            if None not in parts:
                key: Any = tuple(parts) if by[0] == "person" else entity_of(by, parts)
                codes[number] = places.setdefault(key, len(places))
        if not names:
            places, codes = {(): 0}, np.zeros(len(self.ids), np.intp)
        codes[codes < 0] = len(places)
        in_order = len(places) == len(self.ids) and bool((codes == np.arange(len(self.ids))).all())
        return _Subjects(places, None if in_order else codes)


class _Sums:
    """Tiles of numbers of one family and hop, for all keys at once: an array for each tile."""

    def __init__(self, subjects: _Subjects, family: str, hop_us: int) -> None:
        self._subjects = subjects
        self._family, self._hop_us = family, hop_us
        self._tiles: dict[int, NDArray[np.int64]] = {}
        self.floor = -(1 << 62)
        """Tiles before it are forgotten."""

    def replace(self, entity: bytes, before: Families, after: Families) -> set[int]:
        """Takes in what a blob has become, and returns the numbers of the keys that it is about."""
        touched = set()
        for sign, families in ((-1, before), (1, after)):
            for rest, hops in families.get(self._family, {}).items():
                code = self._subjects.places.get((entity, rest))
                if code is not None:
                    touched.add(code)
                    self._add(code, sign, hops.get(self._hop_us, {}))
        return touched

    def _add(self, code: int, sign: int, tiles: Tiles) -> None:
        for number, value in tiles.items():
            if number >= self.floor and isinstance(value, int):
                if number not in self._tiles:
                    self._tiles[number] = np.zeros(len(self._subjects.places) + 1, np.int64)
                self._tiles[number][code] += sign * value

    def since(self, tail: int, codes: Any, kind: type[np.generic] = np.int64) -> NDArray[Any]:
        """Returns the sums of the tiles from a tail on; of doubles to tell by whether they fit into 64 bits."""
        found: NDArray[Any] = np.zeros(len(self._subjects.places) + 1, kind)[codes]
        for number, values in self._tiles.items():
            if number >= tail:
                found += values[codes]
        return found

    def forget(self, tail: int) -> None:
        """Lets go of the tiles before a tail."""
        if tail > self.floor:
            self.floor = tail
            self._tiles = {number: values for number, values in self._tiles.items() if number >= tail}


class _Sheet:
    """A column of numbers that nobody's person is part of: kept until a blob changes, or the window's tail moves."""

    def __init__(self, column: Column, subjects: _Subjects, sums: _Sums) -> None:
        self.column = column
        self.sums = sums
        self._subjects = subjects
        self._tail: int | None = None
        self._values = np.zeros(len(subjects.places) + 1)
        self._spread: NDArray[np.float64] = np.empty(0)
        self._stale: set[int] = set()

    def touch(self, codes: set[int]) -> None:
        """Notes keys whose tiles have changed."""
        self._stale |= codes

    def at(self, at_us: int) -> NDArray[np.float64]:
        """Returns the value of each item."""
        tail = _first_tile(self.column, at_us)
        if tail != self._tail:
            self._fill(tail, slice(None))
        elif self._stale:
            self._fill(tail, np.fromiter(self._stale, np.intp, len(self._stale)))
        return self._spread

    def _fill(self, tail: int, codes: Any) -> None:
        self._tail = None
        exact = self.sums.since(tail, codes)
        if self.column.kind == "total":
            _check_sums(self.column, self.sums.since(tail, codes, np.float64))
        # Those who hold the array of before go on with it.
        self._values = self._values.copy()
        self._values[codes] = exact / MICRO if self.column.kind == "total" else exact
        self._values[-1] = 0.0
        self._spread = self._subjects.spread(self._values)
        self._spread.flags.writeable = False
        self._tail, self._stale = tail, set()


class _Panel:
    """The columns that hold no person, for some items; it follows the blobs that change."""

    def __init__(self, items: Items, columns: Iterable[Column], blobs: Mapping[Place, bytes]) -> None:
        self._keys = {column: (column.family, column.hop_us) for column in columns}
        self._sums: dict[tuple[str, int], _Sums] = {}
        self.sheets: dict[Column, _Sheet] = {}
        self.texts: dict[Column, tuple[int, NDArray[Any]]] = {}
        """Columns of texts, as they were from a tail on."""
        for column, key in self._keys.items():
            subjects = items.subjects(column.by)
            sums = self._sums.setdefault(key, _Sums(subjects, *key))
            self.sheets[column] = _Sheet(column, subjects, sums)
        for place, value in blobs.items():
            self.replace(place, {}, _unpacked(place, value))

    def replace(self, place: Place, before: Families, after: Families) -> None:
        """Takes in what a blob has become."""
        touched = {key: sums.replace(place[0], before, after) for key, sums in self._sums.items()}
        self.texts = {}
        for column, sheet in self.sheets.items():
            sheet.touch(touched[self._keys[column]])

    def is_past(self, at_us: int) -> bool:
        """Returns whether an instant needs tiles that were forgotten."""
        return any(_first_tile(column, at_us) < sheet.sums.floor for column, sheet in self.sheets.items())

    def forget(self, at_us: int) -> None:
        """Lets go of tiles that no later instant needs."""
        for key, sums in self._sums.items():
            sums.forget(min(_first_tile(column, at_us) for column, its in self._keys.items() if its == key))


class Reader:
    """Reads some columns for whole sets of items; what is no person's it keeps in memory, and follows."""

    def __init__(self, online: Readable, columns: Sequence[Column]) -> None:
        self.columns = tuple(columns)
        self._online = online
        self._lock = threading.Lock()
        self._generation = 0
        self._revision = 0
        # Packed: as dictionaries a hundred tiles of 10k items would take 100 MB.
        self._blobs: dict[Place, bytes] = {}
        self._panels: WeakKeyDictionary[Items, _Panel] = WeakKeyDictionary()

    def prepare(self, items: Items) -> None:
        """Makes the first read of some items as quick as the others."""
        with self._lock:
            self._take(self._snapshot(()))
            self._panel(items)

    def read(self, person: str, items: Items, now_us: int) -> Read:
        """Returns the features of all items for a person, now or just after the newest event that was counted.

        Raises UnavailableError while the online store has no tiles for a column.
        """
        with self._lock:
            entities = (entity_of(("person",), (person,))[0],) if self._of_person else ()
            snapshot = self._snapshot(entities)
            self._take(snapshot)
            at_us = max(now_us, max(snapshot.state.newest_us, default=0) + 1)
            panel = self._panel(items, at_us)
            mine = [
                (partition, unpack(value, (entity, partition)).families)
                for entity in entities
                for partition, value in snapshot.blobs[entity]
            ]
            values = [self._value(column, items, panel, mine, at_us) for column in self.columns]
        return Read(at_us, snapshot.state.known, values, snapshot.state)

    @cached_property
    def _of_person(self) -> bool:
        return any(column.by[0] == "person" for column in self.columns)

    @cached_property
    def _watched(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.by[0] != "person")

    def _snapshot(self, entities: Sequence[bytes]) -> Snapshot:
        since = (self._generation, self._revision) if self._watched else None
        return self._online.snapshot(entities, since=since)

    def _take(self, snapshot: Snapshot) -> None:
        """Takes in what has changed since the last read."""
        generation = snapshot.state.generation
        if generation != self._generation:
            self._generation = 0
            self._check(generation)
            self._blobs, self._panels = {}, WeakKeyDictionary()
        for place, value in snapshot.changed:
            if self._panels:
                before, after = _unpacked(place, self._blobs.get(place)), _unpacked(place, value)
                for panel in self._panels.values():
                    panel.replace(place, before, after)
            self._blobs[place] = value
        self._generation, self._revision = generation, snapshot.state.revision

    def _check(self, generation: int) -> None:
        held = {column.identity for column in self._online.read_columns(generation)}
        missing = [column.name for column in self.columns if column.identity not in held]
        if missing:
            raise UnavailableError(
                f"the online store has no tiles for {', '.join(missing)} yet. The updater makes them when the project "
                "file declares the features; see: headrace status"
            )

    def _panel(self, items: Items, at_us: int | None = None) -> _Panel:
        panel = self._panels.get(items)
        if panel is None or (at_us is not None and panel.is_past(at_us)):
            numbers = [column for column in self._watched if not column.is_text]
            panel = self._panels[items] = _Panel(items, numbers, self._blobs)
        if at_us is not None:
            panel.forget(at_us)
        return panel

    @cached_property
    def _families(self) -> Mapping[Column, str]:
        # Hashed anew each time it is asked for.
        return {column: column.family for column in self.columns}

    def _value(
        self, column: Column, items: Items, panel: _Panel, mine: Sequence[tuple[int, Families]], at_us: int
    ) -> NDArray[Any]:
        subjects, tail = items.subjects(column.by), _first_tile(column, at_us)
        if column.by[0] == "person":
            return _evaluate(column, subjects, _keyed(mine, self._families[column], column.hop_us), tail)
        if not column.is_text:
            return panel.sheets[column].at(at_us)
        kept = panel.texts.get(column)
        if kept is None or kept[0] != tail:
            kept = panel.texts[column] = (tail, _evaluate(column, subjects, self._keyed_watched(column), tail))
        return kept[1]

    def _keyed_watched(self, column: Column) -> Iterator[tuple[Any, int, Tiles]]:
        family = self._families[column]
        for place, value in self._blobs.items():
            for rest, hops in _unpacked(place, value).get(family, {}).items():
                yield (place[0], rest), place[1], hops.get(column.hop_us, {})


def _unpacked(place: Place, value: bytes | None) -> Families:
    return {} if value is None else unpack(value, place).families


def _keyed(blobs: Sequence[tuple[int, Families]], family: str, hop_us: int) -> Iterator[tuple[Any, int, Tiles]]:
    for partition, families in blobs:
        for rest, hops in families.get(family, {}).items():
            yield rest, partition, hops.get(hop_us, {})


def _evaluate(column: Column, subjects: _Subjects, keyed: Iterable[tuple[Any, int, Tiles]], tail: int) -> NDArray[Any]:
    """Returns the value of each item from the tiles of its key."""
    found: dict[int, list[tuple[int, Tiles]]] = {}
    for key, partition, tiles in keyed:
        code = subjects.places.get(key)
        if code is not None:
            found.setdefault(code, []).append((partition, tiles))
    nothing: Any = None if column.is_text else 0.0
    values = np.full(len(subjects.places) + 1, nothing, object if column.is_text else np.float64)
    for code, parts in found.items():
        values[code] = _newest(parts, tail) if column.is_text else _sum(column, parts, tail)
    return subjects.spread(values)


def _first_tile(column: Column, at_us: int) -> int:
    return tail_of(at_us, column.window_us) // column.hop_us


def _newest(parts: Sequence[tuple[int, Tiles]], tail: int) -> str | None:
    """Returns the text of the newest event, by event_us, partition and offset, and of one event the greatest text."""
    best: tuple[int, int, int, str] | None = None
    for partition, tiles in parts:
        for number, tile in tiles.items():
            if number >= tail and isinstance(tile, tuple):
                found = _placed(partition, tile)
                best = found if best is None or found > best else best
    return None if best is None else best[3]


def _placed(partition: int, tile: Latest) -> tuple[int, int, int, str]:
    return tile[0], partition, tile[1], tile[2]


def _sum(column: Column, parts: Sequence[tuple[int, Tiles]], tail: int) -> float:
    total = sum(
        tile for _, tiles in parts for number, tile in tiles.items() if number >= tail and isinstance(tile, int)
    )
    if column.kind != "total":
        return float(total)
    _check_sums(column, np.array([float(total)]))
    return total / MICRO


def _check_sums(column: Column, sums: NDArray[np.float64]) -> None:
    if (np.abs(sums) > _MOST).any():
        raise StopError(f"{column.name}: a sum does not fit into 64 bits of millionths. Add up something smaller")
