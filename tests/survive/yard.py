"""A project whose settlers and sinks are driven by hand, in this process."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

from headrace.base.telemetry import Metrics
from headrace.collect.app import CLICKS
from headrace.collect.settler import Settler
from headrace.events.click import Door, encode_door
from headrace.events.settled import EVENTS, FAILED
from headrace.project import open_project
from headrace.stream import CODECS, METRICS, make_table
from headrace.tables.sink import Flush, Sink
from headrace.topics import Record, Topic
from survive.account import Account, check_account, copy_clicks, read_topic, table_rows
from survive.stream import lag_of

START_US = 1_767_571_200_000_000


def raw_click(number: int, *, time_us: int = 0, **event: Any) -> Record:
    """Returns what the door writes of an event of one of nine visitors."""
    door = encode_door(Door(version=1, received_us=START_US + time_us, source="http/track", write_key="dev"))
    body = {"anonymousId": f"v{number % 9}", "messageId": f"m{number}", "event": "Viewed", **event}
    return Record(body["anonymousId"].encode(), json.dumps(body).encode(), time_us, door)


class Yard:
    """Topics and tables of a project, with any number of settlers and sinks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = open_project(folder)
        self.project.make_topics()
        self.metrics = Metrics(METRICS)
        self.sent: set[str] = set()

    def close(self) -> None:
        self.project.close()

    def click(self, first: int, count: int) -> None:
        """Appends the clicks of `count` numbers, as if they had been acknowledged."""
        Topic(self.project.topics, CLICKS).append([raw_click(n) for n in range(first, first + count)])
        self.sent |= {f"m{n}" for n in range(first, first + count)}

    def settler(self, member: str) -> Settler:
        project = self.project
        return Settler(project.topics, project.rules, self.folder / "settler", member=member, metrics=self.metrics)

    def settle(self, member: str) -> None:
        """Settles all there is."""
        with closing(self.settler(member)) as one:
            while one.turn() and lag_of(self.project).settler:
                pass

    def sink(self, topic: str, member: str, **flush: Any) -> Sink:
        table = make_table(self.project, topic)
        when = Flush(**{"seconds": 60, **flush})
        return Sink(self.project.topics, topic, table, CODECS[topic], member=(member, when), metrics=self.metrics)

    def fill(self, member: str) -> None:
        """Moves all there is into the tables."""
        stop = threading.Event()
        stop.set()
        for topic in CODECS:
            one = self.sink(topic, member)
            ends = {p: bound.end for p, bound in enumerate(self.project.topics.bounds(topic))}
            while one.turn() and one._buffer.offsets != ends:
                pass
            one.run(stop)

    def end_lease(self, topic: str, group: str, member: str) -> None:
        """Takes the member's partitions away, as a lease that ends does."""
        thief = self.project.topics.share(topic, group, member=member, lease_seconds=6.0)
        thief.held()
        thief.close()

    def check(self) -> Account:
        return check_account(self.folder, self.sent)


def replay_anew(folder: Path, fresh: Path) -> None:
    """Asserts that `clicks`, replayed from the start into fresh topics and tables, give the same bytes and rows."""
    fresh.mkdir()
    for name in ("project.py", "headrace.toml"):
        (fresh / name).write_bytes((folder / name).read_bytes())
    with closing(Yard(fresh)) as anew, open_project(folder) as project:
        copy_clicks(project, anew.project)
        anew.settle("anew")
        anew.fill("anew")
        for name in (EVENTS, FAILED):
            assert _bytes(anew.project, name) == _bytes(project, name)
            assert _rows(anew.project, name) == _rows(project, name)


def _bytes(project: Any, name: str) -> list[tuple[object, ...]]:
    messages = read_topic(project, name)
    return [(m.partition, m.key, m.value, m.time_us) for m in messages if not m.headers]


def _rows(project: Any, name: str) -> list[Any]:
    # Progress records take offsets of `events`, and stand where somebody happened to commit.
    rows = table_rows(project, name, "select * from rows order by log_partition, seq")
    return rows.drop_columns(["log_offset"]).to_pylist()
