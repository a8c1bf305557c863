"""An event: what a client sends, and how a project declares and types it."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import MappingProxyType, UnionType
from typing import Any, Literal, get_args, get_origin

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from headrace.base.errors import ProjectError, did_you_mean
from headrace.events.dimension import Dimension
from headrace.events.taxonomy import TAXONOMY, Number, define

Call = Literal["track", "identify", "page", "screen", "group", "alias"]
"""The kinds of message that a Segment client sends."""

_SCALARS: Mapping[Any, Any] = MappingProxyType({str: str, int: int, float: Number, bool: bool})
_IDS = ("messageId", "userId", "anonymousId", "groupId", "previousId")
_PATH = re.compile(r"\w+(\[\])?(\.\w+(\[\])?)*", re.ASCII)


class Envelope(Struct, rename="camel", omit_defaults=True, kw_only=True, gc=False):
    """One Segment message. Its payloads stay raw JSON until somebody reads them; absent ones are UNSET."""

    type: Call | None = None
    message_id: str | None = None
    user_id: str | None = None
    anonymous_id: str | None = None
    event: str | None = None
    name: str | None = None
    group_id: str | None = None
    previous_id: str | None = None
    timestamp: str | None = None
    original_timestamp: str | None = None
    sent_at: str | None = None
    properties: Raw | UnsetType = UNSET
    traits: Raw | UnsetType = UNSET
    context: Raw | UnsetType = UNSET
    integrations: Raw | UnsetType = UNSET


Reader = Callable[[Raw | bytes], Struct | dict[str, Any]]
"""What reads the properties of one event."""

_read_envelope = msgspec.json.Decoder(Envelope).decode
_read_members = msgspec.json.Decoder(dict[str, Raw]).decode
_read_elements = msgspec.json.Decoder(list[Raw]).decode
_read_object = msgspec.json.Decoder(dict[str, Any]).decode
_write = msgspec.json.Encoder().encode


def read_envelope(event: Raw | bytes) -> Envelope:
    """Returns the envelope of an event; raises msgspec.ValidationError with the path of what is wrong.

    Ids that came as whole numbers are read as text. Nothing else is judged here.

    >>> read_envelope(b'{"type": "track", "event": "Product Clicked", "userId": 42}').user_id
    '42'
    """
    try:
        return _read_envelope(event)
    except msgspec.ValidationError:
        members = _read_members(event)
        numbers = {name: bytes(members[name]) for name in _IDS if name in members}
        spelled = {name: Raw(b'"%b"' % number) for name, number in numbers.items() if number.isdigit()}
        return _read_envelope(_write(members | spelled))


@dataclass(frozen=True)
class Event:
    """What a project says about an event: where its item stands, and the types of its own properties.

    `item` is the path of the item's id in the properties, and `of` the dimension that knows the item. `fields` types
    the properties that are not canonical: str, int, float, bool, or a list of one of them. They are optional in each
    event.

    >>> Event("Seat Chosen", fields={"seat": str, "price": float}).name
    'Seat Chosen'
    >>> Event("Product Clicked", item="prodct_id")
    Traceback (most recent call last):
    ...
    headrace.base.errors.ProjectError: Event('Product Clicked'): item='prodct_id' is not a property of it. \
