"""Topics, a lake and an online store, with updaters that are made anew as often as a test likes."""

from __future__ import annotations

from headrace.base.clock import machine_us
from headrace.base.telemetry import Metrics
from headrace.base.urls import Url
from headrace.events.settled import EVENTS
from headrace.features.online import open_online
from headrace.features.updater import METRICS, Sources, Updater, rebuild
from headrace.stream import CODECS
from headrace.tables import open_tables
from headrace.tables.sink import INCARNATION, Flush, Sink
from headrace.tables.sink import METRICS as SINK_METRICS
from headrace.topics import open_topics

from .traffic import COLUMNS, append

PARTITIONS = 3


class Bench:
    """All that an updater works on, in one folder."""

    def __init__(self, folder):
        self.folder = folder
        self.topics = open_topics("sqlite:///topics", root=folder)
        self.topics.create(EVENTS, partitions=PARTITIONS, retention_seconds=None)
        self.tables = open_tables("file:///lake", root=folder)
        self.online = self.open_online()
        self.metrics = Metrics(METRICS)

    def open_online(self):
        """Returns the online store once more, as another process would open it."""
        return open_online(Url.parse("sqlite:///online.db", root=self.folder))

    def append(self, events):
        """Puts settled events into the topic."""
        append(self.topics, events)

    @property
    def sources(self):
        """Where events come from."""
        return Sources(self.topics, self.find_lake)

    def find_lake(self):
        """Returns the table of events, if it stands."""
        return self.tables.open(EVENTS) if EVENTS in self.tables.names() else None

    def sink(self):
        """Moves all that the topic holds into the lake."""
        incarnation = self.topics.describe(EVENTS).incarnation
        table = self.tables.create(EVENTS, CODECS[EVENTS].schema, properties={INCARNATION: incarnation})
        flush = Flush(seconds=0.0, rows=300, advance_seconds=0.0)
        metrics = Metrics(SINK_METRICS)
        sink = Sink(self.topics, EVENTS, table, CODECS[EVENTS], member=("a", flush), metrics=metrics)
        while sink.turn():
            pass
        sink.flush()
        sink._share.close()

    def open(self, *, columns=COLUMNS, online=None):
        """Returns an updater that goes on where the store stands."""
        updater = Updater(online or self.online, lambda: columns, self.sources, clock=machine_us, metrics=self.metrics)
        updater.open()
        return updater

    def update(self, *, columns=COLUMNS):
        """Counts all there is."""
        drain(self.open(columns=columns))

    def rebuild(self, *, columns=COLUMNS, told=lambda _: None):
        """Makes another generation, as a command does."""
        return rebuild(self.open_online(), columns, self.sources, now_us=machine_us(), told=told)

    def blobs(self):
        """Returns all blobs of the generation that serves."""
        generation = self.online.read_state().generation
        rows = self.online._connection.execute(
            "select entity, partition, value from blobs where generation = ?", (generation,)
        )
        return {(entity, partition): value for entity, partition, value in rows}

    def close(self):
        """Closes everything."""
        self.topics.close()
        self.tables.close()
        self.online.close()


def drain(updater):
    """Counts until nothing comes and nothing is being made."""
    while updater.turn() or updater._rebuild is not None or not updater._is_clean:
        pass
