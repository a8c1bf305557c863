"""Segment's HTTP protocol: what a body holds, and which record each of its events becomes.

The door judges JSON, size and key, and nothing else: every element of a parsable batch is filed,
because a 400 makes every SDK drop the whole batch for ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from headrace.base.errors import RequestError

CALLS = {
    "track": "track",
    "identify": "identify",
    "page": "page",
    "screen": "screen",
    "group": "group",
    "alias": "alias",
    "batch": "batch",
    "t": "track",
    "i": "identify",
    "p": "page",
    "s": "screen",
    "g": "group",
    "a": "alias",
    "b": "batch",
}


# What one request may grow to: a batch's shared context and the door's header stand with each event.
MAX_FILED_BYTES = 16 << 20

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# A string (also one that never ends, so that no input takes quadratic time), or a number that JSON lacks.
_STRINGS_AND_NUMBERS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|-?\bInfinity\b|\bNaN\b', re.DOTALL)
_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPES = re.compile(rb"(?P<kept>" + _HIGH + _LOW + rb")|" + _HIGH + rb"|" + _LOW + rb"|\\.", re.DOTALL)


class _Batch(msgspec.Struct):
    batch: list[msgspec.Raw]
    context: msgspec.Raw = msgspec.Raw()
    integrations: msgspec.Raw = msgspec.Raw()
    sent_at: msgspec.Raw = msgspec.field(default=msgspec.Raw(), name="sentAt")
    write_key: msgspec.Raw = msgspec.field(default=msgspec.Raw(), name="writeKey")


class _Ids(msgspec.Struct):
    anonymous_id: Any = msgspec.field(default=None, name="anonymousId")
    user_id: Any = msgspec.field(default=None, name="userId")
    message_id: Any = msgspec.field(default=None, name="messageId")
    write_key: Any = msgspec.field(default=None, name="writeKey")
    sent_at: Any = msgspec.field(default=None, name="sentAt")


class Item(msgspec.Struct):
    """One event of a request: its bytes, its key in the topic, and the visitor if it has one."""

    event: bytes
    key: bytes | None
    visitor: str
    write_key: str


class Body(msgspec.Struct):
    """What a request brought."""

    items: list[Item]
    write_key: str
    sent_at: str
    size: int
    """The bytes of all events."""
    repaired: bool = False


_batches = msgspec.json.Decoder(_Batch)
_ids = msgspec.json.Decoder(_Ids)
_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])
_anything = msgspec.json.Decoder(msgspec.Raw)


def read_body(call: str, data: bytes) -> Body:
    """Returns the events in the body of a call; raises RequestError 400 if it is not JSON.

    >>> body = read_body("batch", b'{"batch": [{"anonymousId": "ann"}, 42], "writeKey": "k"}')
    >>> [(item.event, item.key) for item in body.items], body.write_key
    ([(b'{"anonymousId": "ann"}', b'ann'), (b'42', None)], 'k')
    """
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise RequestError(400, f"the body is not UTF-8: {error}") from error
    try:
        return _parse(call, data)
    except RequestError:
        repaired = _repair(data)
        if repaired == data:
            raise
    body = _parse(call, repaired)
    body.repaired = True
    return body


def _parse(call: str, data: bytes) -> Body:
    try:
        return _read(call, data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON: {error}") from error


def _read(call: str, data: bytes) -> Body:
    if call == "batch":
        try:
            batch = _batches.decode(data)
        except msgspec.ValidationError:
            # Perhaps JSON, but no batch: filed as it is, judged by the settler.
            return _read("track", data)
        items = [_item(event, _read_ids(event)) for event in _merged(batch)]
        size = sum([len(item.event) for item in items])
        return Body(items, _text_of(batch.write_key), _text_of(batch.sent_at), size)
    _anything.decode(data)
    event = bytes(data).strip()
    ids = _read_ids(event)
    return Body([_item(event, ids)], _text(ids.write_key), _text(ids.sent_at), len(event))


def _repair(data: bytes) -> bytes:
    """Returns the body with null for NaN and Infinity, and U+FFFD for half a surrogate pair.

    Python's json writes the first, JavaScript's the second when a text is cut inside an emoji. One
    of them must not cost the batch; every other byte stays as it is.
    """
    return _STRINGS_AND_NUMBERS.sub(_repair_token, data.removeprefix(_BYTE_ORDER_MARK))


def _repair_token(token: re.Match[bytes]) -> bytes:
    return _ESCAPES.sub(_repair_escape, token[0]) if token[0].startswith(b'"') else b"null"


def _repair_escape(escape: re.Match[bytes]) -> bytes:
    is_half = escape["kept"] is None and len(escape[0]) > 2
    return b"\\ufffd" if is_half else escape[0]


def _merged(batch: _Batch) -> Iterator[bytes]:
    found = {name: _object(getattr(batch, name)) for name in ("context", "integrations")}
    shared = {name: fields for name, fields in found.items() if fields}
    size = 0
    for raw in batch.batch:
        event = _merge(bytes(raw), shared) if shared else bytes(raw)
        size += len(event)
        if size > MAX_FILED_BYTES:
            raise too_large()
        yield event


def too_large() -> RequestError:
    """Returns the error for a request that would grow too large in the topic."""
    return RequestError(400, f"with what its events share, the batch has more than {MAX_FILED_BYTES:,} bytes")


def _merge(event: bytes, shared: dict[str, dict[str, msgspec.Raw]]) -> bytes:
    """Returns the event with what the batch says for all; what the event says itself wins."""
    own = _object(event)
    if own is None:
        return event
    for name, theirs in shared.items():
        ours = {} if bytes(own.get(name, b"null")) == b"null" else _object(own[name])
        if ours is not None:
            own[name] = msgspec.Raw(msgspec.json.encode(theirs | ours))
    return msgspec.json.encode(own)


def _object(data: msgspec.Raw | bytes) -> dict[str, msgspec.Raw] | None:
    try:
        return _objects.decode(data)
    except msgspec.DecodeError:
        return None


def _item(event: bytes, ids: _Ids) -> Item:
    visitor = _text(ids.anonymous_id)
    key = visitor or _text(ids.user_id) or _text(ids.message_id)
    return Item(event, key.encode() if key else None, visitor, _text(ids.write_key))


def _read_ids(event: bytes) -> _Ids:
    if not event.startswith(b"{"):
        return _Ids()
    try:
        return _ids.decode(event)
    except msgspec.DecodeError:
        # A number beyond all bounds in one of them must not cost the others.
        fields = _object(event) or {}
        return _Ids(*(_text_of(fields.get(name, msgspec.Raw())) for name in _Ids.__struct_encode_fields__))


def _text_of(raw: msgspec.Raw) -> str:
    try:
        return _text(msgspec.json.decode(raw))
    except msgspec.DecodeError:
        return ""


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""
