"""The features of a bundle's items, read for one person at one instant."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from msgspec import UNSET, Raw, UnsetType

from headrace.base.errors import HeadraceError, OutsideError, UnavailableError
from headrace.base.telemetry import get_logger
from headrace.collect.dimensions import Dimensions
from headrace.endpoints.serving import Served
from headrace.events.dimension import text_of
from headrace.features import Column
from headrace.features.feature import attribute_names
from headrace.features.online import Online
from headrace.features.serve import Items, Reader
from headrace.models import Values

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Vectors:
    """The features of all items of a bundle, as one decision reads them."""

    at_us: int
    """The instant: never before an event that was counted."""
    known: tuple[int, ...] = ()
    """Of each partition of `events` how many rows were counted in."""
    values: Values = ()
    """An array for each column."""
    dimensions: Raw | UnsetType = UNSET
    """Up to which offset each dimension was read."""

    def of(self, places: Sequence[int]) -> Raw | UnsetType:
        """Returns the vectors of some items as a decision writes them down."""
        if not self.values:
            return UNSET
        columns = [values[list(places)].tolist() for values in self.values]
        return Raw(_encode(list(zip(*columns, strict=True))))


@dataclass(frozen=True)
class _Prepared:
    reader: Reader
    items: Items
    ends: Mapping[str, int]
    dimensions: Raw | UnsetType


class Lookup:
    """Reads vectors for the bundles that serve; what is slow about it was prepared before they do."""

    def __init__(
        self, find_online: Callable[[], Online], dimensions: Dimensions, columns: Sequence[Column] = ()
    ) -> None:
        # Found when it is needed first: a project without features has none.
        self._find_online = find_online
        self._dimensions = dimensions
        self._columns = columns
        self._prepared: dict[str, _Prepared] = {}
        self._noted = _encode_ends(self._ends(columns))
        self._told = ""

    def prepare(self, used: Iterable[Served]) -> None:
        """Makes the items of these bundles ready, with the attributes that are known by now; forgets all others."""
        needed = {served.hash: served for served in used if served.scorer.columns}
        try:
            if needed or self._columns:
                self._dimensions.refresh()
                self._noted = _encode_ends(self._ends(self._columns))
            self._prepared = {name_hash: self._prepare(served) for name_hash, served in needed.items()}
            self._told = ""
        except HeadraceError as error:
            if str(error) != self._told:
                get_logger("endpoint").warning("features cannot be prepared: %s", error)
            self._told = str(error)

    def read(self, served: Served, person: str, now_us: int) -> Vectors:
        """Returns the vectors for a person; if the bundle needs none, only what a bundle with features would know."""
        if not served.scorer.columns:
            return self._note(now_us)
        prepared = self._prepared.get(served.hash)
        if prepared is None:
            raise UnavailableError(f"the features of bundle {served.hash} are not ready: {self._told or 'it is new'}")
        found = prepared.reader.read(person, prepared.items, now_us)
        return Vectors(found.at_us, found.known, found.values, prepared.dimensions)

    def _note(self, now_us: int) -> Vectors:
        """Returns how far features are that nobody reads now: so others may learn by them."""
        if not self._columns:
            return Vectors(now_us)
        try:
            state = self._find_online().snapshot(()).state
        except HeadraceError:
            # The updater has not begun: nothing is lost but this page as a row to learn from.
            return Vectors(now_us)
        at_us = max(now_us, max(state.newest_us, default=0) + 1)
        return Vectors(at_us, state.known, dimensions=self._noted)

    def _ends(self, columns: Iterable[Column]) -> dict[str, int]:
        names = sorted({column.dimension for column in columns if column.dimension})
        return {name: self._dimensions.end(name) for name in names}

    def _prepare(self, served: Served) -> _Prepared:
        columns = served.scorer.columns
        ends = self._ends(columns)
        before = self._prepared.get(served.hash)
        if before is not None and before.ends == ends:
            return before
        reader = Reader(self._find_online(), columns) if before is None else before.reader
        items = Items(served.scorer.items, self._attributes(columns, served.scorer.items, ends))
        # 40,000 blobs take a second. Where none are there yet, each read says so.
        with contextlib.suppress(OutsideError):
            reader.prepare(items)
        return _Prepared(reader, items, ends, _encode_ends(ends))

    def _attributes(
        self, columns: Iterable[Column], items: Sequence[str], ends: Mapping[str, int]
    ) -> Mapping[str, Sequence[str | None]]:
        found: dict[str, Sequence[str | None]] = {}
        for column in columns:
            for name in attribute_names((*column.by, column.value)):
                if name not in found:
                    history, end = self._dimensions.history(column.dimension), ends[column.dimension]
                    known = [history.at(item, end) or {} for item in items]
                    found[name] = [text_of(one.get(name)) for one in known]
        return found


def _encode_ends(ends: Mapping[str, int]) -> Raw | UnsetType:
    return Raw(_encode(ends)) if ends else UNSET
