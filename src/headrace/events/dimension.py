"""A dimension: what is known of the items or users that events name, and since which offset of its topic."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite

import msgspec

from headrace.base.errors import ProjectError

VERSION = 1

MARKER = "dimension"
"""The header of a record of `clicks` that is no event: from here on a dimension holds up to an offset."""

Scalar = str | int | float | bool | None
"""What an attribute may be."""


@dataclass(frozen=True)
class Attribute:
    """One thing that is known of every member of a dimension, such as the genre.

    >>> Attribute("genre").name
    'genre'
    """

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ProjectError(f"Attribute({self.name!r}): write a name as Python writes them, such as 'genre'")


@dataclass(frozen=True)
class Dimension:
    """A table of members by key, with attributes that change over time; it is loaded, not sent by clients.

    >>> Dimension("items", key="product_id", attributes=(Attribute("title"), Attribute("genre"))).names
    ('title', 'genre')
    """

    name: str
    key: str = field(kw_only=True)
    attributes: tuple[Attribute, ...] = field(kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ProjectError(f"Dimension({self.name!r}): write a name as Python writes them, such as 'items'")
        if not isinstance(self.key, str) or not self.key.isidentifier():
            raise ProjectError(f"Dimension({self.name!r}): key={self.key!r} must name a column, such as 'product_id'")
        found = self.attributes
        if not isinstance(found, tuple) or not found or not all(isinstance(one, Attribute) for one in found):
            raise ProjectError(
                f"Dimension({self.name!r}): attributes={found!r}; give it Attributes, as a tuple: attributes=(genre,)"
            )
        names = [one.name for one in found]
        for name in names:
            if names.count(name) > 1 or name == self.key:
                raise ProjectError(f"Dimension({self.name!r}): the column {name!r} is declared twice")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its attributes."""
        return tuple(one.name for one in self.attributes)


class Member(msgspec.Struct, kw_only=True, gc=False):
    """One record of a dimension's topic: what is known of a member from that offset on."""

    version: int
    """The version of this contract."""
    key: str
    """The id of the member, such as the item's."""
    attributes: dict[str, Scalar]
    """All that is known of it; what is not named is not known."""
    received_us: int
    """When it was loaded, by the project's clock."""


class Marker(msgspec.Struct, kw_only=True, gc=False):
    """The value of the header `dimension`: up to where a dimension counts for the clicks at higher offsets."""

    version: int
    """The version of this contract."""
    name: str
    """The dimension."""
    incarnation: str
    """That of its topic."""
    offset: int
    """What lies below counts."""


MAX_KEY = 1024
"""How many characters a key has at most, as any id."""

MAX_MEMBER_BYTES = 32 << 10
"""How long a member gets as JSON: every event that names it carries what is known of it."""

encode = msgspec.json.Encoder().encode
decode_member = msgspec.json.Decoder(Member).decode
decode_marker = msgspec.json.Decoder(Marker).decode


def read_marker(value: bytes) -> Marker | None:
    """Returns the marker in a header's value; None for what is none that this version can read.

    >>> read_marker(b'{"version":1,"name":"items","incarnation":"i","offset":240}').offset
    240
    >>> read_marker(b"240")
    """
    try:
        marker = decode_marker(value)
    except (ValueError, RecursionError):
        return None
    return marker if marker.version == VERSION and 0 <= marker.offset < 1 << 63 else None


class _Mark(msgspec.Struct):
    """What every version of a member has."""

    version: int
    key: str


_marks = msgspec.json.Decoder(_Mark)


def is_member(value: bytes) -> bool:
    """Returns whether a record of a dimension's topic is a member, of whatever version.

    >>> is_member(b"hello"), is_member(b'{"version":9,"key":"item-1"}')
    (False, True)
    """
    try:
        _marks.decode(value)
    except (ValueError, RecursionError):
        return False
    return True


def fault_of(key: object, attributes: Mapping[str, object]) -> tuple[str | None, str] | None:
    """Returns the attribute, or None for the key or the whole, and why it can be no member; nothing if it can.

    >>> fault_of("item-1", {"genre": ["drama"]})
    ('genre', "['drama'] is of the type list; an attribute is a text, a number, true, false or null")
    >>> fault_of("item-1", {"genre": "drama"})
    """
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY:
        return None, f"{_shown(key)} is no key; a key is a text of 1 to {MAX_KEY:,} characters"
    for name, value in attributes.items():
        if value is None or type(value) in (str, bool):
            continue
        if type(value) not in (int, float):
            kind = type(value).__name__
            text = f"{_shown(value)} is of the type {kind}; an attribute is a text, a number, true, false or null"
            return name, text
        if not -(1 << 63) <= value < 1 << 63 if isinstance(value, int) else not isfinite(value):  # type: ignore[arg-type]  # it is a float
            return name, f"{_shown(value)} is beyond all numbers that every engine reads; write it as a text"
    size = len(encode(attributes)) + len(key)
    if size > MAX_MEMBER_BYTES:
        return (
            None,
            f"it has {size:,} bytes as JSON, a member has at most {MAX_MEMBER_BYTES:,}; leave a long column out",
        )
    return None


def _shown(value: object) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class History:
    """All members of a dimension at every offset of its topic, which has one partition.

    >>> history = History()
    >>> history.add(0, "item-1", {"genre": "drama"})
    >>> history.add(3, "item-1", {"genre": "crime"})
    >>> history.at("item-1", 3), history.at("item-1", 4), history.at("item-2", 4)
    ({'genre': 'drama'}, {'genre': 'crime'}, None)
    """

    def __init__(self) -> None:
        self._offsets: dict[str, list[int]] = {}
        self._attributes: dict[str, list[Mapping[str, Scalar]]] = {}
        self.end = 0
        """The offset that comes next."""

    def add(self, offset: int, key: str, attributes: Mapping[str, Scalar]) -> None:
        """Takes in one record; offsets rise."""
        self._offsets.setdefault(key, []).append(offset)
        self._attributes.setdefault(key, []).append(attributes)
        self.end = offset + 1

    def at(self, key: str, end: int) -> Mapping[str, Scalar] | None:
        """Returns what was known of a member below an offset; None if nothing."""
        offsets = self._offsets.get(key)
        if offsets is None:
            return None
        place = bisect_right(offsets, end - 1)
        return self._attributes[key][place - 1] if place else None

    def members(self, end: int) -> Iterator[str]:
        """Yields the keys known below an offset, in the order in which they came."""
        return (key for key, offsets in self._offsets.items() if offsets[0] < end)

    def __len__(self) -> int:
        return len(self._offsets)


def text_of(value: Scalar) -> str | None:
    """Returns an attribute as features know it, as a text; None for one that is not known.

    DuckDB's json_extract_string says the same.

    >>> text_of("drama"), text_of(7), text_of(True), text_of(None)
    ('drama', '7', 'true', None)
    """
    if value is None or isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()
