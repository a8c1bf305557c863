"""The embedded log beyond the contract that all backends share: one writer, hand-over, rows, retention."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace.base.clock import machine_us
from headrace.base.errors import (
    CallError,
    DeadlineError,
    FencedError,
    OverloadedError,
    PositionError,
    RecordError,
    UnavailableError,
    UnknownNameError,
)
from headrace.topics import Bounds, Record, Topic, open_topic, open_topics, partition_for, sqlite_store
from headrace.topics import sqlite_frames as frames
from headrace.topics.sqlite_store import SqliteStore
from running import freeze, wait_until

pytestmark = pytest.mark.slow

# Becomes the writer of the log in argv[1], says so, and lives until it is killed.
_WRITER = """
import sys, time
from headrace.topics import Record, open_topic
topic = open_topic("sqlite:///" + sys.argv[1], "clicks", create=True)
topic.topics._seat.resident = True
assert topic.topics.is_writer
print("writing", flush=True)
time.sleep(600)
"""


def start_writer(folder: Path, **env: str) -> subprocess.Popen[bytes]:
    """Returns the process that writes the log."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(folder)], stdout=subprocess.PIPE, env={**os.environ, **env}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    process.stdout.close()
    return process


@pytest.fixture
def log(tmp_path):
    topics = open_topics(f"sqlite:///{tmp_path / 'log'}")
    yield topics
    topics.close()


@pytest.fixture
def clicks(log):
    log.create("clicks", partitions=4, retention_seconds=None)
    return open_topic_of(log, "clicks")


def open_topic_of(topics, name):
    return Topic(topics, name)


def test_an_append_cut_off_after_its_commit_is_stored_once(tmp_path):
    """The sequence check: the writer dies between commit and answer, so the frame is sent again."""
    folder, mark = tmp_path / "log", tmp_path / "mark"
    writer = start_writer(folder, HEADRACE_FAULT=f"topics.synced=kill@2:{mark}")
    topic = open_topic(f"sqlite:///{folder}", "clicks")
    places = topic.append([Record(b"ann", b"once")])
    assert writer.wait(5) == -9
    assert mark.exists(), "the crash point was not reached"
    assert topic.topics.is_writer
    assert [(m.value, m.partition, m.offset) for m in topic.read()] == [(b"once", places[0].partition, 0)]
    topic.topics.close()


def test_without_the_sequence_check_the_same_append_is_stored_twice(tmp_path, monkeypatch):
    """Shows that the test above would notice: this writer forgets which sequences it has seen."""
    folder = tmp_path / "log"
    writer = start_writer(folder, HEADRACE_FAULT=f"topics.synced=kill@2:{tmp_path / 'mark'}")
    load = SqliteStore._load

    def forgetful(store: SqliteStore) -> None:
        load(store)
        store.producers.clear()

    monkeypatch.setattr(SqliteStore, "_load", forgetful)
    topic = open_topic(f"sqlite:///{folder}", "clicks")
    topic.append([Record(b"ann", b"once")])
    writer.wait(5)
    assert [m.value for m in topic.read()] == [b"once", b"once"]
    topic.topics.close()


def test_a_resent_frame_gets_the_stored_answer(log):
    log.create("clicks", partitions=1, retention_seconds=None)
    part = frames.Part(log.find("clicks").id, 0, 1, 1000, frames.pack_records([Record(b"k", b"v", 1000)]))
    frame = frames.pack(frames.Append("somebody", 7, [part]))
    first = log._link.ask(frame, deadline_seconds=5)
    assert log._link.ask(frame, deadline_seconds=5) == first
    older = frames.pack(frames.Append("somebody", 6, [part]))
    assert frames.read_answer(log._link.ask(older, deadline_seconds=5)).sequence == 7
    assert log.bounds("clicks") == [Bounds(0, 1)]


def test_the_next_process_takes_over_within_a_second_of_the_writers_death(tmp_path):
    folder = tmp_path / "log"
    writer = start_writer(folder)
    topic = open_topic(f"sqlite:///{folder}", "clicks")
    topic.append([Record(b"ann", b"before")])
    writer.kill()
    writer.wait()
    started_at = time.monotonic()
    topic.append([Record(b"ann", b"after")])
    assert time.monotonic() - started_at < 1.0
    assert topic.topics.is_writer
    assert [m.value for m in topic.read()] == [b"before", b"after"]
    topic.topics.close()


