"""What `Topic` adds to any backend."""

from __future__ import annotations

import itertools

import pytest

from headrace.base.errors import CallError
from headrace.topics import Move, Record, open_topic
from running import wait_until


@pytest.fixture(params=["memory://", "sqlite:///topics.db"])
def topic(request, tmp_path):
    """A topic of four partitions with twenty records each of `ann` and `eve`."""
    one = open_topic(request.param, "clicks", root=tmp_path, create=True)
    one.append([Record(key, b"%d" % number) for number in range(20) for key in (b"ann", b"eve")])
    yield one
    one.topics.close()


def test_read_to_ends_yields_all_in_order(topic):
    found = list(topic.read_to_ends())
    assert len(found) == 40
    for key in (b"ann", b"eve"):
        assert [int(message.value) for message in found if message.key == key] == list(range(20))


def test_read_to_ends_leaves_what_comes_meanwhile(topic):
    reading = topic.read_to_ends()
    next(reading)
    topic.append([Record(b"ann", b"later")] * 5)
    assert len(list(reading)) == 39
    assert len(list(topic.read_to_ends())) == 45


def test_read_to_ends_begins_where_it_is_told_and_in_no_other_partition(topic):
    (partition,) = {message.partition for message in topic.read_to_ends() if message.key == b"ann"}
    assert [int(message.value) for message in topic.read_to_ends({partition: 17})] == [17, 18, 19]
    assert list(topic.read_to_ends({partition: 20})) == []


@pytest.mark.parametrize("most", [0, 1, 7, 39, 41])
def test_read_to_ends_yields_no_more_than_asked_for(topic, most):
    found = list(topic.read_to_ends(max_records=most))
    assert len(found) == min(most, 40)
    for _, group in itertools.groupby(sorted((m.partition, m.offset) for m in found), key=lambda place: place[0]):
        offsets = [offset for _, offset in group]
        assert offsets == list(range(len(offsets)))


def test_read_to_ends_of_an_empty_topic_yields_nothing():
    assert list(open_topic("memory://", "clicks", create=True).read_to_ends()) == []


def test_an_output_that_has_no_such_partition_is_refused_and_named(topic):
    topic.topics.create("small", partitions=2, retention_seconds=None)
    share = topic.share("settlers", member="ann")
    wait_until(lambda: len(share.held()) == 4)
    share.saved(3)
    wrong = Move(3, 1, {"small": [Record(None, b"x")]})
    told = "topic 'small' has 2 partitions and none for partition 3 of 'clicks'"
    with pytest.raises(CallError, match=told):
        share.transact([wrong], deadline_seconds=10)
    share.close()
