"""The loops of the process `stream`, each given its turn when there is something for it to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from headrace.base.clock import machine_us
from headrace.base.errors import DeadlineError
from headrace.base.telemetry import Metrics
from headrace.collect.app import CLICKS
from headrace.collect.settler import Settler
from headrace.events.settled import EVENTS
from headrace.features.updater import Updater
from headrace.project import OpenProject
from headrace.stream import (
    CODECS,
    METRICS,
    codec_of,
    find_columns,
    find_sources,
    list_dimensions,
    make_table,
    settled_offsets,
)
from headrace.tables.sink import Flush, Sink

_MEMBER = "verify"
_PATIENCE_SECONDS = 60.0
# Nothing is committed but when somebody wants to read the lake.
_FLUSH = Flush(seconds=3600, advance_seconds=3600)


class Stream:
    """Settler, updater and sinks of a project whose topics stand; a context, which gives back what they hold."""

    def __init__(self, project: OpenProject) -> None:
        self._project = project
        self._metrics = Metrics(METRICS)
        folder = project.profile.state / "settler"
        self._settler = Settler(project.topics, project.rules, folder, member=_MEMBER, metrics=self._metrics)
        self._updater = Updater(
            project.online,
            lambda: find_columns(project),
            find_sources(project),
            clock=machine_us,
            metrics=self._metrics,
        )
        self._updater.open()
        self._sinks: dict[str, Sink] = {}

    def turn(self) -> None:
        """Settles what has come, and counts it online."""
        ends = [bound.end for bound in self._project.topics.bounds(CLICKS)]
        _until(partial(self._settle, ends), "clicks were not settled")
        _until(self._count, "events were not counted online")

    def rest(self) -> None:
        """Lets all that has come arrive in the lake."""
        self.turn()
        for name in (*CODECS, *list_dimensions(self._project)):
            sink = self._sinks.get(name) or self._sinks.setdefault(name, self._open_sink(name))
            _until(partial(self._read, sink, name), f"the sink of {name} did not come to its end")
            sink.flush()

    def close(self) -> None:
        """Gives back what the loops hold."""
        self._settler.close()

    def _settle(self, ends: Sequence[int]) -> bool:
        settled = settled_offsets(self._project)
        if all(settled[partition] >= end for partition, end in enumerate(ends)):
            return True
        self._settler.turn()
        return False

    def _count(self) -> bool:
        state = self._project.online.read_state()
        if state is not None and self._is_level(EVENTS, dict(enumerate(state.offsets))):
            return True
        self._updater.turn()
        return False

    def _read(self, sink: Sink, name: str) -> bool:
        if sink.offsets and self._is_level(name, sink.offsets):
            return True
        sink.turn()
        return False

    def _is_level(self, name: str, offsets: Mapping[int, int]) -> bool:
        """Returns whether nothing is left to read but what a log writes itself, such as markers of transactions."""
        return next(self._project.topic(name).read_to_ends(offsets, max_records=1), None) is None

    def _open_sink(self, name: str) -> Sink:
        project, table = self._project, make_table(self._project, name)
        return Sink(project.topics, name, table, codec_of(name), member=(_MEMBER, _FLUSH), metrics=self._metrics)


def _until(done: Callable[[], bool], what: str) -> None:
    """Calls until it returns true; raises DeadlineError if that takes too long."""
    latest_at = time.monotonic() + _PATIENCE_SECONDS
    while not done():
        if time.monotonic() > latest_at:
            raise DeadlineError(f"{what} within {_PATIENCE_SECONDS:g} s")
