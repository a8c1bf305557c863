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
from headrace.base.clock import read_duration
from headrace.events.dimension import Attribute, Dimension
from headrace.features import Feature, count, item, last, list_columns, person, total
from headrace.features.join import join
from headrace.features.window import hop_of
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


def features_by(by: object) -> tuple[Feature, ...]:
    """Returns three aggregates of four windows each."""
    return (
        count("clicks", clicks, by=by, windows=WINDOWS),
        total("spent", clicks, "price", by=by, windows=WINDOWS),
        last("newest", clicks, item, by=by, windows=WINDOWS),
    )


def measure(number: int, *, by: object, typed: bool = True, served: bool = False, num_labels: int = 1_000_000):
    columns = list_columns(features_by(by))
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


def range_sql(num_labels: int) -> str:
    """Returns the same columns by person as one range join: each label with all events of the longest window."""
    picked, tails = [], []
    for name in WINDOWS:
        window_us = read_duration(name)
        hop = hop_of(window_us)
        tails.append(f"(at_us - {window_us}) // {hop} * {hop} AS since_{name}")
        within = f"FILTER (WHERE event_us >= since_{name})"
        picked += [
            f"count(event_us) {within} AS clicks_{name}",
            f"coalesce(sum(amount) {within}, 0) / 1e6 AS spent_{name}",
            f"arg_max(item, (event_us, place)) {within} AS newest_{name}",
        ]
    return f"""WITH asked AS (
      SELECT row_number() OVER () AS label, person, at_us, {", ".join(tails)} FROM labels LIMIT {num_labels}
    ), told AS (
      SELECT person, event_us, received_us, item, log_partition * (1::BIGINT << 48) + src_offset AS place,
        floor(TRY_CAST(json_extract(properties, '$.price')::VARCHAR AS DOUBLE) * 1e6 + 0.5)::BIGINT AS amount
      FROM events WHERE type = 'track' AND event = 'Product Clicked' AND NOT bot
    )
    SELECT {", ".join(picked)} FROM asked LEFT JOIN told
    ON asked.person = told.person AND event_us >= since_28d AND event_us < at_us AND received_us < at_us
    GROUP BY label ORDER BY label"""


def compare(number: int) -> dict[str, float]:
    """The join by turns with a range join in DuckDB: the same values of a tenth as many labels."""
    columns = list_columns(features_by(person))
    labels = make_labels(number // 10, served=False, events=number)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name) / "events"
        write_events(folder, number, typed=True)
        lake = FilesLake(folder, typed=True)
        join(lake, columns, labels.slice(0, 10))
        ours, theirs = [], []
        for _ in range(3):
            began_at = time.perf_counter()
            found = join(lake, columns, labels)
            ours.append(time.perf_counter() - began_at)
            began_at = time.perf_counter()
            with duckdb.connect() as connection:
                connection.register("labels", labels)
                connection.sql(f"CREATE VIEW events AS FROM read_parquet('{folder}/*.parquet')")
                expected = connection.sql(range_sql(labels.num_rows)).to_arrow_table()
            theirs.append(time.perf_counter() - began_at)
    assert all(found.column(one.name).to_pylist() == expected.column(one.name).to_pylist() for one in columns)
    return {"ours_seconds": sorted(ours)[1], "theirs_seconds": sorted(theirs)[1]}


PARTS = {
    "compare": compare,
    "persons": lambda number: measure(number, by=person),
    "served": lambda number: measure(number, by=person, served=True),
    "items": lambda number: measure(number, by=item),
    "served_items": lambda number: measure(number, by=item, served=True),
    "lake": lambda number: measure(number, by=person, typed=False),
}

if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]](int(sys.argv[2]))))
