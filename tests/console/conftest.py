"""A project whose clicks are settled and sunk step by step, by the roles' own code, in this process."""

from __future__ import annotations

import json

import pytest

from console.audience import copy, fill
from headrace.base.telemetry import Metrics
from headrace.collect.settler import Settler
from headrace.events.click import Door, encode_door
from headrace.project import open_project
from headrace.stream import CODECS, METRICS, make_table
from headrace.tables.sink import Flush, Sink
from headrace.topics import Record
from running import call, project_toml

PROJECT = """from headrace import Event, Project
clicked = Event("Product Clicked", item="product_id")
project = Project("shop", events=(clicked,))
"""


class Shop:
    """A project with one partition, and what its roles do."""

    def __init__(self, folder, *, is_new=True):
        self.folder = folder
        if not is_new:
            return
        (folder / "project.py").write_text(PROJECT)
        (folder / "headrace.toml").write_text(project_toml(extra="[topic.clicks]\npartitions = 2\n"))

    def click(self, *events, key=b"ann", received_us=1_795_277_633_000_000, **door):
        """Appends events as the collector does; returns their places in `clicks`."""
        known = Door(
            version=1, received_us=received_us, source="http/track", write_key=door.pop("write_key", "dev"), **door
        )
        values = [event if isinstance(event, bytes) else json.dumps(event).encode() for event in events]
        with open_project(self.folder) as project:
            project.make_topics()
            return project.topic("clicks").append([Record(key, value, 0, encode_door(known)) for value in values])

    def write_foreign_records(self, naming=""):
        """Appends to `events` and `failed` what no settler wrote, as with kcat."""
        values = [b"hello", b"{}", None, json.dumps({"message_id": naming}).encode()]
        records = [Record(b"ann", value, 0, headers) for value in values for headers in ((), (("kind", b"note"),))]
        with open_project(self.folder) as project:
            for name in CODECS:
                project.topic(name).append(records)

    def settle(self):
        """Settles all clicks."""
        with open_project(self.folder) as project:
            project.make_topics()
            metrics = Metrics(METRICS, folder=self.folder / ".headrace" / "metrics", process="test")
            folder = self.folder / ".headrace" / "settler"
            settler = Settler(project.topics, project.rules, folder, member=project.member, metrics=metrics)
            try:
                while settler.turn() and any(
                    memory.state.offset < bound.end
                    for bound, (_, memory) in zip(
                        project.topics.bounds("clicks"), sorted(settler._memories.items()), strict=True
                    )
                ):
                    pass
            finally:
                settler.close()

    def sink(self, *names):
        """Moves topics into their tables, by default both."""
        with open_project(self.folder) as project:
            project.make_topics()
            metrics = Metrics(METRICS, folder=self.folder / ".headrace" / "metrics", process="test")
            for name in names or CODECS:
                sink = Sink(
                    project.topics,
                    name,
                    make_table(project, name),
                    CODECS[name],
                    member=("test", Flush()),
                    metrics=metrics,
                )
                ends = [bound.end for bound in project.topics.bounds(name)]
                while sink.turn() and [sink._buffer.offsets[p] for p in range(len(ends))] != ends:
                    pass
                sink.flush()
                sink._share.close()

    def run(self):
        self.settle()
        self.sink()

    def call(self, *words, **options):
        """Returns exit code, stdout and stderr of a command on this project."""
        return call(*words, "--project", self.folder, **options)


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


@pytest.fixture(scope="session")
def _fitted(tmp_path_factory):
    shop = Shop(tmp_path_factory.mktemp("fitted"))
    fill(shop)
    return shop


@pytest.fixture
def fitted(_fitted, tmp_path):
    """A shop with past clicks and both models fitted, whose time a test steps."""
    return copy(_fitted, tmp_path)


@pytest.fixture(scope="module")
def shared_fitted(_fitted, tmp_path_factory):
    """The same for all tests of a file that change nothing in it that others see."""
    return copy(_fitted, tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A shop for all tests of a file that change nothing in it."""
    return Shop(tmp_path_factory.mktemp("shared"))
