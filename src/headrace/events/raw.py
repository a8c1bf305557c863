"""A raw click, read as far as it can be: what the door knew, the envelope, the id, or why it fails."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, Raw, UnsetType

from headrace.base.errors import FormatError
from headrace.events.click import HEADER, Door, decode_door
from headrace.events.dimension import MARKER
from headrace.events.event import Envelope, read_envelope
from headrace.events.settled import MAX_ID, MAX_VALUE_BYTES, REPLAY

LATEST_US = 253_402_300_799_999_999
"""The end of the year 9999."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# msgspec's own limit depends on how deep the caller stands in the stack; a value that is shorter cannot be as deep.
_MAX_DEPTH = 400
_SHALLOW_BYTES = 2 * _MAX_DEPTH
_MADE = re.compile(r"[0-9]{1,10}/[0-9]{1,19}")
_QUOTED = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))


class RawClick(Protocol):
    """A record of the topic `clicks`."""

    @property
    def key(self) -> bytes | None:
        """The key."""

    @property
    def value(self) -> bytes | None:
        """The event's JSON, as it arrived."""

    @property
    def time_us(self) -> int:
        """When it was appended."""

    @property
    def headers(self) -> tuple[tuple[str, bytes], ...]:
        """The door's header and that of a replay, or that of a dimension's marker."""

    @property
    def offset(self) -> int:
        """Its offset in the partition."""


class Failure(Exception):  # noqa: N818 - it is no error of the program's
    """Why a raw click cannot be settled: one of `settled.REASONS`, and a sentence."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Request(msgspec.Struct, frozen=True, gc=False):
    """What the headers of a record say, which all events of a request have in common."""

    source: str
    hash: Any
    """Of the source: what `id_key` begins with."""
    door: Door | None = None
    sent_us: int | None = None
    place: str | None = None
    """Where it stood when it failed, if this is a replay."""
    failure: tuple[str, str] | None = None
    marker: bytes | None = None
    """What the header of a dimension's marker holds: with it the record is no event."""


class Click(msgspec.Struct, gc=False):
    """A raw click, read as far as it can be."""

    record: RawClick
    log_us: int
    request: Request
    envelope: Envelope | None
    id: str
    is_made: bool
    """Whether the id was made of partition and offset."""
    key: bytes
    failure: tuple[str, str] | None


def read_click(record: RawClick, log_us: int, request: Request, partition: int) -> Click:
    """Returns a record with its id, and why it fails if that is clear already."""
    envelope, failure, message_id = None, request.failure, ""
    try:
        envelope = _read_value(record.value or b"")
        message_id = _message_id(envelope)
    except Failure as error:
        failure = failure or (error.reason, str(error))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        failure = failure or ("json", str(error))
    made_id = "" if message_id else request.place or f"{partition}/{record.offset}"
    key = _key(request.hash, message_id or made_id)
    return Click(record, log_us, request, envelope, message_id or made_id, not message_id, key, failure)


def _message_id(envelope: Envelope) -> str:
    message_id = envelope.message_id or ""
    if len(message_id) > MAX_ID:
        raise Failure("identity", f"its messageId has more than {MAX_ID:,} characters")
    if "/" in message_id and _MADE.fullmatch(message_id):
        # Somebody could keep an event to come from being settled, by taking the id that it will be given.
        raise Failure("identity", f"its messageId {message_id!r} looks like those that Headrace makes of a place")
    return message_id


def _read_value(value: bytes) -> Envelope:
    if len(value) > _SHALLOW_BYTES:
        _check_size(value)
    if not value.isascii():
        value.decode()  # msgspec passes over payloads that are no UTF-8
    return read_envelope(value)


