"""The stream on Kafka and HDFS, whose processes die and freeze: each acknowledged event is one row."""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path

import pytest

from headrace.base.errors import HeadraceError
from headrace.project import OpenProject, open_project
from headrace.verify.count import wait_at_rest
from running import Running, headrace, running
from services.cluster import Cluster, cluster_of
from survive.account import check_account
from survive.load import Proxy, kill, until
from survive.stream import POINTS, Part, Parts, Shoppers, make_project
from survive.test_kills import free_port
from survive.test_stream_kills import AT_RANDOM, _die_at, _die_at_random

pytestmark = [pytest.mark.slow, pytest.mark.service("kafka"), pytest.mark.service("hdfs")]

SHOPPERS = 3
DEADLINE_SECONDS = 4


@pytest.fixture
def cluster(kafka, hdfs):
    """Places on Kafka and HDFS for one project."""
    with cluster_of(kafka, hdfs) as one:
        yield one


def make_far_project(folder: Path, cluster: Cluster, **toml) -> None:
    """Writes a project on Kafka and HDFS, whose calls to HDFS are given up soon."""
    tables = f"{cluster.tables.partition('?')[0]}?deadline_seconds={DEADLINE_SECONDS}"
    make_project(folder, topics=cluster.topics, tables=tables, **toml)


def end_at_rest(folder: Path, parts: Parts) -> None:
    """Starts what is dead, waits until nothing lags, and ends all in good order."""
    for part in parts.values():
        if part.is_dead():
            part.start()
    with open_project(folder) as project:
        assert wait_at_rest(project, 60)
    for part in parts.values():
        part.end()


async def kill_rounds(folder: Path, rounds: dict[str, int], port: int) -> set[str]:
    """Kills all three roles side by side under live load; returns what was acknowledged."""
    draw = random.Random(5)
    with running(folder, "collector"), Parts(folder) as parts:
        async with Proxy(port) as proxy, Shoppers(proxy.port, SHOPPERS) as shoppers:
            await asyncio.gather(*(_die(parts[role], rounds, proxy=proxy, draw=draw) for role in parts))
            sent = shoppers.sent
            await until(lambda: shoppers.sent > sent + 50, what="the load goes on after the last kill")
        await asyncio.to_thread(end_at_rest, folder, parts)
    return proxy.acknowledged


async def _die(part: Part, rounds: dict[str, int], *, proxy: Proxy, draw: random.Random) -> None:
    """Kills a role at each of its crash points in turn, and settler and sink at random too."""
    targets = [*POINTS[part.role], *([] if part.role == "keeper" else [AT_RANDOM])]
    for number in range(rounds[part.role]):
        target = targets[number % len(targets)]
        if target == AT_RANDOM:
            await _die_at_random(part, draw, proxy)
        else:
            # The keeper waits for commits, and HDFS makes few in a second.
            await _die_at(part, target, passage=1 if part.role == "keeper" else draw.randint(1, 3))
    part.start()


def check_kills(folder: Path, cluster: Cluster, rounds: dict[str, int]) -> None:
    port = free_port()
    make_far_project(folder, cluster, port=port)
    begun_at = time.monotonic()
    acknowledged = asyncio.run(kill_rounds(folder, rounds, port))
    print(f"{sum(rounds.values())} rounds in {time.monotonic() - begun_at:.0f} s")
    account = check_account(folder, acknowledged)
    assert min(account.settled, account.failed, account.repeats) > 20, account


@pytest.mark.soak
def test_deaths_of_the_roles_on_a_cluster_leave_each_event_once(tmp_path, cluster):
    check_kills(tmp_path, cluster, {"settler": 1, "sink": 1, "keeper": 1})


@pytest.mark.soak
def test_forty_deaths_on_a_cluster_leave_each_event_once(tmp_path, cluster):
    check_kills(tmp_path, cluster, {"settler": 16, "sink": 15, "keeper": 9})


async def freeze_one_of_two(one: Path, two: Path, port: int) -> set[str]:
    """Freezes settler and sink of one member between fold and commit, until the other has taken over."""
    with running(one, "collector"), Parts(one, "settler", "sink") as frozen, Parts(two, "settler", "sink") as awake:
        async with Proxy(port) as proxy, Shoppers(proxy.port, SHOPPERS) as shoppers:
            marks = {"settler": one / "settler.mark", "sink": one / "sink.mark"}
            frozen["settler"].start(fault=f"settle.folded=stop@4:{marks['settler']}")
            frozen["sink"].start(fault=f"sink.committing=stop@3:{marks['sink']}")
            await until(lambda: all(mark.exists() for mark in marks.values()), what="both are frozen with records held")
            frozen_at = time.monotonic()
            for part in awake.values():
                part.start()
            with open_project(two) as project:
                ends = [bound.end for bound in project.topics.bounds("clicks")]
                while not _are_rows(project, ends):
                    assert time.monotonic() < frozen_at + 40, "the other does not take over"
                    await asyncio.sleep(0.1)
            print(f"the other took over within {time.monotonic() - frozen_at:.1f} s")
            for part in frozen.values():
                part.thaw()
            for role, words in {"settler": "FencedError", "sink": "reading again"}.items():
                await until(lambda r=role, w=words: w in frozen[r].log.read_text(), what=f"the {role} is told")
            sent = shoppers.sent
            await until(lambda: shoppers.sent > sent + 50, what="the load goes on")
        await asyncio.to_thread(end_at_rest, one, frozen)
    return proxy.acknowledged