def test_a_frozen_writer_makes_appends_fail_by_their_deadline(tmp_path):
    folder = tmp_path / "log"
    writer = start_writer(folder)
    topic = open_topic(f"sqlite:///{folder}", "clicks")
    topic.append([Record(b"ann", b"before")])
    freeze(writer.pid)
    try:
        started_at = time.monotonic()
        with pytest.raises(DeadlineError, match=r"did not answer within 0\.3 s"):
            topic.append([Record(b"ann", b"meanwhile")], deadline_seconds=0.3)
        assert time.monotonic() - started_at < 1.0
        assert not topic.topics.is_writer
        assert [m.value for m in topic.read()] == [b"before"], "a frozen writer froze the readers"
    finally:
        os.kill(writer.pid, 18)
    topic.append([Record(b"ann", b"after")])
    values = [m.value for m in topic.read()]
    assert values[0] == b"before"
    assert values.count(b"after") == 1
    writer.kill()
    writer.wait()
    topic.topics.close()


def test_closing_the_writer_hands_over_to_the_others(tmp_path):
    first = open_topic(f"sqlite:///{tmp_path}/log", "clicks", create=True)
    first.topics._seat.resident = True
    first.append([Record(b"a", b"0")])
    second = open_topic(f"sqlite:///{tmp_path}/log", "clicks")
    second.append([Record(b"a", b"1")])
    assert first.topics.is_writer
    assert not second.topics.is_writer
    first.topics.close()
    second.append([Record(b"a", b"2")])
    assert second.topics.is_writer
    assert [m.value for m in second.read()] == [b"0", b"1", b"2"]
    second.topics.close()


def test_many_threads_append_through_one_object(clicks):
    def append(thread: int) -> None:
        for number in range(50):
            clicks.append([Record(b"thread-%d" % thread, b"%d" % number)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append, range(8)))
    found: dict[bytes, list[int]] = {}
    for message in clicks.read():
        found.setdefault(message.key, []).append(int(message.value))
    assert found == {b"thread-%d" % thread: list(range(50)) for thread in range(8)}


def test_a_path_too_long_for_a_socket_works(tmp_path):
    folder = tmp_path / ("long" * 30) / ("path" * 30)
    first = open_topic(f"sqlite:///{folder}", "clicks", create=True)
    second = open_topic(f"sqlite:///{folder}", "clicks")
    second.append([Record(b"a", b"1")])
    assert [m.value for m in first.read()] == [b"1"]
    second.topics.close()
    first.topics.close()


def test_large_appends_are_cut_into_rows_and_read_from_anywhere(clicks):
    count = 5 * frames.MAX_ROW_RECORDS + 17
    places = clicks.append([Record(b"ann", b"%d" % n) for n in range(count)])
    assert [place.offset for place in places] == list(range(count))
    partition = places[0].partition
    for offset in (0, 1, frames.MAX_ROW_RECORDS - 1, frames.MAX_ROW_RECORDS, count - 1):
        (message,) = clicks.read({partition: offset}, max_records=1)
        assert (message.offset, message.value) == (offset, b"%d" % offset)


def test_large_records_are_cut_into_frames(clicks):
    values = [os.urandom(990_000) for _ in range(30)]
    places = clicks.append([Record(b"%d" % n, value) for n, value in enumerate(values)])
    assert len({(place.partition, place.offset) for place in places}) == 30
    found, offsets = [], dict.fromkeys(range(len(clicks.bounds())), 0)
    while messages := clicks.read(offsets):
        found += messages
        offsets.update({message.partition: message.offset + 1 for message in messages})
    assert sorted(message.value for message in found) == sorted(values)


def test_offsets_at_counts_the_newest_time_so_far(clicks):
    times = [1_000, 5_000, 3_000, 9_000, 4_000, 9_000, 12_000]
    for time_ms in times:
        clicks.append([Record(b"ann", b"", time_ms * 1000)])
    (partition,) = {message.partition for message in clicks.read()}
    for asked in (0, 1_000, 2_000, 5_000, 5_001, 9_000, 9_001, 12_000, 12_001):
        expected = next((n for n, time_ms in enumerate(times) if time_ms >= asked), len(times))
        assert clicks.topics.offsets_at("clicks", asked * 1000)[partition] == expected, asked


