"""Segment's HTTP protocol: what a body holds, and which record each of its events becomes.

The door judges JSON, size and key, and nothing else: every element of a parsable batch is filed,
because a 400 makes every SDK drop the whole batch for ever.
"""

from __future__ import annotations

import json
import math
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


class _Batch(msgspec.Struct):
    batch: list[msgspec.Raw]
    context: msgspec.Raw = msgspec.Raw()
    integrations: msgspec.Raw = msgspec.Raw()
    sent_at: Any = msgspec.field(default=None, name="sentAt")
    write_key: Any = msgspec.field(default=None, name="writeKey")


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
    repaired: bool = False


_batches = msgspec.json.Decoder(_Batch)
_ids = msgspec.json.Decoder(_Ids)
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
        return _read(call, data)
    except (msgspec.DecodeError, RecursionError) as error:
        body = _read(call, _without_nan(data, error))
        body.repaired = True
        return body


def _read(call: str, data: bytes) -> Body:
    _anything.decode(data)
    if call == "batch":
        try:
            batch = _batches.decode(data)
        except msgspec.ValidationError:
            # JSON, but no batch: filed as it is, judged by the settler.
            return _read("track", data)
        items = [_item(bytes(event)) for event in _merged(batch)]
        return Body(items, _text(batch.write_key), _text(batch.sent_at))
    event = bytes(data).strip()
    ids = _read_ids(event)
    return Body([_item(event)], _text(ids.write_key), _text(ids.sent_at))


def _without_nan(data: bytes, error: Exception) -> bytes:
    # Python's json writes NaN and Infinity, which are not JSON. One of them must not cost the batch.
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise RequestError(400, f"the body is not JSON: {error}") from error
    return msgspec.json.encode(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(one) for one in value]
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return value


def _merged(batch: _Batch) -> Iterator[bytes]:
    shared = {
        name: raw for name in ("context", "integrations") if bytes(raw := getattr(batch, name)) not in (b"", b"null")
    }
    for event in batch.batch:
        yield _merge(bytes(event), shared) if shared else bytes(event)


def _merge(event: bytes, shared: dict[str, msgspec.Raw]) -> bytes:
    """Returns the event with what the batch says for all; what the event says itself wins."""
    try:
        own = msgspec.json.decode(event, type=dict[str, msgspec.Raw])
        for name, raw in shared.items():
            ours = msgspec.json.decode(own.get(name, b"{}"), type=dict[str, msgspec.Raw])
            theirs = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
            own[name] = msgspec.Raw(msgspec.json.encode(theirs | ours))
    except msgspec.ValidationError:
        return event
    return msgspec.json.encode(own)


def _item(event: bytes) -> Item:
    ids = _read_ids(event)
    visitor = _text(ids.anonymous_id)
    key = visitor or _text(ids.user_id) or _text(ids.message_id)
    return Item(event, key.encode("utf-8", "replace") if key else None, visitor, _text(ids.write_key))


def _read_ids(event: bytes) -> _Ids:
    try:
        return _ids.decode(event)
    except (msgspec.DecodeError, RecursionError):
        return _Ids()


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""
