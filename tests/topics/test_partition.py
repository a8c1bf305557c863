"""Partitions are those of Kafka's Java client."""

from __future__ import annotations

import pytest

from headrace.testing import JAVA_HASHES
from headrace.topics.partition import murmur2, partition_for


@pytest.mark.parametrize(("key", "expected"), JAVA_HASHES.items())
def test_murmur2_is_that_of_java(key, expected):
    assert murmur2(key) == expected & 0xFFFFFFFF


def test_keyless_records_go_anywhere():
    assert {partition_for(None, 3) for _ in range(200)} == {0, 1, 2}