def test_retention_forgets_whole_rows_and_keeps_offsets(log, monkeypatch):
    monkeypatch.setattr(sqlite_store, "_REST_SECONDS", 0.0)
    log.create("clicks", partitions=1, retention_seconds=60)
    clicks = open_topic_of(log, "clicks")
    old_us = machine_us() - 3_600_000_000
    for number in range(300):
        clicks.append([Record(b"a", b"%d" % number, old_us)])
    wait_until(lambda: clicks.bounds() == [Bounds(300, 300)], what="old rows are forgotten")
    assert clicks.append([Record(b"a", b"new")])[0].offset == 300
    log.close()
    reopened = open_topic(f"sqlite:///{log._path.parent}", "clicks")
    assert reopened.bounds() == [Bounds(300, 301)]
    assert reopened.append([Record(b"a", b"newer")])[0].offset == 301
    reopened.topics.close()


def test_offsets_go_on_after_everything_was_forgotten_and_the_log_reopened(log, monkeypatch):
    monkeypatch.setattr(sqlite_store, "_REST_SECONDS", 0.0)
    log.create("clicks", partitions=1, retention_seconds=60)
    clicks = open_topic_of(log, "clicks")
    clicks.append([Record(b"a", b"x", machine_us() - 3_600_000_000) for _ in range(5)])
    wait_until(lambda: clicks.bounds() == [Bounds(5, 5)])
    log.close()
    reopened = open_topic(f"sqlite:///{log._path.parent}", "clicks")
    assert reopened.append([Record(b"a", b"y")])[0].offset == 5
    reopened.topics.close()


def test_reading_works_while_nothing_runs_and_makes_no_file(tmp_path):
    topics = open_topics(f"sqlite:///{tmp_path}/nothing")
    assert topics.names() == []
    with pytest.raises(UnknownNameError, match=r"no topic 'clicks'\.  known: none yet"):
        topics.describe("clicks")
    assert list((tmp_path / "nothing").iterdir()) == []
    topics.close()


def test_a_commit_that_expects_another_position_is_refused(clicks):
    clicks.append([Record(b"a", b"%d" % n) for n in range(10)])
    with clicks.consume("g") as consumer:
        consumer.poll()
        consumer.commit()
        partition = next(p for p, position in consumer.positions.items() if position.offset)
        stale = frames.Commit("g", "clicks", clicks.describe().incarnation, 1, [(partition, 3, 4)])
        with pytest.raises(FencedError, match="expected position 3, found 10"):
            clicks.topics.commit(stale)
    assert [g.position.offset for g in clicks.topics.groups("clicks") if g.position.partition == partition] == [10]


def test_a_reader_holds_no_transaction_so_the_log_stays_small(clicks):
    stop = threading.Event()

    def follow() -> None:
        with clicks.consume("follower") as consumer:
            while not stop.is_set():
                consumer.poll(wait_seconds=0.05)

    reader = threading.Thread(target=follow)
    reader.start()
    try:
        for _ in range(60):
            clicks.append([Record(b"%d" % n, os.urandom(1000)) for n in range(1000)])
    finally:
        stop.set()
        reader.join()
    wal = clicks.topics._path.with_name("topics.db-wal")
    assert wal.stat().st_size < 32 << 20


def test_the_sender_refuses_what_it_cannot_hold_and_forgets_what_is_too_late(tmp_path):
    folder = tmp_path / "log"
    writer = start_writer(folder)
    topics = open_topics(f"sqlite:///{folder}")

    async def main() -> None:
        sender = topics.open_sender(deadline_seconds=0.4, max_pending_bytes=10_000)
        await sender.append("clicks", [Record(b"a", b"before")])
        freeze(writer.pid)
        record = [Record(b"a", bytes(1000))]
        flying = asyncio.create_task(sender.append("clicks", record))
        await asyncio.sleep(0.05)  # its frame is with the frozen writer now; a slower machine only waits in line
        waiting = [asyncio.create_task(sender.append("clicks", record)) for _ in range(20)]
        results = await asyncio.gather(flying, *waiting, return_exceptions=True)
        assert {type(result) for result in results} == {DeadlineError, OverloadedError}
        assert sum(isinstance(result, OverloadedError) for result in results) >= 10
        assert sender.stalled_seconds() > 0.3
        os.kill(writer.pid, 18)
        await sender.append("clicks", [Record(b"a", b"after")])
        await sender.close()

    asyncio.run(main())
    values = [m.value for m in open_topic_of(topics, "clicks").read()]
    assert values[0] == b"before"
    assert values[-1] == b"after"
    writer.kill()
    writer.wait()
    topics.close()


