"""Skew: the features that decisions were made of, against the same ones counted anew from the topic `events`.

Here nothing is read of the online store: what is counted anew are single events, not tiles, so that a fault in tiles,
in their file or in who reads them shows. It reaches as far back as the topic was read; `headrace feature diff` compares
with the lake, which holds everything.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from zlib import crc32

import msgspec
from msgspec import UNSET, Raw, UnsetType

from headrace.features.feature import Column
from headrace.features.tiles import MICRO, Fold, Rest, Row, entity_of
from headrace.features.window import tail_of
from headrace.watch.alert import Finding, Now

MOST_COUNTED = 300_000
"""So many additions are kept in memory; where there are more, a sample of people and items is followed."""
_KEPT = 0.75
_MOST_WAITING = 200
_PER_LOOK = 20
# Items that very many click: it takes 10 ms.
_MOST_EXAMINED = 50_000
_RECENT_US = 30_000_000
_LEAST_DECISIONS = 2


class Made(msgspec.Struct, gc=False):
    """What of a decision is watched."""

    recommendation_id: str
    at_us: int
    received_us: int
    person: str
    items: tuple[str, ...]
    scores: tuple[float, ...]
    bundle: str
    visitor: str | None = None
    bot: bool = False
    trial: str | None = None
    arm: str | None = None
    degraded: tuple[str, ...] = ()
    known: tuple[int, ...] = ()
    dimensions: Raw | UnsetType = UNSET
    vectors: Raw | UnsetType = UNSET
    above: tuple[str, ...] = ()


class _Counted(NamedTuple):
    event_us: int
    partition: int
    src_offset: int
    value: Any
    seq: int


_Key = tuple[str, bytes, Rest]

_read_vectors = msgspec.json.Decoder(list[list[Any]]).decode
_read_ends = msgspec.json.Decoder(dict[str, int]).decode


class Tally:
    """Every addition to features, one by one, as far as `events` was read."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.read: Counter[int] = Counter()
        """Of each partition the `seq` that comes next."""
        self.horizon_us = 0
        """What reaches further back than this is not known in full."""
        self.examined = 0
        """How many single events were looked at."""
        self._fold = Fold(columns)
        self._longest_us = max((column.window_us for column in columns), default=0)
        self._newest_us = 0
        self._counted: dict[_Key, list[_Counted]] = {}
        self._size = 0
        self._mask = 0

    def add(self, row: Row, partition: int) -> None:
        """Takes in an event; one that was taken in before is passed over."""
        if row.seq < self.read[partition]:
            return
        self.read[partition] = row.seq + 1
        self._newest_us = max(self._newest_us, row.event_us)
        for entity, one in self._fold.additions(row):
            if self._follows(entity):
                counted = _Counted(one.event_us, partition, one.src_offset, one.value, row.seq)
                # Sorted by time: a late one goes where it belongs.
                insort(self._counted.setdefault((one.family, entity, one.rest), []), counted)
                self._size += 1
        if self._size > MOST_COUNTED:
            self._forget()

    def value(self, column: Column, parts: Mapping[str, str | None], at_us: int, known: Sequence[int]) -> Any:
        """Returns the value of a column; raises LookupError if it is not known here."""
        tail = tail_of(at_us, column.window_us)
        if tail < self.horizon_us or column.family not in self._fold.families:
            raise LookupError(column.name)
        picked = [parts.get(name) for name in column.by]
        texts = [part for part in picked if part is not None]
        if len(texts) < len(picked):
            return None if column.is_text else 0.0
        entity, rest = entity_of(column.by, texts)
        if not self._follows(entity):
            raise LookupError(column.name)
        counted = self._counted.get((column.family, entity, rest), [])
        within = counted[bisect_left(counted, (tail,)) :]
        self.examined += len(within)
        found = [one for one in within if one.seq < known[one.partition]]
        if column.is_text:
            return found[-1].value if found else None
        return sum(one.value for one in found) / (MICRO if column.kind == "total" else 1)

    def _follows(self, entity: bytes) -> bool:
        return not crc32(entity) & self._mask

    def _forget(self) -> None:
        """Makes room: what no window reaches goes first, then half of those who are followed, and half of the rest."""
        oldest_us = self._newest_us - 2 * self._longest_us
        self.horizon_us = max(self.horizon_us, oldest_us)
        for counted in self._counted.values():
            del counted[: bisect_left(counted, (oldest_us,))]
        while (size := sum(map(len, self._counted.values()))) > MOST_COUNTED * _KEPT:
            self._mask = self._mask << 1 | 1
            self._counted = {key: found for key, found in self._counted.items() if self._follows(key[1])}
        self._counted = {key: found for key, found in self._counted.items() if found}
        self._size = size


