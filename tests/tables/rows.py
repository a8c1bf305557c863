"""Rows for tests of tables."""

from __future__ import annotations

from datetime import date

import numpy as np
import pyarrow as pa

SCHEMA = pa.schema([("number", pa.int64()), ("wörd", pa.string()), ("received_date", pa.date32())])
DAY = date(2026, 11, 21)


def rows(*numbers, word="wört 'n 日本", day=DAY):
    """Returns one row for each number."""
    columns = {"number": list(numbers), "wörd": [word] * len(numbers), "received_date": [day] * len(numbers)}
    return pa.table(columns, schema=SCHEMA)


def many(count, *, start=0):
    """Returns that many rows with numbers from `start` on."""
    words = pa.array([f"word {i % 97}" for i in range(97)]).take(pa.array(np.arange(count) % 97))
    days = pa.array([DAY] * 1).take(pa.array(np.zeros(count, dtype=np.int64)))
    return pa.table([pa.array(np.arange(start, start + count)), words, days], schema=SCHEMA)


def numbers(table):
    """Returns the numbers of a table's rows, sorted."""
    return sorted(table.scan(["number"]).table().column("number").to_pylist())
