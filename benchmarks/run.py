"""`make bench`: the figures that docs/benchmarks quotes, each measured here and now.

Every line is the median of its runs with the best beside it; ratios come from one run of this program.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from headrace.events.world import BORN_US, DAY, World, encode  # noqa: E402
from headrace.topics import Record, open_topic  # noqa: E402
from running import Running, project_toml, running  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def show(name: str, text: str) -> None:
    print(f"{name:<34} {text}", flush=True)


def spread(values: list[float], unit: str, *, low_is_good: bool = False) -> str:
    best = min(values) if low_is_good else max(values)
    median, best = (f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" for value in (statistics.median(values), best))
    return f"median {median}  best {best} {unit}  ({len(values)} runs)"


def family(pid: int) -> list[int]:
    """Returns a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parts = path.read_text().rpartition(")")[2].split()
            children.setdefault(int(parts[1]), []).append(int(path.parent.name))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def cpu_seconds(pid: int) -> float:
    """Returns the processor time of a process and its descendants so far."""
    total = 0
    for one in family(pid):
        with contextlib.suppress(OSError):
            parts = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += int(parts[11]) + int(parts[12])
    return total / TICKS


def rss_mb(pid: int) -> float:
    """Returns the resident memory of a process and its descendants."""
    pages = 0
    for one in family(pid):
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{one}/statm").read_text().split()[1])
    return pages * PAGE_BYTES / 1e6


def pin(pid: int, cpu: int) -> None:
    """Binds a process and its threads to one processor."""
    for one in family(pid):
        for task in Path(f"/proc/{one}/task").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                os.sched_setaffinity(int(task.name), {cpu})


def load(port: int, callers: int, batch: int, seconds: float, *, cpu: int | None = None) -> dict[str, float]:
    """Returns what the load program measured."""
    command = [sys.executable, str(HERE / "load.py"), str(port), str(callers), str(batch), str(seconds)]
    prefix = ["taskset", "-c", str(cpu)] if cpu is not None else []
    done = subprocess.run([*prefix, *command], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def part_of(program: str, *words: object) -> dict[str, float]:
    """Returns what a program beside this one measured in a process of its own."""
    command = [sys.executable, str(HERE / program), *map(str, words)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def bench_fsync(folder: Path) -> None:
    times = []
    with (folder / "fsync").open("wb", buffering=0) as file:
        for _ in range(500):
            file.write(os.urandom(4096))
            started_at = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - started_at) * 1000)
    ordered = sorted(times)
    show("this disk: fdatasync of 4 KiB", f"p50 {ordered[250]:.2f} ms  p99 {ordered[495]:.2f} ms")


def bench_world() -> None:
    world = World(7)
    list(world.traffic(BORN_US, BORN_US + DAY))
    runs: dict[str, list[float]] = {"made": [], "delivered": []}
    for _ in range(3):
        started = time.process_time()
        count = sum(len(visit.events) for visit in world.traffic(BORN_US, BORN_US + 5 * DAY))
        runs["made"].append(count / (time.process_time() - started))
        started = time.process_time()
        visits = world.traffic(BORN_US, BORN_US + 5 * DAY)
        count = sum(len(delivery.events) for delivery in world.deliver(visits) if encode(delivery))
        runs["delivered"].append(count / (time.process_time() - started))
    show("world: events made", spread(runs["made"], "/s/core"))
    show("world: delivered, as request bodies", spread(runs["delivered"], "/s/core"))


