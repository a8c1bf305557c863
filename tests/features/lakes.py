"""Lakes of rows that a test writes itself: DuckDB over one Arrow table, in whatever order."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

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
    """A lake of a table `events`, and of other tables by their names."""

    events: pa.Table
    at_us: int = 1 << 62
    others: dict[str, pa.Table] = field(default_factory=dict)

    @cached_property
    def _connection(self):
        connection = duckdb.connect(config={"threads": 1})
        for name, table in {"events": self.events, **self.others}.items():
            connection.register(name, table)
        return connection

    def rows(self, sql, parameters):
        """Returns the answer to one SELECT as Arrow."""
        return self._connection.sql(sql, params=parameters).to_arrow_table()

    def items_of(self, event):
        """Returns a SELECT with a row for each item of an event."""
        return item_sql(event)
