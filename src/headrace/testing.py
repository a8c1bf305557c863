"""Contract checks for authors of backends: what Headrace relies on, tried on a real instance.

A backend that passes them can stand in a profile. From pytest, one test per check:

    @pytest.mark.parametrize("check", testing.TOPIC_CHECKS, ids=lambda check: check.__name__)
    def test_shelf(check):
        check(lambda: ShelfTopics("/tmp/shelf"))
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from headrace.base.clock import machine_us
from headrace.base.errors import (
    CallError,
    FencedError,
    HeadraceError,
    OutsideError,
    PositionError,
    RecordError,
    StopError,
    UnavailableError,
    UnknownNameError,
)
from headrace.base.ids import make_id
from headrace.features.online import Online, State
from headrace.topics import Consumer, Message, Move, Place, Position, Record, Share, Topic, Topics, replay
from headrace.topics.topic import DEFAULT_LEASE_SECONDS, MAX_READ_BYTES, MAX_RECORD_BYTES

OpenTopics = Callable[[], Topics]
"""Opens the same topics once more, as another process would; a backend in memory returns its one instance."""

TopicCheck = Callable[[OpenTopics], None]

# Java's murmur2 of these keys, from the tests of Kafka's own client.
JAVA_HASHES = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}

_SECOND_US = 1_000_000
_HOUR_US = 3600 * _SECOND_US
# How long a backend may take for what it does in the background: expire, notice, hand over.
_PATIENCE_SECONDS = 30.0


class ContractError(AssertionError):
    """A backend does not do what Headrace relies on; the message says what was expected and found."""


def check_topics(open_topics: OpenTopics) -> None:
    """Runs every check of a topic backend; raises at the first that fails.

    >>> from headrace.topics.memory import MemoryTopics
    >>> topics = MemoryTopics()
    >>> check_topics(lambda: topics)
    """
    for check in TOPIC_CHECKS:
        check(open_topics)


def keys_go_where_java_puts_them(open_topics: OpenTopics) -> None:
    """A key's partition is the one that Kafka's Java client would choose."""
    with _topic(open_topics, partitions=7) as topic:
        places = topic.append([Record(key, b"") for key in JAVA_HASHES])
        _same("partitions", [place.partition for place in places], [(h & 0x7FFFFFFF) % 7 for h in JAVA_HASHES.values()])
        read = {message.key: message.partition for message in _read_all(topic)}
        _same("partitions when read", [read[key] for key in JAVA_HASHES], [place.partition for place in places])


def offsets_increase(open_topics: OpenTopics) -> None:
    """Offsets grow with every record of a partition; without holes if the backend says so."""
    with _topic(open_topics, partitions=3) as topic:
        places = [place for part in range(5) for place in topic.append(_numbered(range(part * 40, part * 40 + 40)))]
        by_partition = _grouped((place.partition, place.offset) for place in places)
        for offsets in by_partition.values():
            _same("offsets in order", offsets, sorted(set(offsets)))
            if topic.topics.capabilities.dense:
                _same("dense offsets", offsets, list(range(len(offsets))))
        read = _grouped((message.partition, message.offset) for message in _read_all(topic))
        _same("offsets when read", read, by_partition)


def order_is_kept_per_key(open_topics: OpenTopics) -> None:
    """Records of one key are read in the order of their appends."""
    with _topic(open_topics) as topic:
        for part in range(4):
            topic.append(_numbered(range(part * 250, part * 250 + 250)))
        by_key = _grouped((message.key, int(message.value or b"")) for message in _read_all(topic))
        _same("records", sum(len(numbers) for numbers in by_key.values()), 1000)
        for numbers in by_key.values():
            _same("order of a key", numbers, sorted(numbers))


def reads_are_bounded_in_bytes(open_topics: OpenTopics) -> None:
    """A read of large records ends long before it has as many as were asked for, and the next one goes on."""
    with _topic(open_topics, partitions=1) as topic:
        for _ in range(3):
            topic.append([Record(b"k", bytes(900_000))] * 20)
        first = topic.read({0: 0}, wait_seconds=_PATIENCE_SECONDS)
        size = sum(len(message.value or b"") for message in first)
        _same(f"a read of at most {3 * MAX_READ_BYTES:,} bytes, with {size:,}", 0 < size <= 3 * MAX_READ_BYTES, True)
        _same("records of all reads", len(list(_read_all(topic))), 60)


def records_come_back_whole(open_topics: OpenTopics) -> None:
    """Keys, values and headers come back as they were given, empty and missing ones too."""
    records = [
        Record(None, b"no key"),
        Record(b"", b"empty key"),
        Record(b"no value", None),
        Record(b"empty value", b""),
        Record("zoë-日本".encode(), "naïve \0 ☃".encode()),
        Record(b"bytes", bytes(range(256))),
        Record(b"headers", b"x", 0, (("a", b"1"), ("a", b"2"), ("empty", b""), ("zoë", b"\xff\0"))),
        Record(b"large", b"x" * (MAX_RECORD_BYTES - 5)),
    ]
    with _topic(open_topics) as topic:
        topic.append(records)
        found = {(message.key, message.value): message.headers for message in _read_all(topic)}
        _same("records", len(found), len(records))
        for record in records:
            kept = (record.key, record.value)
            _expect(kept in found, f"{str(kept)[:80]} did not come back")
            _same(f"headers of {record.key!r}", found[kept], record.headers)


def large_records_are_refused(open_topics: OpenTopics) -> None:
    """A record over the limit, or of the wrong type, is refused and nothing of its append is written."""
    with _topic(open_topics) as topic:
        for value in (b"x" * (MAX_RECORD_BYTES + 1), "text"):
            wrong = Record(None, value)  # type: ignore[arg-type]
            _refuses(RecordError, partial(topic.append, [Record(b"good", b""), wrong]))
        _same("records after a refusal", _read_all(topic), [])


def times_are_kept(open_topics: OpenTopics) -> None:
    """A given time is kept to the millisecond; a missing one is the machine's at append."""
    with _topic(open_topics, partitions=1) as topic:
        given = [1, 1_000_000_000_123_456, machine_us() + 30 * 24 * _HOUR_US]
        earliest = machine_us() // 1000 * 1000
        topic.append([Record(None, b"", 0), *(Record(None, b"", time_us * 1000) for time_us in given[:1])])
        topic.append([Record(None, b"", time_us) for time_us in given[1:]])
        stamped, *kept = [message.time_us for message in _read_all(topic)]
        _expect(earliest <= stamped <= machine_us(), f"stamped {stamped}, not in {earliest} to now")
        _same("given times", kept, [1000, *(time_us // 1000 * 1000 for time_us in given[1:])])


def offsets_are_found_by_time(open_topics: OpenTopics) -> None:
    """The offset at a time is that of the first record that is not older, else the end."""
    start = machine_us() // _SECOND_US * _SECOND_US - _HOUR_US
    with _topic(open_topics, partitions=1) as topic:
        _same("offset in an empty topic", topic.topics.offsets_at(topic.name, start), [0])
        for step in (1, 2, 4, 3, 5):
            topic.append([Record(None, b"", start + step * _SECOND_US)])
        asked = {0.0: 0, 1.0: 0, 1.5: 1, 2.0: 1, 2.000001: 2, 3.0: 2, 4.5: 4, 5.0: 4, 5.5: 5}
        for seconds, offset in asked.items():
            time_us = start + int(seconds * _SECOND_US)
            _same(f"offset at {seconds:g} s", topic.topics.offsets_at(topic.name, time_us), [offset])


def reads_start_and_stop_where_asked(open_topics: OpenTopics) -> None:
    """A read starts at the given offsets, takes only those partitions and at most so many records."""
    with _topic(open_topics, partitions=2) as topic:
        places = topic.append(_numbered(range(60)))
        ends = [bound.end for bound in topic.bounds()]
        _same("records", sum(ends), len(places))
        half = topic.read({0: ends[0] - 5})
        _same("offsets", [(m.partition, m.offset) for m in half], [(0, ends[0] - n) for n in (5, 4, 3, 2, 1)])
        _same("limited records", len(topic.read({0: 0, 1: 0}, max_records=7)), 7)
        _same("records at the end", topic.read({0: ends[0], 1: ends[1]}), [])
        _refuses(PositionError, lambda: topic.read({0: ends[0] + 1}), "outside")


def reads_wait_for_records(open_topics: OpenTopics) -> None:
    """A waiting read returns soon after a record comes, and an empty list when none does."""
    with _topic(open_topics, partitions=1) as topic:
        started = time.monotonic()
        _same("records of a read in vain", topic.read({0: 0}, wait_seconds=0.3), [])
        _expect(time.monotonic() - started >= 0.3, "a read did not wait as long as it was asked to")
        writer = threading.Timer(0.3, topic.append, ([Record(None, b"late")],))
        started = time.monotonic()
        writer.start()
        found = topic.read({0: 0}, wait_seconds=_PATIENCE_SECONDS)
        waited = time.monotonic() - started
        writer.join()
        _same("record waited for", [message.value for message in found], [b"late"])
        _expect(waited < 5, f"a record was there after 0.3 s, the read returned after {waited:.1f} s")


def creating_twice_changes_nothing(open_topics: OpenTopics) -> None:
    """A topic that stands is returned as it is; another number of partitions is refused."""
    with _topic(open_topics, partitions=3) as topic:
        topic.append([Record(b"a", b"1")])
        again = topic.topics.create(topic.name, partitions=3, retention_seconds=None)
        _same("description", again, topic.describe())
        _same("records", len(_read_all(topic)), 1)
        _refuses(CallError, lambda: topic.topics.create(topic.name, partitions=4, retention_seconds=None), "3", "4")
        for name, partitions in (("", 1), ("no spaces", 1), (topic.name, 0)):
            _refuses(CallError, partial(topic.topics.create, name, partitions=partitions, retention_seconds=None))


def unknown_topics_are_named(open_topics: OpenTopics) -> None:
    """A name that no topic has is an error that suggests the nearest."""
    with _topic(open_topics) as topic:
        _expect(topic.name in topic.topics.names(), "a topic is not among the names")
        topics, wrong = topic.topics, topic.name[:-1]
        calls: list[Callable[[], object]] = [
            lambda: topics.describe(wrong),
            lambda: topics.bounds(wrong),
            lambda: topics.append(wrong, [Record(None, b"")], deadline_seconds=10),
            lambda: topics.read(wrong, {0: 0}, max_records=1, wait_seconds=0),
            lambda: topics.offsets_at(wrong, 0),
            lambda: topics.join(wrong, "group"),
            lambda: topics.share(wrong, "group", member="ann", lease_seconds=DEFAULT_LEASE_SECONDS),
            lambda: topics.alter(wrong, retention_seconds=None),
            lambda: topics.drop(wrong),
        ]
        for call in calls:
            _refuses(UnknownNameError, call, f"Did you mean {topic.name}?")
        _expect(wrong not in topics.names(), "asking for a topic made it")


def positions_survive_reopening(open_topics: OpenTopics) -> None:
    """A group goes on behind what it committed, also in another instance."""
    with _topic(open_topics) as topic:
        topic.append(_numbered(range(30)))
        with topic.consume("readers") as consumer:
            first = _poll(consumer, 30)
            consumer.commit()
            topic.append(_numbered(range(30, 40)))
            _poll(consumer, 10)  # and does not commit
        with _reopened(open_topics, topic) as again, again.consume("readers") as consumer:
            second = _poll(consumer, 10)
            _same("records after reopening", _numbers(second), list(range(30, 40)))
            _same("all records", _numbers(first), list(range(30)))
        with topic.consume("others") as other:
            _same("records of another group", _numbers(_poll(other, 40)), list(range(40)))


def older_members_are_fenced(open_topics: OpenTopics) -> None:
    """Once somebody newer has joined, an older member's commit is refused and changes nothing."""
    with _topic(open_topics, partitions=1) as topic, _reopened(open_topics, topic) as other:
        topic.append(_numbered(range(20)))
        with topic.consume("readers") as older:
            _poll(older, 20)
            with other.consume("readers") as newer:
                _refuses(FencedError, older.commit, "readers")
                _same("saved positions", topic.topics.groups(topic.name), [])
                newer.poll(max_records=5, wait_seconds=5)
                newer.commit()
                _refuses(FencedError, older.commit, "readers")
            # The newer one has gone: the older stays fenced all the same.
            _refuses(FencedError, older.commit, "readers")
        saved = topic.topics.groups(topic.name)
        _same("saved offsets", [(one.group, one.position.offset) for one in saved], [("readers", 5)])
        with topic.consume("readers") as consumer:
            _same("records", _numbers(_poll(consumer, 15)), list(range(5, 20)))


def other_incarnations_stop_a_group(open_topics: OpenTopics) -> None:
    """A group whose topic was dropped and made again stops loudly, until it is told where to go on."""
    with _topic(open_topics, partitions=1) as topic:
        topic.append(_numbered(range(20)))
        with topic.consume("readers") as consumer:
            _poll(consumer, 20)
            consumer.commit()
        before = topic.describe().incarnation
        _make_anew(topic)
        _expect(topic.describe().incarnation != before, "the new topic has the incarnation of the old one")
        _same("records of the new topic", _read_all(topic), [])
        topic.append(_numbered(range(100, 130)))
        _refuses(PositionError, lambda: topic.consume("readers"), "created anew", "readers", "replay")
        _refuses(PositionError, lambda: topic.consume("readers"), "created anew")
        replay(topic, "readers", {0: 10})
        with topic.consume("readers") as consumer:
            _same("records after a replay", _numbers(_poll(consumer, 20)), list(range(110, 130)))


def running_consumers_notice_a_new_incarnation(open_topics: OpenTopics) -> None:
    """A consumer that runs while its topic is dropped and made again stops loudly."""
    with _topic(open_topics, partitions=1) as topic, _reopened(open_topics, topic) as other:
        topic.append(_numbered(range(20)))
        with topic.consume("readers") as consumer:
            _poll(consumer, 20)
            _make_anew(other)
            other.append(_numbered(range(40)))
            deadline = time.monotonic() + _PATIENCE_SECONDS

            def go_on() -> None:
                while time.monotonic() < deadline:
                    consumer.poll(wait_seconds=0.1)

            _refuses(PositionError, go_on)


def positions_out_of_range_stop_a_group(open_topics: OpenTopics) -> None:
    """A saved position outside the topic is an error, never a silent jump."""
    with _topic(open_topics, partitions=1) as topic:
        topic.append(_numbered(range(5)))
        member = topic.topics.join(topic.name, "readers")
        member.commit({0: Position(topic.describe().incarnation, 0, 99)})
        member.close()
        _refuses(PositionError, lambda: topic.consume("readers"), "99", "outside")
        _refuses(PositionError, lambda: replay(topic, "readers", {0: 6}), "6", "outside")


def groups_can_replay(open_topics: OpenTopics) -> None:
    """A replay moves a group and fences the consumer that runs for it."""
    with _topic(open_topics) as topic:
        topic.append(_numbered(range(40)))
        with topic.consume("readers") as consumer:
            _poll(consumer, 40)
            consumer.commit()
            replay(topic, "readers", {p: bound.start for p, bound in enumerate(topic.bounds())})
            topic.append(_numbered(range(40, 50)))
            _poll(consumer, 10)
            _refuses(FencedError, consumer.commit)
        with topic.consume("readers") as consumer:
            _same("records after a replay", _numbers(_poll(consumer, 50)), list(range(50)))


def lag_is_what_was_not_read(open_topics: OpenTopics) -> None:
    """The ends of a topic less a group's saved positions are its lag."""
    with _topic(open_topics, partitions=2) as topic:
        topic.append(_numbered(range(50)))
        with topic.consume("readers") as consumer:
            taken = len(consumer.poll(max_records=20, wait_seconds=5))
            consumer.commit()
            _same("lag", _lag(topic, consumer), 50 - taken)
            _poll(consumer, 50 - taken)
            consumer.commit()
            _same("lag at the end", _lag(topic, consumer), 0)
        saved = {group.position.partition: group.position.offset for group in topic.topics.groups(topic.name)}
        _same("saved offsets", saved, {p: bound.end for p, bound in enumerate(topic.bounds())})


def old_records_expire(open_topics: OpenTopics) -> None:
    """Once a topic keeps records for an hour, those of two hours ago go, and offsets go on."""
    with _topic(open_topics, partitions=1) as topic:
        old = machine_us() - 2 * _HOUR_US
        topic.append([Record(None, b"old", old) for _ in range(10)])
        changed = topic.topics.alter(topic.name, retention_seconds=3600)
        _same("retention", (changed.retention_seconds, topic.describe().retention_seconds), (3600, 3600))
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while topic.bounds()[0].start < 10:
            _expect(time.monotonic() < deadline, f"old records are still there after {_PATIENCE_SECONDS:g} s")
            time.sleep(0.05)
        _refuses(PositionError, lambda: topic.read({0: 3}), "outside 10 to 10")
        _same("place of the next record", topic.append([Record(None, b"new")]), [Place(0, 10)])
        _same("records", [message.value for message in _read_all(topic)], [b"new"])
        _same("retention", topic.topics.alter(topic.name, retention_seconds=None).retention_seconds, None)


def instances_append_together(open_topics: OpenTopics) -> None:
    """Several instances and threads append at once, and nothing is lost or doubled."""
    with _topic(open_topics) as topic, _reopened(open_topics, topic) as other:
        failures: list[HeadraceError] = []

        def write(one: Topic, numbers: range) -> None:
            try:
                for number in numbers:
                    one.append(_numbered([number]))
            except HeadraceError as error:
                failures.append(error)

        writers = [
            threading.Thread(target=write, args=(one, range(start, start + 50)))
            for start, one in ((0, topic), (50, topic), (100, other), (150, other))
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        _same("failures", failures, [])
        _same("records", _numbers(_read_all(topic)), list(range(200)))


def senders_serve_many_callers(open_topics: OpenTopics) -> None:
    """An asyncio sender takes many callers at once and keeps the order of each."""
    with _topic(open_topics) as topic:
        asyncio.run(_send_much(topic, callers=100, appends=20))
        by_key = _grouped((message.key, int(message.value or b"")) for message in _read_all(topic))
        _same("callers", len(by_key), 100)
        for numbers in by_key.values():
            _same("order of a caller", numbers, list(range(40)))


def senders_say_what_failed(open_topics: OpenTopics) -> None:
    """A sender answers every append in time: what it acknowledged is there, else it raises."""
    with _topic(open_topics) as topic:
        for deadline_seconds, max_pending_bytes in ((10.0, 20_000), (0.0001, 10_000_000)):
            acknowledged = asyncio.run(_send_in_vain(topic, deadline_seconds, max_pending_bytes))
            there = {message.key for message in _read_all(topic)}
            _expect(acknowledged <= there, f"{len(acknowledged - there)} acknowledged records are not there")


def a_member_alone_holds_everything(open_topics: OpenTopics) -> None:
    """A member alone holds every partition, and finds the positions that the group moved last."""
    with _topic(open_topics) as topic:
        topic.append(_numbered(range(100)))
        with _member(topic, "ann") as share:
            _hold(share)
            _same("positions at first", [share.saved(partition) for partition in range(4)], [None] * 4)
            share.transact([Move(partition, 1) for partition in range(3)], deadline_seconds=_PATIENCE_SECONDS)
            share.transact([Move(0, 2)], deadline_seconds=_PATIENCE_SECONDS)
        incarnation = topic.describe().incarnation
        expected = [Position(incarnation, partition, offset) for partition, offset in enumerate((2, 1, 1))]
        with _reopened(open_topics, topic) as again, _member(again, "bob") as share:
            _hold(share)
            _same("saved positions", [share.saved(partition) for partition in range(4)], [*expected, None])
        listed = [(one.group, one.position) for one in topic.topics.groups(topic.name)]
        _same("positions of the group", listed, [("settlers", position) for position in expected])


def outputs_stand_beside_their_source(open_topics: OpenTopics) -> None:
    """The outputs of a move stand in its partition, in order and whole, whatever their keys are."""
    start = machine_us() // 1000 * 1000 - _HOUR_US
    records = [
        Record(b"key", b"first", start + 1000),
        Record(None, b"", start),
        Record(b"", None, start + 2000, (("a", b"1"), ("a", b"\xff\0"), ("empty", b""))),
        *(Record(b"%d" % number, b"%d" % number, start) for number in range(200)),
    ]
    with _topic(open_topics) as topic, _topic(open_topics) as good, _topic(open_topics) as bad:
        with _member(topic, "ann") as share:
            _hold(share)
            for half in (records[:50], records[50:]):
                moves = [Move(p, 0, {good.name: half, bad.name: [Record(None, b"%d" % p)]}) for p in (3, 1)]
                share.transact(moves, deadline_seconds=_PATIENCE_SECONDS)
        for partition, expected in ((0, []), (1, records), (3, records)):
            found = [m for m in _read_all(good) if m.partition == partition]
            _same("outputs", [Record(m.key, m.value, m.time_us, m.headers) for m in found], expected)
        rest = [message for message in _read_all(bad) if message.partition == 1]
        _same("other outputs", [message.value for message in rest], [b"1", b"1"])
        now = machine_us()
        _expect(all(start < m.time_us <= now for m in rest), f"outputs without a time are not stamped, at {now}")


def moves_are_whole(open_topics: OpenTopics) -> None:
    """A move with an output that cannot be written writes nothing and saves nothing."""
    with (
        _topic(open_topics) as topic,
        _topic(open_topics) as good,
        _topic(open_topics, partitions=1) as narrow,
    ):
        topic.append(_numbered(range(100)))
        impossible = {
            good.name[:-1]: Record(None, b"no such topic"),
            narrow.name: Record(None, b"no such partition"),
            good.name: Record(None, b"x" * (MAX_RECORD_BYTES + 1)),
        }
        for name, record in impossible.items():
            with _member(topic, "ann") as share:
                _hold(share)
                outputs = {good.name: [Record(None, b"good")], narrow.name: [], name: [Record(None, b""), record]}
                move = partial(share.transact, [Move(3, 1, outputs)], deadline_seconds=_PATIENCE_SECONDS)
                _refuses(CallError, move)
        with _member(topic, "ann") as share:
            _hold(share)
            _same("position", share.saved(3), None)
            share.transact([Move(3, 1, {good.name: [Record(None, b"whole")]})], deadline_seconds=_PATIENCE_SECONDS)
        _same("outputs", [message.value for message in _read_all(good)], [b"whole"])


def members_divide_the_partitions(open_topics: OpenTopics) -> None:
    """Two members hold all partitions and none together; when one closes, the other has all."""
    with _topic(open_topics) as topic, _reopened(open_topics, topic) as other, _topic(open_topics) as outputs:
        with _member(topic, "ann") as ann:
            _hold(ann)
            with _member(other, "bob") as bob:
                for share, held in zip((ann, bob), _hold(ann, bob), strict=True):
                    moves = [Move(p, 7, {outputs.name: [Record(None, b"%d" % p)]}) for p in held]
                    share.transact(moves, deadline_seconds=_PATIENCE_SECONDS)
                foreign = Move(min(ann.held()), 8, {outputs.name: [Record(None, b"foreign")]})
                _refuses(FencedError, partial(bob.transact, [foreign], deadline_seconds=_PATIENCE_SECONDS))
            _hold(ann)
            _same("offsets", [position and position.offset for position in map(ann.saved, range(4))], [7] * 4)
        found = sorted((message.partition, message.value) for message in _read_all(outputs))
        _same("outputs", found, [(partition, b"%d" % partition) for partition in range(4)])


def older_members_of_a_name_are_fenced(open_topics: OpenTopics) -> None:
    """A newer member takes over at once what an older one of its name held, and nothing of that comes through."""
    with (
        _topic(open_topics, partitions=2) as topic,
        _reopened(open_topics, topic) as other,
        _topic(open_topics, partitions=2) as outputs,
    ):
        with _member(topic, "ann") as older:
            _hold(older, partitions=2)
            older.transact([Move(0, 1, {outputs.name: [Record(None, b"older")]})], deadline_seconds=_PATIENCE_SECONDS)
            with _member(other, "ann") as newer:
                _hold(newer, partitions=2)
                late = Move(0, 9, {outputs.name: [Record(None, b"late")]})
                _refuses(FencedError, partial(older.transact, [late], deadline_seconds=_PATIENCE_SECONDS))
                position = newer.saved(0)
                _same("position", position and position.offset, 1)
                move = Move(0, 2, {outputs.name: [Record(None, b"newer")]})
                newer.transact([move], deadline_seconds=_PATIENCE_SECONDS)
                older.close()
                _expect(newer.held() == {0, 1}, "a member lost what it held when an older one of its name closed")
        _same("outputs", [message.value for message in _read_all(outputs)], [b"older", b"newer"])


def silent_members_lose_their_partitions(open_topics: OpenTopics) -> None:
    """A member that is not heard of loses its partitions to the others, and learns it when it comes back."""
    with (
        _topic(open_topics, partitions=2) as topic,
        _reopened(open_topics, topic) as other,
        _topic(open_topics, partitions=2) as outputs,
    ):
        with _member(topic, "ann", lease_seconds=1) as silent, _member(other, "bob", lease_seconds=1) as alive:
            lost = _hold(silent, alive, partitions=2)[0]
            _hold(alive, partitions=2)
            late = Move(min(lost), 1, {outputs.name: [Record(None, b"late")]})
            _refuses(FencedError, partial(silent.transact, [late], deadline_seconds=_PATIENCE_SECONDS))
            _same("position", alive.saved(min(lost)), None)
            _same("what the silent one holds", silent.held() & lost, frozenset())
        _same("outputs", _read_all(outputs), [])


def shared_groups_can_replay(open_topics: OpenTopics) -> None:
    """A replay moves a shared group; where members run it fences them, or is refused and changes nothing."""
    with _topic(open_topics) as topic:
        topic.append(_numbered(range(100)))
        with _member(topic, "ann") as share:
            _hold(share)
            share.transact([Move(partition, 3) for partition in range(4)], deadline_seconds=_PATIENCE_SECONDS)
            again = partial(share.transact, [Move(1, 4)], deadline_seconds=_PATIENCE_SECONDS)
            try:
                replay(topic, "settlers", dict.fromkeys(range(4), 2))
            except StopError:
                again()
            else:
                _refuses(FencedError, again)
        replay(topic, "settlers", dict.fromkeys(range(4), 1))
        with _member(topic, "ann") as share:
            _hold(share)
            _same("offsets", [position and position.offset for position in map(share.saved, range(4))], [1] * 4)
            share.transact([Move(0, 2)], deadline_seconds=_PATIENCE_SECONDS)


def other_incarnations_stop_a_share(open_topics: OpenTopics) -> None:
    """Members stop loudly when their topic was dropped and made again, until the group is told where to go on."""
    with _topic(open_topics, partitions=1) as topic:
        topic.append(_numbered(range(20)))
        with _member(topic, "ann") as share:
            _hold(share, partitions=1)
            share.transact([Move(0, 10)], deadline_seconds=_PATIENCE_SECONDS)
            _make_anew(topic)
            topic.append(_numbered(range(100, 130)))
            _refuses(PositionError, lambda: _hold(share, partitions=2), "created anew", "settlers")
        with _member(topic, "ann") as share:
            _hold(share, partitions=1)
            _refuses(PositionError, lambda: share.saved(0), "created anew", "settlers", "replay")
        replay(topic, "settlers", {0: 5})
        with _member(topic, "ann") as share:
            _hold(share, partitions=1)
            _same("position", share.saved(0), Position(topic.describe().incarnation, 0, 5))


TOPIC_CHECKS: tuple[TopicCheck, ...] = (
    keys_go_where_java_puts_them,
    offsets_increase,
    order_is_kept_per_key,
    records_come_back_whole,
    reads_are_bounded_in_bytes,
    large_records_are_refused,
    times_are_kept,
    offsets_are_found_by_time,
    reads_start_and_stop_where_asked,
    reads_wait_for_records,
    creating_twice_changes_nothing,
    unknown_topics_are_named,
    positions_survive_reopening,
    older_members_are_fenced,
    other_incarnations_stop_a_group,
    running_consumers_notice_a_new_incarnation,
    positions_out_of_range_stop_a_group,
    groups_can_replay,
    lag_is_what_was_not_read,
    old_records_expire,
    instances_append_together,
    senders_serve_many_callers,
    senders_say_what_failed,
    a_member_alone_holds_everything,
    outputs_stand_beside_their_source,
    moves_are_whole,
    members_divide_the_partitions,
    older_members_of_a_name_are_fenced,
    silent_members_lose_their_partitions,
    shared_groups_can_replay,
    other_incarnations_stop_a_share,
)
"""Every check of a topic backend; each makes a topic of its own and drops it."""


def check_online(open_online: Callable[[], Online]) -> None:
    """Tries what Headrace relies on of an online store that is empty; each call opens the same one once more."""
    ours, theirs, person, thing = open_online(), open_online(), (b"person\0ann", 1), (b"item\0i", 0)
    _same("state of an empty store", (ours.read_state(), ours.read_states()), (None, []))
    _refuses(UnavailableError, lambda: theirs.snapshot(()))
    first, second = _begun(ours, 1), _begun(ours, 2)
    _refuses(UnavailableError, lambda: theirs.snapshot(()))
    moved = State(generation=1, definitions="d", incarnation="i", revision=1, offsets=(3, 4), known=(1, 2))
    ours.commit({person: b"old", thing: b"thing"}, moved, first)
    _refuses(FencedError, lambda: theirs.commit({person: b"lost"}, moved, first))
    _same("promotion", (ours.promote(moved), theirs.read_state()), (True, moved))
    _same("blobs", theirs.load(1, [person, thing, (b"item\0i", 1)]), {person: b"old", thing: b"thing"})
    _refuses(FencedError, lambda: theirs.commit({}, second, second), "2")
    seen = theirs.snapshot([person[0], b"person\0bob"], since=(0, 0))
    _same("state", seen.state, moved)
    _same("blobs asked for", dict(seen.blobs), {person[0]: [(1, b"old")], b"person\0bob": []})
    _same("blobs in memory", list(seen.changed), [(thing, b"thing")])
    _same("changes since", list(theirs.snapshot((), since=(1, 1)).changed), [])
    third = _begun(ours, 3)
    _same("promotion of one that lags", (ours.promote(third), theirs.read_state()), (False, moved))
    level = State(generation=3, definitions="d", incarnation="i", revision=1, offsets=(3, 4))
    theirs.commit({thing: b"new"}, level, third)
    _same("promotion of one that has caught up", theirs.promote(level), True)
    while ours.sweep():
        pass
    _same("changes of another generation", list(ours.snapshot((), since=(1, 1)).changed), [(thing, b"new")])
    _same("blobs of what was replaced", ours.load(1, [person, thing]), {})
    _refuses(FencedError, lambda: ours.commit({}, moved, moved))
    ours.close()
    theirs.close()


def _begun(online: Online, generation: int) -> State:
    state = State(generation=generation, definitions="d", incarnation="i", offsets=(0, 0))
    online.begin(state, ())
    _same("columns", online.read_columns(generation), ())
    return state


@contextmanager
def _topic(open_topics: OpenTopics, *, partitions: int = 4) -> Iterator[Topic]:
    topics = open_topics()
    topic = Topic(topics, f"check-{make_id(machine_us(), os.urandom(10))}")
    topics.create(topic.name, partitions=partitions, retention_seconds=None)
    try:
        yield topic
    finally:
        topics.drop(topic.name)
        topics.close()


@contextmanager
def _reopened(open_topics: OpenTopics, topic: Topic) -> Iterator[Topic]:
    topics = open_topics()
    try:
        yield Topic(topics, topic.name)
    finally:
        topics.close()


@contextmanager
def _member(topic: Topic, name: str, *, lease_seconds: float = DEFAULT_LEASE_SECONDS) -> Iterator[Share]:
    share = topic.share("settlers", member=name, lease_seconds=lease_seconds)
    try:
        yield share
    finally:
        share.close()


def _hold(*shares: Share, partitions: int = 4) -> list[frozenset[int]]:
    """Returns what each member holds, once together they hold everything."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        held = [share.held() for share in shares]
        together = sorted(partition for one in held for partition in one)
        _expect(len(set(together)) == len(together), f"two members hold the same partition: {held}")
        if together == list(range(partitions)) and all(held):
            return held
        _expect(time.monotonic() < deadline, f"members hold {held} of {partitions} after {_PATIENCE_SECONDS:g} s")
        time.sleep(0.02)


async def _send_much(topic: Topic, *, callers: int, appends: int) -> None:
    sender = topic.topics.open_sender(deadline_seconds=_PATIENCE_SECONDS, max_pending_bytes=10_000_000)

    async def call(caller: int) -> None:
        for number in range(0, 2 * appends, 2):
            both = [Record(b"caller %d" % caller, b"%d" % n) for n in (number, number + 1)]
            await sender.append(topic.name, both)

    await asyncio.gather(*(call(caller) for caller in range(callers)))
    _same("seconds stalled without appends", sender.stalled_seconds(), 0.0)
    try:
        await sender.append(topic.name[:-1], [Record(None, b"")])
    except UnknownNameError:
        pass
    else:
        raise ContractError("a sender appended to a topic that nobody made")
    await sender.close()


async def _send_in_vain(topic: Topic, deadline_seconds: float, max_pending_bytes: int) -> set[bytes | None]:
    sender = topic.topics.open_sender(deadline_seconds=deadline_seconds, max_pending_bytes=max_pending_bytes)
    keys = [b"%s %d" % (os.urandom(4).hex().encode(), number) for number in range(100)]

    async def call(key: bytes) -> bytes | None:
        try:
            await sender.append(topic.name, [Record(key, b"x" * 1000)])
        except OutsideError:
            return None
        return key

    async with asyncio.timeout(_PATIENCE_SECONDS):
        answers = await asyncio.gather(*(call(key) for key in keys))
    await sender.close()
    return {key for key in answers if key is not None}


def _make_anew(topic: Topic) -> None:
    partitions = topic.describe().partitions
    topic.topics.drop(topic.name)
    topic.topics.create(topic.name, partitions=partitions, retention_seconds=None)


def _numbered(numbers: Iterable[int]) -> list[Record]:
    return [Record(b"key %d" % (number % 20), b"%d" % number) for number in numbers]


def _numbers(messages: Sequence[Message]) -> list[int]:
    return sorted(int(message.value or b"") for message in messages)


def _read_all(topic: Topic) -> list[Message]:
    offsets = {partition: bound.start for partition, bound in enumerate(topic.bounds())}
    found: list[Message] = []
    while messages := topic.read(offsets):
        found += messages
        for message in messages:
            offsets[message.partition] = message.offset + 1
    return found


def _poll(consumer: Consumer, count: int) -> list[Message]:
    found: list[Message] = []
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while len(found) < count:
        _expect(time.monotonic() < deadline, f"polled {len(found)} of {count} records in {_PATIENCE_SECONDS:g} s")
        found += consumer.poll(wait_seconds=0.5)
    return found


def _lag(topic: Topic, consumer: Consumer) -> int:
    positions = consumer.positions
    return sum(bound.end - positions[partition].offset for partition, bound in enumerate(topic.bounds()))


def _grouped(pairs: Iterable[tuple[object, int]]) -> dict[object, list[int]]:
    groups: dict[object, list[int]] = defaultdict(list)
    for key, number in pairs:
        groups[key].append(number)
    return dict(groups)


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise ContractError(message)


def _same(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ContractError(f"{what}: expected {str(expected)[:500]}, found {str(found)[:500]}")


def _refuses(kind: type[HeadraceError], call: Callable[[], object], *words: str) -> None:
    try:
        call()
    except kind as error:
        for word in words:
            _expect(word in str(error), f"the error should mention {word!r}: {error}")
    else:
        raise ContractError(f"expected {kind.__name__}, the call succeeded")
