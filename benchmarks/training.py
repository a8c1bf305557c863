"""What training rows cost, as a program of its own: `training.py PAGES` prints JSON.

Pages of ten items each, all of them viewed, every second page with a click, within ten days; the events stand in
Parquet as the lake has them, their items in JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from headrace import Event, Metric
from headrace.events.dimension import Attribute, Dimension
from headrace.features import count, item, last, list_columns, person
from headrace.features.join import join
from headrace.models.learned import learn
from headrace.models.rows import read_labels, read_rows
from headrace.tables.catalog import item_sql

AT_US = 1_767_571_200_000_000
SPAN_US = 10 * 86_400_000_000
ITEM = "printf('item-%05d', (hash(i) + k * 7919) % 10000)"

genre = Attribute("genre")
items = Dimension("items", key="product_id", attributes=(genre,))
views = Event("Product List Viewed", item="products[].product_id", of=items)
clicks = Event("Product Clicked", item="product_id", of=items)
ctr = Metric.ratio("ctr", clicks, views)
FEATURES = (
    count("taste", clicks, by=(person, genre), windows=("1d", "28d")),
    count("appeal", clicks, by=item, windows=("1d", "7d")),
    last("latest", clicks, item, by=person, windows=("1h",)),
)


class FilesLake:
    """Tables in Parquet files."""

    at_us = AT_US

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def rows(self, sql: str, parameters: dict[str, object]) -> pa.Table:
        with duckdb.connect() as connection:
            for name in ("decisions", "events", "items"):
                connection.sql(f"CREATE VIEW {name} AS FROM read_parquet('{self._folder}/{name}.parquet')")
            return connection.sql(sql, params=parameters).to_arrow_table()

    def items_of(self, event: Event) -> str:
        return item_sql(event)

    def join(self, columns: object, labels: pa.Table) -> pa.Table:
        return join(self, columns, labels)


def write_lake(folder: Path, pages: int) -> None:
    at_us = f"({AT_US - SPAN_US} + i * {(SPAN_US - 7_200_000_000) // pages})"
    who = f"printf('rec-%08d', i) AS recommendation_id, printf('%08x', hash(i) % {max(pages // 5, 1)}) AS visitor"
    products = f"""list_transform(range(10), lambda k: printf('{{"product_id":"%s","position":%d}}', {ITEM}, k + 1))"""
    event = "false AS bot, (i % 4)::INT AS log_partition"
    parts = {
        "decisions": f"""SELECT {who}, visitor AS person, {at_us} AS at_us, at_us AS received_us,
            list_transform(range(10), lambda k: {ITEM}) AS items,
            list_transform(range(10), lambda k: 0.9::DOUBLE) AS propensities,
            [i, i, i, i]::BIGINT[] AS known, '{{"items":10000}}' AS dimensions, false AS bot, []::VARCHAR[] AS degraded,
            []::VARCHAR[] AS above
            FROM range({pages}) AS t(i)""",
        "events": f"""SELECT 'track' AS type, 'Product List Viewed' AS event, {who}, visitor AS person,
            {at_us} + 1000000 AS event_us, event_us + 500000 AS received_us, {event}, i AS src_offset, i AS log_offset,
            i // 2 AS seq, '{{"products":[' || array_to_string({products}, ',') || ']}}' AS properties,
            NULL::VARCHAR AS attributes FROM range({pages}) AS t(i)
            UNION ALL
            SELECT 'track', 'Product Clicked', {who}, visitor, {at_us} + 9000000, {at_us} + 9500000, {event},
            i + {pages}, i + {pages}, i // 2 + 1, printf('{{"product_id":"%s"}}', {ITEM}),
            printf('{{"%s":{{"genre":"g%d"}}}}', {ITEM}, i % 12)
            FROM range({pages}) AS t(i), (SELECT 2 AS k) WHERE i % 2 = 0""",
        "items": """SELECT printf('item-%05d', i) AS key, printf('{"genre":"g%d"}', i % 12) AS attributes,
            1 AS received_us, i AS log_offset FROM range(10000) AS t(i)""",
    }
    with duckdb.connect() as connection:
        for name, sql in parts.items():
            connection.sql(f"COPY ({sql}) TO '{folder}/{name}.parquet'")


def timed(work):
    began_at = time.perf_counter()
    found = work()
    return found, round(time.perf_counter() - began_at, 3)


def main() -> None:
    pages = int(sys.argv[1])
    columns = list_columns(FEATURES)
    with tempfile.TemporaryDirectory() as folder:
        write_lake(Path(folder), pages)
        lake = FilesLake(Path(folder))
        # The kernel is compiled once per machine.
        read_rows(lake, ctr, columns)
        labels, labels_seconds = timed(lambda: read_labels(lake, ctr, ("genre",)))
        rows, rows_seconds = timed(lambda: read_rows(lake, ctr, columns))
        arrays, fit_seconds = timed(lambda: learn(rows, l2=30.0, most_weight=10.0))
    assert len(rows) == labels.num_rows == 10 * pages
    assert np.isfinite(arrays["weights"]).all()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    told = {"pages": pages, "rows": len(rows), "labels_seconds": labels_seconds, "with_features_seconds": rows_seconds}
    print(json.dumps({**told, "fit_seconds": fit_seconds, "peak_mb": round(peak)}))


if __name__ == "__main__":
    main()