def bench_topic(folder: Path) -> None:
    records = [
        Record(
            b"visitor-%d" % (n % 2000),
            json.dumps(
                {
                    "messageId": f"{n:032x}",
                    "event": "Product Clicked",
                    "n": n,
                    "properties": {"product_id": f"item-{n % 240:03}", "position": n % 10, "list_id": "home" * 20},
                }
            ).encode(),
        )
        for n in range(100_000)
    ]
    appends, reads = [], []
    for number in range(5):
        topic = open_topic(f"sqlite:///{folder}/topic-{number}", "clicks", create=True)
        started_at = time.perf_counter()
        for start in range(0, len(records), 10_000):
            topic.append(records[start : start + 10_000])
        appends.append(len(records) / (time.perf_counter() - started_at))
        with topic.consume("bench") as consumer:
            started_at = time.perf_counter()
            count = 0
            while messages := consumer.poll(wait_seconds=0):
                count += len(messages)
            reads.append(count / (time.perf_counter() - started_at))
        assert count == len(records)
        topic.topics.close()
    show(f"topic append, {len(records[0].value)} B, 10,000 a call", spread(appends, "records/s"))
    show("topic read", spread(reads, "records/s"))


@contextlib.contextmanager
def collector(folder: Path, *, topics: str = "sqlite:///.headrace/topics", workers: int = 1) -> Iterator[Running]:
    folder.mkdir(parents=True, exist_ok=True)
    with running(folder, toml=project_toml(topics=topics, workers=workers)) as up:
        yield up


def bench_door(folder: Path, *, callers: int, batch: int, name: str, seconds: float, runs: int) -> None:
    """Measures one worker with its writer on processor 0, the load on processor 1."""
    rates, per_core, p50, p99 = [], [], [], []
    with collector(folder) as up:
        pin(up.process.pid, 0)
        load(up.address[1], callers, batch, 1.0, cpu=1)
        for _ in range(runs):
            before = cpu_seconds(up.process.pid)
            seen = load(up.address[1], callers, batch, seconds, cpu=1)
            assert not seen["refused"], seen
            rates.append(seen["events"] / seen["seconds"])
            per_core.append(seen["events"] / (cpu_seconds(up.process.pid) - before))
            p50.append(seen["p50_ms"])
            p99.append(seen["p99_ms"])
    show(f"{name}, one core", spread(rates, "events/s"))
    show("  by processor time", spread(per_core, "events/s/core"))
    show("  ack", f"p50 {statistics.median(p50):.1f} ms  p99 {statistics.median(p99):.1f} ms (medians)")


def bench_restart(folder: Path, *, megabytes: int, runs: int) -> None:
    """Measures from the start of `headrace up` to its first 200, after a kill -9 with a large topic."""
    times, wal = [], 0.0
    with collector(folder) as up:
        topic_folder = up.folder / ".headrace/topics"
        topic = open_topic(f"sqlite:///{topic_folder}", "clicks")
        while sum(path.stat().st_size for path in topic_folder.iterdir()) < megabytes * 1e6:
            topic.append([Record(b"visitor-%d" % n, os.urandom(1000)) for n in range(5000)])
        topic.topics.close()
    for _ in range(runs):
        with collector(folder) as up:
            load(up.address[1], 64, 20, 2.0)
            wal = max(wal, (topic_folder / "topics.db-wal").stat().st_size / 1e6)
            up.kill()
        started_at = time.perf_counter()
        with collector(folder) as up:
            assert up.post("/v1/track", {"anonymousId": "ann", "messageId": "1"}).status == 200
            times.append(time.perf_counter() - started_at)
    show(f"restart after kill -9, {megabytes:,} MB topic", spread(times, "s to the first 200", low_is_good=True))
    show("  largest log file (WAL) at the kill", f"{wal:.1f} MB")


def bench_memory(folder: Path, *, seconds: float) -> None:
    with collector(folder) as up:
        load(up.address[1], 64, 20, 3.0)
        first = rss_mb(up.process.pid)
        load(up.address[1], 64, 20, seconds)
        show(f"memory after {seconds:g} s of load", f"{rss_mb(up.process.pid):.0f} MB  (after 3 s: {first:.0f} MB)")


def cost(pid: int, port: int, seconds: float, runs: int) -> list[float]:
    """Returns the processor microseconds per durable event, run by run."""
    load(port, 32, 1, 1.0)
    found = []
    for _ in range(runs):
        before = cpu_seconds(pid)
        seen = load(port, 32, 1, seconds)
        assert not seen["refused"], seen
        found.append((cpu_seconds(pid) - before) / seen["events"] * 1e6)
    return found


