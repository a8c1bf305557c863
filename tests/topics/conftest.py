"""Topics of a real broker, each of one test."""

from __future__ import annotations

import itertools

import pytest

from headrace.topics import DEFAULT_PARTITIONS, Topic, open_topics

_numbers = itertools.count()


@pytest.fixture
def topics(kafka):
    one = open_topics(kafka.url)
    yield one
    one.close()


@pytest.fixture
def make_topic(topics):
    made = []

    def make(*, partitions=DEFAULT_PARTITIONS):
        name = f"test-{next(_numbers)}"
        topics.create(name, partitions=partitions, retention_seconds=None)
        made.append(name)
        return Topic(topics, name)

    yield make
    for name in made:
        topics.drop(name)
