"""What goes over the socket to the writer of an embedded log, and how records are packed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

import msgspec
import zstandard

from headrace.base.errors import (
    CallError,
    DeadlineError,
    FencedError,
    FormatError,
    FullError,
    HeadraceError,
    PositionError,
    UnavailableError,
    UnknownNameError,
)
from headrace.topics.topic import Message, Record

# One row of the log: small enough that a reader of a few records need not unpack thousands.
MAX_ROW_RECORDS = 1024
MAX_ROW_BYTES = 2 << 20

_encoder = msgspec.msgpack.Encoder()
_messages = msgspec.msgpack.Decoder(list[Message])


_Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Part(msgspec.Struct, array_like=True, gc=False):
    """Records of one partition, packed; the writer never opens the blob."""

    topic: Annotated[int, msgspec.Meta(ge=1, lt=1 << 13)]
    partition: Annotated[int, msgspec.Meta(ge=0, lt=1 << 10)]
    count: Annotated[int, msgspec.Meta(ge=1, lt=1 << 40)]
    newest_us: _Number
    blob: bytes


class Append(msgspec.Struct, array_like=True, tag="append"):
    """Rows to add. The same producer and sequence twice is a repeat."""

    producer: str
    sequence: _Number
    parts: list[Part]


class Commit(msgspec.Struct, array_like=True, tag="commit"):
    """Positions of a group: partition, expected offset (-1 for none), new offset."""

    group: str
    topic: str
    incarnation: str
    generation: int
    moves: list[tuple[Annotated[int, msgspec.Meta(ge=0, lt=1 << 10)], int, _Number]]


class Transact(msgspec.Struct, array_like=True, tag="transact"):
    """Rows and positions of a shared group: partition, generation, expected offset (-1 for none), new offset."""

    producer: str
    sequence: _Number
    parts: list[Part]
    group: str
    topic: str
    incarnation: str
    moves: list[tuple[Annotated[int, msgspec.Meta(ge=0, lt=1 << 10)], int, int, _Number]]


class Renew(msgspec.Struct, array_like=True, tag="renew"):
    """Says that a member of a shared group is alive, and which partitions it has let go.

    The answer has three numbers for each partition that it holds: partition, generation, and whether to keep it.
    """

    group: str
    topic: str
    incarnation: str
    member: str
    session: str
    lease_seconds: float
    released: list[int]


class Leave(msgspec.Struct, array_like=True, tag="leave"):
    """Gives all partitions of a member back."""

    group: str
    topic: str
    member: str
    session: str


class Join(msgspec.Struct, array_like=True, tag="join"):
    """Asks for the next generation of a group."""

    group: str
    topic: str


class Create(msgspec.Struct, array_like=True, tag="create"):
    """Makes a topic unless it stands."""

    topic: str
    partitions: int
    incarnation: str
    retention_seconds: _Number | None


class Alter(msgspec.Struct, array_like=True, tag="alter"):
    """Changes how long a topic keeps its records."""

    topic: str
    retention_seconds: _Number | None


class Drop(msgspec.Struct, array_like=True, tag="drop"):
    """Deletes a topic."""

    topic: str


class Ping(msgspec.Struct, array_like=True, tag="ping"):
    """Asks whether the writer is there; nothing is written."""


Frame = Append | Commit | Transact | Renew | Leave | Join | Create | Alter | Drop | Ping


class Answer(msgspec.Struct, array_like=True):
    """What the writer says: numbers (base offsets, a generation) or an error by its kind."""

    sequence: int
    numbers: list[int]
    error: str = ""
    message: str = ""


_frames = msgspec.msgpack.Decoder(Frame)
_answers = msgspec.msgpack.Decoder(Answer)

_ERRORS: Mapping[str, type[HeadraceError]] = {
    "call": CallError,
    "deadline": DeadlineError,
    "fenced": FencedError,
    "format": FormatError,
    "full": FullError,
    "name": UnknownNameError,
    "position": PositionError,
    "unavailable": UnavailableError,
}
_KINDS = {error: kind for kind, error in _ERRORS.items()}


class _Tools(threading.local):
    """One compressor a thread: making one costs 18 us, as much as two events at the door."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=1)
        self.decompressor = zstandard.ZstdDecompressor()


_tools = _Tools()


def pack(message: Frame | Answer) -> bytes:
    """Returns the bytes of a frame or an answer."""
    return _encoder.encode(message)


def read_frame(data: bytes) -> Frame | Answer:
    """Returns the frame in `data`, or the answer that refuses one that cannot be read."""
    try:
        frame: Frame = _frames.decode(data)
    except msgspec.DecodeError as error:
        return refuse(0, CallError(f"the writer cannot read this: {error}"))
    return frame


def read_answer(data: bytes) -> Answer:
    """Returns the answer in `data`, whatever it says."""
    return _answers.decode(data)


def error_of(answer: Answer) -> HeadraceError | None:
    """Returns the error that an answer carries."""
    return _ERRORS[answer.error](answer.message) if answer.error else None


def refuse(sequence: int, error: HeadraceError) -> Answer:
    """Returns the answer that carries an error."""
    return Answer(sequence, [], _KINDS[type(error)], str(error))


def pack_records(records: Sequence[Record]) -> bytes:
    """Returns the blob of a row: zstd of a msgpack list of [key, value, time_us, headers]."""
    return _tools.compressor.compress(_encoder.encode(records))


def pack_part(topic: int, partition: int, records: Sequence[Record]) -> Part:
    """Returns the records of one row, ready to be sent."""
    newest_us = max(record.time_us for record in records)
    return Part(topic, partition, len(records), newest_us, pack_records(records))


def unpack_records(blob: bytes, partition: int, offset: int) -> list[Message]:
    """Returns the records of a row with their places."""
    messages = _messages.decode(_tools.decompressor.decompress(blob))
    for message in messages:
        message.partition = partition
        message.offset = offset
        offset += 1
    return messages


def unpacked_bytes(blob: bytes) -> int:
    """Returns the bytes of a row's records when they are unpacked."""
    return zstandard.frame_content_size(blob)


def cut_rows(records: Sequence[Record]) -> Iterator[slice]:
    """Yields the portions that fit one row each."""
    start, size = 0, 0
    for index, record in enumerate(records):
        if index - start >= MAX_ROW_RECORDS or size > MAX_ROW_BYTES:
            yield slice(start, index)
            start, size = index, 0
        size += len(record.value or b"")
    yield slice(start, len(records))