def bench_recipe(folder: Path, *, seconds: float, runs: int) -> None:
    """Compares the processor time per event with the recipe's, the broker's left out on both sides."""
    from services.kafka import Broker, fetch_jars

    broker = Broker(folder, fetch_jars())
    broker.start()
    try:
        port = free_port()
        gunicorn = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "gunicorn",
                "-k",
                "gthread",
                "-w",
                "2",
                "--threads",
                "16",
                "-b",
                f"127.0.0.1:{port}",
                "--log-level",
                "error",
                "recipe:app",
            ],
            cwd=HERE,
            env={**os.environ, "BROKER": broker.address},
        )
        try:
            wait_for(port)
            theirs = cost(gunicorn.pid, port, seconds, runs)
        finally:
            gunicorn.terminate()
            gunicorn.wait()
        ours = {}
        for name, url in (("kafka:", broker.url), ("sqlite:", "sqlite:///.headrace/topics")):
            with collector(folder / name.strip(":"), topics=url) as up:
                ours[name] = cost(up.process.pid, up.address[1], seconds, runs)
    finally:
        broker.stop()
    show("Flask + gunicorn + kafka-python", spread(theirs, "us CPU per event", low_is_good=True))
    for name, costs in ours.items():
        ratio = statistics.median(theirs) / statistics.median(costs)
        show(f"headrace on {name}", spread(costs, "us CPU per event", low_is_good=True) + f"  ratio 1/{ratio:.1f}")


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port: int) -> None:
    import socket

    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def bench_settle(*, clicks: int, runs: int) -> None:
    found = [part_of("lake.py", "settle", clicks) for _ in range(runs)]
    show("settled, clicks to events", spread([one["settle_per_second"] for one in found], "/s/core"))
    show("events to table", spread([one["sink_per_second"] for one in found], "/s/core"))
    show("- bytes a row in the lake", f"{found[0]['bytes_per_row']:.0f}")
    grown = [one["rss_settled_mb"] - one["rss_before_mb"] for one in found]
    show("- memory added by the settler", spread(grown, "MB", low_is_good=True))
    show("- memory of both in one process", spread([one["rss_mb"] for one in found], "MB", low_is_good=True))


def bench_commits(*, count: int) -> None:
    found = part_of("lake.py", "commits", count)
    show(
        f"{count:,} small commits, kept",
        f"first 200 p50 {found['first_p50_ms']:.1f} ms, last 200 p50 {found['last_p50_ms']:.1f} ms, "
        f"p99 {found['last_p99_ms']:.1f} ms",
    )
    found = part_of("lake.py", "pyiceberg", 150)
    ratio = found["theirs_p50_ms"] / found["ours_p50_ms"]
    show(
        "150 appends of 10,000 rows, p50",
        f"headrace {found['ours_p50_ms']:.1f} ms  pyiceberg {found['theirs_p50_ms']:.1f} ms  ratio {ratio:.1f}",
    )


def bench_lake(*, is_full: bool, runs: int) -> None:
    bench_settle(clicks=1_000_000 if is_full else 200_000, runs=runs)
    bench_commits(count=20_000 if is_full else 2_000)
    found = part_of("lake.py", "scan", 10_000_000)
    ratio = found["ours_seconds"] / found["plain_seconds"]
    show(
        "10M rows scanned and grouped",
        f"headrace {found['ours_seconds']:.2f} s  plain DuckDB {found['plain_seconds']:.2f} s  ratio {ratio:.2f}",
    )
    found = part_of("lake.py", "fresh", 60 if is_full else 20)
    show(
        "click to SQL at 1 s flush",
        f"p50 {found['p50_seconds']:.2f} s  p95 {found['p95_seconds']:.2f} s  p99 {found['p99_seconds']:.2f} s  "
        f"({found['n']} clicks)",
    )
    found = part_of("lake.py", "resume", 20 if is_full else 5)
    show(
        "after kill -9 of the stream",
        f"settled after {found['settled_seconds']:.2f} s (worst {found['settled_worst']:.2f}), "
        f"in the table after {found['sunk_seconds']:.2f} s (worst {found['sunk_worst']:.2f})",
    )
    millions = 100 if is_full else 10
    found = part_of("lake.py", "seen", millions)
    show(
        f"{millions}M ids remembered",
        f"{found['us_per_id']:.2f} us an id, {found['rss_mb']:.0f} MB, opened in {found['open_seconds']:.2f} s",
    )
    if shutil.which("java") and shutil.which("mvn"):
        found = part_of("lake.py", "hdfs", 300 if is_full else 60)
        show(
            "commit on HDFS, two data nodes",
            f"p50 {found['p50_ms']:.0f} ms  p90 {found['p90_ms']:.0f} ms  {found['over_450_ms']} of {found['n']} "
            "waited half a second for a block report",
        )


