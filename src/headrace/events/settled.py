"""The contracts `settled event`, version 2, and `failed event`, version 1: what `events` and `failed` hold."""

from __future__ import annotations

import base64

import msgspec
from msgspec import UNSET, Raw, UnsetType

from headrace.base.errors import RecordError

EVENTS = "events"
FAILED = "failed"
VERSION = 2
"""Of the settled event; 1 had no `attributes` and no `dimensions`, and is read all the same."""
FAILED_VERSION = 1

PROGRESS_HEADERS = (("progress", b""),)
"""What marks a record of `events` which is no event: it only says how far `clicks` was settled."""

REPLAY = "replay_of"
"""The header of a raw click that is a failed event's second chance: where it stood in `clicks`, `partition/offset`."""


MAX_ID = 1024
"""How many characters an id has at most: what is remembered of a visitor goes into all its events."""

MAX_VALUE_BYTES = 900_000
"""How large a raw click may be, so that the event fits into a topic with all that is added to it."""

MAX_ROW_BYTES = 960_000
"""How large a settled or failed event gets; a topic takes records of 1,000,000 bytes with key and headers."""

MAX_ATTRIBUTES_BYTES = 64 << 10
"""How long `attributes` gets: a request of a few bytes that names hundreds of items must not fill memory."""


class SettledEvent(msgspec.Struct, omit_defaults=True, gc=False):
    """One event that happened, as it stands in `events` and, without the session's bounds, in the lake."""

    version: int
    """The version of this contract."""
    message_id: str
    """The client's id of the event; with `source` it stands once."""
    source: str
    """The name of the write key that it came with."""
    type: str
    """track, page, screen, identify, group or alias."""
    event: str
    """The name of a tracked event; of others their type."""
    event_us: int
    """When it happened: the client's time, corrected for its clock, never after `received_us`."""
    received_us: int
    """When it reached the door, by the project's clock."""
    log_us: int
    """When it was made durable, by the machine's clock; never falls within a partition."""
    person: str
    """The user, else the visitor."""
    session_id: str
    """The session, made of partition and offset of its first event."""
    src_offset: int
    """Its offset in `clicks`, in the same partition."""
    seq: int
    """Its number among the settled events of the partition, without holes."""
    definitions: str
    """The hash of the definitions that judged it."""
    visitor: str | None = None
    """The client's anonymousId."""
    user_id: str | None = None
    """The user, as known at this offset."""
    recommendation_id: str | None = None
    """The recommendation that it answers."""
    client_us: int | None = None
    """What the client said, uncorrected."""
    flags: tuple[str, ...] = ()
    """What was odd: see `FLAGS`."""
    door: str = ""
    """Which door it came through: `http/batch`, `http/track` ..."""
    address: str = ""
    """The client's address."""
    device: str = ""
    """The device's family by the user agent."""
    os: str = ""
    """The operating system."""
    browser: str = ""
    """The browser."""
    bot: bool = False
    """Whether the user agent says that it is a robot."""
    name: str | None = None
    """The name of a page or screen."""
    group_id: str | None = None
    """The group of a group call."""
    previous_id: str | None = None
    """The former id of an alias call."""
    properties: Raw | UnsetType = UNSET
    """The properties, JSON as it came."""
    traits: Raw | UnsetType = UNSET
    """The traits of identify and group calls, JSON as it came."""
    context: Raw | UnsetType = UNSET
    """The context, JSON as it came."""
    session_first_us: int | None = None
    """The first event of the open session that it joined or opened; nothing if it changed none."""
    session_last_us: int | None = None
    """The last event of that session so far."""
    attributes: Raw | UnsetType = UNSET
    """What was known of its items, by their ids, JSON: `{"item-007": {"genre": "drama"}}`."""
    dimensions: Raw | UnsetType = UNSET
    """Up to which offset of each dimension that was known, JSON: `{"items": 240}`."""


FLAGS = {
    "clamped": "the time lay after the arrival, or before 1970, and was set to that",
    "no_message_id": "the client sent no messageId; one was made of partition and offset",
    "no_time": "the client sent no readable time; the arrival stands for it",
    "repaired": "the body held what JSON does not have",
    "skewed": "the client's clock was off by more than the tolerance, and the time was corrected",
}


