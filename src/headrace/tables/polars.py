"""Tables as Polars frames."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import pyarrow as pa


def scan(files: Sequence[str], schema: pa.Schema, partitions: Sequence[str]) -> pl.LazyFrame:
    """Returns a LazyFrame with exactly the columns of `schema` over Parquet files laid out by partition."""
    empty = pl.DataFrame(pl.from_arrow(schema.empty_table()))
    if not files:
        return empty.lazy()
    stored = {name: kind for name, kind in empty.schema.items() if name not in partitions}
    frame = pl.scan_parquet(
        list(files),
        glob=False,
        schema=stored,
        hive_partitioning=bool(partitions),
        hive_schema={name: kind for name, kind in empty.schema.items() if name in partitions} or None,
        missing_columns="insert",
        extra_columns="ignore",
    )
    return frame.select(schema.names)
