"""Frozen members, batches sent again, new definitions, topics made anew: each event stays one row."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
from contextlib import closing
from pathlib import Path

import pytest

from headrace.base.errors import PositionError
from headrace.project import OpenProject, open_project
from headrace.topics import Record, Topic
from running import call, headrace, running, wait_until
from survive.account import check_account, read_topic, table_rows
from survive.load import Proxy, until
from survive.stream import Parts, Shoppers, make_project, sunk, wait_caught_up
from survive.test_kills import free_port
from survive.yard import raw_click

HOUR_US = 3_600_000_000

pytestmark = pytest.mark.slow


async def freeze_one_of_two(one: Path, two: Path, port: int) -> set[str]:
    """Freezes settler and sink of one member between fold and commit, until the other has taken over."""
    is_told = re.compile("FencedError|DeadlineError|goes to another settler").search
    with running(one, "collector"), Parts(one, "settler", "sink") as frozen, Parts(two, "settler", "sink") as awake:
        async with Proxy(port) as proxy, Shoppers(proxy.port, 8):
            marks = {"settler": one / "settler.mark", "sink": one / "sink.mark"}
            frozen["settler"].start(fault=f"settle.folded=stop@4:{marks['settler']}")
            frozen["sink"].start(fault=f"sink.committing=stop@3:{marks['sink']}")
            for part in awake.values():
                part.start()
            await until(lambda: all(mark.exists() for mark in marks.values()), what="both are frozen with records held")
            # What moves on now moves by way of the other member, once the leases have ended.
            before = _positions(one)
            await until(lambda: _all_moved(one, before), 30, what="the other has taken over all partitions")
            told = len(frozen["settler"].log.read_text())
            for part in frozen.values():
                part.thaw()
            # It stopped just before its commit, or in it: it is refused, or too late, or finds its partitions gone.
            await until(lambda: is_told(frozen["settler"].log.read_text(), told), what="the settler is told")
            before = _positions(one)
            await until(lambda: _all_moved(one, before), 30, what="all go on")
        frozen.catch_up(one)
    return proxy.acknowledged


def _positions(folder: Path) -> list[int]:
    """Returns how far each partition is settled, and is in each table."""
    with open_project(folder) as project:
        groups = project.topics.groups("clicks")
        settled = {g.position.partition: g.position.offset for g in groups if g.group == "settler"}
        tables = [sunk(project, name) for name in ("events", "failed")]
        return [one.get(p, 0) for one in (settled, *tables) for p in range(4)]


def _all_moved(folder: Path, before: list[int]) -> bool:
    return all(now > then for now, then in zip(_positions(folder), before, strict=True))


@pytest.mark.soak
def test_members_that_were_frozen_wake_up_and_double_nothing(tmp_path):
    port = free_port()
    places = {"topics": f"sqlite:///{tmp_path}/topics", "tables": f"file:///{tmp_path}/lake"}
    for name in ("one", "two"):
        make_project(tmp_path / name, port=port, **places)
    acknowledged = asyncio.run(freeze_one_of_two(tmp_path / "one", tmp_path / "two", port))
    account = check_account(tmp_path / "one", acknowledged)
    assert account.settled > 200


def test_batches_that_come_again_hours_later_are_repeats(tmp_path):
    make_project(tmp_path)
    start_us = time.time_ns() // 1000 - 30 * HOUR_US
    with Parts(tmp_path, "settler", "sink") as parts:
        parts["sink"].start()
        for number, hours in enumerate((0, 0, 1, 23)):
            parts["settler"].start()
            _send_batch(tmp_path, start_us + hours * HOUR_US, fresh=number)
            wait_caught_up(tmp_path)
            parts["settler"].kill()
            if number == 1:
                shutil.rmtree(tmp_path / ".headrace" / "settler")
        parts.catch_up(tmp_path)
    account = check_account(tmp_path, {f"m{n}" for n in range(63)})
    assert (account.settled, account.failed, account.repeats) == (60, 4, 180)


def _send_batch(folder: Path, time_us: int, *, fresh: int) -> None:
    """Appends the same 60 clicks, three of which fail, and one that was not there before."""
    odd = {"event": "Product Clicked", "properties": {"seat": "none"}}
    records = [raw_click(n, time_us=time_us, **(odd if n % 20 == 7 else {})) for n in range(60)]
    records.append(raw_click(60 + fresh, time_us=time_us, **(odd if fresh == 3 else {})))
    with open_project(folder) as project:
        project.make_topics()
        Topic(project.topics, "clicks").append(records)


def _declare(folder: Path, kind: str) -> None:
    declared = f'Event("Product Clicked", fields={{"seat": {kind}}})' if kind else ""
    text = f'from headrace import Event, Project\n\nproject = Project("shop", events=({declared},))\n'
    (folder / "project.py").write_text(text if kind else 'from headrace import Project\n\nproject = Project("shop")\n')


def _post_seats(folder: Path, first: int, seats: list[object]) -> None:
    with running(folder) as up:
        for number, seat in enumerate(seats, first):
            event = {"anonymousId": f"v{number % 3}", "messageId": f"m{number}", "event": "Product Clicked"}
            assert up.post("/v1/track", {**event, "properties": {"seat": seat}}).status == 200
        wait_caught_up(folder)


def _replay_failed(folder: Path) -> None:
    """Appends what failed to `clicks` once more, as `headrace table failed replay` does."""
    with open_project(folder) as project:
        for message in read_topic(project, "failed"):
            row = json.loads(message.value)
            place = f"{message.partition}/{row['src_offset']}".encode()
            headers = (("door", row["door"].encode()), ("replay_of", place))
            Topic(project.topics, "clicks").append([Record(row["key"].encode(), row["raw"].encode(), 0, headers)])


@pytest.mark.soak
def test_a_definition_that_changes_in_mid_stream_judges_from_there_on(tmp_path):
    make_project(tmp_path)
    _declare(tmp_path, "")
    _post_seats(tmp_path, 0, ["window", 4, "aisle"])
    _declare(tmp_path, "int")
    _post_seats(tmp_path, 3, [5, "window", "aisle", 6])
    account = check_account(tmp_path, {f"m{n}" for n in range(7)})
    assert (account.settled, account.failed) == (5, 2)
    _declare(tmp_path, "str")
    _replay_failed(tmp_path)
    _replay_failed(tmp_path)
    _post_seats(tmp_path, 7, ["window"])
    account = check_account(tmp_path, {f"m{n}" for n in range(8)})
    assert (account.settled, account.failed, account.repeats) == (8, 2, 2)
    with open_project(tmp_path) as project:
        rows = [json.loads(m.value) for m in read_topic(project, "events") if not m.headers]
        failed = [json.loads(m.value) for m in read_topic(project, "failed")]
    hashes = {row["message_id"]: row["definitions"] for row in (*rows, *failed)}
    assert len({hashes["m0"], failed[0]["definitions"], hashes["m7"]}) == 3
    by_id = {row["message_id"]: row["definitions"] for row in rows}
    assert by_id["m3"] == by_id["m6"] == failed[0]["definitions"] == failed[1]["definitions"]
    assert by_id["m4"] == by_id["m5"] == by_id["m7"]


def _make_anew(project: OpenProject, name: str) -> None:
    """Drops a topic and makes another of its name, as somebody does who cleans up and forgets who reads it."""
    partitions = project.topics.describe(name).partitions
    project.topics.drop(name)
    project.topics.create(name, partitions=partitions, retention_seconds=None)


def _run(turn, *, seconds: float = 2.0) -> None:
    """Lets a reader go on for a while."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        turn()


