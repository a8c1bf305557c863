"""Our topics on a real broker, beside Kafka's own tools, and while the broker dies."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import threading
import time

import pytest
from confluent_kafka import KafkaError, Producer

from headrace.base.errors import (
    CallError,
    DeadlineError,
    FencedError,
    OutsideError,
    OverloadedError,
    RecordError,
    UnavailableError,
    UnknownOptionError,
    UrlError,
)
from headrace.topics import Record, Topic, kafka_group, open_topics, partition_for
from services.kafka import PASSWORD, USER

pytestmark = pytest.mark.service("kafka")

KEYS = [f"visitor-{number}" for number in range(40)] + ["zoë", "日本", "x" * 300]


@pytest.fixture
def topic(make_topic):
    return make_topic(partitions=5)


def poll(consumer, count):
    found = []
    deadline = time.monotonic() + 30
    while len(found) < count:
        assert time.monotonic() < deadline, f"polled {len(found)} of {count} records"
        found += consumer.poll(wait_seconds=0.5)
    return found


def kcat(*arguments, text=""):
    done = subprocess.run(["kcat", *arguments], input=text, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.service("kcat")
def test_kcat_reads_what_we_wrote(kafka, topic):
    records = [Record(key.encode(), f"value of {key}".encode(), 0, (("kind", b"click"),)) for key in KEYS]
    topic.append([*records, Record(None, b"no key"), Record(b"gone", None)])
    lines = kcat("-C", "-b", kafka.address, "-t", topic.name, "-o", "beginning", "-e", "-q", "-J").splitlines()
    found = {line["key"]: line for line in map(json.loads, lines)}
    assert len(lines) == len(KEYS) + 2
    for key in KEYS:
        line = found[key]
        assert line["payload"] == f"value of {key}"
        assert line["headers"] == ["kind", "click"]
        assert line["partition"] == partition_for(key.encode(), 5)
        assert line["tstype"] == "create"
    assert found[None]["payload"] == "no key"
    assert found["gone"]["payload"] is None


@pytest.mark.service("kcat")
def test_we_read_what_kcat_wrote(kafka, topic):
    text = "".join(f"{key}\tvalue of {key}\n" for key in KEYS)
    options = ("-K", "\t", "-H", "kind=click", "-X", "partitioner=murmur2_random", "-z", "lz4")
    kcat("-P", "-b", kafka.address, "-t", topic.name, *options, text=text)
    found = {message.key.decode(): message for message in topic.read_to_ends()}
    assert sorted(found) == sorted(KEYS)
    for key, message in found.items():
        assert message.value == f"value of {key}".encode()
        assert message.headers == (("kind", b"click"),)
        assert message.partition == partition_for(key.encode(), 5)


def test_kafkas_console_consumer_reads_what_we_wrote(kafka, topic):
    topic.append([Record(key.encode(), f"value of {key}".encode(), 0, (("kind", b"click"),)) for key in KEYS])
    printed = [f"--formatter-property=print.{what}=true" for what in ("key", "headers", "partition")]
    lines = kafka.run_tool(
        "org.apache.kafka.tools.consumer.ConsoleConsumer",
        *("--bootstrap-server", kafka.address, "--topic", topic.name, "--from-beginning"),
        *("--max-messages", str(len(KEYS)), "--timeout-ms", "20000", *printed),
    ).splitlines()
    expected = [f"Partition:{partition_for(k.encode(), 5)}\tkind:click\t{k}\tvalue of {k}" for k in KEYS]
    assert sorted(lines) == sorted(expected)


def test_the_java_producer_puts_keys_where_we_do(kafka, topic):
    kafka.run_tool(
        "org.apache.kafka.tools.ConsoleProducer",
        *("--bootstrap-server", kafka.address, "--topic", topic.name),
        *("--reader-property=parse.key=true", "--reader-property=key.separator=|"),
        text="".join(f"{key}|value of {key}\n" for key in KEYS),
    )
    theirs = {message.key: message for message in topic.read_to_ends()}
    assert sorted(theirs) == sorted(key.encode() for key in KEYS)
    places = topic.append([Record(key.encode(), b"ours") for key in KEYS])
    for key, place in zip(KEYS, places, strict=True):
        assert theirs[key.encode()].partition == place.partition
        assert theirs[key.encode()].value == f"value of {key}".encode()


def test_a_user_and_a_password_open_the_door(kafka, topic, monkeypatch):
    monkeypatch.setenv("KAFKA_PASSWORD", PASSWORD)
    url = f"kafka://{USER}:env:KAFKA_PASSWORD@127.0.0.1:{kafka.sasl_port}"
    topics = open_topics(url)
    Topic(topics, topic.name).append([Record(None, b"secret")])
    topics.close()
    assert [message.value for message in topic.read()] == [b"secret"]


@pytest.mark.soak
def test_a_wrong_password_is_told(kafka, monkeypatch):
    monkeypatch.setenv("KAFKA_PASSWORD", "wrong")
    topics = open_topics(f"kafka://{USER}:env:KAFKA_PASSWORD@127.0.0.1:{kafka.sasl_port}")
    with pytest.raises(CallError, match="uthentication"):
        topics.names()
    topics.close()


def test_no_broker_is_told_in_time(unused_port):
    topics = open_topics(f"kafka://127.0.0.1:{unused_port}")
    started = time.monotonic()
    with pytest.raises(UnavailableError, match="Connection refused"):
        Topic(topics, "clicks").append([Record(None, b"")])
    topics.close()
    assert time.monotonic() - started < 8


@pytest.mark.parametrize("url", ["kafka://", "kafka:///path", "kafka://broker:9092/path"])
def test_a_url_names_brokers_and_nothing_else(url):
    with pytest.raises(UrlError, match="kafka://broker:9092"):
        open_topics(url)


def test_an_unknown_option_is_refused():
    with pytest.raises(UnknownOptionError, match="Did you mean linger_ms"):
        open_topics("kafka://broker:9092?linger=5")


def test_a_sender_bounds_what_waits(topic):
    async def send():
        sender = topic.topics.open_sender(deadline_seconds=10, max_pending_bytes=100_000)
        await sender.append(topic.name, [Record(None, b"first")])
        calls = [sender.append(topic.name, [Record(None, b"x" * 10_000)]) for _ in range(50)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        await sender.append(topic.name, [Record(None, b"last")])
        await sender.close()
        return answers

    answers = asyncio.run(send())
    refused = [answer for answer in answers if isinstance(answer, OverloadedError)]
    assert len(refused) == 41
    assert len(list(topic.read_to_ends())) == 50 - len(refused) + 2


def test_a_sender_refuses_what_the_broker_would(topic):
    async def send():
        sender = topic.topics.open_sender(deadline_seconds=10, max_pending_bytes=10_000_000)
        with pytest.raises(RecordError):
            await sender.append(topic.name, [Record(None, b"first"), Record(None, b"x" * 2_000_000)])
        await sender.append(topic.name, [Record(None, b"second")])
        await sender.close()

    asyncio.run(send())
    assert b"second" in {message.value for message in topic.read_to_ends()}


def test_readers_see_what_transactions_committed_and_know_the_end(kafka, topic):
    producer = Producer({"bootstrap.servers": kafka.address, "transactional.id": topic.name})
    producer.init_transactions(20)
    for commit in (True, False, True, False):
        producer.begin_transaction()
        for number in range(5):
            producer.produce(topic.name, b"%d" % number, partition=1)
        producer.flush()
        if commit:
            producer.commit_transaction(20)
        else:
            producer.abort_transaction(20)
    started = time.monotonic()
    assert [int(message.value) for message in topic.read_to_ends()] == [*range(5), *range(5)]
    with topic.consume("readers") as consumer:
        assert len(poll(consumer, 10)) == 10
        assert consumer.poll(wait_seconds=0) == []
        consumer.commit()
    assert time.monotonic() - started < 5
    # The ends of four transactions and ten aborted records have offsets too.
    assert topic.bounds()[1].end == 24


def test_a_sender_outlives_the_loss_of_its_producer(topic):
    async def send():
        sender = topic.topics.open_sender(deadline_seconds=10, max_pending_bytes=100_000)
        await sender.append(topic.name, [Record(None, b"before")])
        lost = sender._pump
        waiting = asyncio.ensure_future(sender.append(topic.name, [Record(None, b"unsure")]))
        await asyncio.sleep(0)
        sender._waiting[-1].report(KafkaError(KafkaError._FATAL, "out of order", fatal=True), None)
        with pytest.raises(OutsideError):
            await waiting
        assert sender._pump is not lost
        await sender.append(topic.name, [Record(None, b"after")])
        await sender.close()

    asyncio.run(send())
    assert {b"before", b"after"} <= {message.value for message in topic.read_to_ends()}


class Load(threading.Thread):
    """Callers that append numbered records without end, and note what each was told."""

    def __init__(self, topic):
        super().__init__(daemon=True)
        self.acknowledged = []
        self.refused = []
        self.stopping = False
        self.stalled_seconds = 0.0
        self._topic = topic

    def run(self):
        asyncio.run(self._run())

    async def _run(self):
        sender = self._topic.topics.open_sender(deadline_seconds=2, max_pending_bytes=10_000_000)
        callers = [asyncio.create_task(self._call(sender, number)) for number in range(100)]
        while not self.stopping:
            self.stalled_seconds = max(self.stalled_seconds, sender.stalled_seconds())
            await asyncio.sleep(0.02)
        await asyncio.gather(*callers)
        await sender.close()

    async def _call(self, sender, caller):
        for number in itertools.count():
            if self.stopping:
                return
            value = b"%d:%d" % (caller, number)
            try:
                await sender.append(self._topic.name, [Record(b"%d" % caller, value)])
            except OutsideError as error:
                self.refused.append(error)
                await asyncio.sleep(0.05)
            else:
                self.acknowledged.append(value)

    def await_more(self, answers, count):
        """Waits until so many more answers of a kind have come."""
        reached, deadline = len(answers) + count, time.monotonic() + 30
        while len(answers) < reached:
            assert time.monotonic() < deadline, f"{len(answers)} of {reached} answers"
            assert self.is_alive()
            time.sleep(0.01)


def test_a_broker_that_dies_under_load_loses_nothing_acknowledged(kafka, topic):
    load = Load(topic)
    load.start()
    load.await_more(load.acknowledged, 2000)
    kafka.kill()
    try:
        load.await_more(load.refused, 100)
    finally:
        kafka.start()
    load.await_more(load.acknowledged, 2000)
    load.stopping = True
    load.join()
    assert load.stalled_seconds > 1
    found = [message.value for message in topic.read_to_ends()]
    assert len(found) == len(set(found))
    assert set(load.acknowledged) <= set(found)
    for caller in range(100):
        numbers = [int(value.split(b":")[1]) for value in found if value.startswith(b"%d:" % caller)]
        assert numbers == sorted(numbers)


@pytest.mark.soak
def test_a_consumer_stays_the_one_of_its_group_while_its_broker_restarts(kafka, topic):
    topic.append([Record(b"%d" % number, b"before") for number in range(20)])
    with topic.consume("readers") as consumer:
        poll(consumer, 20)
        consumer.commit()
        kafka.kill()
        try:
            started = time.monotonic()
            with pytest.raises(DeadlineError):
                consumer._membership.commit(consumer.positions)
            assert time.monotonic() - started < 8
        finally:
            kafka.start()
        topic.append([Record(b"%d" % number, b"after") for number in range(10)])
        assert {message.value for message in poll(consumer, 10)} == {b"after"}
        consumer.commit()
        assert sum(one.position.offset for one in topic.topics.groups(topic.name)) == 30
        with topic.consume("readers") as newer:
            topic.append([Record(None, b"one more")])
            assert [message.value for message in poll(consumer, 1)] == [b"one more"]
            with pytest.raises(FencedError):
                consumer.commit()
            assert [message.value for message in poll(newer, 1)] == [b"one more"]
            newer.commit()


@pytest.mark.soak
def test_a_member_that_lost_its_session_leaves_the_newer_one_alone(kafka, topic, monkeypatch):
    monkeypatch.setitem(kafka_group._SETTINGS, "session.timeout.ms", 6000)
    topic.append([Record(b"%d" % number, b"") for number in range(20)])
    with topic.consume("readers") as older:
        poll(older, 20)
        kafka.kill()
        try:
            deadline = time.monotonic() + 20
            while older._membership._consumer.memberid() == older._membership._member:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            kafka.start()
        with topic.consume("readers") as newer:
            poll(newer, 20)
            newer.commit()
            with pytest.raises(FencedError):
                older.commit()
            # A member that joined again by itself would do so within a second.
            deadline = time.monotonic() + 1
            while time.monotonic() < deadline:
                newer._membership.commit(newer.positions)
                with pytest.raises(FencedError):
                    older.commit()
