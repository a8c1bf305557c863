"""A table: named rows of one schema in the lake, whose every state can be read again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, ClassVar, Protocol, Self

import pyarrow as pa

from headrace.base.errors import CallError
from headrace.base.urls import Url

DEFAULT_DEADLINE_SECONDS = 60.0
DEFAULT_KEEP_SECONDS = 7 * 24 * 3600
DEFAULT_KEEP_COMMITS = 2_000
DEFAULT_PARTITION_BY = ("received_date",)

# What Parquet readers of other people cannot take in a column's name without Delta's column mapping.
_FORBIDDEN = frozenset(' ,;{}()\n\t="`')


@dataclass(frozen=True)
class Capabilities:
    """What a backend of tables can do.

    Attributes:
        shared: Several machines may open the same tables.
        local: The files of a table can be opened by their path.
    """

    shared: bool
    local: bool


@dataclass(frozen=True)
class File:
    """One Parquet file of a table; `path` is a local path, or a URI where the store is not local."""

    path: str
    size: int
    rows: int | None
    partition: Mapping[str, str | None]


@dataclass(frozen=True)
class Commit:
    """One version of a table: who made it, when, and what Headrace noted with it."""

    version: int
    time_us: int
    operation: str
    producer: str
    rows: int | None
    files: int | None
    note: Mapping[str, Any]


@dataclass(frozen=True)
class Pin:
    """A version of a table that nothing may remove while the pin stands."""

    id: str
    table: str
    version: int
    owner: str
    reason: str
    time_us: int


@dataclass(frozen=True)
class Optimized:
    """What compaction did: small files became few, no row changed."""

    version: int
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int


class Scan(Protocol):
    """Rows of one snapshot, read when they are asked for."""

    schema: pa.Schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yields the rows in batches; memory holds a few of them."""

    def table(self) -> pa.Table:
        """Returns all rows at once."""

    def duckdb(self) -> Any:
        """Returns a DuckDB relation over the snapshot's files."""

    def polars(self) -> Any:
        """Returns a Polars LazyFrame over the snapshot's files."""


class Table(Protocol):
    """One table at one version. Not for two threads at once."""

    name: str
    uri: str

    @property
    def version(self) -> int:
        """The version of the loaded snapshot."""

    @property
    def schema(self) -> pa.Schema:
        """The columns of the loaded snapshot."""

    @property
    def partitions(self) -> tuple[str, ...]:
        """The columns whose values name the folders of the files."""

    @property
    def properties(self) -> Mapping[str, str]:
        """What is stated about the table: ours as `headrace.*`, Delta's as `delta.*`."""

    @property
    def description(self) -> str:
        """What the table holds, in words."""

    def reload(self) -> None:
        """Takes the newest version; raises PositionError if the log went backwards."""

    def at(self, version: int | None = None, *, time_us: int | None = None) -> Table:
        """Returns the table as it was at a version or a time, for reading only."""

    def position(self, app: str) -> int | None:
        """Returns the position that `app` committed with its rows, as of this snapshot."""

    def append(
        self,
        rows: pa.Table,
        *,
        positions: Mapping[str, int] = {},
        note: Mapping[str, Any] = {},
        evolve: bool = False,
    ) -> int:
        """Returns the new version, which holds the rows and the positions, or neither.

        After any error the table must be loaded again before the next append: the commit may have landed.
        """

    def advance(self, positions: Mapping[str, int], note: Mapping[str, Any] = {}) -> int:
        """Returns the new version, which only moves the positions."""

    def restart(self, positions: Mapping[str, int], *, note: Mapping[str, Any], empty: bool) -> int:
        """Returns the new version, which goes on at these positions, lower ones too, and without rows if `empty`.

        Older versions keep their rows.
        """

    def evolve(self, schema: pa.Schema) -> None:
        """Adds columns and widens int to long and float to double; anything else is a CallError."""

    def state(self, properties: Mapping[str, str]) -> None:
        """Sets properties of the table."""

    def history(self, limit: int | None = None) -> list[Commit]:
        """Returns the newest commits first, as far as the log still goes."""

    def files(self) -> list[File]:
        """Returns the files of this snapshot."""

    def local_files(self) -> list[str]:
        """Returns paths at which the files of this snapshot can be opened, fetched first where they are far."""

    def scan(self, columns: Sequence[str] | None = None) -> Scan:
        """Returns the rows of this snapshot, to be read later."""

    def optimize(self, *, target_bytes: int = 256 << 20) -> Optimized:
        """Merges small files; readers and appends go on meanwhile."""

    def checkpoint(self) -> None:
        """Writes a checkpoint of the log, so that opening stays quick."""

    def vacuum(
        self, *, keep_seconds: float = DEFAULT_KEEP_SECONDS, dry_run: bool = False, around_pins: bool = True
    ) -> list[str]:
        """Returns the deleted files: no version younger than `keep_seconds`, and no pin, needs them."""

    def clean_log(
        self,
        *,
        keep_seconds: float = DEFAULT_KEEP_SECONDS,
        keep_commits: int = DEFAULT_KEEP_COMMITS,
        around_pins: bool = True,
    ) -> list[str]:
        """Returns the deleted files of the log: old commits before a checkpoint, and what broken writers left.

        Of versions older than the newest `keep_commits` only those that have a checkpoint can be opened from then on.
        """

    def delete_partitions_before(self, day: date) -> int:
        """Returns the number of files that left the table with whole days before `day`."""

    def pin(self, *, owner: str, reason: str, version: int | None = None) -> Pin:
        """Returns the pin that keeps a version, by default the loaded one."""

    def unpin(self, pin_id: str) -> None:
        """Takes a pin away."""

    def pins(self) -> list[Pin]:
        """Returns the pins of this table, whoever set them."""