COUNTS = pytest.mark.parametrize("count", [10, 400], ids=["shorter", "longer"])


@COUNTS
def test_clicks_made_anew_are_not_settled_on_from_the_old_place(yard, count):
    yard.click(0, 100)
    with closing(yard.settler("a")) as settler:
        settler.turn()
        before = [yard.project.topics.bounds(name) for name in ("events", "failed")]
        _make_anew(yard.project, "clicks")
        yard.click(1000, count)
        with pytest.raises(PositionError, match=r"created anew|is outside"):
            _run(settler.turn)
    with closing(yard.settler("a")) as settler, pytest.raises(PositionError, match="topic replay clicks"):
        settler.turn()
    assert [yard.project.topics.bounds(name) for name in ("events", "failed")] == before


@COUNTS
def test_events_made_anew_are_not_added_to_the_old_table(yard, count):
    yard.click(0, 100)
    yard.settle("a")
    sink = yard.sink("events", "a", seconds=0)
    assert sink.turn() > 0
    rows = table_rows(yard.project, "events").num_rows
    messages = read_topic(yard.project, "events")
    _make_anew(yard.project, "events")
    records = [Record(m.key, m.value, m.time_us) for m in messages] * 4
    yard.project.topic("events").append(records[:count])
    with pytest.raises(PositionError, match=r"created anew|is outside"):
        _run(sink.turn)
    sink._share.close()
    with pytest.raises(PositionError, match=r"topic replay events --fresh events \| --continue events"):
        yard.sink("events", "a")
    assert table_rows(yard.project, "events").num_rows == rows == 100


