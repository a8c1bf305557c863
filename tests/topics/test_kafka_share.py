"""Members of a shared group on a real broker that die, freeze and come back."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from headrace.base.errors import CallError, FencedError, StopError
from headrace.topics import Move, Record, Topic, replay
from headrace.topics.topic import Position
from running import wait_until

pytestmark = pytest.mark.service("kafka")

PARTITIONS = 4
MEMBER = Path(__file__).with_name("share_member.py")


def await_held(share, count=PARTITIONS):
    deadline = time.monotonic() + 30
    while len(held := share.held()) < count:
        assert time.monotonic() < deadline, f"holds {held}"
        time.sleep(0.01)
    return held


def high_watermarks(kafka, topic):
    places = [TopicPartition(topic.name, partition) for partition in range(PARTITIONS)]
    admin = AdminClient({"bootstrap.servers": kafka.address})
    found = admin.list_offsets(dict.fromkeys(places, OffsetSpec.latest()))
    return [found[place].result().offset for place in places]


DIES = """
import os, signal, sys
from headrace.topics import Move, Record, open_topics
from headrace.topics.kafka_mover import Mover
url, source, output = sys.argv[1:]
topics = open_topics(url)
share = topics.share(source, "settlers", member="ann", lease_seconds=6)
while len(share.held()) < 4:
    pass
share.transact([Move(p, 5, {output: [Record(None, b"saved")]}) for p in range(4)], deadline_seconds=10)
for partition in range(4):
    share._movers[partition].begin(Move(partition, 6, {output: [Record(None, b"lost")]}), 1e9)
    share._movers[partition]._producer.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_who_takes_over_sees_all_that_was_saved_and_nothing_hangs(kafka, make_topic):
    source, output = make_topic(), make_topic()
    done = subprocess.run([sys.executable, "-c", DIES, kafka.url, source.name, output.name], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [bound.end for bound in output.bounds()] != high_watermarks(kafka, output)
    started = time.monotonic()
    share = source.share("settlers", member="ann")
    await_held(share)
    took = time.monotonic() - started
    assert [bound.end for bound in output.bounds()] == high_watermarks(kafka, output)
    assert [message.value for message in output.read_to_ends()] == [b"saved"] * PARTITIONS
    incarnation = source.describe().incarnation
    assert [share.saved(p) for p in range(PARTITIONS)] == [Position(incarnation, p, 5) for p in range(PARTITIONS)]
    share.close()
    # Without the same name it would take the 6 s of the lease.
    assert took < 4


def test_a_move_without_outputs_is_saved(make_topic):
    source = make_topic()
    share = source.share("settlers", member="ann")
    await_held(share)
    share.transact([Move(2, 9)], deadline_seconds=10)
    share.transact([], deadline_seconds=10)
    assert share.saved(2).offset == 9
    with pytest.raises(CallError, match="more than one move"):
        share.transact([Move(2, 10), Move(2, 11)], deadline_seconds=10)
    assert share.saved(2).offset == 9
    share.close()
    share.close()
    with pytest.raises(CallError, match="closed"):
        share.held()


def test_a_reader_reaches_the_end_behind_the_markers(make_topic):
    source, output = make_topic(), make_topic()
    share = source.share("settlers", member="ann")
    await_held(share)
    for number in range(3):
        moves = [Move(p, number, {output.name: [Record(None, b"%d" % number)]}) for p in range(PARTITIONS)]
        share.transact(moves, deadline_seconds=10)
    assert len(list(output.read_to_ends())) == 3 * PARTITIONS
    ends = {partition: bound.end for partition, bound in enumerate(output.bounds())}
    assert output.read(ends) == []
    share.transact([Move(1, 4, {output.name: [Record(None, b"next")]})], deadline_seconds=10)
    assert [(m.offset, m.value) for m in output.read(ends, wait_seconds=5)] == [(ends[1], b"next")]
    share.close()


def test_the_end_is_behind_a_transaction_that_is_ending(kafka, make_topic):
    output = make_topic()
    producer = Producer({"bootstrap.servers": kafka.address, "transactional.id": output.name})
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce(output.name, b"late", None, 1)
    producer.flush(20)
    started = time.monotonic()
    assert output.bounds()[1].end == 0
    assert time.monotonic() - started < 5
    committing = threading.Timer(0.3, producer.commit_transaction)
    committing.start()
    assert output.bounds()[1].end > 0
    committing.join()
    assert [message.value for message in output.read_to_ends()] == [b"late"]


def test_a_replay_waits_for_no_session_and_a_share_after_it_neither(make_topic):
    source = make_topic()
    source.append([Record(b"%d" % number, b"") for number in range(100)])
    share = source.share("settlers", member="ann")
    await_held(share)
    with pytest.raises(StopError, match="shared by ann"):
        replay(source, "settlers", dict.fromkeys(range(PARTITIONS), 1))
    share.close()
    started = time.monotonic()
    replay(source, "settlers", dict.fromkeys(range(PARTITIONS), 1))
    share = source.share("settlers", member="bob")
    await_held(share)
    # Neither the share nor the replay leaves a member behind whose session must end first.
    assert time.monotonic() - started < 5
    assert [share.saved(p).offset for p in range(PARTITIONS)] == [1] * PARTITIONS
    share.close()


def test_a_foreign_producer_of_the_same_id_fences_the_holder(kafka, make_topic):
    source, output = make_topic(), make_topic()
    share = source.share("settlers", member="ann")
    await_held(share)
    name = f"headrace.{source.name}.settlers.2"
    Producer({"bootstrap.servers": kafka.address, "transactional.id": name}).init_transactions(20)
    moves = [Move(p, 1, {output.name: [Record(None, b"%d" % p)]}) for p in range(PARTITIONS)]
    with pytest.raises(FencedError):
        share.transact(moves, deadline_seconds=10)
    with pytest.raises(FencedError, match="open another"):
        share.held()
    share.close()
    share = source.share("settlers", member="ann")
    await_held(share)
    assert share.saved(2) is None
    assert b"2" not in {message.value for message in output.read_to_ends()}
    share.close()


class Feed(threading.Thread):
    """Appends numbered ids, each up to three times, the last of them seconds later."""

    def __init__(self, topic):
        super().__init__(daemon=True)
        self.sent = 0
        self.stopping = False
        self._topic = topic
        self._random = random.Random(3)

    def run(self):
        later = []
        while not self.stopping:
            numbers = range(self.sent, self.sent + 50)
            batch = [self._record(number) for number in numbers]
            self._topic.append(batch)
            self.sent = numbers.stop
            now = time.monotonic()
            later += [
                (now + self._random.random() * 10, r) for r in batch for _ in range(self._random.choice((0, 1, 2)))
            ]
            self._topic.append([record for due, record in later if due < now])
            later = [(due, record) for due, record in later if due >= now]
            time.sleep(0.05)
        self._topic.append([record for _, record in later])

    def _record(self, number):
        return Record(b"visitor %d" % (number % 499), b"%d" % number)


class Members:
    """Processes that share a group, and never exit by themselves."""

    def __init__(self, url, source, output, log):
        self._command = [sys.executable, str(MEMBER), url, source.name, output.name]
        self._log = log
        self._running = {}

    def start(self, name):
        self._running[name] = subprocess.Popen([*self._command, name], stdout=self._log, stderr=self._log)

    def kill(self, name):
        self._running[name].kill()
        self._running[name].wait()

    def all_run(self):
        return all(process.poll() is None for process in self._running.values())

    def send(self, name, sent):
        self._running[name].send_signal(sent)

    def end(self):
        for name in self._running:
            self.kill(name)


def freeze_and_kill(members, rounds):
    """Does what a bad night does, in turns: kills, freezes longer than the lease, and both at once."""
    chance = random.Random(7)
    for number in range(rounds):
        one, other = chance.sample(("ann", "bob"), 2)
        fault = ("both", "kill", "freeze")[number % 3]
        if fault == "kill":
            members.kill(one)
            members.start(one)
            time.sleep(chance.uniform(1, 3))
            continue
        members.send(one, signal.SIGSTOP)
        time.sleep(7.5)
        if fault == "both":
            members.kill(other)
            members.start(other)
        members.send(one, signal.SIGCONT)
        time.sleep(chance.uniform(1, 3))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.soak)])
