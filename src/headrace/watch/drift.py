"""Drift: what features are counted from, and what bundles score, now against the stretch just before.

The reference moves along: it finds what breaks, not what grows. What changes slowly is met by the next night's fit and
its gate. A p value alone accuses everything in the end, so an alert needs a large change as well.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, UnsetType

from headrace.events.dimension import text_of
from headrace.events.event import read_items
from headrace.features.feature import Column
from headrace.features.tiles import Row, read_number
from headrace.stats.drift import Drift, compare_numbers, compare_texts, find_discoveries
from headrace.watch.alert import Finding, Now

REFERENCE, RECENT = 1500, 300
"""So many values are the reference at most, and so many after them are compared with it."""
SCORES_REFERENCE = 600
"""Of scores fewer: they grow with what features count, which is no fault."""
_LEAST_SHARE = 1 / 3
SILENCE_US = 12 * 3_600_000_000
"""What came before so long a pause is no reference: features are empty after it, so pages and clicks are others."""
RATE = 1e-4
"""The share of false ones among what stands out, of all inputs looked at together."""
PSI_OPENS, PSI_CLOSES = 0.4, 0.2
"""An alert of drift needs so large a change; healthy worlds come to 0.2."""
DISTANCE_OPENS, DISTANCE_CLOSES = 0.8, 0.5
"""The same for scores: what people have just clicked is not shown again, which moves them by 0.5 within hours."""
_MOST_BUNDLES = 8

Key = TypeVar("Key")

_read_attributes = msgspec.json.Decoder(dict[str, dict[str, Any]]).decode


class Stretch:
    """The newest values of a stream, with those before them."""

    def __init__(self, reference: int = REFERENCE) -> None:
        self._values: deque[Any] = deque(maxlen=reference + RECENT)
        self._least = int(reference * _LEAST_SHARE) + RECENT
        self._newest_us = 0

    def add(self, value: Any, at_us: int) -> None:
        """Takes in a value, and when that was by the project's clock."""
        if at_us - self._newest_us > SILENCE_US:
            self._values.clear()
        self._newest_us = max(self._newest_us, at_us)
        self._values.append(value)

    def compare(self) -> Drift | None:
        """Returns how the newest values differ; None while there are too few."""
        if len(self._values) < self._least:
            return None
        values = list(self._values)
        compare = compare_texts if isinstance(values[0], str) else compare_numbers
        return compare(values[:-RECENT], values[-RECENT:])


@dataclass(frozen=True)
class Input:
    """What some features are counted from: an attribute of an event's items, or an amount in its properties."""

    event: str
    item: str
    name: str
    """`@genre`, or the path of a number."""

    @property
    def text(self) -> str:
        """The input in words."""
        return f"{self.name.removeprefix('@')} of {self.event!r}"

    def read(self, row: Row) -> Iterable[str | float]:
        """Returns the values of an event."""
        if isinstance(row.properties, UnsetType):
            return ()
        if not self.name.startswith("@"):
            number = read_number(row.properties, self.name)
            return () if number is None else (number,)
        known = {} if isinstance(row.attributes, UnsetType) else _read_attributes(row.attributes)
        found = (text_of(known.get(item, {}).get(self.name[1:])) for item in read_items(Raw(row.properties), self.item))
        return [text for text in found if text is not None]


def list_inputs(columns: Iterable[Column]) -> dict[Input, list[str]]:
    """Returns what columns are counted from, each with their names; an item itself is none, they come and go."""
    found: dict[Input, list[str]] = {}
    for column in columns:
        names = [name for name in (*column.by, column.value) if name.startswith("@")]
        names += [column.value] if column.kind == "total" else []
        for name in dict.fromkeys(names):
            found.setdefault(Input(column.event, column.item, name), []).append(column.name)
    return found


class Inputs:
    """The drift of what features are counted from."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._inputs = list_inputs(columns)
        self._by_event: dict[str, list[tuple[Input, Stretch]]] = {}
        self._stretches = {one: Stretch() for one in self._inputs}
        for one, stretch in self._stretches.items():
            self._by_event.setdefault(one.event, []).append((one, stretch))

    def add(self, row: Row) -> None:
        """Takes in an event; robots count in no feature."""
        if row.bot or row.type != "track":
            return
        for one, stretch in self._by_event.get(row.event, ()):
            for value in one.read(row):
                stretch.add(value, row.event_us)

    def judge(self, now: Now) -> Iterator[Finding]:  # noqa: ARG002 - it is counted in values
        """Yields the inputs that have changed."""
        compared = {one: found for one, stretch in self._stretches.items() if (found := stretch.compare()) is not None}
        for one, found in _stand_out(compared):
            if found.psi < PSI_CLOSES:
                continue
            features = ", ".join(self._inputs[one])
            yield Finding(
                kind="drift",
                subject=one.text,
                text=f"{one.text} has changed: PSI {found.psi:.2f} between the newest {RECENT} and those before, "
                f"p = {found.p:.1g}; counted from it: {features}",
                advice="Look whether the audience has changed or a client sends something else. If it is to stay, fit "
                "anew: headrace pipeline run",
                evidence={"psi": round(found.psi, 3), "p": found.p, "limit": PSI_OPENS},
                is_clear=found.psi >= PSI_OPENS,
            )


class Scores:
    """The drift of what bundles score, each by itself and in its arm: a trial's start only changes their mix.

    A visitor's first page is left out, since newcomers are scored alike, and their number says nothing of the bundle;
    and so is whatever stands below another row, since that row decides what is left for it.
    """

    def __init__(self) -> None:
        self._stretches: OrderedDict[tuple[str, str], Stretch] = OrderedDict()
        self._visitors: OrderedDict[str, None] = OrderedDict()

    def add(self, visitor: str, bundle: tuple[str, str], scores: Sequence[float], at_us: int) -> None:
        """Takes in the first row of a page: who asked, which bundle ranked it in which arm, the scores, and when."""
        if visitor not in self._visitors:
            self._visitors[visitor] = None
            if len(self._visitors) > 100_000:
                self._visitors.popitem(last=False)
        elif scores:
            self._stretches.setdefault(bundle, Stretch(SCORES_REFERENCE)).add(sum(scores) / len(scores), at_us)
            self._stretches.move_to_end(bundle)
            if len(self._stretches) > _MOST_BUNDLES:
                self._stretches.popitem(last=False)

    def judge(self, now: Now) -> Iterator[Finding]:  # noqa: ARG002 - it is counted in values
        """Yields the bundles whose scores have changed."""
        compared = {key: found for key, stretch in self._stretches.items() if (found := stretch.compare()) is not None}
        for (bundle, arm), found in _stand_out(compared):
            if found.statistic < DISTANCE_CLOSES:
                continue
            yield Finding(
                kind="scores",
                subject=f"{bundle} {arm}".rstrip(),
                text=f"bundle {bundle} scores other than it did: the distribution of the newest {RECENT} pages is "
                f"{found.statistic:.2f} away from those before (PSI {found.psi:.2f}, p = {found.p:.1g})",
                advice="Look at the features it reads: headrace feature diff; if it is the model, let the one "
                "before serve: headrace model promote",
                evidence={"distance": round(found.statistic, 3), "psi": round(found.psi, 3), "p": found.p},
                is_clear=found.statistic >= DISTANCE_OPENS,
            )


def _stand_out(compared: Mapping[Key, Drift]) -> Iterator[tuple[Key, Drift]]:
    chosen = find_discoveries([found.p for found in compared.values()], rate=RATE)
    return (pair for pair, stands in zip(compared.items(), chosen, strict=True) if stands)
