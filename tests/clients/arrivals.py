"""What arrives in the topic `clicks`, read beside the running collector."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from headrace.events.click import decode_door
from headrace.topics import Topic
from headrace.topics.partition import murmur2


class Click:
    """A record of the topic `clicks`."""

    def __init__(self, message: Any) -> None:
        self.partition: int = message.partition
        self.offset: int = message.offset
        self.key: str = (message.key or b"").decode()
        self.value: dict[str, Any] = json.loads(message.value)
        self.door = decode_door(message.headers)


class Clicks:
    """What arrives in the topic `clicks` from now on."""

    def __init__(self, topic: Topic) -> None:
        self._topic = topic
        self._offsets = {partition: bounds.end for partition, bounds in enumerate(topic.bounds())}
        self.all: list[Click] = []

    def now(self) -> list[Click]:
        """Returns what has arrived until now."""
        self._read(0.0)
        return self.all

    def until(self, done: Callable[[list[Click]], Any], *, seconds: float = 20.0) -> list[Click]:
        """Returns what has arrived as soon as `done` likes it."""
        deadline = time.monotonic() + seconds
        while not done(self.now()):
            assert time.monotonic() < deadline, f"in the topic: {[click.value for click in self.all]}"
            self._read(0.25)
        return self.all

    def _read(self, wait_seconds: float) -> None:
        for message in self._topic.read(self._offsets, wait_seconds=wait_seconds):
            self._offsets[message.partition] = message.offset + 1
            self.all.append(Click(message))


def messages(clicks: list[Click]) -> set[str]:
    """Returns the ids of the messages that stand in the topic, however often."""
    return {click.value["messageId"] for click in clicks}


def check_places(clicks: list[Click]) -> None:
    """Holds each click to the key rule, and its partition to the Java client's murmur2."""
    for click in clicks:
        event = click.value
        assert click.key == (event.get("anonymousId") or event.get("userId")), event
        assert click.partition == (murmur2(click.key.encode()) & 0x7FFFFFFF) % 4
        assert click.door.write_key == "dev"
