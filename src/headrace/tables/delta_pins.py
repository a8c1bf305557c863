"""Pins: versions of tables that nothing may remove, kept as a small table of the same lake.

A pin is a row, and its end another row: appends never conflict, so any process may pin and unpin at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import TableNotFoundError

from headrace.base.errors import CallError, FormatError, unknown_name
from headrace.tables.delta_place import HOOKS, Place
from headrace.tables.table import Pin

PINS = "_pins"
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("table", pa.string()),
        ("version", pa.int64()),
        ("owner", pa.string()),
        ("reason", pa.string()),
        ("time_us", pa.int64()),
        ("gone", pa.bool_()),
    ]
)


class Pins:
    """The pins of one lake."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def of(self, table: str) -> list[Pin]:
        """Returns the pins of one table that stand, the oldest first."""
        try:
            loaded = self._place.load()
        except TableNotFoundError:
            return []
        rows = pa.Table.from_batches(self._place.read(loaded, _SCHEMA), _SCHEMA).to_pylist()
        gone = {row["id"] for row in rows if row["gone"]}
        found = [_pin(row) for row in rows if row["table"] == table and row["id"] not in gone]
        return sorted(found, key=lambda pin: (pin.time_us, pin.id))

    def add(self, pin: Pin) -> None:
        """Writes a pin."""
        self._append(pin, gone=False)

    def remove(self, table: str, pin_id: str) -> None:
        """Ends a pin; raises UnknownNameError when the table has none of that id."""
        standing = {pin.id: pin for pin in self.of(table)}
        if pin_id not in standing:
            raise unknown_name(f"pin of table {table!r}", pin_id, standing)
        self._append(standing[pin_id], gone=True)

    def _append(self, pin: Pin, *, gone: bool) -> None:
        row = {name: [getattr(pin, name)] for name in _SCHEMA.names[:-1]} | {"gone": [gone]}
        rows = pa.table(row, schema=_SCHEMA)
        loaded = self._load_or_create()
        self._place.call(
            "write", lambda: write_deltalake(loaded, rows, mode="append", post_commithook_properties=HOOKS)
        )

    def _load_or_create(self) -> DeltaTable:
        try:
            return self._place.load()
        except TableNotFoundError:
            return self._create()

    def _create(self) -> DeltaTable:
        make: Callable[[], DeltaTable] = lambda: DeltaTable.create(  # noqa: E731
            self._place.uri, _SCHEMA, post_commithook_properties=HOOKS
        )
        try:
            return self._place.call("create", make)
        except FormatError:
            # Somebody else made it meanwhile.
            return self._place.load()


def refuse(what: str, table: str, pins: Sequence[Pin]) -> CallError:
    """Returns the error for a request that would take a pinned version away."""
    told = "; ".join(f"version {pin.version} for {pin.owner} ({pin.reason}), pin {pin.id}" for pin in pins)
    return CallError(f"table {table!r}: {what} would take away what is pinned: {told}. Unpin it first")


def _pin(row: dict[str, object]) -> Pin:
    return Pin(**{name: row[name] for name in _SCHEMA.names[:-1]})  # type: ignore[arg-type]
