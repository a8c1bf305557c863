"""The settler on real topics: each click once, whatever comes between its steps."""

import json
import shutil
import threading
import time
from contextlib import closing

import pytest

from headrace.base.clock import machine_us
from headrace.base.errors import FencedError, PositionError
from headrace.base.telemetry import Metrics
from headrace.collect.app import CLICKS
from headrace.collect.settler import GROUP, METRICS, Settler
from headrace.events.click import Door, encode_door
from headrace.events.event import Event
from headrace.events.settle import Rules
from headrace.events.settled import EVENTS, FAILED, REPLAY
from headrace.topics import Record, Topic, open_topics

pytestmark = pytest.mark.slow

SECOND = 1_000_000
START_US = 1_767_571_200 * SECOND


class Bench:
    """Topics with a settler that is made anew as often as a test likes."""

    def __init__(self, folder):
        self.folder = folder
        self.topics = open_topics("sqlite:///topics", root=folder)
        for name in (CLICKS, EVENTS, FAILED):
            self.topics.create(name, partitions=2, retention_seconds=None)
        self.settler = None

    def click(self, number, visitor="ann", *, message_id=None, headers=(), properties=None, at=None):
        at = number if at is None else at
        door = Door(version=1, received_us=START_US + at * SECOND, source="http/track", write_key="dev")
        event = {
            "type": "track",
            "event": "Product Clicked",
            "anonymousId": visitor,
            "messageId": message_id or f"m{number}",
            "properties": properties or {"product_id": "p"},
        }
        headers = (*encode_door(door), *headers)
        Topic(self.topics, CLICKS).append([Record(visitor.encode(), json.dumps(event).encode(), 0, headers)])

    def settle(self, *, rules=None, member="a"):
        """Settles all there is and gives the partitions back."""
        with closing(self.open(rules=rules, member=member)) as settler:
            while settler.turn():
                pass

    def open(self, *, rules=None, member="a"):
        return Settler(self.topics, rules or Rules(), self.folder / "settler", member=member, metrics=Metrics(METRICS))

    def rows(self, name=EVENTS):
        messages = Topic(self.topics, name).read()
        return [json.loads(message.value) for message in messages if not message.headers]

    def raw(self, name=EVENTS):
        return [(m.partition, m.key, m.value, m.time_us) for m in Topic(self.topics, name).read() if not m.headers]


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.topics.close()


def test_settler_writes_each_event_once_however_often_it_is_sent(bench):
    for _ in range(3):
        for number in range(20):
            bench.click(number, visitor=f"v{number % 5}")
        bench.settle()
    rows = bench.rows()
    assert sorted(row["message_id"] for row in rows) == sorted(f"m{number}" for number in range(20))
    assert bench.topics.groups(CLICKS)[0].group == GROUP
    assert sum(group.position.offset for group in bench.topics.groups(CLICKS)) == 60


@pytest.mark.parametrize("forgotten", ["nothing", "folder"])
def test_settler_gives_the_same_bytes_with_any_restart(bench, tmp_path, forgotten):
    clicks = [(number, f"v{number % 3}", number * 700) for number in range(40)]
    for number, visitor, at in clicks:
        bench.click(number, visitor, at=at)
        if number % 7 == 3:
            bench.settle(member=f"member-{number}" if forgotten == "folder" else "a")
    bench.settle()
    # The same clicks, settled in one go elsewhere.
    other = Bench(tmp_path / "other")
    messages = sorted(Topic(bench.topics, CLICKS).read(), key=lambda m: (m.partition, m.offset))
    Topic(other.topics, CLICKS).append([Record(m.key, m.value, m.time_us, m.headers) for m in messages])
    other.settle()
    assert sorted(other.raw()) == sorted(bench.raw())
    other.topics.close()


def test_poison_records_fail_and_the_next_event_is_settled(bench):
    poison = [
        Record(b"k", b"\xff\xfe not json"),
        Record(b"k", None),
        Record(b"k", b"{}", 0, (("door", b"{"),)),
        Record(b"k", b"[" * 5000, 0, encode_door(Door(1, START_US, "http/track", "dev"))),
        Record(b"k", b'{"anonymousId": 7.5}', 0, encode_door(Door(1, START_US, "http/track", "dev"))),
        Record(b"k", b"{}", 0, (*encode_door(Door(1, START_US, "http/track", "dev")), (REPLAY, b"\xff"))),
    ]
    Topic(bench.topics, CLICKS).append(poison)
    bench.click(1)
    bench.settle()
    assert len(bench.rows()) == 1
    assert len(bench.rows(FAILED)) == len(poison)
    assert all(row["reason"] in ("record", "json") for row in bench.rows(FAILED))


def test_failed_event_comes_in_once_after_its_definition_was_mended(bench):
    strict = Rules({"Product Clicked": Event("Product Clicked", fields={"seat": int})})
    bench.click(1, properties={"seat": "4b"})
    bench.settle(rules=strict)
    failed = bench.rows(FAILED)[0]
    for _ in range(2):
        headers = (("door", failed["door"].encode()), (REPLAY, b"%d/%d" % (0, failed["src_offset"])))
        Topic(bench.topics, CLICKS).append([Record(failed["key"].encode(), failed["raw"].encode(), 0, headers)])
    bench.settle(rules=Rules())
    rows = bench.rows()
    assert [row["message_id"] for row in rows] == ["m1"]
    assert rows[0]["received_us"] == failed["received_us"]
    assert rows[0]["definitions"] == Rules().definitions != failed["definitions"] == strict.definitions


