"""The contract `raw click`: what the topic `clicks` holds, version 1.

A record's value is the event's JSON as it arrived, so that any reader of the topic sees events.
Its key is the visitor's id. What the door knew stands in the record's header `door`.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from headrace.base.errors import FormatError

HEADER = "door"
VERSION = 1


class Door(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the door knew about an event when it arrived."""

    version: int
    """The version of this contract."""
    received_us: int
    """The project's clock at the door."""
    source: str
    """Which door: `http/track`, `http/batch` ..."""
    write_key: str = ""
    """The name of the write key; nothing if the event's own key is unknown."""
    address: str = ""
    """The client's address."""
    user_agent: str = ""
    """The client's user agent."""
    hints: str = ""
    """The client hints, `name: value` on lines of their own."""
    sent_at: str = ""
    """When the client says that it sent the request."""
    repaired: bool = False
    """Whether what JSON does not have, such as NaN or half a surrogate pair, was replaced."""


_doors = msgspec.json.Decoder(Door)
_encoder = msgspec.json.Encoder()


def encode_door(door: Door) -> tuple[tuple[str, bytes], ...]:
    """Returns the headers of a raw click.

    >>> encode_door(Door(version=1, received_us=1, source="http/track"))
    (('door', b'{"version":1,"received_us":1,"source":"http/track"}'),)
    """
    return ((HEADER, _encoder.encode(door)),)


def decode_door(headers: Iterable[tuple[str, bytes]]) -> Door:
    """Returns what the door knew; raises FormatError for headers that no door wrote.

    >>> decode_door([("door", b'{"version":1,"received_us":1,"source":"http/track"}')]).source
    'http/track'
    """
    for name, value in headers:
        if name == HEADER:
            try:
                door = _doors.decode(value)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise FormatError(f"the header {HEADER!r} is {value[:200]!r}: {error}") from error
            if door.version != VERSION:
                raise FormatError(f"raw click of version {door.version}, this Headrace reads version {VERSION}")
            return door
    raise FormatError(f"the record has no header {HEADER!r}: no door of Headrace wrote it")
