"""A model: fitted from the lake, it becomes a bundle of arrays that anybody can read and nobody can execute."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.base.errors import CallError, FormatError, unknown_name
from headrace.events.event import Event
from headrace.features import Column, Feature

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1

_MAGIC = b"headrace bundle\n"
_LENGTH = struct.Struct("<I")
_KINDS = ("<i8", "<i4", "<f8", "<f4", "<u8", "|u1")
_MAX_MANIFEST_BYTES = 1 << 20


Values = Sequence[NDArray[Any]]
"""Features of all items of a bundle for one person: an array for each column, of floats, or of texts and None."""


class Lake(Protocol):
    """What a fit reads: the tables as they are at one version, up to one instant."""

    @property
    def at_us(self) -> int:
        """The instant of the fit: what arrived later does not count."""

    @property
    def source(self) -> Mapping[str, Any]:
        """Where the rows come from: version and positions of each table, by `tables`."""

    def ask(self, sql: str, parameters: Mapping[str, Any]) -> Mapping[str, list[Any]]:
        """Returns the columns of the answer to one SELECT."""

    def rows(self, sql: str, parameters: Mapping[str, Any]) -> pa.Table:
        """Returns the answer to one SELECT as Arrow."""

    def items_of(self, event: Event) -> str:
        """Returns a SELECT with a row for each item of an event: all of `events`, `item`, `category`, `known` of it."""

    def join(self, columns: Sequence[Column], labels: pa.Table) -> pa.Table:
        """Returns the features of labels, in their order, as they were known at the instant of each."""


class Model(Protocol):
    """The declaration of a model in a project file."""

    @property
    def name(self) -> str:
        """The name that bundles, commands and pages know it by."""

    @property
    def clicks(self) -> Event:
        """The event that says what people chose."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the tables that it reads."""

    @property
    def features(self) -> tuple[Feature, ...]:
        """The features that it reads; most read none."""

    def fit(self, lake: Lake) -> Bundle:
        """Returns what the model learns from the lake: the same rows and instant give the same bundle."""


@runtime_checkable
class Judged(Model, Protocol):
    """The declaration of a model that can be judged by rows, before anybody sees what it ranks."""

    def read(self, lake: Lake) -> Any:
        """Returns what it learns from."""

    def make(self, lake: Lake, rows: Any) -> Bundle:
        """Returns what it learns from that."""

    def judge(self, lake: Lake, rows: Any, bundle: Bundle) -> Any:
        """Returns the report on a bundle, from the rows seen last."""


class Scorer(Protocol):
    """A bundle, opened to rank."""

    @property
    def items(self) -> Sequence[str]:
        """The ids of all items that it can rank."""

    @property
    def places(self) -> Mapping[str, int]:
        """The number of each item among them."""

    @property
    def categories(self) -> Sequence[str]:
        """The category of each item, empty where none is known."""

    @property
    def columns(self) -> Sequence[Column]:
        """The features that it ranks by; most need none."""

    def scores(self, person: str, values: Values = ()) -> NDArray[np.float64]:
        """Returns the score of each item for a person, also for one that it never heard of."""

    def whys(self, places: Sequence[int], values: Values = ()) -> Sequence[str]:
        """Returns of each of some items the name of the column that speaks most for it; nothing if none does."""


@dataclass(frozen=True)
class Bundle:
    """What serves: a manifest, and arrays named in it with their hashes.

    >>> bundle = Bundle("popular", "popularity", {"half_life_us": 1}, {}, {"counts": np.array([3, 1])})
    >>> unpack(bundle.packed).arrays["counts"].tolist()
    [3, 1]
    """

    name: str
    kind: str
    parameters: Mapping[str, Any]
    source: Mapping[str, Any]
    """Table, version and positions that it was fitted from, and the instant."""
    arrays: Mapping[str, NDArray[Any]] = field(repr=False)

    @cached_property
    def manifest(self) -> bytes:
        """All but the arrays themselves, as JSON with sorted keys."""
        document = {
            "format": FORMAT,
            "name": self.name,
            "kind": self.kind,
            "parameters": self.parameters,
            "source": self.source,
            "arrays": {name: _describe(name, array) for name, array in self.arrays.items()},
        }
        return msgspec.json.encode(document, order="deterministic")

    @cached_property
    def hash(self) -> str:
        """What the bundle is called: the hash of its manifest, which holds those of its arrays."""
        return blake2b(self.manifest, digest_size=16).hexdigest()

    @property
    def packed(self) -> bytes:
        """The bundle as one run of bytes."""
        parts = [_MAGIC, _LENGTH.pack(len(self.manifest)), self.manifest]
        parts += [np.ascontiguousarray(self.arrays[name]).tobytes() for name in sorted(self.arrays)]
        return b"".join(parts)


