"""Lakes of rows that a test writes itself: DuckDB over one Arrow table, in whatever order."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import pyarrow as pa

from headrace.events.settled import encode
from headrace.stream import CODECS
from headrace.tables.catalog import item_sql
from headrace.topics import Message


def table_of(events):
    """Returns the rows of the lake for events with their partitions."""
    codec = CODECS["events"]
    messages = [
        Message(None, encode(event), partition=partition, offset=number)
        for number, (event, partition) in enumerate(events)
    ]
    return pa.Table.from_batches([codec.read(messages)] if messages else [], schema=codec.schema)


@dataclass
class RowsLake:
    """A lake of one table `events`."""

    events: pa.Table
    at_us: int = 1 << 62

    def rows(self, sql, parameters):
        """Returns the answer to one SELECT as Arrow."""
        with duckdb.connect() as connection:
            connection.register("events", self.events)
            return connection.sql(sql, params=parameters).to_arrow_table()

    def items_of(self, event):
        """Returns a SELECT with a row for each item of an event."""
        return item_sql(event)