def test_members_that_die_and_freeze_copy_every_id_once(kafka, make_topic, tmp_path, rounds):
    source, output = make_topic(), make_topic()
    with (tmp_path / "members.log").open("ab") as log:
        members = Members(kafka.url, source, output, log)
        try:
            members.start("ann")
            members.start("bob")
            feed = Feed(source)
            feed.start()
            time.sleep(2)
            freeze_and_kill(members, rounds)
            feed.stopping = True
            feed.join()
            deadline = time.monotonic() + 40
            while len(list(output.read_to_ends())) < feed.sent:
                assert time.monotonic() < deadline, (tmp_path / "members.log").read_text()[-3000:]
                time.sleep(0.5)
            assert members.all_run(), (tmp_path / "members.log").read_text()[-3000:]
        finally:
            members.end()
    found = list(output.read_to_ends())
    copies = Counter(message.value for message in found)
    assert set(copies) == {b"%d" % number for number in range(feed.sent)}
    assert max(copies.values()) == 1
    places = {(message.partition, message.value) for message in source.read_to_ends()}
    assert {(message.partition, message.value) for message in found} <= places
    for partition in range(PARTITIONS):
        sources = [int(message.headers[0][1]) for message in found if message.partition == partition]
        assert sources == sorted(set(sources))


def test_consumer_of_a_topic_with_transactions_reaches_its_end(topics, make_topic):
    source, output = make_topic().name, make_topic().name
    share = topics.share(source, "movers", member="m", lease_seconds=6.0)
    wait_until(share.held)
    share.saved(0)
    share.transact([Move(0, 1, {output: [Record(b"k", b"v")]})], deadline_seconds=10)
    share.close()
    with Topic(topics, output).consume("reader") as consumer:
        found = [message.value for _ in range(4) for message in consumer.poll(wait_seconds=0.2)]
        consumer.commit()
    assert found == [b"v"]
    assert topics.bounds(output)[0].end == 2, "the marker has an offset"
    assert max(one.position.offset for one in topics.groups(output)) == 2