class _ArrayEntry(msgspec.Struct, forbid_unknown_fields=True):
    kind: str
    shape: tuple[int, ...]
    hash: str


class _Manifest(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    name: str
    kind: str
    parameters: dict[str, Any]
    source: dict[str, Any]
    arrays: dict[str, _ArrayEntry]


def unpack(packed: bytes) -> Bundle:
    """Returns the bundle in some bytes; raises FormatError that names what is wrong with them."""
    start = len(_MAGIC) + _LENGTH.size
    if packed[: len(_MAGIC)] != _MAGIC or len(packed) < start:
        raise FormatError("these bytes are no bundle")
    (length,) = _LENGTH.unpack_from(packed, len(_MAGIC))
    if length > _MAX_MANIFEST_BYTES or start + length > len(packed):
        raise FormatError(f"the bundle's manifest should have {length:,} bytes, which it has not")
    manifest = _read_manifest(packed[start : start + length])
    arrays, place = {}, start + length
    for name, entry in sorted(manifest.arrays.items()):
        arrays[name], place = _read_array(packed, place, name, entry)
    if place != len(packed):
        raise FormatError(f"the bundle {manifest.name!r} goes on for {len(packed) - place:,} bytes after its end")
    found = Bundle(manifest.name, manifest.kind, manifest.parameters, manifest.source, arrays)
    if found.manifest != packed[start : start + length]:
        raise FormatError(f"the bundle {found.name!r} is damaged: nothing writes a manifest like its own")
    return found


class _Mark(msgspec.Struct):
    """What a manifest of every format has."""

    format: int
    name: str


def _read_manifest(text: bytes) -> _Manifest:
    try:
        mark = msgspec.json.decode(text, type=_Mark)
        if mark.format != FORMAT:
            raise FormatError(
                f"the bundle {mark.name!r} has format {mark.format}, this Headrace reads format {FORMAT}. "
                "Run a newer one, or fit it again"
            )
        return msgspec.json.decode(text, type=_Manifest)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the bundle's manifest cannot be read: {error}") from error


def _describe(name: str, array: NDArray[Any]) -> dict[str, Any]:
    if array.dtype.str not in _KINDS:
        raise CallError(f"array {name!r} of a bundle has the type {array.dtype}; use one of {', '.join(_KINDS)}")
    return {"kind": array.dtype.str, "shape": array.shape, "hash": _hash(np.ascontiguousarray(array).tobytes())}


def _read_array(packed: bytes, place: int, name: str, entry: _ArrayEntry) -> tuple[NDArray[Any], int]:
    if entry.kind not in _KINDS or any(size < 0 for size in entry.shape):
        raise FormatError(f"array {name!r} of the bundle has the type {entry.kind!r}, which no bundle has")
    kind = np.dtype(entry.kind)
    if not math.prod(entry.shape) and any(size > len(packed) for size in entry.shape):
        raise FormatError(f"array {name!r} of the bundle has the shape {entry.shape}, which holds nothing")
    end = place + math.prod(entry.shape) * kind.itemsize
    if end > len(packed) or _hash(packed[place:end]) != entry.hash:
        raise FormatError(f"array {name!r} of the bundle is damaged: its bytes do not have the hash in the manifest")
    return np.frombuffer(packed[place:end], kind).reshape(entry.shape), end


def _hash(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def pack_texts(texts: Sequence[str]) -> NDArray[np.uint8]:
    """Returns texts as an array of a bundle.

    >>> read_texts(pack_texts(["item-1", "ÿ"]))
    ['item-1', 'ÿ']
    """
    return np.frombuffer(msgspec.json.encode(list(texts)), np.uint8)


def read_texts(array: NDArray[np.uint8]) -> list[str]:
    """Returns the texts of such an array."""
    return msgspec.json.decode(array.tobytes(), type=list[str])


def open_bundle(bundle: Bundle, openers: Mapping[str, Callable[[Bundle], Scorer]]) -> Scorer:
    """Returns a bundle as what ranks with it; raises FormatError if its kind is unknown or its arrays do not fit it."""
    if bundle.kind not in openers:
        raise FormatError(f"the bundle {bundle.name!r} cannot be opened: {unknown_name('kind', bundle.kind, openers)}")
    try:
        return openers[bundle.kind](bundle)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise FormatError(f"the bundle {bundle.name!r} is no {bundle.kind}: {error!r}") from error