def test_a_topic_made_anew_stops_its_reader_alone(tmp_path):
    make_project(tmp_path)
    with running(tmp_path) as up, open_project(tmp_path) as project:
        for number in range(20):
            assert up.post("/v1/track", {"anonymousId": "ann", "messageId": f"m{number}", "event": "E"}).status == 200
        wait_caught_up(tmp_path)
        (message, *_) = [m for m in read_topic(project, "events") if not m.headers]
        copy = Record(message.key, message.value, message.time_us)
        _make_anew(project, "clicks")
        way_on = "headrace topic replay clicks --group settler --to earliest"
        wait_until(lambda: way_on in _failure(tmp_path, "settler"), what="the settler stops loudly")
        # The door and the sinks go on.
        wait_until(lambda: up.post("/v1/track", {"anonymousId": "ann", "messageId": "x", "event": "E"}).status == 200)
        project.topic("events").append([copy] * 5)
        wait_until(lambda: table_rows(project, "events").num_rows == 25, what="the sink goes on")
        assert not _failure(tmp_path, "sink-events")
        _make_anew(project, "events")
        way_on = "headrace topic replay events --fresh events | --continue events"
        wait_until(lambda: way_on in _failure(tmp_path, "sink-events"), what="the sink stops loudly")
        assert not _failure(tmp_path, "sink-failed")
        assert "replay clicks --group settler" in call("status", cwd=tmp_path)[1]
        # What stopped stays stopped, however often it begins anew.
        project.topic("events").append([copy] * 50)
        wait_until(lambda: up.log.read_text().count('"headrace.sink-events"') >= 4, what="it has tried again")
        assert table_rows(project, "events").num_rows == 25
        assert [bound.end for bound in project.topics.bounds("failed")] == [0] * 4
        # The way on that they name, while all of it runs.
        for words in (("clicks", "--group", "settler", "--to", "earliest"), ("events", "--continue", "events")):
            assert headrace("topic", "replay", *words, cwd=tmp_path)[0] == 0
        counts = "select count(*) as n, count(distinct message_id) as ids from rows"
        wait_until(
            lambda: table_rows(project, "events", counts).to_pylist() == [{"n": 76, "ids": 21}],
            seconds=20,
            what="both go on",
        )


def _failure(folder: Path, loop: str) -> str:
    """Returns why a loop has stopped, as it wrote it down; nothing if it has not."""
    path = folder / ".headrace" / "run" / f"{loop}.failure"
    return json.loads(path.read_text())["message"] if path.exists() else ""