def _are_rows(project: OpenProject, ends: list[int]) -> bool:
    """Whether the clicks before these offsets are settled and in the tables."""
    positions = {g.position.partition: g.position.offset for g in project.topics.groups("clicks")}
    if any(positions.get(p, 0) < end for p, end in enumerate(ends)):
        return False
    found = project.query("select max(src_offset) n, log_partition p from events group by all").table().to_pylist()
    newest = {row["p"]: row["n"] for row in found}
    # The last clicks of a partition may have been repeats, or have failed.
    return all(newest.get(p, 0) > end - 20 for p, end in enumerate(ends))


@pytest.mark.soak
def test_members_that_were_frozen_wake_up_and_double_nothing(tmp_path, cluster):
    port = free_port()
    for name in ("one", "two"):
        make_far_project(tmp_path / name, cluster, port=port)
    acknowledged = asyncio.run(freeze_one_of_two(tmp_path / "one", tmp_path / "two", port))
    assert check_account(tmp_path / "one", acknowledged).settled > 100


class Watch:
    """Looks at a running project from outside, whose lake may not answer."""

    def __init__(self, up: Running, project: OpenProject) -> None:
        self.up = up
        self.project = project
        self.seconds: dict[str, float] = {}

    def version(self) -> int:
        """Returns the newest version of the table `events`, or -1 when the lake does not tell."""
        try:
            return self.project.tables.open("events").version
        except HeadraceError:
            return -1

    def failure(self, loop: str = "sink-events", *, since_us: int = 0) -> str:
        """Returns why a loop has stopped since then, as `headrace status` would say."""
        path = self.up.folder / ".headrace" / "run" / f"{loop}.failure"
        found = json.loads(path.read_text()) if path.exists() else {"at_us": 0, "message": ""}
        return found["message"] if found["at_us"] > since_us else ""

    async def goes_on(self, what: str) -> None:
        """Returns once three more commits are in the table, and notes how long that took."""
        begun_at = time.monotonic()
        before = -1
        while (version := await asyncio.to_thread(self.version)) < before + 3 or before < 0:
            before = version if before < 0 else before
            assert time.monotonic() < begun_at + 60, f"no commits {what}: {self.failure()}"
            await asyncio.sleep(0.05)
        self.seconds[what] = round(time.monotonic() - begun_at, 1)

    async def fails(self, what: str, names: str, seconds: float = 40) -> None:
        """Returns once a sink has given up a call for a reason that names `names`."""
        since_us = time.time_ns() // 1000
        begun_at = time.monotonic()
        await until(lambda: names in self.failure(since_us=since_us), seconds, what=f"{what} is told")
        self.seconds[f"{what} is told"] = round(time.monotonic() - begun_at, 1)

    def kill_stream(self) -> None:
        """Ends settler, sinks and keeper as a power cut would."""
        kill(self.up.pids["stream"])


async def have_a_hard_day(folder: Path, cluster: Cluster, port: int) -> set[str]:
    """Lets the stream and the nodes of HDFS die and freeze, one after the other; the stream goes on each time."""
    hdfs = cluster.hdfs
    with running(folder) as up, open_project(folder) as project:
        watch = Watch(up, project)
        async with Proxy(port) as proxy, Shoppers(proxy.port, SHOPPERS):
            await watch.goes_on("at first")
            watch.kill_stream()
            await watch.goes_on("after kill -9 of the stream")
            hdfs.kill_datanode(0)
            await asyncio.sleep(1.0)  # the sink meets the dead node, or does not
            hdfs.start_datanode(0)
            await watch.goes_on("after a data node came back")
            hdfs.freeze_datanode(1)
            try:
                await watch.fails("a frozen data node", "DeadlineError")
            finally:
                hdfs.thaw_datanode(1)
            await watch.goes_on("after a data node was thawed")
            hdfs.kill_namenode()
            try:
                await watch.fails("a dead name node", "UnavailableError")
                told = await asyncio.to_thread(headrace, "status", cwd=folder)
                assert (told[0], "sink       is failing: UnavailableError" in told[1]) == (3, True), told
            finally:
                hdfs.start_namenode()
            await watch.goes_on("after the name node came back")
        print(watch.seconds)
        assert await asyncio.to_thread(wait_at_rest, project, 60)
    return proxy.acknowledged


@pytest.mark.soak
def test_the_stream_goes_on_whatever_dies_and_freezes_in_hdfs(tmp_path, cluster):
    port = free_port()
    make_far_project(tmp_path, cluster, port=port)
    acknowledged = asyncio.run(have_a_hard_day(tmp_path, cluster, port))
    print(check_account(tmp_path, acknowledged))
