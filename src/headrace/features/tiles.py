"""Tiles, version 1: what the online store keeps of events, a blob for each entity and partition of `events`.

A blob is a function of the events counted in it: neither of their order, nor of how they were cut into portions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from headrace.base.errors import FormatError, StopError
from headrace.events.dimension import text_of
from headrace.events.event import read_items
from headrace.features.feature import Column, Kind
from headrace.features.window import tail_of

VERSION = 1
MICRO = 1_000_000
"""Sums are kept in millionths."""
LARGEST = 9e12
"""A number beyond it, or its negative, is not added up."""

_MAX_SUM = (1 << 63) - 1

Rest = tuple[str, ...]
"""What of a key stands inside the blob: all but the entity, such as `("drama",)`."""

Latest = tuple[int, int, str]
"""event_us, src_offset and text of the newest event of a tile."""

Tiles = dict[int, int | Latest]
"""By number: tile n of a hop holds the events from n * hop_us on, before (n + 1) * hop_us."""


class Row(msgspec.Struct, gc=False):
    """What of a settled event its tiles need."""

    type: str
    event: str
    event_us: int
    person: str
    src_offset: int
    seq: int
    bot: bool = False
    properties: Raw | UnsetType = UNSET
    attributes: Raw | UnsetType = UNSET


class Addition(msgspec.Struct, gc=False):
    """What one event adds to a blob."""

    family: str
    rest: Rest
    event_us: int
    src_offset: int
    value: int | str
    """How many, how many millionths, or the text."""


class Blob(msgspec.Struct, array_like=True, gc=False):
    """The tiles of an entity from one partition."""

    version: int
    newest_us: int
    """The newest event that was counted here."""
    families: dict[str, dict[Rest, dict[int, Tiles]]]
    """By family, rest of the key, and hop."""


@dataclass(frozen=True)
class Family:
    """Columns that share their tiles: the same but for their windows."""

    id: str
    kind: Kind
    item: str
    by: tuple[str, ...]
    value: str
    spans: tuple[tuple[int, int], ...]
    """The hops, each with its longest window."""


read_row = msgspec.json.Decoder(Row).decode
_read_attributes = msgspec.json.Decoder(dict[str, dict[str, Any]]).decode
_read_members = msgspec.json.Decoder(dict[str, Raw]).decode
_read_float = msgspec.json.Decoder(float).decode
_decoder = msgspec.msgpack.Decoder(Blob)
_encode = msgspec.msgpack.Encoder().encode


def entity_of(by: Sequence[str], parts: Sequence[str]) -> tuple[bytes, Rest]:
    r"""Returns whose blob a key belongs to, and the rest of the key inside it.

    >>> entity_of(("person", "@genre"), ("ann", "drama"))
    (b'person\x00ann', ('drama',))
    >>> entity_of(("@genre", "@maker"), ("drama", "acme"))
    (b'@genre@maker\x00["drama","acme"]', ())
    """
    if not by[0].startswith("@"):
        return f"{by[0]}\0{parts[0]}".encode(), tuple(parts[1:])
    text = parts[0] if len(parts) == 1 else msgspec.json.encode(parts).decode()
    return f"{''.join(by)}\0{text}".encode(), ()


def is_watched(entity: bytes) -> bool:
    """Returns whether readers keep an entity in memory: all but people, who are many.

    >>> is_watched(entity_of(("item",), ("item-7",))[0])
    True
    """
    return not entity.startswith(b"person\0")


def definitions_of(columns: Iterable[Column]) -> str:
    """Returns the hash of what columns mean, however they are named and ordered."""
    return blake2b("".join(sorted({column.identity for column in columns})).encode(), digest_size=8).hexdigest()


class Fold:
    """Says what an event adds to which blobs, by the columns of a project."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.families: dict[str, Family] = {}
        self._by_event: dict[str, list[Family]] = {}
        spans: dict[str, dict[int, int]] = {}
        for column in columns:
            longest = spans.setdefault(column.family, {})
            longest[column.hop_us] = max(longest.get(column.hop_us, 0), column.window_us)
        for column in columns:
            if column.family not in self.families:
                found = tuple(sorted(spans[column.family].items()))
                family = Family(column.family, column.kind, column.item, column.by, column.value, found)
                self.families[column.family] = family
                self._by_event.setdefault(column.event, []).append(family)

    def additions(self, row: Row) -> Iterator[tuple[bytes, Addition]]:
        """Yields what an event adds, with the entity whose blob of the event's partition it goes to."""
        families = self._by_event.get(row.event)
        if families is None or row.type != "track" or row.bot:
            return
        properties = b"{}" if isinstance(row.properties, UnsetType) else row.properties
        known = {} if isinstance(row.attributes, UnsetType) else _read_attributes(row.attributes)
        paths = {family.item for family in families}
        items = {path: read_items(properties, path) if path else [""] for path in paths}
        for family in families:
            number = _micro_of(read_number(properties, family.value)) if family.kind == "total" else 1
            for item in items[family.item] if number is not None else ():
                parts = {"person": row.person, "item": item, **_texts_of(known.get(item))}
                key = [parts.get(name) for name in family.by]
                value = parts.get(family.value) if family.kind == "last" else number
                if value is not None and None not in key:
                    entity, rest = entity_of(family.by, [part for part in key if part is not None])
                    yield entity, Addition(family.id, rest, row.event_us, row.src_offset, value)

    def extend(self, blob: Blob, additions: Iterable[Addition]) -> None:
        """Puts additions into a blob: of two at one instant the later offset stays, of one event the greatest text."""
        for one in additions:
            blob.newest_us = max(blob.newest_us, one.event_us)
            hops = blob.families.setdefault(one.family, {}).setdefault(one.rest, {})
            for hop_us, _ in self.families[one.family].spans:
                tiles, number = hops.setdefault(hop_us, {}), one.event_us // hop_us
                if isinstance(one.value, str):
                    latest = (one.event_us, one.src_offset, one.value)
                    before = tiles.get(number)
                    tiles[number] = latest if before is None else max(latest, before)
                else:
                    tiles[number] = tiles.get(number, 0) + one.value  # type: ignore[operator]  # the same

    def prune(self, blob: Blob) -> None:
        """Takes out the tiles that no window will reach any more, by the newest event of the blob itself."""
        kept: dict[str, dict[Rest, dict[int, Tiles]]] = {}
        for family_id, rests in sorted(blob.families.items()):
            tails = {
                hop_us: tail_of(blob.newest_us + 1, window_us) // hop_us
                for hop_us, window_us in self.families[family_id].spans
            }
            left = {rest: found for rest, hops in sorted(rests.items()) if (found := _within(hops, tails))}
            if left:
                kept[family_id] = left
        blob.families = kept