def test_commit_without_an_event_writes_one_progress_record(bench):
    bench.click(1)
    bench.settle()
    bench.click(1)
    bench.settle()
    found = [m for m in Topic(bench.topics, EVENTS).read() if m.headers]
    assert [json.loads(m.value)["src_offset"] for m in found] == [1]
    assert found[0].headers == (("progress", b""),)


def test_two_settlers_share_the_partitions_and_the_newer_of_one_name_wins(bench):
    first = bench.open()
    bench.click(1)
    first.turn()
    second = bench.open()
    bench.click(2)
    while second.turn():
        pass
    bench.click(3)
    first._renewed_at = float("-inf")
    with pytest.raises(FencedError, match="a newer member of the name 'a' took over"):
        first.turn()
    second.turn()
    first.close()
    second.close()
    assert sorted(row["message_id"] for row in bench.rows()) == ["m1", "m2", "m3"]
    assert [row["seq"] for row in bench.rows()] == [0, 1, 2]


@pytest.mark.slow
def test_partitions_move_between_members_and_lose_nothing(bench):
    stop = threading.Event()
    settlers = [bench.open(member=name) for name in "ab"]
    threads = [threading.Thread(target=settler.run, args=(stop,)) for settler in settlers]
    for thread in threads:
        thread.start()
    for number in range(200):
        bench.click(number, visitor=f"v{number % 9}")
    stop.set()
    for thread in threads:
        thread.join()
    bench.settle(member="c")
    rows = bench.rows()
    assert sorted(row["message_id"] for row in rows) == sorted(f"m{number}" for number in range(200))


def test_settler_passes_over_what_somebody_appended_to_its_output(bench):
    bench.click(1)
    bench.settle()
    for name in (EVENTS, FAILED):
        Topic(bench.topics, name).append([Record(b"ann", b"hello"), Record(b"ann", b"{}", 0, (("h", b""),))])
    bench.click(1)
    bench.click(2)
    bench.settle(member="of a fresh machine")
    found = [json.loads(m.value) for m in Topic(bench.topics, EVENTS).read() if b"message_id" in m.value]
    assert [(row["message_id"], row["seq"]) for row in found] == [("m1", 0), ("m2", 1)]


def test_settler_stops_loudly_when_its_topic_was_made_anew(bench):
    bench.click(1)
    bench.settle()
    bench.topics.drop(CLICKS)
    bench.topics.create(CLICKS, partitions=2, retention_seconds=None)
    bench.click(2)
    with pytest.raises(PositionError, match=r"headrace topic replay clicks --group settler"):
        bench.settle()
    assert len(bench.rows()) == 1


def test_settler_with_a_damaged_memory_reads_the_topics_again(bench, tmp_path):
    bench.click(1)
    bench.settle()
    for path in (tmp_path / "settler").rglob("state.db*"):
        path.write_bytes(b"no database" * 500)
    bench.click(1)
    bench.click(2)
    bench.settle()
    assert [row["message_id"] for row in bench.rows()] == ["m1", "m2"]
    assert [row["seq"] for row in bench.rows()] == [0, 1]


def test_numbers_go_on_after_a_week_in_which_nothing_came(bench):
    week_us = 8 * 24 * 3600 * SECOND
    door = encode_door(Door(version=1, received_us=START_US, source="http/track", write_key="dev"))
    body = b'{"type":"track","event":"E","anonymousId":"ann","messageId":"%b"}'
    now_us = machine_us()
    Topic(bench.topics, CLICKS).append([Record(b"ann", body % b"old", now_us - week_us, door)])
    bench.settle()
    Topic(bench.topics, CLICKS).append([Record(b"ann", body % b"new", now_us, door)])
    bench.settle(member="of a fresh machine")
    assert [(row["message_id"], row["seq"]) for row in bench.rows()] == [("old", 0), ("new", 1)]


class SlowTopics:
    """The same topics, far away: a read of what was settled takes long and brings little."""

    def __init__(self, topics):
        self._topics = topics

    def __getattr__(self, name):
        return getattr(self._topics, name)

    def read(self, name, offsets, *, max_records, wait_seconds):
        if name == EVENTS:
            time.sleep(0.2)
            max_records = 1
        return self._topics.read(name, offsets, max_records=max_records, wait_seconds=wait_seconds)


@pytest.mark.slow
def test_settler_keeps_its_partitions_however_long_it_catches_up(bench):
    for number in range(80):
        bench.click(number, visitor=f"v{number % 9}")
    bench.settle()
    shutil.rmtree(bench.folder / "settler")
    near, bench.topics = bench.topics, SlowTopics(bench.topics)
    other = near.share(CLICKS, GROUP, member="b", lease_seconds=6.0)
    with closing(bench.open()) as settler:
        while not len(settler._share.held()) == len(other.held()) == 1:
            time.sleep(0.01)
        began_at = time.monotonic()
        catching_up = threading.Thread(target=settler._renew)
        catching_up.start()
        most = 0
        while catching_up.is_alive():
            most = max(most, len(other.held()))
            time.sleep(0.1)
        assert time.monotonic() - began_at > 6.5
        assert most == 1
    other.close()