def _check_size(value: bytes) -> None:
    if len(value) > MAX_VALUE_BYTES:
        raise Failure("size", f"it has {len(value):,} bytes, an event has at most {MAX_VALUE_BYTES:,}")
    if value.count(b"[") + value.count(b"{") <= _MAX_DEPTH:
        return
    brackets = _QUOTED.sub(b"", value).translate(None, _NO_BRACKETS)
    if max(accumulate(1 if bracket in b"[{" else -1 for bracket in brackets), default=0) > _MAX_DEPTH:
        raise Failure("json", f"it is nested deeper than {_MAX_DEPTH}")


def read_request(headers: tuple[tuple[str, bytes], ...]) -> Request:
    """Returns what a record's headers say, or why they fail every event under them."""
    for name, value in headers:
        if name == MARKER:
            return Request("", _source_hash(""), marker=value)
    place = None
    try:
        if len(headers) > 1:
            place = _replayed(headers)
        door = _read_door(headers)
    except FormatError as error:
        return Request("", _source_hash(""), None, None, place, ("record", str(error)))
    source = door.write_key or ("" if door.source.startswith("http/") else door.source)
    failure = None if source else ("key", "its write key is unknown: it is not in [keys] of headrace.toml")
    return Request(source, _source_hash(source), door, read_instant(door.sent_at), place, failure)


def _read_door(headers: tuple[tuple[str, bytes], ...]) -> Door:
    door = decode_door(headers)
    if not 0 <= door.received_us <= LATEST_US:
        raise FormatError(f"the header {HEADER!r} has a received_us outside of the years 1970 to 9999")
    if len(door.source) > MAX_ID or len(door.write_key) > MAX_ID or len(door.address) > MAX_ID:
        raise FormatError(f"the header {HEADER!r} has a name of more than {MAX_ID:,} characters")
    return door


def _replayed(headers: tuple[tuple[str, bytes], ...]) -> str | None:
    found = next((value for name, value in headers if name == REPLAY), None)
    if found is None:
        return None
    place = found.decode("ascii", "replace")
    if not _MADE.fullmatch(place):
        raise FormatError(f"the header {REPLAY!r} is {found[:40]!r}; it should be partition/offset")
    return place


def who(envelope: Envelope) -> tuple[str | None, str | None]:
    """Returns the visitor and the user that an event names; raises Failure if it names neither."""
    visitor, user = envelope.anonymous_id or None, envelope.user_id or None
    if visitor is None and user is None:
        raise Failure("identity", "it has neither anonymousId nor userId")
    if (visitor is not None and len(visitor) > MAX_ID) or (user is not None and len(user) > MAX_ID):
        raise Failure("identity", f"its anonymousId or userId has more than {MAX_ID:,} characters")
    return visitor, user


def id_key(source: str, message_id: str) -> bytes:
    """Returns the key under which an id is remembered."""
    return _key(_source_hash(source), message_id)


@lru_cache(maxsize=1024)
def _source_hash(source: str) -> Any:
    return blake2b(f"{source}\0".encode(), digest_size=16)


def _key(source: Any, message_id: str) -> bytes:
    # A copy costs half of a new hash.
    hashed = source.copy()
    hashed.update(message_id.encode())
    key: bytes = hashed.digest()
    return key


def place_key(place: str) -> bytes:
    """Returns the key under which it is remembered that the record at a place failed."""
    return blake2b(place.encode(), digest_size=16, person=b"place").digest()


def read_instant(text: str | None) -> int | None:
    """Returns the microseconds of an ISO 8601 instant; one without a zone is in UTC."""
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
        since = (at if at.tzinfo is not None else at.replace(tzinfo=UTC)) - _EPOCH
    except ValueError:
        return None
    found = (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds
    return found if 0 <= found <= LATEST_US else None


def json_object(member: Raw | UnsetType, name: str) -> bytes:
    """Returns the JSON of an object, nothing for none; fails for what is something else."""
    if member is UNSET:
        return b""
    text = bytes(member)
    if text[0] == 0x7B:
        return text
    if text == b"null":
        return b""
    raise Failure("json", f"Expected `object`, got {text[:40]!r} - at `$.{name}`")