class FailedEvent(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """One raw click that could not be settled, with all that a replay needs."""

    version: int
    """The version of this contract."""
    message_id: str
    """The client's id of the event, or partition and offset if it has none that can be read."""
    source: str
    """The name of the write key; empty if it is unknown."""
    reason: str
    """Why, in a word: see `REASONS`."""
    message: str
    """Why, in a sentence, with the place in the event."""
    received_us: int
    """When it reached the door, by the project's clock; of a record from elsewhere its time in the topic."""
    log_us: int
    """When it was made durable, by the machine's clock; never falls within a partition."""
    src_offset: int
    """Its offset in `clicks`, in the same partition."""
    seq: int
    """Its number among the failed events of the partition, without holes."""
    definitions: str
    """The hash of the definitions that judged it."""
    event: str | None = None
    """The name of the event, if it could be read."""
    visitor: str | None = None
    """The client's anonymousId, if it could be read."""
    user_id: str | None = None
    """The user, if it could be read, else as known at this offset."""
    session_id: str | None = None
    """The visitor's open session, which a failed event does not change."""
    replay_of: str | None = None
    """Where it stood in `clicks` when it failed first, if this was a replay."""
    key: str | None = None
    """The record's key."""
    door: str | None = None
    """The record's header `door`, as it was."""
    raw: str | None = None
    """The event as it arrived, if it is text."""
    raw_base64: str | None = None
    """The event as it arrived, if it is not, or too long as text; neither if it is too long in base64 too."""

    def value(self) -> bytes:
        """Returns the event as it arrived; raises RecordError if it is too long to stand here."""
        if self.raw is not None:
            return self.raw.encode()
        if self.raw_base64 is None:
            raise RecordError(
                f"the event {self.message_id!r} is too long to stand in {FAILED!r}; "
                f"read it at offset {self.src_offset} of its partition of 'clicks'"
            )
        return base64.b64decode(self.raw_base64)


REASONS = {
    "record": "no door of Headrace wrote the record",
    "size": "it is too long",
    "json": "it is no JSON object, or its envelope has a member of a wrong type",
    "key": "its write key is unknown",
    "identity": "it has neither anonymousId nor userId, or an id is too long or none that a client may make",
    "name": "it is tracked and has no event name, or its type cannot be told",
    "properties": "its properties do not fit the declared event",
}


class Progress(msgspec.Struct, kw_only=True):
    """Says how far a partition of `clicks` was settled when the last of it brought no event."""

    version: int
    """The version of this contract."""
    src_offset: int
    """The last offset that was settled."""
    log_us: int
    """The largest time seen so far in that partition of `clicks`."""
    settled: int = 0
    """How many events were settled, which after a long pause no other row in reach says."""
    failed: int = 0
    """How many events failed."""
    dimensions: dict[str, int] | UnsetType = UNSET
    """Up to which offset of each dimension that was known."""


class _Mark(msgspec.Struct):
    """What every version of these contracts has."""

    version: int
    src_offset: int


_encoder = msgspec.json.Encoder()
_marks = msgspec.json.Decoder(_Mark)
_settled = msgspec.json.Decoder(SettledEvent)
_failed = msgspec.json.Decoder(FailedEvent)
_progress = msgspec.json.Decoder(Progress)

encode = _encoder.encode
decode_settled = _settled.decode
decode_failed = _failed.decode
decode_progress = _progress.decode


def is_ours(value: bytes) -> bool:
    """Returns whether a record of `events` or `failed` was written by a settler, of whatever version.

    >>> is_ours(b"hello"), is_ours(b'{"version":9,"src_offset":3}')
    (False, True)
    """
    try:
        _marks.decode(value)
    except (ValueError, RecursionError):
        # Text that is no UTF-8, and nesting without end, have errors of their own.
        return False
    return True


def is_row(value: bytes, headers: tuple[tuple[str, bytes], ...]) -> bool:
    """Returns whether a record of `events` or `failed` is an event: no progress, and written by a settler.

    >>> event = b'{"version":1,"src_offset":3}'
    >>> is_row(event, ()), is_row(event, PROGRESS_HEADERS), is_row(b"hello", ())
    (True, False, False)
    """
    return headers != PROGRESS_HEADERS and is_ours(value)