Did you mean product_id?
    """

    name: str
    item: str | None = field(default=None, kw_only=True)
    of: Dimension | None = field(default=None, kw_only=True)
    fields: Mapping[str, Any] = field(default_factory=dict, kw_only=True, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ProjectError(f"Event({self.name!r}): give it the name that clients send, such as 'Product Clicked'")
        known = _canonical_fields(self.name)
        for name, kind in self.fields.items():
            _check_field(self.name, name, kind, known)
        object.__setattr__(self, "fields", dict(self.fields))
        if self.item is not None:
            _check_item(self.name, self.item, [*known, *self.fields])
        if self.of is not None and (not isinstance(self.of, Dimension) or self.item is None):
            raise ProjectError(
                f"Event({self.name!r}): of={self.of!r}; give it a Dimension, and item= that says where its key stands"
            )


def describe(event: Event) -> tuple[Any, ...]:
    """Returns all that decides how an event is judged, for the hash of a project's definitions.

    >>> describe(Event("Seat Chosen", fields={"seat": str}))
    ('Seat Chosen', None, (('seat', "<class 'str'>"),), ())
    """
    fields = tuple(sorted((name, str(kind)) for name, kind in event.fields.items()))
    known = () if event.of is None else ((event.of.name, *event.of.names),)
    return event.name, event.item, fields, _canonical_fields(event.name), *known


def read_properties(event: Event | str, properties: Raw | bytes | UnsetType) -> Struct | dict[str, Any]:
    """Returns the typed properties of a canonical or declared event, those of another one as a dict.

    Absent properties and null are read as none at all. Properties that the event's type does not name are
    passed over. Numeric strings are read as numbers, and whole numbers as text where text is due.
    Raises msgspec.ValidationError with the path of what is wrong.

    >>> read_properties("Product Clicked", b'{"product_id": "item-7", "price": "18.99"}').price
    18.99
    >>> read_properties("Unheard Of", b'{"size": 3}')
    {'size': 3}
    >>> read_properties("Product Clicked", b'{"price": "cheap"}')
    Traceback (most recent call last):
    ...
    msgspec.ValidationError: Product Clicked: Expected `float | null`, got `str` - at `$.price`
    """
    value = b"{}" if isinstance(properties, UnsetType) or bytes(properties) == b"null" else properties
    return properties_reader(event)(value)


def properties_reader(event: Event | str) -> Reader:
    """Returns what reads the properties of an event as `read_properties` does, for many of them; they may not be null.

    >>> properties_reader("Product Clicked")(b'{"price": 18.99}').price
    18.99
    """
    if isinstance(event, str):
        return partial(_read_properties, event, _canonical_decoders().get(event))
    return partial(_read_properties, event.name, _declared_decoder(event))


def read_items(properties: Raw | bytes, path: str) -> list[str]:
    """Returns the ids of the items that an event's properties name at a path; what is no id is passed over.

    >>> read_items(b'{"products": [{"product_id": "a"}, {"product_id": 7}, {}]}', "products[].product_id")
    ['a', '7']
    """
    found = [bytes(properties)]
    for part in path.split("."):
        name = part.removesuffix("[]")
        members = [member for one in found if (member := _member(one, name)) is not None]
        found = [element for one in members for element in _elements(one)] if part.endswith("[]") else members
    return [text for one in found if (text := _id_text(one))]


def _member(value: bytes, name: str) -> bytes | None:
    try:
        found = _read_members(value).get(name)
    except msgspec.ValidationError:
        return None
    return None if found is None else bytes(found)


def _elements(value: bytes) -> list[bytes]:
    return [bytes(element) for element in _read_elements(value)] if value[:1] == b"[" else []


def _id_text(value: bytes) -> str:
    if value[:1] == b'"':
        return msgspec.json.decode(value, type=str)
    return value.decode() if value.isdigit() else ""


def _read_properties(
    name: str, decoder: msgspec.json.Decoder[Struct] | None, value: Raw | bytes
) -> Struct | dict[str, Any]:
    try:
        if decoder is None:
            return _read_object(value)
        try:
            return decoder.decode(value)
        except msgspec.ValidationError:
            spelled = _spell(msgspec.json.decode(value), decoder.type)
            return msgspec.convert(spelled, decoder.type, strict=False)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(f"{name}: {error}") from error


@lru_cache(maxsize=1)
def _canonical_decoders() -> dict[str, msgspec.json.Decoder[Struct]]:
    return {name: msgspec.json.Decoder(kind, strict=False) for name, kind in TAXONOMY.items()}


@lru_cache(maxsize=1024)
def _declared_decoder(event: Event) -> msgspec.json.Decoder[Struct] | None:
    canonical = TAXONOMY.get(event.name)
    if not event.fields:
        return msgspec.json.Decoder(canonical, strict=False) if canonical else None
    kinds = {name: _wire_kind(kind) | None for name, kind in event.fields.items()}
    return msgspec.json.Decoder(define("Properties", kinds, canonical), strict=False)


def _wire_kind(kind: Any) -> Any:
    if kind in _SCALARS:
        return _SCALARS[kind]
    scalar = _SCALARS[get_args(kind)[0]]
    return list[scalar]  # type: ignore[valid-type]  # a type made at run time


def _spell(value: Any, kind: Any) -> Any:
    """Returns the value with whole numbers spelled out where its kind wants text."""
    if kind is None:
        return value  # however deep it is nested
    options = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if type(value) is int and str in options:
        return str(value)
    if isinstance(value, list):
        elements = next((get_args(option)[0] for option in options if get_origin(option) is list), None)
        return [_spell(element, elements) for element in value]
    struct = next((option for option in options if isinstance(option, type) and issubclass(option, Struct)), None)
    if isinstance(value, dict) and struct is not None:
        kinds = _kinds(struct)
        return {name: _spell(member, kinds.get(name)) for name, member in value.items()}
    return value


@lru_cache(maxsize=1024)
def _kinds(struct: type[Struct]) -> dict[str, Any]:
    # Uncached, `fields` resolves the annotations anew: 190 us a call.
    return {field.encode_name: field.type for field in msgspec.structs.fields(struct)}


def _canonical_fields(name: str) -> tuple[str, ...]:
    return TAXONOMY[name].__struct_fields__ if name in TAXONOMY else ()


def _check_field(event: str, name: str, kind: Any, known: tuple[str, ...]) -> None:
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise ProjectError(f"Event({event!r}): field {name!r} must be a name as Python writes them, such as 'seat'")
    if name in known:
        raise ProjectError(f"Event({event!r}): field {name!r} is canonical for this event already; leave it out")
    scalar = get_args(kind)[0] if get_origin(kind) is list else kind
    if scalar not in _SCALARS:
        raise ProjectError(
            f"Event({event!r}): field {name!r} has the type {kind!r}; "
            "use str, int, float, bool or a list of one of them"
        )


def _check_item(event: str, item: str, known: list[str]) -> None:
    if not _PATH.fullmatch(item):
        raise ProjectError(f"Event({event!r}): item={item!r} is no path; write 'product_id' or 'products[].product_id'")
    first = re.split(r"[.\[]", item, maxsplit=1)[0]
    if known and first not in known:
        raise ProjectError(f"Event({event!r}): item={item!r} is not a property of it.{did_you_mean(first, known)}")
