"""What the checks read of a world that was played: the clients' record, bytes of topics, and rows of Parquet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa

from headrace.base.clock import WorldClock
from headrace.base.errors import StopError
from headrace.collect.app import CLICKS
from headrace.endpoints.endpoint import Shown
from headrace.endpoints.serving import TRIAL
from headrace.engines import Source, open_engine
from headrace.events.decision import DECISIONS, is_decision
from headrace.events.settled import EVENTS, FAILED
from headrace.events.world import World
from headrace.experiments.experiment import Trial
from headrace.experiments.verdict import Exposure, Verdict
from headrace.features import Column
from headrace.loop import find_trial_of, list_exposures
from headrace.project import OpenProject
from headrace.topics import Message
from headrace.verify.audience import Record
from headrace.verify.count import count_clicks, read_id, read_settled
from headrace.verify.exposed import Exposed, expose
from headrace.verify.oracle import Oracle
from headrace.verify.said import Listener, Sent
from headrace.verify.truth import Truth, tell_truth

_BATCH = 1_000
_TOLERANCE_US = 2_000_000
"""So far a client's clock may be off, in the machine's time, before its events are moved."""
INSTEAD = frozenset({"bundle", "fallback", "features"})
"""Where one of these is said of a page, another bundle than planned has ranked."""


@dataclass(frozen=True)
class Rows:
    """Rows of a table, made as they are looked at: all those of a demo at once would weigh 450 MB."""

    found: pa.Table

    def __len__(self) -> int:
        return int(self.found.num_rows)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for batch in self.found.to_batches(max_chunksize=_BATCH):
            yield from batch.to_pylist()


class Found(NamedTuple):
    """What a check has counted."""

    text: str
    witness: str | None = None
    """The first that shows a fault; None where there is none."""


class LeftOutError(Exception):
    """There is nothing that a check could judge, and why."""


@dataclass(frozen=True)
class Check:
    """One question to a world."""

    name: str
    room: str
    ask: Callable[[Case], Found]
    false_alarm: float = 0.0


_WITHDRAWN = "SELECT recommendation_id FROM found WHERE list_contains(degraded, 'unlogged')"
_EVENTS = (
    "message_id, type, event, event_us, person, visitor, user_id, recommendation_id, bot, properties, attributes, "
    "log_partition, log_offset, src_offset, seq"
)


@dataclass(frozen=True)
class Case:
    """A world that was played in a project, which is at rest."""

    project: OpenProject
    world: World
    record: Record
    verdict: Verdict | None
    served: Shown | None = None
    """What a page was in the end, where nothing was promoted since the verdict."""

    def read(self, table: str, columns: str = "*", *, where: str = "true") -> Rows:
        """Returns the rows of a table's Parquet files, in their order; `where` may ask `found` again."""
        found = self.project.tables.open(table)
        source = Source("found", found.schema, found.local_files, found.partitions)
        with closing(open_engine("duckdb://?threads=1")) as engine:
            sql = f"SELECT {columns} FROM found WHERE {where} ORDER BY log_partition, log_offset"  # noqa: S608 - ours
            return Rows(engine.query(sql, sources=[source]).table())

    @cached_property
    def events(self) -> Rows:
        """The rows of `events`."""
        return self.read(EVENTS, _EVENTS)

    @cached_property
    def decided(self) -> Rows:
        """Who was decided for, and where each row of `decisions` was logged."""
        return self.read(DECISIONS, "visitor, bot, log_partition, log_offset")

    @cached_property
    def decisions(self) -> Rows:
        """The rows of `decisions` of pages that were answered with their id."""
        return self.read(DECISIONS, where=f"recommendation_id NOT IN ({_WITHDRAWN})")

    @cached_property
    def clicks(self) -> Counter[str]:
        """How often each id stands in `clicks`."""
        return count_clicks(self.project)

    def ours(self) -> Iterator[Message]:
        """Yields the clicks of the world's own clients: anybody may send to a door."""
        messages = self.project.topic(CLICKS).read_to_ends()
        return (one for one in messages if read_id(one) in self.record.acknowledged)

    def sent(self) -> Iterator[Sent]:
        """Yields what each of the world's own clicks says."""
        paths = {event.name: event.item or "" for event in self.project.declared.events if event.of is not None}
        clock = self.project.clock
        tolerance_us = int(_TOLERANCE_US * clock.rate) if isinstance(clock, WorldClock) else _TOLERANCE_US
        listener = Listener(paths, self.attributes, tolerance_us=tolerance_us)
        return listener.hear(self.ours())

    @cached_property
    def settled(self) -> list[tuple[str, tuple[int, int]]]:
        """Id, partition and number of each event in `events`."""
        return [(row.message_id, (partition, row.seq)) for partition, row in read_settled(self.project, EVENTS)]

    @cached_property
    def failed(self) -> list[str]:
        """The id of each event in `failed`."""
        return [row.message_id for _, row in read_settled(self.project, FAILED)]

    @cached_property
    def logged(self) -> list[tuple[int, int]]:
        """Partition and offset of each decision in `decisions`."""
        found = self.project.topic(DECISIONS).read_to_ends()
        return [(one.partition, one.offset) for one in found if is_decision(one.value or b"")]

    @cached_property
    def visitors(self) -> Mapping[str, int]:
        """The number of each visitor of the world, by the visitor's id."""
        return {self.world.visitor(number).anonymous_id: number for number in range(self.world.num_visitors)}

    def is_bot(self, visitor: str) -> bool:
        """Returns whether a visitor is a robot; of who is not of this world, whether any decision says so."""
        number = self.visitors.get(visitor)
        return visitor in self._strange_bots if number is None else self.world.visitor(number).bot

    @cached_property
    def _strange_bots(self) -> set[str]:
        return {row["visitor"] for row in self.decided if row["bot"]}

    @cached_property
    def judged(self) -> Verdict:
        """The verdict; raises LeftOutError where nothing was tested, and StopError where a trial has none."""
        if self.verdict is None:
            if self.project.registry.newest(TRIAL):
                raise StopError("a trial was begun, and has no verdict")
            raise LeftOutError("no trial came to a verdict in this world")
        return self.verdict

    @cached_property
    def trial(self) -> Trial:
        """The trial of the verdict."""
        return find_trial_of(self.project, self.judged)

    @cached_property
    def exposed(self) -> dict[str, Exposed]:
        """What counts for each visitor of the trial, robots left out."""
        return expose(self)

    @cached_property
    def told(self) -> Sequence[Exposure]:
        """Who was in the trial, as the analysis has it."""
        return list_exposures(self.project, self.judged)

    @cached_property
    def truth(self) -> Truth:
        """What the trial should have found, with each of its decisions made again."""
        return tell_truth(self.project, self.world, self.judged)

    @cached_property
    def attributes(self) -> Mapping[str, Mapping[str, Any]]:
        """What the world itself knows of its titles."""
        return {one.product_id: {"title": one.title, "genre": one.genre} for one in self.world.items}

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the project's features; raises LeftOutError where there are none."""
        if not self.project.declared.columns:
            raise LeftOutError("the project declares no features")
        return self.project.declared.columns

    @cached_property
    def oracle(self) -> Oracle:
        """The features, counted the plain way."""
        return Oracle(self.columns, self.events)
