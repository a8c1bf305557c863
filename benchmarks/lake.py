"""The figures from topic to table. `run.py` calls each in a process of its own: `python lake.py NAME [ARGUMENT]`."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from headrace.base.telemetry import Metrics  # noqa: E402
from headrace.collect.segment import read_body  # noqa: E402
from headrace.collect.settler import METRICS as SETTLE_METRICS  # noqa: E402
from headrace.collect.settler import Settler  # noqa: E402
from headrace.engines import Source, open_engine  # noqa: E402
from headrace.events.click import Door, encode_door  # noqa: E402
from headrace.events.event import Event  # noqa: E402
from headrace.events.seen import Seen  # noqa: E402
from headrace.events.settle import Rules  # noqa: E402
from headrace.events.world import BORN_US, DAY, World, encode  # noqa: E402
from headrace.stream import CODECS  # noqa: E402
from headrace.tables import Table, open_tables  # noqa: E402
from headrace.tables.sink import INCARNATION, Flush, Sink  # noqa: E402
from headrace.tables.sink import METRICS as SINK_METRICS  # noqa: E402
from headrace.topics import Record, Topic, Topics, open_topics  # noqa: E402

TOPICS = ("clicks", "events", "failed")
DECLARED = (Event("Product List Viewed", item="products[].product_id"), Event("Product Clicked", item="product_id"))


def rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def fill_clicks(topics: Topics, count: int) -> int:
    """Appends a world's raw clicks, as its visitors' batches bring them; returns how many."""
    for name in TOPICS:
        topics.create(name, partitions=4, retention_seconds=None)
    world, clicks = World(7), Topic(topics, "clicks")
    records: list[Record] = []
    filed = 0
    for delivery in world.deliver(world.traffic(BORN_US, BORN_US + 1000 * DAY)):
        door = Door(
            version=1,
            received_us=delivery.at_us,
            source="http/batch",
            write_key="dev",
            address=world.visitor(delivery.visitor).address,
            user_agent=world.visitor(delivery.visitor).user_agent,
            sent_at=delivery.sent_at,
        )
        headers = encode_door(door)
        records += [Record(item.key, item.event, 0, headers) for item in read_body("batch", encode(delivery)).items]
        if len(records) >= 5_000:
            clicks.append(records)
            filed += len(records)
            records = []
            if filed >= count:
                break
    return filed


def settle_all(topics: Topics, folder: Path, name: str) -> float:
    """Returns the processor seconds in which all clicks were settled."""
    rules = Rules({event.name: event for event in DECLARED})
    settler = Settler(topics, rules, folder / "settler", member=name, metrics=Metrics(SETTLE_METRICS))
    started = time.process_time()
    while settler.turn():
        pass
    spent = time.process_time() - started
    settler.close()
    return spent


def make_events_table(topics: Topics, folder: Path) -> Table:
    tables = open_tables("file:///lake", root=folder)
    properties = {INCARNATION: topics.describe("events").incarnation}
    return tables.create("events", CODECS["events"].schema, properties=properties)


def settle_and_sink(folder: Path, count: int) -> dict[str, float]:
    """Settles a world's clicks and moves them into the lake, in this process, writer and fsync included."""
    topics = open_topics("sqlite:///topics", root=folder)
    count = fill_clicks(topics, count)
    before = rss_mb()
    settling = settle_all(topics, folder, "bench")
    settled_rss = rss_mb()
    table = make_events_table(topics, folder)
    sink = Sink(topics, "events", table, CODECS["events"], member=("bench", Flush()), metrics=Metrics(SINK_METRICS))
    started = time.process_time()
    while sink.turn():
        pass
    sink.flush()
    sinking = time.process_time() - started
    files = table.files()
    rows = sum(file.rows or 0 for file in files)
    return {
        "clicks": count,
        "settle_per_second": count / settling,
        "sink_per_second": rows / sinking,
        "bytes_per_row": sum(file.size for file in files) / rows,
        "rss_before_mb": before,
        "rss_settled_mb": settled_rss,
        "rss_mb": rss_mb(),
    }


def small_rows(count: int) -> pa.Table:
    days = pa.array(np.full(count, 20_778, np.int32), pa.date32())
    columns = {f"text_{n}": pa.array([f"value {i * n % 977}" for i in range(count)]) for n in range(10)}
    return pa.table({"received_us": np.arange(count), **columns, "received_date": days})


