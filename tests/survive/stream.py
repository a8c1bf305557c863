"""A stream that is being killed: its roles as processes of their own, shoppers who make work for it, and its lag."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltalake import DeltaTable

from headrace.base.process import Life
from headrace.base.telemetry import Metrics
from headrace.collect.app import CLICKS
from headrace.project import OpenProject, open_project
from headrace.tables.keeper import METRICS, Care, Keeper
from headrace.topics import Topic
from running import project_toml, wait_until
from survive.account import table_root
from survive.load import Clients

TESTS = Path(__file__).parents[1]
POINTS = {
    "settler": ("settle.folded", "settle.committed", "settle.saved"),
    "sink": ("sink.committing", "sink.committed"),
    "keeper": ("keeper.compacted", "keeper.checkpointed", "keeper.vacuumed"),
}

_PROJECT = """from headrace import Event, Project

project = Project("shop", events=(Event("Product Clicked", fields={"seat": int}),))
"""


def make_project(folder: Path, *, flush_seconds: float = 0.2, source: str = _PROJECT, **toml: Any) -> None:
    """Writes a project whose sinks commit often."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "project.py").write_text(source)
    extra = toml.pop("extra", "")
    tables = toml.pop("tables", "file:///.headrace/lake")
    text = project_toml(extra=f"[sink]\nflush_seconds = {flush_seconds}\n{extra}", **toml)
    (folder / "headrace.toml").write_text(text.replace("\nclock =", f'\ntables = "{tables}"\nclock =', 1))


@dataclass
class Part:
    """A role of the stream as a process of its own, which the test starts anew when it has died."""

    folder: Path
    role: str
    target: str = "headrace.stream:run_stream"
    process: subprocess.Popen[bytes] | None = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder / f"{self.role}.log"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, *, fault: str = "") -> None:
        """Starts the role; `fault` is what HEADRACE_FAULT takes."""
        arguments: dict[str, Any] = {"folder": str(self.folder), "profile": "laptop"}
        if self.target.startswith("headrace."):
            arguments |= {"roles": [self.role], "name": self.role}
        life, ready = os.pipe()
        spec = {"target": self.target, "arguments": arguments, "parent": os.getpid(), "life": life, "ready": ready}
        path = f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "headrace.base.process", json.dumps(spec)],
                pass_fds=(life, ready),
                stderr=log,
                env={**os.environ, "HEADRACE_FAULT": fault, "PYTHONPATH": path},
            )
        os.close(life)
        os.close(ready)

    def is_dead(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def kill(self) -> None:
        """Ends the role as a power cut would."""
        self.end(signal.SIGKILL)

    def thaw(self) -> None:
        """Lets a frozen role go on; it has noticed nothing."""
        assert self.process is not None
        assert self.process.poll() is None
        self.process.send_signal(signal.SIGCONT)

    def end(self, number: int = signal.SIGTERM) -> None:
        """Ends the role, frozen or not."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.send_signal(signal.SIGCONT)
            self.process.wait(10)


class Parts(dict[str, Part]):
    """The roles of a project, one process each, which end with the block."""

    def __init__(self, folder: Path, *roles: str) -> None:
        targets = {"keeper": "survive.stream:run_quick_keeper"}
        super().__init__(
            {role: Part(folder, role, targets.get(role, "headrace.stream:run_stream")) for role in roles or POINTS}
        )

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        for part in self.values():
            part.end(signal.SIGKILL)

    def catch_up(self, folder: Path, *, seconds: float = 30.0) -> None:
        """Starts what is dead, waits until nothing lags, and ends all in good order."""
        for part in self.values():
            if part.is_dead():
                part.start()
        wait_caught_up(folder, seconds=seconds)
        for part in self.values():
            part.end()


def run_quick_keeper(life: Life, *, folder: str, profile: str) -> None:
    """A keeper that does in seconds what the real one does in hours, and never rests."""
    with open_project(folder, profile=profile) as project:
        care = Care(compact_commits=3, checkpoint_commits=2, vacuum_every_seconds=0.5, keep_seconds=1.0)
        keeper = Keeper(
            project.tables,
            project.topics,
            lease=("events", project.member),
            care=care,
            oldest_day=lambda _: None,
            metrics=Metrics(METRICS),
        )
        life.tell_ready()
        while True:
            keeper.turn()
            time.sleep(0.05)


class Shoppers(Clients):
    """Visitors whose every fourth event is a repeat, and some of whose events fit no definition."""

    def event(self, visitor: str, number: int) -> Mapping[str, Any]:
        # 0 1 2 2 3 4 5 5 ...: a repeat has the id, and the bytes, of what went before.
        count = number - (number + 1) // 4
        seat = "none" if count % 11 == 7 else count
        return {
            "anonymousId": visitor,
            "messageId": f"{visitor}-{count}",
            "event": "Product Clicked",
            "properties": {"seat": seat},
        }


@dataclass(frozen=True)
class Counts:
    """How many records wait for settler and sinks, or have passed them."""

    settler: int
    sink: int


def lag(folder: Path) -> Counts:
    """Returns how many clicks wait to be settled, and how many records to be rows."""
    with open_project(folder) as project:
        return lag_of(project)


def lag_of(project: OpenProject) -> Counts:
    """Returns how many clicks wait to be settled, and how many records to be rows."""
    ends = [sum(bound.end for bound in project.topics.bounds(name)) for name in ("clicks", "events", "failed")]
    done = done_of(project)
    return Counts(ends[0] - done.settler, ends[1] + ends[2] - done.sink)


def done_of(project: OpenProject) -> Counts:
    """Returns how many clicks are settled, and how many records are in the tables, as both say themselves."""
    settled = sum(one.position.offset for one in project.topics.groups(CLICKS) if one.group == "settler")
    return Counts(settled, sum(sum(sunk(project, name).values()) for name in ("events", "failed")))


def sunk(project: OpenProject, name: str) -> dict[int, int]:
    """Returns how far a table has read each partition of its topic."""
    described = project.topics.describe(name)
    root = f"{table_root(project)}/{name}"
    if not DeltaTable.is_deltatable(root):
        return dict.fromkeys(range(described.partitions), 0)
    table = DeltaTable(root)
    apps = {p: f"{described.incarnation}/{p}" for p in range(described.partitions)}
    return {p: table.transaction_version(app) or 0 for p, app in apps.items()}


def wait_caught_up(folder: Path, *, seconds: float = 30.0) -> None:
    """Returns once all clicks are settled, and what came of them is in the tables."""

    def is_done() -> bool:
        found = lag_of(project)
        return found.settler == 0 and (found.sink == 0 or _only_progress(project))

    with open_project(folder) as project:
        wait_until(is_done, seconds=seconds, what="the stream has caught up")


def _only_progress(project: OpenProject) -> bool:
    """Whether what the tables lack are no rows, so that a position alone may move on a minute later."""
    for name in ("events", "failed"):
        ends = [bound.end for bound in project.topics.bounds(name)]
        offsets = sunk(project, name)
        while any(offset < ends[p] for p, offset in offsets.items()):
            messages = Topic(project.topics, name).read(offsets)
            if not messages or any(not message.headers for message in messages):
                return False
            offsets.update({message.partition: message.offset + 1 for message in messages})
    return True
