"""The figures of features, each as a program of its own: `features.py PART NUMBER` prints JSON."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from headrace import Event
from headrace.events.dimension import Attribute, Dimension
from headrace.features import count, item, last, list_columns, person, total
from headrace.features.join import join
from headrace.tables.catalog import item_sql

DAY_US = 86_400_000_000
AT_US = 1_767_571_200_000_000
WINDOWS = ("1h", "1d", "7d", "28d")
genre = Attribute("genre")
items = Dimension("items", key="product_id", attributes=(genre,))
clicks = Event("Product Clicked", item="product_id", of=items)


@dataclass
class FilesLake:
    """Events in Parquet files; `typed` ones have the item in a column, others in their JSON as the lake has it."""

    folder: Path
    typed: bool
    at_us: int = AT_US

    def rows(self, sql: str, parameters: dict[str, object]) -> pa.Table:
        with duckdb.connect() as connection:
            connection.sql(f"CREATE VIEW events AS FROM read_parquet('{self.folder}/*.parquet')")
            return connection.sql(sql, params=parameters).to_arrow_table()

    def items_of(self, event: Event) -> str:
        return "FROM events" if self.typed else item_sql(event)


def write_events(folder: Path, number: int, *, typed: bool) -> None:
    """Writes events of 28 days: 200,000 persons, 10,000 items of which few have most; 2 % came late."""
    item = "printf('item-%05d', (10000 * pow(random(), 3))::INT)"
    columns = (
        "'track' AS type, 'Product Clicked' AS event, event_us, event_us + late AS received_us, false AS bot, "
        "printf('%08x-visitor', (200000 * pow(random(), 2))::INT) AS person, (n % 4)::INT AS log_partition, "
        "n AS src_offset, n // 4 AS seq"
    )
    said = (
        item + """ AS item, '{"price":9.5}' AS properties"""
        if typed
        else f"""printf('{{"product_id":"%s","price":%d.5}}', {item}, n % 90) AS properties, NULL AS attributes"""
    )
    with duckdb.connect() as connection:
        connection.sql("SELECT setseed(0.7)")
        connection.sql(
            f"COPY (SELECT {columns}, {said} FROM (SELECT i AS n, "
            f"{AT_US - 28 * DAY_US} + i * {28 * DAY_US // number} AS event_us, "
            f"if(random() < 0.02, (random() * {DAY_US})::BIGINT, 1000) AS late FROM range({number}) t(i))) "
            f"TO '{folder}' (FORMAT parquet, PER_THREAD_OUTPUT, FILE_SIZE_BYTES '50MB')"
        )


def make_labels(number: int, *, served: bool, events: int) -> pa.Table:
    """Returns labels of the last 14 days, about the same persons and items."""
    rng = np.random.default_rng(7)
    at_us = np.sort(AT_US - rng.integers(0, 14 * DAY_US, number))
    persons = (200_000 * rng.random(number) ** 2).astype(int)
    things = (10_000 * rng.random(number) ** 3).astype(int)
    columns = {
        "at_us": pa.array(at_us),
        "person": pa.array([f"{one:08x}-visitor" for one in persons.tolist()]),
        "item": pa.array([f"item-{one:05d}" for one in things.tolist()]),
    }
    if served:
        # Two doors, of which one lags a second behind the other.
        since_us = 28 * DAY_US - (AT_US - at_us) - 1_000_000 * rng.integers(0, 2, number)
        behind = since_us // (28 * DAY_US // events) // 4
        columns["known"] = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(behind, 4)), 4).cast(
            pa.list_(pa.int64())
        )
    return pa.table(columns)


def measure(number: int, *, by: object, typed: bool = True, served: bool = False, num_labels: int = 1_000_000):
    features = (
        count("clicks", clicks, by=by, windows=WINDOWS),
        total("spent", clicks, "price", by=by, windows=WINDOWS),
        last("newest", clicks, item, by=by, windows=WINDOWS),
    )
    columns = list_columns(features)
    labels = make_labels(num_labels, served=served, events=number)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name) / "events"
        write_events(folder, number, typed=typed)
        lake = FilesLake(folder, typed)
        join(lake, columns, labels.slice(0, 10))  # Numba's cache, and the files in memory
        seconds, cpu = [], []
        for _ in range(3):
            began_at, before = time.perf_counter(), time.process_time()
            found = join(lake, columns, labels)
            seconds.append(time.perf_counter() - began_at)
            cpu.append(time.process_time() - before)
    assert found.num_rows == num_labels
    counted = np.mean([np.mean(found.column(f"clicks_{window}").to_numpy()) for window in WINDOWS])
    return {
        "seconds": sorted(seconds)[1],
        "best_seconds": min(seconds),
        "cpu_seconds": sorted(cpu)[1],
        "mean_count": float(counted),
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


PARTS = {
    "persons": lambda number: measure(number, by=person),
    "served": lambda number: measure(number, by=person, served=True),
    "items": lambda number: measure(number, by=item),
    "served_items": lambda number: measure(number, by=item, served=True),
    "lake": lambda number: measure(number, by=person, typed=False),
}

if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]](int(sys.argv[2]))))