def commits(folder: Path, count: int) -> dict[str, float]:
    """Commits again and again as the sink does, with a keeper's checkpoint and compaction every 50."""
    rows = small_rows(500)
    table = open_tables("file:///lake", root=folder).create("t", rows.schema)
    times = []
    for number in range(count):
        started = time.perf_counter()
        table.append(rows, positions={f"i/{p}": number + 1 for p in range(4)}, note={"topic": "t"})
        times.append((time.perf_counter() - started) * 1000)
        if number % 50 == 49:
            keeper = open_tables("file:///lake", root=folder).open("t")
            keeper.optimize(target_bytes=32 << 20)
            keeper.checkpoint()
            table.reload()
    return {
        "first_p50_ms": statistics.median(times[:200]),
        "last_p50_ms": statistics.median(times[-200:]),
        "last_p99_ms": float(np.percentile(times[-200:], 99)),
    }


def against_pyiceberg(folder: Path, count: int) -> dict[str, float]:
    """The same appends of 10,000 rows, by turns, into our table and one of pyiceberg with a SQLite catalog."""
    from pyiceberg.catalog.sql import SqlCatalog

    rows = small_rows(10_000)
    ours = open_tables("file:///lake", root=folder).create("t", rows.schema)
    (folder / "iceberg").mkdir()
    catalog = SqlCatalog("c", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/iceberg")
    catalog.create_namespace("n")
    theirs = catalog.create_table("n.t", schema=rows.schema)
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(count):
        started = time.perf_counter()
        ours.append(rows, positions={f"i/{p}": number + 1 for p in range(4)}, note={"topic": "t"})
        times["ours"].append((time.perf_counter() - started) * 1000)
        started = time.perf_counter()
        theirs.append(rows, snapshot_properties={f"i/{p}": str(number + 1) for p in range(4)})
        times["theirs"].append((time.perf_counter() - started) * 1000)
        if number % 50 == 49:
            keeper = open_tables("file:///lake", root=folder).open("t")
            keeper.checkpoint()
            ours.reload()
    return {f"{name}_p50_ms": statistics.median(found) for name, found in times.items()}


def seen(folder: Path, millions: int) -> dict[str, float]:
    """Notes so many ids in four partitions' indexes, then opens them anew."""
    indexes = [Seen.open(folder / str(p)) for p in range(4)]
    rng = np.random.default_rng(7)
    manifests = [b""] * 4
    started, spent = time.process_time(), 0.0
    for number in range(millions * 1_000_000 // (4 * 512)):
        for p, index in enumerate(indexes):
            data = rng.bytes(16 * 512)
            keys = [data[i : i + 16] for i in range(0, len(data), 16)]
            began = time.process_time()
            index.find(keys)
            index.add(dict.fromkeys(keys, number + 1))
            spent += time.process_time() - began
            if number % 2000 == 0:
                manifests[p] = index.save()
                index.saved()
    del started
    for p, index in enumerate(indexes):
        manifests[p] = index.save()
        index.saved()
        index.close()
    began_at = time.perf_counter()
    for p in range(4):
        Seen.open(folder / str(p), manifests[p]).close()
    return {
        "us_per_id": spent / (millions * 1e6) * 1e6,
        "rss_mb": rss_mb(),
        "open_seconds": time.perf_counter() - began_at,
    }


def scan(folder: Path, count: int) -> dict[str, float]:
    """Scan-and-group by our guarded engine and by plain DuckDB, by turns, on the same files."""
    import duckdb

    rng = np.random.default_rng(7)
    tables = open_tables("file:///lake", root=folder)
    table = None
    for start in range(0, count, 500_000):
        size = min(500_000, count - start)
        rows = pa.table(
            {
                "item": pa.array(np.char.add("item-", rng.integers(0, 5000, size).astype(str))),
                "person": pa.array(np.char.add("person-", rng.integers(0, 200_000, size).astype(str))),
                "event_us": np.arange(start, start + size),
                "price": rng.random(size),
                "received_date": pa.array(np.full(size, 20_778 + start // 2_000_000, np.int32), pa.date32()),
            }
        )
        table = table or tables.create("t", rows.schema)
        table.append(rows)
    assert table is not None
    files = table.local_files()
    sql = "SELECT item, count(*) AS n, sum(price) AS total, max(event_us) AS last FROM t GROUP BY item ORDER BY n DESC"
    engine = open_engine("duckdb://?threads=2", root=folder)
    plain = duckdb.connect(config={"threads": 2})
    plain.execute("CREATE VIEW t AS SELECT * FROM read_parquet($files)".replace("$files", repr(files)))
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(5):
        for name, ask in (
            ("ours", lambda: engine.query(sql, sources=[Source("t", table.schema, files, table.partitions)]).table()),
            ("plain", lambda: plain.sql(sql).to_arrow_table()),
        ):
            started = time.perf_counter()
            ask()
            times[name].append(time.perf_counter() - started)
    return {f"{name}_seconds": statistics.median(found) for name, found in times.items()}


def fresh(folder: Path, seconds: int) -> dict[str, float]:
    """From the 200 of a click until SQL finds it, with a flush every second and other clicks beside it."""
    from headrace.project import open_project
    from running import project_toml, running, wait_until

    toml = project_toml(extra="[sink]\nflush_seconds = 1.0\n")
    times = []
    with running(folder, toml=toml) as up, open_project(folder) as project:
        deadline, number = time.monotonic() + seconds, 0
        wait_until(lambda: _send(up.url, "first") or "events" in project.tables.names(), seconds=30)
        while time.monotonic() < deadline:
            number += 1
            _send(up.url, f"m{number}")
            sent_at = time.monotonic()
            wait_until(lambda: _is_in(project, f"m{number}"), seconds=30)  # noqa: B023
            times.append(time.monotonic() - sent_at)
    return {"n": len(times), **{f"p{q}_seconds": float(np.percentile(times, q)) for q in (50, 95, 99)}}


def resume(folder: Path, rounds: int) -> dict[str, float]:
    """From kill -9 of the stream until a click sent meanwhile is settled, and stands in the table."""
    from headrace.project import open_project
    from running import project_toml, running, wait_until

    toml = project_toml(extra="[sink]\nflush_seconds = 0.2\n")
    settled, sunk = [], []
    with running(folder, toml=toml) as up, open_project(folder) as project:
        wait_until(lambda: _send(up.url, "first") or _is_in(project, "first"), seconds=30)
        for number in range(rounds):
            os.kill(up.pids["stream"], signal.SIGKILL)
            killed_at = time.monotonic()
            before = sum(bound.end for bound in project.topics.bounds("events"))
            _send(up.url, f"after-{number}")
            wait_until(
                lambda: sum(b.end for b in project.topics.bounds("events")) > before,  # noqa: B023
                seconds=30,
            )
            settled.append(time.monotonic() - killed_at)
            wait_until(lambda: _is_in(project, f"after-{number}"), seconds=30)  # noqa: B023
            sunk.append(time.monotonic() - killed_at)
    return {
        "settled_seconds": statistics.median(settled),
        "settled_worst": max(settled),
        "sunk_seconds": statistics.median(sunk),
        "sunk_worst": max(sunk),
    }


def _is_in(project, message_id: str) -> bool:
    if "events" not in project.tables.names():
        return False
    sql = "SELECT 1 FROM events WHERE message_id = ?"
    return project.query(sql, parameters=[message_id]).table().num_rows > 0


def _send(url: str, message_id: str) -> None:
    body = {"anonymousId": "ann", "event": "Product Clicked", "messageId": message_id}
    request = urllib.request.Request(f"{url}/v1/track", json.dumps(body).encode())
    request.add_header("authorization", "Basic " + b64encode(b"dev:").decode())
    with urllib.request.urlopen(request, timeout=10):
        pass


def hdfs_commits(folder: Path, count: int) -> dict[str, float]:
    """The same commits on a name node and two data nodes of this machine."""
    from services.hdfs import Hdfs, fetch_hadoop

    (folder / "hdfs").mkdir()
    hdfs = Hdfs(folder / "hdfs", fetch_hadoop())
    hdfs.start()
    try:
        rows = small_rows(500)
        table = open_tables(f"{hdfs.url}/lake", root=folder).create("t", rows.schema)
        times = []
        for number in range(count):
            started = time.perf_counter()
            table.append(rows, positions={f"i/{p}": number + 1 for p in range(4)}, note={"topic": "t"})
            times.append((time.perf_counter() - started) * 1000)
            if number % 10 == 9:
                table.checkpoint()
                table.reload()
    finally:
        hdfs.stop()
    return {
        "p50_ms": statistics.median(times),
        "p90_ms": float(np.percentile(times, 90)),
        "over_450_ms": sum(t > 450 for t in times),
        "n": count,
    }


PARTS: dict[str, Callable[[Path, int], dict[str, float]]] = {
    "settle": settle_and_sink,
    "commits": commits,
    "pyiceberg": against_pyiceberg,
    "seen": seen,
    "scan": scan,
    "fresh": fresh,
    "resume": resume,
    "hdfs": hdfs_commits,
}


def main() -> None:
    name, argument = sys.argv[1], int(sys.argv[2])
    folder = Path(tempfile.mkdtemp(prefix=f"headrace-bench-{name}-"))
    try:
        print(json.dumps(PARTS[name](folder, argument)), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    # Not by way of the interpreter's end, where threads of Arrow may abort the process.
    os._exit(0)


if __name__ == "__main__":
    main()