def bench_pages(*, is_full: bool) -> None:
    for items in (240, 100_000) if is_full else (240,):
        found = part_of("pages.py", "pages", items)
        show(
            f"pages of {items:,} items, one core",
            f"median {found['pages_per_second']:,.0f}  best {found['best_per_second']:,.0f} pages/s  "
            f"p50 {found['p50_ms']:.1f} ms  p99 {found['p99_ms']:.1f} ms  {found['cpu_us']:.0f} us of processor each",
        )
        show(
            "  one caller alone",
            f"p50 {found['alone_p50_ms']:.1f} ms  p99 {found['alone_p99_ms']:.1f} ms  "
            f"{found['refused']:.0f} refused  {found['unlogged']:.0f} unlogged",
        )
    found = part_of("pages.py", "assignment", 100_000)
    show("assignment", f"{found['per_second']:,.0f}/s one by one  {found['bulk_per_second']:,.0f}/s in bulk")
    found = part_of("pages.py", "report", 1_000_000)
    show("verdict over 1M visitors", f"{found['seconds']:.2f} s from their counts")
    found = part_of("pages.py", "lake_report", 1_000_000 if is_full else 100_000)
    show(f"  {found['visitors']:,.0f} visitors from lake rows", f"{found['seconds']:.1f} s, ten items viewed each")
    found = part_of("pages.py", "worlds", 10 if is_full else 3)
    show("a trial of 5,000 pages rehearsed", f"{found['seconds']:.2f} s")


def bench_live(*, is_full: bool) -> None:
    found = part_of("live_viewers.py", 50, 10.0 if is_full else 5.0, 9 if is_full else 5)
    show(
        "50 viewers of Live, one core",
        f"{found['rate']:,.0f} events/s without, {found['rate_viewed']:,.0f} with  ratio median {found['ratio']:.3f}  "
        f"worst {found['worst']:.3f}  ({found['runs']:.0f} pairs)",
    )
    show(
        "  processor time",
        f"{found['cost']:.1f} us an event without, {found['cost_viewed']:.1f} with; at rest "
        f"{100 * found['idle']:.1f} % of a core without, {100 * found['idle_viewed']:.1f} % with; "
        f"{found['samples']:.0f} samples each",
    )


def bench_features(*, is_full: bool) -> None:
    for part, text in {
        "persons": "by person",
        "items": "by item, few of which have most",
        "served": "by person, as two doors served them",
        "served_items": "by item, as two doors served them",
        "lake": "by person, the item in its JSON",
    }.items():
        events = 10_000_000 if is_full or part == "persons" else 2_000_000
        found = part_of("features.py", part, events)
        show(
            f"1M labels over {events // 1_000_000}M events, {text}",
            f"median {found['seconds']:.2f} s  best {found['best_seconds']:.2f} s  {found['cpu_seconds']:.2f} s of "
            f"processor  {found['rss_mb']:.0f} MB",
        )
    events = 10_000_000 if is_full else 2_000_000
    found = part_of("features.py", "compare", events)
    ratio = found["theirs_seconds"] / found["ours_seconds"]
    show(
        f"{events // 10:,} labels over {events:,} events",
        f"headrace {found['ours_seconds']:.2f} s  DuckDB range join {found['theirs_seconds']:.2f} s  ratio {ratio:.1f}",
    )


