"""Rows of one snapshot as Arrow batches, a DuckDB relation or a Polars frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

import pyarrow as pa

from headrace.base.errors import MissingExtraError, unknown_name


class DeltaScan:
    """What `Table.scan` returns: nothing is read before it is asked for."""

    def __init__(
        self,
        schema: pa.Schema,
        partitions: Sequence[str],
        *,
        read: Callable[[pa.Schema], Iterator[pa.RecordBatch]],
        files: Callable[[], list[str]],
    ) -> None:
        self.schema = schema
        self._partitions = partitions
        self._read = read
        self._files = files

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yields the rows in batches; memory holds a few of them."""
        return self._read(self.schema)

    def table(self) -> pa.Table:
        """Returns all rows at once."""
        return pa.Table.from_batches(self.batches(), self.schema)

    def duckdb(self) -> Any:
        """Returns a DuckDB relation over the snapshot's files."""
        return import_module("headrace.tables.duckdb").scan(self._files(), self.schema, self._partitions)

    def polars(self) -> Any:
        """Returns a Polars LazyFrame over the snapshot's files."""
        return _with_polars().scan(self._files(), self.schema, self._partitions)


def _with_polars() -> Any:
    try:
        return import_module("headrace.tables.polars")
    except ModuleNotFoundError as error:
        if error.name != "polars":
            raise
        raise MissingExtraError(
            "reading a table with Polars needs the package 'polars'.  pip install 'headrace[polars]'"
        ) from error


def chosen(name: str, schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    """Returns the schema of some columns, in the order that was asked for."""
    if columns is None:
        return schema
    for column in columns:
        if column not in schema.names:
            raise unknown_name(f"column of table {name!r}", column, schema.names)
    return pa.schema([schema.field(column) for column in columns])