def test_producers_that_are_gone_for_a_day_are_forgotten(log, monkeypatch):
    monkeypatch.setattr(sqlite_store, "_REST_SECONDS", 0.0)
    log.create("clicks", partitions=1, retention_seconds=None)
    clicks = open_topic_of(log, "clicks")
    clicks.append([Record(b"a", b"1")])
    assert log._query("select count(*) from producers") == [(1,)]
    monkeypatch.setattr(sqlite_store, "_PRODUCER_AGE_US", -1_000_000)
    wait_until(lambda: log._query("select count(*) from producers") == [(0,)])


def test_json_of_positions_survives_a_restart(clicks):
    clicks.append([Record(b"a", json.dumps({"n": n}).encode()) for n in range(5)])
    with clicks.consume("g") as consumer:
        consumer.poll()
        consumer.commit()
    folder = clicks.topics._path.parent
    clicks.topics.close()
    again = open_topic(f"sqlite:///{folder}", "clicks")
    with again.consume("g") as consumer:
        assert consumer.poll(wait_seconds=0) == []
    again.topics.close()


# What a review found, each reproduced before it was mended.


def test_a_record_that_cannot_be_kept_costs_only_its_own_append(clicks):
    bad = [
        Record(bytearray(b"key"), b"v"),
        Record(b"k", "text"),
        Record(b"k", b"v", headers=(("\ud800", b"x"),)),
        Record(b"k", b"v", headers=(("name", "text"),)),
        Record(b"k", b"v", time_us=1 << 63),
        Record(b"k", b"v", time_us=-1),
        Record(b"k", b"v", time_us=1.5),
    ]

    async def main() -> list[object]:
        sender = clicks.topics.open_sender(deadline_seconds=2, max_pending_bytes=1 << 20)
        appends = [sender.append("clicks", [Record(b"k", b"good-0")])]
        for number, record in enumerate(bad, 1):
            appends += [sender.append("clicks", [record]), sender.append("clicks", [Record(b"k", b"good-%d" % number)])]
        results = await asyncio.gather(*appends, return_exceptions=True)
        await sender.close()
        return results

    results = asyncio.run(main())
    assert results[0::2] == [None] * (len(bad) + 1)
    assert [type(result) for result in results[1::2]] == [RecordError] * len(bad)
    assert [m.value for m in clicks.read()] == [b"good-%d" % n for n in range(len(bad) + 1)]
    for record in bad:
        with pytest.raises(RecordError):
            clicks.append([record])


def test_a_forked_child_appends_as_somebody_else(tmp_path):
    topic = open_topic(f"sqlite:///{tmp_path}/log", "clicks", create=True)
    topic.append([Record(b"a", b"before")])
    child = os.fork()
    if child == 0:
        topic.append([Record(b"a", b"child")])
        os._exit(0)
    topic.append([Record(b"a", b"parent")])
    assert os.waitpid(child, 0)[1] == 0
    assert sorted(m.value for m in topic.read()) == [b"before", b"child", b"parent"]
    topic.topics.close()


def test_a_consumer_that_starts_with_the_first_records_skips_none(tmp_path):
    writer = open_topics(f"sqlite:///{tmp_path}/log")
    reader = open_topics(f"sqlite:///{tmp_path}/log")
    wrong = []
    for number in range(60):
        name = f"topic-{number}"
        writer.create(name, partitions=4, retention_seconds=None)
        thread = threading.Thread(
            target=lambda name=name: writer.append(
                name, [Record(b"%d" % n, b"v") for n in range(40)], deadline_seconds=5
            )
        )
        thread.start()
        while thread.is_alive():
            wrong += [bounds for bounds in reader.bounds(name) if bounds.start]
        thread.join()
    assert not wrong
    reader.close()
    writer.close()


