"""Tables as DuckDB relations."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import pyarrow as pa

from headrace.engines.engine import quote_name, quote_text


def scan(files: Sequence[str], schema: pa.Schema, partitions: Sequence[str]) -> duckdb.DuckDBPyRelation:
    """Returns a relation with exactly the columns of `schema` over Parquet files laid out by partition."""
    if not files:
        return duckdb.from_arrow(schema.empty_table())
    query = f"SELECT * FROM {_source(files, schema, partitions)}"  # noqa: S608 - every part is quoted
    found = duckdb.from_query(query)
    assert found is not None
    standing = set(found.columns)
    return found.project(", ".join(_cast(field, standing) for field in schema))


def _source(files: Sequence[str], schema: pa.Schema, partitions: Sequence[str]) -> str:
    listed = ", ".join(quote_text(path) for path in files)
    # Some files are older than some columns, so columns are matched by name.
    if not partitions:
        return f"read_parquet([{listed}], union_by_name = true, hive_partitioning = false)"
    # Left to itself DuckDB guesses the type of a partition, and takes the text 007 for the number 7.
    kinds = ", ".join(f"{quote_text(name)}: {_duckdb_type(schema.field(name).type)}" for name in partitions)
    return f"read_parquet([{listed}], union_by_name = true, hive_types = {{{kinds}}})"


def _cast(field: pa.Field, standing: set[str]) -> str:
    quoted = quote_name(field.name)
    value = quoted if field.name in standing else "NULL"
    return f"CAST({value} AS {_duckdb_type(field.type)}) AS {quoted}"


def _duckdb_type(kind: pa.DataType) -> str:
    empty = duckdb.from_arrow(pa.schema([("value", kind)]).empty_table())
    return str(empty.types[0])
