"""The loops of the process `stream`, each given its turn when there is something for it to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from headrace.base.clock import machine_us
from headrace.base.errors import DeadlineError
from headrace.base.telemetry import Metrics
from headrace.collect.app import CLICKS
from headrace.collect.settler import Settler
from headrace.events.settled import EVENTS
from headrace.features.updater import Updater
from headrace.project import OpenProject
from headrace.stream import CODECS, METRICS, codec_of, find_columns, find_sources, list_dimensions, make_table
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
        self._settled = 0
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
        came = self._end(CLICKS)
        _until(lambda: self._settle(came), "clicks were not settled")
        settled = self._end(EVENTS)
        _until(lambda: self._count(settled), "events were not counted online")

    def rest(self) -> None:
        """Lets all that has come arrive in the lake."""
        self.turn()
        for name in (*CODECS, *list_dimensions(self._project)):
            sink = self._sinks.get(name) or self._sinks.setdefault(name, self._open_sink(name))
            _until(partial(self._read, sink, self._end(name)), f"the sink of {name} did not come to its end")
            sink.flush()

    def close(self) -> None:
        """Gives back what the loops hold."""
        self._settler.close()

    def _settle(self, end: int) -> bool:
        if self._settled < end:
            self._settled += self._settler.turn()
        return self._settled >= end

    def _count(self, end: int) -> bool:
        state = self._project.online.read_state()
        if state is None or sum(state.offsets) < end:
            self._updater.turn()
            return False
        return True

    def _read(self, sink: Sink, end: int) -> bool:
        if sum(sink.offsets.values()) < end or not sink.offsets:
            sink.turn()
            return False
        return True

    def _open_sink(self, name: str) -> Sink:
        project, table = self._project, make_table(self._project, name)
        return Sink(project.topics, name, table, codec_of(name), member=(_MEMBER, _FLUSH), metrics=self._metrics)

    def _end(self, topic: str) -> int:
        return sum(bound.end for bound in self._project.topics.bounds(topic))


def _until(done: Callable[[], bool], what: str) -> None:
    """Calls until it returns true; raises DeadlineError if that takes too long."""
    latest_at = time.monotonic() + _PATIENCE_SECONDS
    while not done():
        if time.monotonic() > latest_at:
            raise DeadlineError(f"{what} within {_PATIENCE_SECONDS:g} s")
