"""A full disk, and thousands of commits: the stream goes on by itself, exactly, and stays quick."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import time
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from headrace.base.errors import FullError, UnavailableError
from headrace.collect.memory import Memory
from headrace.tables import open_tables, sink
from headrace.tables.codec import make_codec
from headrace.tables.keeper import Care, Keeper
from headrace.tables.sink import INCARNATION, Flush, Sink
from headrace.topics import Record
from running import running, wait_until
from survive.account import check_account, table_rows
from survive.stream import make_project, wait_caught_up
from tables.rows import SCHEMA, numbers
from tables.test_together import Crowd, append, keep, read, read_files

pytestmark = pytest.mark.slow

# What stands on the small disk: the topic file, the lake, or the folder in which the settler remembers.
PLACES = ("topics", "lake", "memory")


def place(folder: Path, disk: Path, small: str) -> Path:
    """Returns the folder of a project, one part of which stands on the small disk."""
    where = dict.fromkeys(PLACES, folder) | {small: disk}
    project = folder / "p"
    make_project(project, topics=f"sqlite:///{where['topics']}/topics", tables=f"file:///{where['lake']}/lake")
    (where["memory"] / "headrace").mkdir()
    (project / ".headrace").symlink_to(where["memory"] / "headrace")
    return project


def fill(disk: Path) -> None:
    """Leaves no byte free."""
    for size in (65_536, 512):
        with contextlib.suppress(OSError), (disk / f"ballast-{size}").open("wb", buffering=0) as ballast:
            while ballast.write(bytes(size)):
                pass


def make_room(disk: Path) -> None:
    for path in disk.glob("ballast-*"):
        path.unlink()


def post(up, first: int, count: int, acknowledged: set[str]) -> int:
    """Posts events large enough to need room; returns how many were refused."""
    refused = 0
    for number in range(first, first + count):
        properties = {"text": f"{number}" * 300}
        event = {"anonymousId": f"v{number % 5}", "messageId": f"m{number}", "event": "E", "properties": properties}
        if up.post("/v1/track", event).status == 200:
            acknowledged.add(f"m{number}")
        else:
            refused += 1
    return refused


@pytest.mark.parametrize("small", PLACES)
def test_a_full_disk_stops_the_stream_until_there_is_room(tmp_path, disk, small):
    folder = place(tmp_path, disk, small)
    acknowledged: set[str] = set()
    with running(folder) as up:
        assert post(up, 0, 50, acknowledged) == 0
        wait_caught_up(folder)
        fill(disk)
        # Until it says so: topics and databases have some room of their own inside their files.
        number = 50
        deadline = time.monotonic() + 30
        while not is_told(up, small):
            assert time.monotonic() < deadline, up.log.read_text()[-3000:]
            post(up, number, 20, acknowledged)
            number += 20
        time.sleep(1)  # the disk stays full for a while, and nothing waits for that
        assert up.process.poll() is None
        make_room(disk)
        wait_until(lambda: post(up, number, 1, acknowledged) == 0, seconds=20, what="the door takes events again")
        wait_caught_up(folder, seconds=30)
    account = check_account(folder, acknowledged)
    assert account.settled >= len(acknowledged) > 50


def is_told(up, small: str) -> bool:
    if small == "topics":
        return "the disk is full" in up.get("/ready").body.decode()
    return "headrace.sink" in up.log.read_text() if small == "lake" else "headrace.settler" in up.log.read_text()


def test_a_settler_that_cannot_begin_leaves_no_file_open(yard, monkeypatch):
    def refuse(*_, **__):
        raise FullError("the disk is full")

    yard.click(0, 50)
    yard.settle("a")
    shutil.rmtree(yard.folder / "settler")
    monkeypatch.setattr(Memory, "save", refuse)
    opened = []
    for _ in range(3):
        with closing(yard.settler("a")) as settler, pytest.raises(FullError):
            settler.turn()
        opened.append(len(list(Path("/proc/self/fd").iterdir())))
    assert opened[1:] == opened[:-1]
    monkeypatch.undo()
    yard.fill("a")
    yard.settle("a")
    yard.check()


def test_a_settler_without_a_place_for_its_memory_says_so(yard):
    (yard.folder / "settler").write_text("")
    with pytest.raises(
        UnavailableError, match=r"what the settler remembers cannot be kept in .*settler: .*File exists"
    ):
        yard.settler("a")


class Seat(msgspec.Struct):
    """A record as small as can be: what is measured is the commit."""

    received_us: int
    seat: int


def commit_again_and_again(yard, commits: int) -> tuple[list[float], list[float]]:
    """Sinks record after record beside a keeper that does what it does in life; returns each commit's time and work."""
    topics, tables = yard.project.topics, yard.project.tables
    incarnation = topics.create("seats", partitions=1, retention_seconds=None).incarnation
    codec = make_codec(Seat, msgspec.json.Decoder(Seat).decode)
    table = tables.create("seats", codec.schema, properties={INCARNATION: incarnation})
    keeper = Keeper(tables, topics, lease=("seats", "a"), care=Care(), oldest_day=lambda _: None, metrics=yard.metrics)
    one = Sink(topics, "seats", table, codec, member=("a", Flush(seconds=60)), metrics=yard.metrics)
    records = [Record(None, b'{"received_us":0,"seat":%d}' % number) for number in range(commits)]
    topics.append("seats", records, deadline_seconds=60)
    seconds, work = [], []
    for number in range(commits):
        assert one.turn() == 1
        begun_at, worked = time.perf_counter(), time.process_time()
        one.flush()
        seconds.append(time.perf_counter() - begun_at)
        work.append(time.process_time() - worked)
        if number % 25 == 24:
            keeper.turn()
    one._share.close()
    keeper._share.close()
    return seconds, work


def check_flat(yard, monkeypatch, commits: int) -> None:
    monkeypatch.setattr(sink, "_PORTION", 1)
    first, last = [], []
    for times in commit_again_and_again(yard, commits):
        first.append(statistics.median(times[:200]) * 1e3)
        last.append(statistics.median(times[-200:]) * 1e3)
    print(f"p50 of commits: first 200 {first[0]:.1f} ms ({first[1]:.1f} ms of CPU), last {last[0]:.1f} ({last[1]:.1f})")
    # The machine's other work is in the time, not in the CPU's.
    assert last[1] < 2 * first[1]
    assert table_rows(yard.project, "seats", "select seat from rows order by seat")["seat"].to_pylist() == [
        *range(commits)
    ]


@pytest.mark.soak
def test_four_hundred_commits_take_as_long_as_the_first(yard, monkeypatch):
    check_flat(yard, monkeypatch, 400)


@pytest.mark.soak
def test_two_thousand_commits_take_as_long_as_the_first(yard, monkeypatch):
    check_flat(yard, monkeypatch, 2_000)


@pytest.mark.soak
@pytest.mark.timeout(10_000)
def test_a_hundred_thousand_commits_take_as_long_as_the_first(yard, monkeypatch):
    check_flat(yard, monkeypatch, 100_000)


@pytest.mark.soak
def test_twenty_seconds_of_appends_compaction_vacuum_and_reads_lose_nothing(tmp_path):
    def lake():
        return open_tables("file:///lake", root=tmp_path)

    lake().create("events", SCHEMA)
    crowd = Crowd(lake, seconds=20)
    for action in (append, append, keep, read, read_files):
        crowd.add(action)
    crowd.run()
    print(crowd.done)
    assert numbers(lake().open("events")) == list(range(crowd.done["append"] * 10))