def test_a_commit_cut_off_after_it_was_saved_is_no_rival(tmp_path):
    folder, mark = tmp_path / "log", tmp_path / "mark"
    topic = open_topic(f"sqlite:///{folder}", "clicks", create=True)
    topic.append([Record(b"a", b"%d" % n) for n in range(9)])
    topic.topics.close()
    # Passages: create, join, commit.
    writer = start_writer(folder, HEADRACE_FAULT=f"topics.synced=kill@3:{mark}")
    topic = open_topic(f"sqlite:///{folder}", "clicks")
    with topic.consume("g") as consumer:
        consumer.poll()
        consumer.commit()
        assert writer.wait(5) == -9
        assert mark.exists()
        topic.append([Record(b"a", b"more")])
        consumer.poll()
        consumer.commit()
    assert sum(group.position.offset for group in topic.topics.groups("clicks")) == 10
    topic.topics.close()


def test_a_refused_commit_changes_nothing(clicks):
    clicks.append([Record(b"%d" % n, b"v") for n in range(40)])
    with clicks.consume("g") as consumer:
        consumer.poll()
        consumer.commit()
    before = clicks.topics.groups("clicks")
    moves = [(0, before[0].position.offset, 1), (1, 999, 2)]
    with pytest.raises(FencedError, match="partition 1: expected position 999"):
        clicks.topics.commit(frames.Commit("g", "clicks", clicks.describe().incarnation, 1, moves))
    assert clicks.topics.groups("clicks") == before


@pytest.mark.parametrize(
    "frame",
    [
        b"\xc1",
        frames.pack(frames.Answer(1, [])),
        frames.pack(frames.Create("x", 4, "i", 1 << 63)),
        frames.pack(frames.Append("p", 1, [frames.Part(1, 0, 1, 1 << 63, b"x")])),
        frames.pack(frames.Append("p", 1, [frames.Part(1 << 13, 0, 1, 1, b"x")])),
        frames.pack(frames.Append("p", 1, [frames.Part(1, 1 << 10, 1, 1, b"x")])),
    ],
)
def test_a_frame_that_cannot_be_read_is_answered_and_harms_nobody(log, frame):
    log.create("clicks", partitions=1, retention_seconds=None)
    writer = log._seat._writer
    assert frames.read_answer(log._link.ask(frame, deadline_seconds=2)).error == "call"
    assert log._seat._writer is writer
    assert writer.is_alive()


@pytest.mark.soak
def test_retention_keeps_up_with_many_rows(log, monkeypatch):
    monkeypatch.setattr(sqlite_store, "_REST_SECONDS", 0.5)
    log._seat.resident = True
    log.create("clicks", partitions=1, retention_seconds=60)
    part = [Record(b"a", b"x", machine_us() - 3_600_000_000)]
    blob = frames.pack_records(part)
    number = log.find("clicks").id
    for sequence in range(40):
        parts = [frames.Part(number, 0, 1, part[0].time_us, blob) for _ in range(250)]
        log._link.ask(frames.pack(frames.Append("many", sequence, parts)), deadline_seconds=5)
    wait_until(lambda: log.bounds("clicks") == [Bounds(10_000, 10_000)], seconds=20)


def test_waiting_in_line_counts_towards_the_deadline(tmp_path):
    folder = tmp_path / "log"
    writer = start_writer(folder)
    topic = open_topic(f"sqlite:///{folder}", "clicks")
    topic.append([Record(b"a", b"before")])
    freeze(writer.pid)

    def append(_: int) -> float:
        started_at = time.monotonic()
        with pytest.raises(DeadlineError):
            topic.append([Record(b"a", b"x")], deadline_seconds=0.5)
        return time.monotonic() - started_at

    with ThreadPoolExecutor(5) as pool:
        took = list(pool.map(append, range(5)))
    assert max(took) < 1.5
    os.kill(writer.pid, 18)
    writer.kill()
    writer.wait()
    topic.topics.close()


