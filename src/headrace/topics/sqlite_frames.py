"""What goes over the socket to the writer of an embedded log, and how records are packed."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import msgspec
import zstandard

from headrace.base.errors import (
    CallError,
    DeadlineError,
    FencedError,
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


class Part(msgspec.Struct, array_like=True, gc=False):
    """Records of one partition, packed; the writer never opens the blob."""

    topic: int
    partition: int
    count: int
    newest_us: int
    blob: bytes


class Append(msgspec.Struct, array_like=True, tag="append"):
    """Rows to add. The same producer and sequence twice is a repeat."""

    producer: str
    sequence: int
    parts: list[Part]


class Commit(msgspec.Struct, array_like=True, tag="commit"):
    """Positions of a group: partition, expected offset (-1 for none), new offset."""

    group: str
    topic: str
    incarnation: str
    generation: int
    moves: list[tuple[int, int, int]]


class Join(msgspec.Struct, array_like=True, tag="join"):
    """Asks for the next generation of a group."""

    group: str
    topic: str


class Create(msgspec.Struct, array_like=True, tag="create"):
    """Makes a topic unless it stands."""

    topic: str
    partitions: int
    incarnation: str
    retention_seconds: int | None


class Alter(msgspec.Struct, array_like=True, tag="alter"):
    """Changes how long a topic keeps its records."""

    topic: str
    retention_seconds: int | None


class Drop(msgspec.Struct, array_like=True, tag="drop"):
    """Deletes a topic."""

    topic: str


Frame = Append | Commit | Join | Create | Alter | Drop


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


def read_frame(data: bytes) -> Frame:
    """Returns the frame in `data`."""
    frame: Frame = _frames.decode(data)
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


def unpack_records(blob: bytes, partition: int, offset: int) -> list[Message]:
    """Returns the records of a row with their places."""
    messages = _messages.decode(_tools.decompressor.decompress(blob))
    for message in messages:
        message.partition = partition
        message.offset = offset
        offset += 1
    return messages
