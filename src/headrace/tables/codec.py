"""How the records of a topic become rows of its table: one column per member of the record's Struct."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Raw, UnsetType

from headrace.topics import Message

RECEIVED_DATE = "received_date"
_DAY_US = 86_400 * 1_000_000

_KINDS: Mapping[Any, pa.DataType] = MappingProxyType(
    {
        int: pa.int64(),
        float: pa.float64(),
        bool: pa.bool_(),
        str: pa.string(),
        Raw: pa.string(),
        dict: pa.string(),
        tuple[str, ...]: pa.list_(pa.string()),
        tuple[int, ...]: pa.list_(pa.int64()),
        tuple[float, ...]: pa.list_(pa.float64()),
    }
)
_PLACES = (pa.field("log_partition", pa.int32()), pa.field("log_offset", pa.int64()))


@dataclass(frozen=True)
class Codec:
    """Reads the records of one topic as rows of one schema."""

    schema: pa.Schema
    decode: Callable[[bytes], msgspec.Struct]
    members: tuple[tuple[str, Any], ...]
    """The members of the Struct that have a column, with their types."""
    sort_by: str
    is_ours: Callable[[bytes], bool]
    """Whether a record was written for the table, in whatever version."""
    passed_over: tuple[tuple[str, bytes], ...] | None
    """The headers of records that are no rows, by agreement."""

    def is_row(self, message: Message) -> bool:
        """Returns whether a record was written to be a row, in whatever version."""
        return message.headers != self.passed_over and self.is_ours(message.value or b"")

    def read(self, messages: Sequence[Message]) -> pa.RecordBatch:
        """Returns the rows of messages; raises a ValueError, mostly, for one that is none of this codec's."""
        decode = self.decode
        rows: list[Any] = [decode(message.value or b"") for message in messages]
        columns = [_column(name, kind, rows) for name, kind in self.members]
        columns.append(pa.array([message.partition for message in messages], pa.int32()))
        columns.append(pa.array([message.offset for message in messages], pa.int64()))
        received = columns[self.schema.get_field_index("received_us")].to_numpy(zero_copy_only=False)
        columns.append(pa.array((received // _DAY_US).astype(np.int32), pa.date32()))
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def make_codec(
    kind: type[msgspec.Struct],
    decode: Callable[[bytes], msgspec.Struct],
    *,
    without: Sequence[str] = (),
    sort_by: str = "received_us",
    ours: tuple[Callable[[bytes], bool], tuple[tuple[str, bytes], ...] | None] = (lambda _: True, None),
) -> Codec:
    """Returns the codec of a Struct, with a column for each member that is not in `without`.

    >>> class Seat(msgspec.Struct):
    ...     received_us: int
    ...     seat: str | None = None
    >>> codec = make_codec(Seat, msgspec.json.Decoder(Seat).decode)
    >>> codec.schema.names
    ['received_us', 'seat', 'log_partition', 'log_offset', 'received_date']
    >>> message = Message(None, b'{"received_us": 1, "seat": "4b"}', partition=2, offset=7)
    >>> codec.read([message]).to_pylist()[0]["log_offset"]
    7
    """
    hints = get_type_hints(kind)
    members = tuple((name, _kind_of(hints[name])) for name in kind.__struct_fields__ if name not in without)
    fields = [pa.field(name, _KINDS[found]) for name, found in members]
    schema = pa.schema([*fields, *_PLACES, pa.field(RECEIVED_DATE, pa.date32())])
    return Codec(schema, decode, members, sort_by, *ours)


def _kind_of(hint: Any) -> Any:
    """Returns what a member holds if it is there."""
    if hint in _KINDS:
        return hint
    if get_origin(hint) is dict:
        return dict
    return next(option for option in get_args(hint) if option not in (type(None), UnsetType))


def _column(name: str, kind: Any, rows: Sequence[Any]) -> pa.Array:
    if kind is Raw:
        values = [getattr(row, name) for row in rows]
        texts = [None if isinstance(value, UnsetType) else bytes(value) for value in values]
        return pa.array(texts, pa.binary()).cast(pa.string())
    if kind is dict:
        # As JSON, like all that has no fixed members.
        return pa.array([msgspec.json.encode(getattr(row, name)).decode() for row in rows], pa.string())
    return pa.array([getattr(row, name) for row in rows], _KINDS[kind])