def test_nobody_becomes_the_writer_through_what_was_closed(tmp_path):
    topic = open_topic(f"sqlite:///{tmp_path}/log", "clicks", create=True)
    topic.append([Record(b"a", b"1")])
    topic.topics.close()
    with pytest.raises(UnavailableError, match="was closed by this process"):
        topic.append([Record(b"a", b"2")])
    assert not topic.topics.is_writer


def test_a_guest_gives_the_seat_back_when_it_is_quiet(tmp_path):
    """A notebook that joined a group first must not freeze the log when it is stopped."""
    topic = open_topic(f"sqlite:///{tmp_path}/log", "clicks", create=True)
    topic.append([Record(b"a", b"1")])
    wait_until(lambda: not topic.topics.is_writer, seconds=5)
    topic.append([Record(b"a", b"2")])
    assert [m.value for m in topic.read()] == [b"1", b"2"]
    topic.topics.close()


def test_a_group_that_has_seen_no_record_yet_does_not_skip_what_was_forgotten(log, monkeypatch):
    monkeypatch.setattr(sqlite_store, "_REST_SECONDS", 0.0)
    log.create("clicks", partitions=2, retention_seconds=60)
    clicks = open_topic_of(log, "clicks")
    clicks.append([Record(b"a", b"x")])
    with clicks.consume("g") as consumer:
        consumer.poll()
        consumer.commit()
    key = next(b"%d" % n for n in range(99) if partition_for(b"%d" % n, 2) != partition_for(b"a", 2))
    clicks.append([Record(key, b"old", machine_us() - 3_600_000_000)])
    wait_until(lambda: max(bound.start for bound in clicks.bounds()) == 1)
    with pytest.raises(PositionError, match="offset 0 is outside 1 to 1"):
        clicks.consume("g")


def test_a_time_is_found_in_a_row_of_many_records(log):
    log.create("clicks", partitions=1, retention_seconds=None)
    records = [Record(b"a", b"", 1_000_000 + n * 1000) for n in range(5_000)]
    parts = [frames.Part(log.find("clicks").id, 0, len(records), records[-1].time_us, frames.pack_records(records))]
    log._link.ask(frames.pack(frames.Append("p", 1, parts)), deadline_seconds=5)
    assert log.offsets_at("clicks", 1_000_000 + 3_000_000) == [3_000]


def test_a_partition_that_a_topic_does_not_have_is_refused(clicks):
    for partition in (4, 1024, -1):
        with pytest.raises(CallError, match=f"has partitions 0 to 3, not {partition}"):
            clicks.read({partition: 0})


def test_an_empty_append_is_done_at_once(clicks):
    async def main() -> None:
        sender = clicks.topics.open_sender(deadline_seconds=0.3, max_pending_bytes=1 << 20)
        await sender.append("clicks", [])
        await sender.close()

    assert clicks.append([]) == []
    asyncio.run(main())


def test_overlapping_readers_do_not_let_the_log_grow(clicks):
    clicks.topics._seat.resident = True
    stop = threading.Event()

    def read_again_and_again() -> None:
        own = open_topic(f"sqlite:///{clicks.topics._path.parent}", "clicks")
        while not stop.is_set():
            own.read(max_records=20_000)
        own.topics.close()

    readers = [threading.Thread(target=read_again_and_again) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(50):
            clicks.append([Record(b"%d" % n, os.urandom(1000)) for n in range(1000)])
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    wal = clicks.topics._path.with_name("topics.db-wal")
    wait_until(lambda: wal.stat().st_size < 32 << 20, seconds=15)


def test_a_frozen_writer_is_known_while_nothing_is_sent(tmp_path):
    writer = start_writer(tmp_path / "log")
    topics = open_topics(f"sqlite:///{tmp_path}/log")

    async def main() -> None:
        sender = topics.open_sender(deadline_seconds=5, max_pending_bytes=1 << 20)
        await sender.append("clicks", [Record(b"a", b"v")])
        freeze(writer.pid)
        deadline = time.monotonic() + 5
        while sender.stalled_seconds() < 0.9:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        os.kill(writer.pid, 18)
        while sender.stalled_seconds() > 0.5:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        await sender.close()

    asyncio.run(main())
    writer.kill()
    writer.wait()
    topics.close()