def bench_training(*, is_full: bool) -> None:
    for pages in (100_000, 1_000_000) if is_full else (100_000,):
        found = part_of("training.py", pages)
        show(
            f"training rows of {pages:,} pages",
            f"{found['rows']:,} rows: {found['labels_seconds']:.2f} s  with five features "
            f"{found['with_features_seconds']:.2f} s  fitted in {found['fit_seconds']:.2f} s  "
            f"{found['peak_mb']:.0f} MB",
        )


def bench_online() -> None:
    for items in (200, 10_000):
        found = part_of("online.py", "read", items)
        show(
            f"features of {items:,} items, CPU",
            f"p50 {found['read_cpu_ms_p50']:.2f} ms  p99 {found['read_cpu_ms_p99']:.2f} ms  after a commit "
            f"{found['after_a_commit_cpu_ms_p50']:.2f} ms  after a hop {found['after_a_hop_cpu_ms_p50']:.2f} ms",
        )
    found = part_of("online.py", "count", 60_000)
    show("events counted in tiles, one core", f"{found['events_per_cpu_second']:,.0f}/s")
    found = part_of("online.py", "fresh", 100)
    show("event to feature value", f"p50 {found['p50_seconds']:.3f} s  p95 {found['p95_seconds']:.3f} s")


def bench_learned(*, is_full: bool) -> None:
    for items in (10_000, 100_000) if is_full else (10_000,):
        found = part_of("learned.py", "page", items)
        show(
            f"page over {items:,} items, five features",
            f"CPU p50 {found['cpu_ms_p50']:.2f} ms  p99 {found['cpu_ms_p99']:.2f} ms in process, with the log's "
            f"writer {found['with_writer_ms']:.2f} ms",
        )
        found = part_of("learned.py", "pages", items)
        show(
            "  over HTTP, durable, one core",
            f"median {found['pages_per_second']:,.0f}  best {found['best_per_second']:,.0f} pages/s  "
            f"p50 {found['p50_ms']:.1f} ms  p99 {found['p99_ms']:.1f} ms  {found['cpu_us']:.0f} us of processor each  "
            f"{found['refused']:.0f} refused  {found['unlogged']:.0f} unlogged",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="longer runs, and ten minutes of load")
    parser.add_argument("--only", help="only the parts whose name contains this")
    given = parser.parse_args()
    seconds, runs = (10.0, 5) if given.full else (4.0, 3)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        parts: dict[str, Callable[[], None]] = {
            "fsync": lambda: bench_fsync(folder),
            "world": bench_world,
            "topic": lambda: bench_topic(folder),
            "singles": lambda: bench_door(
                folder / "s", callers=32, batch=1, name="single events, 32 callers", seconds=seconds, runs=runs
            ),
            "batches": lambda: bench_door(
                folder / "b", callers=32, batch=20, name="batches of 20, 32 callers", seconds=seconds, runs=runs
            ),
            "restart": lambda: bench_restart(folder / "r", megabytes=1000, runs=runs),
            "memory": lambda: bench_memory(folder / "m", seconds=600.0 if given.full else 20.0),
            "recipe": lambda: bench_recipe(folder, seconds=seconds, runs=runs),
            "lake": lambda: bench_lake(is_full=given.full, runs=runs),
            "pages": lambda: bench_pages(is_full=given.full),
            "features": lambda: bench_features(is_full=given.full),
            "training": lambda: bench_training(is_full=given.full),
            "online": bench_online,
            "live": lambda: bench_live(is_full=given.full),
            "learned": lambda: bench_learned(is_full=given.full),
        }
        cpu = next(
            (
                line.split(":")[1].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")
            ),
            platform.machine(),
        )
        show(
            "machine", f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
        )
        for part, measure in parts.items():
            if not given.only or given.only in part:
                measure()


if __name__ == "__main__":
    main()