def _within(hops: dict[int, Tiles], tails: Mapping[int, int]) -> dict[int, Tiles]:
    """Returns the tiles from the tails on, sorted; hops without a tile are left out."""
    return {
        hop_us: found
        for hop_us, tiles in sorted(hops.items())
        if (found := {number: tiles[number] for number in sorted(tiles) if number >= tails[hop_us]})
    }


def make_blob() -> Blob:
    """Returns the blob of an entity of which nothing has been counted."""
    return Blob(VERSION, 0, {})


def pack(blob: Blob, place: tuple[bytes, int]) -> bytes:
    """Returns the bytes of a blob that was pruned; raises StopError if a sum has outgrown 64 bits."""
    for family_id, rests in blob.families.items():
        for rest, hops in rests.items():
            for hop_us, tiles in hops.items():
                for number, tile in tiles.items():
                    if isinstance(tile, int) and abs(tile) > _MAX_SUM:
                        raise StopError(
                            f"a sum leaves 64 bits: {tile:,} millionths of family {family_id}, key {rest}, in "
                            f"the {hop_us // MICRO} s from {number * hop_us} of {_place_text(place)}. Take the "
                            "feature out of the project, or count it by less"
                        )
    return _encode(blob)


def unpack(value: bytes, place: tuple[bytes, int]) -> Blob:
    """Returns the blob in some bytes; raises FormatError with the place that they come from."""
    try:
        blob = _decoder.decode(value)
    except (ValueError, msgspec.MsgspecError) as error:
        raise FormatError(f"the tiles of {_place_text(place)} cannot be read: {error}. {_AGAIN}") from error
    if blob.version != VERSION:
        raise FormatError(
            f"the tiles of {_place_text(place)} have version {blob.version}, this Headrace reads version {VERSION}. "
            f"{_AGAIN}"
        )
    return blob


_AGAIN = "Make them anew from the lake with: headrace feature backfill"


def _place_text(place: tuple[bytes, int]) -> str:
    kind, _, key = place[0].decode(errors="replace").partition("\0")
    return f"{kind} {key!r}, partition {place[1]}"


def _texts_of(attributes: Mapping[str, Any] | None) -> Mapping[str, str | None]:
    return {f"@{name}": text_of(value) for name, value in attributes.items()} if attributes else {}


def read_number(properties: Raw | bytes, path: str) -> float | None:
    """Returns the number at a path of an event's properties; None if there is none, or a text.

    >>> read_number(b'{"cart": {"price": 18.99}}', "cart.price"), read_number(b'{"price": "18.99"}', "price")
    (18.99, None)
    """
    found = bytes(properties)
    try:
        for name in path.split("."):
            found = bytes(_read_members(found)[name])
        return _read_float(found)
    except (KeyError, msgspec.MsgspecError):
        return None


def _micro_of(number: float | None) -> int | None:
    """Returns a number in millionths; None for one that is not added up."""
    if number is None or not math.isfinite(number) or abs(number) > LARGEST:
        return None
    return math.floor(number * MICRO + 0.5)
