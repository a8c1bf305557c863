"""The tables of one lake: a folder of this machine, or one on HDFS."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import msgspec
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from headrace.base.errors import CallError, FormatError, UnavailableError, UrlError, unknown_name
from headrace.base.urls import Url
from headrace.tables.cache import Cache
from headrace.tables.deadline import within
from headrace.tables.delta import Delta, Lake
from headrace.tables.delta_damage import brief
from headrace.tables.delta_log import LOG
from headrace.tables.delta_pins import PINS, Pins
from headrace.tables.delta_place import HOOKS, Place
from headrace.tables.delta_store import Store
from headrace.tables.table import (
    DEFAULT_DEADLINE_SECONDS,
    DEFAULT_PARTITION_BY,
    Capabilities,
    check_name,
    check_schema,
)

# The library never writes checkpoints nor cleans the log by itself: the keeper does.
_STATED = {
    "delta.checkpointInterval": "1000000",
    "delta.logRetentionDuration": "interval 30 days",
    "delta.deletedFileRetentionDuration": "interval 7 days",
    "delta.enableExpiredLogCleanup": "false",
}


_PLAIN = re.compile(r"[A-Za-z0-9._+~/-]+")


class _FileOptions(msgspec.Struct):
    """Options of file:// tables."""

    deadline_seconds: float = DEFAULT_DEADLINE_SECONDS


class _HdfsOptions(msgspec.Struct):
    """Options of hdfs:// tables: where copies for DuckDB and Polars stand, and how much room they may take."""

    deadline_seconds: float = DEFAULT_DEADLINE_SECONDS
    cache: str = ".headrace/cache/lake"
    cache_bytes: int = 4 << 30


class _Lake:
    """What both kinds of lake do alike: the library reaches either through one interface."""

    capabilities: ClassVar[Capabilities]

    def __init__(
        self, root: str, *, deadline_seconds: float = DEFAULT_DEADLINE_SECONDS, cache: Cache | None = None
    ) -> None:
        self._root = root
        self._deadline_seconds = deadline_seconds
        self._store = Store(root)
        self._lake = Lake(Pins(self._place(PINS)), cache)

    def names(self) -> list[str]:
        """Returns the names of all tables, sorted."""
        try:
            return within(self._deadline_seconds, f"list {self._root}", self._names)
        except OSError as error:
            raise UnavailableError(f"{self._root}: {brief(error)}") from error

    def _names(self) -> list[str]:
        folders = [e.path for e in self._store.entries("") if e.is_folder and e.path[0] not in "._"]
        standing = self._store.have_folders([f"{folder}/{LOG}" for folder in folders])
        found = (folder for folder, is_table in zip(folders, standing, strict=True) if is_table)
        return sorted(found)

    def open(self, name: str) -> Delta:
        """Returns a table at its newest version."""
        check_name(name)
        place = self._place(name)
        try:
            return Delta(place, place.load(), lake=self._lake)
        except TableNotFoundError as error:
            raise unknown_name("table", name, self.names()) from error

    def create(
        self,
        name: str,
        schema: pa.Schema,
        *,
        partition_by: Sequence[str] = DEFAULT_PARTITION_BY,
        description: str = "",
        properties: Mapping[str, str] = {},
    ) -> Delta:
        """Returns the new table, or the one that stands if its columns agree."""
        check_name(name)
        check_schema(name, schema, partition_by)
        place = self._place(name)
        try:
            table = Delta(place, place.load(), lake=self._lake)
        except TableNotFoundError:
            self._create(place, schema, partition_by, description, {**_STATED, **properties})
            table = Delta(place, place.load(), lake=self._lake)
        _check_agrees(table, schema, partition_by)
        return table

    def close(self) -> None:
        """Gives back what the lake holds open: nothing."""

    def _place(self, name: str) -> Place:
        return Place(name, f"{self._root}/{name}", self._store.below(name), self._deadline_seconds, self._folder(name))

    def _folder(self, name: str) -> Path | None:
        return Path(self._root, name) if self.capabilities.local else None

    def _create(
        self, place: Place, schema: pa.Schema, partition_by: Sequence[str], words: str, stated: Mapping[str, str]
    ) -> None:
        def create() -> None:
            DeltaTable.create(
                place.uri,
                schema,
                partition_by=list(partition_by),
                name=place.name,
                description=words,
                configuration=stated,
                raise_if_key_not_exists=False,
                post_commithook_properties=HOOKS,
            )

        try:
            place.call("create", create)
        except FormatError:
            # Somebody else may have made it meanwhile; if so, it opens.
            place.load()


class FileTables(_Lake):
    """Tables in a folder of this machine."""

    capabilities: ClassVar[Capabilities] = Capabilities(shared=False, local=True)

    @classmethod
    def from_url(cls, url: Url) -> Self:
        """Returns the tables in the folder that the URL names."""
        options = url.read_options(_FileOptions)
        folder = url.local_path()
        if "%" in str(folder):
            raise UrlError(f"{str(url)!r}: the Delta library cannot write below a folder with '%' in its name")
        _make(folder)
        return cls(str(folder), deadline_seconds=options.deadline_seconds)


class HdfsTables(_Lake):
    """Tables in a folder on HDFS, reached without a JVM."""

    capabilities: ClassVar[Capabilities] = Capabilities(shared=True, local=False)

    @classmethod
    def from_url(cls, url: Url) -> Self:
        """Returns the tables in the folder that the URL names."""
        options = url.read_options(_HdfsOptions)
        if not url.address or len(url.path) < 2:
            raise UrlError(f"{str(url)!r} names no folder. Write it as hdfs://namenode:8020/lake")
        if not _PLAIN.fullmatch(url.path):
            raise UrlError(
                f"{str(url)!r}: on HDFS the Delta library finds no folder with other than a-z, 0-9, . _ - + ~"
            )
        cache = Cache((url.root / options.cache).absolute(), max_bytes=options.cache_bytes)
        root = f"hdfs://{url.address}{url.path.rstrip('/')}"
        return cls(root, deadline_seconds=options.deadline_seconds, cache=cache)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError(
            f"the lake's folder {str(folder)!r} cannot be made: {error.strerror or error}. Make it, or give the tables "
            "another folder"
        ) from error


def _check_agrees(table: Delta, schema: pa.Schema, partition_by: Sequence[str]) -> None:
    found = {field.name: field.type for field in table.schema}
    asked = {field.name: field.type for field in schema}
    for column in [*asked, *found]:
        if found.get(column) != asked.get(column):
            raise CallError(
                f"table {table.name!r} stands already, and {table.name}.{column} is {found.get(column, 'not there')}, "
                f"asked for {asked.get(column, 'none')}. Evolve it, or choose another name"
            )
    if table.partitions != tuple(partition_by):
        raise CallError(
            f"table {table.name!r} stands already, partitioned by {list(table.partitions)}, "
            f"asked for {list(partition_by)}"
        )