class Tables(Protocol):
    """The tables of one lake."""

    capabilities: ClassVar[Capabilities]

    @classmethod
    def from_url(cls, url: Url) -> Self:
        """Returns the tables at a URL."""

    def names(self) -> list[str]:
        """Returns the names of all tables, sorted."""

    def open(self, name: str) -> Table:
        """Returns a table at its newest version."""

    def create(
        self,
        name: str,
        schema: pa.Schema,
        *,
        partition_by: Sequence[str] = DEFAULT_PARTITION_BY,
        description: str = "",
        properties: Mapping[str, str] = {},
    ) -> Table:
        """Returns the new table, or the one that stands if its columns agree."""

    def close(self) -> None:
        """Gives back what the lake holds open."""


def check_name(name: str) -> None:
    """Raises CallError unless a table may have that name, on every store.

    >>> check_name("product.views-2")
    """
    if (
        not 1 <= len(name) <= 200
        or name[0] in "._"
        or not all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
    ):
        raise CallError(
            f"table name {name!r}: use 1 to 200 letters, digits, '.', '_' and '-', and begin with neither '.' nor '_'"
        )


def check_schema(name: str, schema: pa.Schema, partition_by: Sequence[str]) -> None:
    """Raises CallError unless every engine can hold and read these columns."""
    seen: dict[str, str] = {}
    for field in schema:
        if not field.name or _FORBIDDEN & set(field.name):
            raise CallError(
                f"table {name!r}: a column cannot be named {field.name!r}; use no spaces and none of ,;{{}}()="
            )
        if field.name.lower() in seen:
            raise CallError(
                f"table {name!r}: columns {seen[field.name.lower()]!r} and {field.name!r} differ in case only"
            )
        seen[field.name.lower()] = field.name
        if not _is_known(field.type):
            raise CallError(f"column {name}.{field.name} has the type {field.type}, which not every engine reads")
    for column in partition_by:
        if column not in schema.names:
            raise CallError(f"table {name!r} has no column {column!r} to be partitioned by. columns: {schema.names}")


def _is_known(kind: pa.DataType) -> bool:
    if pa.types.is_timestamp(kind):
        # Without a time zone the type needs a protocol that older engines refuse.
        return bool(kind.unit == "us" and kind.tz == "UTC")
    if pa.types.is_list(kind):
        return _is_known(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_is_known(kind.field(i).type) for i in range(kind.num_fields))
    if pa.types.is_map(kind):
        return _is_known(kind.key_type) and _is_known(kind.item_type)
    return kind in _FLAT or pa.types.is_decimal128(kind)


_FLAT = frozenset(
    (
        pa.bool_(),
        pa.int8(),
        pa.int16(),
        pa.int32(),
        pa.int64(),
        pa.float32(),
        pa.float64(),
        pa.string(),
        pa.binary(),
        pa.date32(),
    )
)
