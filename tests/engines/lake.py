"""Tables of real Parquet files, as a lake has them."""

import datetime
import hashlib

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.engines import Source

DAY = datetime.date(2026, 11, 21)
SCHEMA = pa.schema(
    [
        ("message_id", pa.string()),
        ("event_us", pa.int64()),
        ("price", pa.decimal128(10, 2)),
        ("seen_at", pa.timestamp("us", "UTC")),
        ("received_date", pa.date32()),
    ]
)


def write_events(folder, *, days=2, rows=100):
    """Returns the source `events`: one file a day; the first day has no `price` yet, and a narrower `event_us`."""
    paths = []
    for day in range(days):
        columns = {
            "message_id": [f"m{day}-{i}" for i in range(rows)],
            "event_us": pa.array(range(rows), pa.int32() if day == 0 else pa.int64()),
        }
        if day:
            columns["price"] = pa.array(list(range(rows)), pa.decimal128(10, 2))
        columns["seen_at"] = pa.array(range(rows), pa.timestamp("us", "UTC"))
        path = folder / f"received_date={DAY + datetime.timedelta(day)}" / "part-0.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table(columns), path)
        paths.append(str(path))
    return Source("events", SCHEMA, paths, ("received_date",))


def fingerprint(folder):
    """Returns what stands under a folder: paths and contents."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