ColumnsOf = Callable[[str], Sequence[Column]]
"""Returns the columns of a bundle by its hash; none if it is not known."""

AttributesOf = Callable[[str, str, int], Mapping[str, str | None]]
"""Returns the attributes (`@genre`) of an item of a dimension, as known below an offset; or raises LookupError."""


class Skew:
    """Compares what decisions have logged; a sample of them, each once all it knew was read here too."""

    def __init__(self, columns_of: ColumnsOf, attributes_of: AttributesOf) -> None:
        self._columns_of, self._attributes_of = columns_of, attributes_of
        self._waiting: deque[Made] = deque(maxlen=_MOST_WAITING)
        self._wrong: deque[tuple[int, str, str]] = deque(maxlen=10_000)
        self.compared = 0
        """How many values were compared."""

    def add(self, made: Made) -> None:
        """Takes in a decision; of many the newest wait."""
        if made.vectors is not UNSET and made.known:
            self._waiting.append(made)

    def compare(self, tally: Tally, now: Now) -> None:
        """Compares some of the decisions that wait."""
        ready = [one for one in self._waiting if all(tally.read[p] >= seq for p, seq in enumerate(one.known))]
        most = tally.examined + _MOST_EXAMINED
        for made in ready[: -_PER_LOOK - 1 : -1]:
            if tally.examined > most:
                break
            for name in self._find_wrong(made, tally):
                self._wrong.append((now.machine_us, made.recommendation_id, name))
        done = {id(made) for made in ready}
        self._waiting = deque((one for one in self._waiting if id(one) not in done), maxlen=_MOST_WAITING)

    def _find_wrong(self, made: Made, tally: Tally) -> Iterator[str]:
        columns = self._columns_of(made.bundle)
        ends = {} if isinstance(made.dimensions, UnsetType) else _read_ends(made.dimensions)
        assert not isinstance(made.vectors, UnsetType)
        for item, vector in zip(made.items, _read_vectors(made.vectors), strict=False):
            for column, served in zip(columns, vector, strict=False):
                try:
                    known = self._attributes_of(column.dimension, item, ends.get(column.dimension, 0))
                    parts = {"person": made.person, "item": item, **known}
                    counted = tally.value(column, parts, made.at_us, made.known)
                except LookupError:
                    continue
                self.compared += 1
                if counted != served:
                    yield column.name

    def judge(self, now: Now) -> Iterator[Finding]:
        """Yields the finding, if there is one."""
        while self._wrong and self._wrong[0][0] < now.machine_us - _RECENT_US:
            self._wrong.popleft()
        if not self._wrong:
            return
        names = Counter(name for _, _, name in self._wrong)
        pages = {page for _, page, _ in self._wrong}
        listed = ", ".join(f"{name} ({count})" for name, count in names.most_common(4))
        yield Finding(
            kind="skew",
            subject="features",
            text=f"{len(self._wrong)} values that {len(pages)} pages are made of differ from what the events "
            f"give: {listed}",
            advice="Compare with the lake: headrace feature diff; then make the online store anew: headrace feature "
            "backfill",
            evidence={**names, "pages": len(pages), "example": self._wrong[-1][1]},
            is_clear=len(pages) >= _LEAST_DECISIONS,
        )
