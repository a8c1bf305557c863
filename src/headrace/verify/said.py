"""What each event should say, worked out from the bytes of `clicks` by the words of the contracts.

It shares no line with the settler, so that it can judge it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from headrace.topics import Message
from headrace.verify.oracle import find_items

Place = tuple[int, int]
"""Partition and offset in `clicks`."""

_BEGIN = datetime(1970, 1, 1, tzinfo=UTC)
_read = msgspec.json.decode


class Said(NamedTuple):
    """What of an event other rooms go by."""

    message_id: str
    type: str
    event: str
    visitor: str | None
    user: str | None
    person: str
    event_us: int
    recommendation_id: str | None
    properties: bytes
    """JSON with its members in the order of the alphabet."""
    attributes: bytes
    """Of each item that it names what is known of it, likewise."""

    def differs_from(self, other: Said) -> str:
        """Returns the first thing that another one says otherwise, and both."""
        pairs = zip(self._fields, self, other, strict=True)
        return next((f"{name}: {mine!r}, not {yours!r}" for name, mine, yours in pairs if mine != yours), "")


class Sent(NamedTuple):
    """One click of a client of the world."""

    place: Place
    said: Said


class Listener:
    """Reads clicks from the first on: who a visitor is depends on those before."""

    def __init__(
        self, paths: Mapping[str, str], attributes: Mapping[str, Mapping[str, Any]], *, tolerance_us: int
    ) -> None:
        self._paths = paths
        self._attributes = attributes
        self._tolerance_us = tolerance_us
        self._users: dict[tuple[int, str], str] = {}

    def hear(self, messages: Iterable[Message]) -> Iterator[Sent]:
        """Yields what the world's own clients have sent."""
        for message in messages:
            door = dict(message.headers)["door"]
            said = self._say(message.partition, _read(message.value or b""), _read(door))
            yield Sent((message.partition, message.offset), said)

    def _say(self, partition: int, event: Mapping[str, Any], door: Mapping[str, Any]) -> Said:
        visitor, kind = event["anonymousId"], event["type"]
        user = event.get("userId") or self._users.get((partition, visitor))
        if user:
            self._users[partition, visitor] = user
        name = event["event"] if kind == "track" else kind
        properties = event.get("properties")
        return Said(
            event["messageId"],
            kind,
            name,
            visitor,
            user,
            user or visitor,
            self._happened_us(event, door),
            (properties or {}).get("recommendation_id"),
            _sorted(properties),
            _sorted(self._known(name, properties)),
        )

    def _happened_us(self, event: Mapping[str, Any], door: Mapping[str, Any]) -> int:
        received_us: int = door["received_us"]
        off_us = received_us - _instant(door["sent_at"])
        happened_us = _instant(event["timestamp"]) + (off_us if abs(off_us) > self._tolerance_us else 0)
        return min(happened_us, received_us)

    def _known(self, name: str, properties: Any) -> Any:
        items = find_items(properties, self._paths[name]) if name in self._paths else ()
        return {item: self._attributes[item] for item in items if item in self._attributes} or None


def read_row(row: Mapping[str, Any]) -> Said:
    """Returns what a row of `events` says."""
    names = ("message_id", "type", "event", "visitor", "user_id", "person", "event_us", "recommendation_id")
    payloads = (_sorted(_read(row[name]) if row[name] else None) for name in ("properties", "attributes"))
    return Said(*(row[name] for name in names), *payloads)


def _sorted(value: Any) -> bytes:
    return msgspec.json.encode(value, order="sorted")


def _instant(text: str) -> int:
    return (datetime.fromisoformat(text) - _BEGIN) // timedelta(microseconds=1)
