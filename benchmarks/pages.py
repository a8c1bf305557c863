"""The figures of pages and trials, each as a program of its own: `pages.py PART NUMBER` prints JSON."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import tempfile
import time
import uuid
from pathlib import Path

import numpy as np
import uvloop

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from headrace.experiments.analyse import Visitors, judge  # noqa: E402
from headrace.experiments.assign import assign, buckets  # noqa: E402
from headrace.models import Bundle, popularity, taste  # noqa: E402
from headrace.models.model import pack_texts  # noqa: E402
from headrace.models.taste import person_keys  # noqa: E402
from headrace.project import open_project  # noqa: E402
from headrace.rehearse import CLICKS, make_scope, make_trial, rehearse  # noqa: E402

GENRES = 12


class Caller(asyncio.Protocol):
    """One connection that asks for a page, waits for it whole, and asks for the next one."""

    def __init__(self, made: list[bytes], run: Run, number: int) -> None:
        self._made, self._run = made, run
        self._at = number * 7919 % len(made)
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._started_at = time.perf_counter()
        self._at = (self._at + 1) % len(self._made)
        self._transport.write(self._made[self._at])

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r", 1)[0]):
            return
        now = time.perf_counter()
        self._run.latencies.append(now - self._started_at)
        self._run.refused += head[9:12] != b"200"
        self._run.unlogged += b'"recommendation_id":null' in body
        self._buffer = b""
        if now < self._run.ends_at:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._run.left -= 1
        if not self._run.left:
            self._run.done.set()


class Run:
    """What all callers share."""

    def __init__(self, callers: int, seconds: float) -> None:
        self.latencies: list[float] = []
        self.refused = self.unlogged = 0
        self.left = callers
        self.ends_at = time.perf_counter() + seconds
        self.done = asyncio.Event()


async def ask(port: int, callers: int, seconds: float) -> dict[str, float]:
    """Returns what so many callers measured who ask for pages for 20,000 visitors."""
    rng = random.Random(7)
    made = []
    for _ in range(2000):
        visitor = str(uuid.UUID(int=rng.getrandbits(128) % 20_000))
        body = json.dumps({"page": "home", "anonymous_id": visitor, "deadline_ms": 1000}).encode()
        head = (
            "POST /v1/page HTTP/1.1\r\nhost: x\r\n"
            "user-agent: Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        made.append(head.encode() + body)
    run = Run(callers, seconds)
    started_at = time.perf_counter()
    loop = asyncio.get_running_loop()
    for number in range(callers):
        await loop.create_connection(lambda number=number: Caller(made, run, number), "127.0.0.1", port)
    await run.done.wait()
    ordered = sorted(run.latencies)
    return {
        "pages": len(ordered),
        "seconds": time.perf_counter() - started_at,
        "p50_ms": ordered[len(ordered) // 2] * 1000,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1000,
        "refused": run.refused,
        "unlogged": run.unlogged,
    }


def make_bundles(items: int, persons: int) -> tuple[Bundle, Bundle]:
    """Returns a popularity and a taste bundle of made-up numbers."""
    rng = np.random.default_rng(7)
    names = [f"item-{number:06}" for number in range(items)]
    genres = [f"genre-{number:02}" for number in range(GENRES)]
    base = {
        "items": pack_texts(names),
        "categories": pack_texts([genres[number % GENRES] for number in range(items)]),
        "counts": rng.pareto(1.5, items) * 10,
    }
    keys = person_keys([str(uuid.UUID(int=number)) for number in range(persons)])
    more = {
        "genres": pack_texts(genres),
        "item_genres": (np.arange(items) % GENRES).astype(np.int32),
        "persons": np.sort(keys),
        "genre_clicks": rng.integers(0, 5, (persons, GENRES)).astype(np.float32),
    }
    parameters = {"half_life_us": 1, "prior": 2.0}
    return (
        Bundle("popular", "popularity", parameters, {}, base),
        Bundle("tastes", "taste", parameters, {}, {**base, **more}),
    )


def pages(items: int) -> dict[str, float]:
    """Pages over HTTP while a trial runs, decisions durable, the door's process on one processor."""
    from headrace import loop
    from running import running
    from streamline import make_project

    with tempfile.TemporaryDirectory() as name:
        folder = make_project(Path(name), per_row=10, partitions=4, clock="real://")
        with running(folder, "endpoint") as up, open_project(folder) as project:
            for bundle in make_bundles(items, 20_000):
                project.registry.add(bundle)
            loop.start(project, "taste-home", gate=False)
            port = int(up.urls["endpoint"].rpartition(":")[2])
            from run import cpu_seconds, family, pin

            for pid in family(up.process.pid):
                pin(pid, 0)
            os.sched_setaffinity(0, {1})
            time.sleep(1.0)  # the door finds the trial within 0.2 s
            uvloop.run(ask(port, 16, 1.0))
            runs = []
            for callers in (1, 16, 16, 16):
                before = cpu_seconds(up.process.pid)
                found = uvloop.run(ask(port, callers, 5.0))
                found["cpu_us"] = (cpu_seconds(up.process.pid) - before) / found["pages"] * 1e6
                runs.append(found)
            logged = sum(bound.end for bound in project.topics.bounds("decisions"))
            assert logged >= sum(run["pages"] - run["unlogged"] - run["refused"] for run in runs), (logged, runs)
    alone, *crowded = runs
    best = sorted(crowded, key=lambda run: run["pages"] / run["seconds"])
    return {
        "pages_per_second": best[1]["pages"] / best[1]["seconds"],
        "best_per_second": best[-1]["pages"] / best[-1]["seconds"],
        "p50_ms": best[1]["p50_ms"],
        "p99_ms": best[1]["p99_ms"],
        "cpu_us": best[1]["cpu_us"],
        "alone_p50_ms": alone["p50_ms"],
        "alone_p99_ms": alone["p99_ms"],
        "refused": sum(run["refused"] for run in runs),
        "unlogged": sum(run["unlogged"] for run in runs),
    }


def report(visitors: int) -> dict[str, float]:
    """A verdict over so many visitors, from their counts to the intervals."""
    rng = np.random.default_rng(7)
    names = [str(uuid.UUID(int=number)) for number in range(visitors)]
    arms = (buckets("report", names) >= 5000).astype(np.int8)
    views = rng.poisson(20, visitors).astype(np.int64)
    clicks = rng.binomial(views, np.where(arms == 1, 0.055, 0.05)).astype(np.int64)
    ones, zeros = np.ones(visitors, np.int64), np.zeros(visitors, np.int64)
    given = Visitors(names, arms, ones, zeros.astype(bool), zeros, ones, views, clicks)
    bundles = make_bundles(10, 10)
    trial = make_trial(1, bundles, 0)
    times = []
    for _ in range(5):
        started_at = time.perf_counter()
        verdict = judge(trial, given, made_us=1, scope=make_scope(trial, 1))
        times.append(time.perf_counter() - started_at)
    assert verdict.lift_interval is not None
    return {"seconds": sorted(times)[2], "visitors": visitors, "lift": verdict.lift or 0.0}


def lake_report(visitors: int) -> dict[str, float]:
    """The same from the rows of a lake: one page of ten items and half a click for each visitor."""
    import duckdb

    from headrace.experiments.analyse import exposures_sql, read_visitors, trial_scope

    trial = make_trial(1, make_bundles(10, 10), 0)
    connection = duckdb.connect()
    products = ",".join(f'{{"product_id":"item-{n}","position":{n + 1},"category":"drama"}}' for n in range(10))
    items = ", ".join(f"'item-{n}'" for n in range(10))
    connection.execute(
        f"CREATE TABLE decisions AS SELECT '{trial.id}' AS trial, 'r' || i AS recommendation_id, 'v' || i AS visitor, "
        "CASE i % 2 WHEN 0 THEN 'control' ELSE 'treatment' END AS arm, false AS bot, 1::BIGINT AS received_us, "
        f"[{items}] AS items, []::VARCHAR[] AS degraded, []::VARCHAR[] AS above, "
        "0 AS log_partition, i::BIGINT AS log_offset "
        f"FROM range({visitors}) t(i)"
    )
    properties = '{"list_id":"home","recommendation_id":"r\' || i || \'","products":[' + products + "]}"
    clicked = '{"list_id":"home","recommendation_id":"r\' || i || \'","product_id":"item-3"}'
    shared = (
        "'track' AS type, 'v' || i AS visitor, 'r' || i AS recommendation_id, false AS bot, 1::BIGINT AS received_us"
    )
    connection.execute(
        f"CREATE TABLE events AS SELECT {shared}, 'Product List Viewed' AS event, 2::BIGINT AS event_us, "
        f"'{properties}' AS properties, 0 AS log_partition, i::BIGINT AS log_offset FROM range({visitors}) t(i) "
        f"UNION ALL SELECT {shared}, 'Product Clicked', 3::BIGINT, '{clicked}', 0, {visitors} + i::BIGINT "
        f"FROM range({visitors}) t(i) WHERE hash(i) % 2 = 0"
    )
    ends = {"decisions": (visitors,), "events": (2 * visitors,)}
    frozen = {"decisions": (0,), "events": (0,)}
    from msgspec.structs import replace

    scope = trial_scope(replace(trial, positions=frozen), cutoff_us=10, positions=ends)
    times = []
    for _ in range(3):
        started_at = time.perf_counter()
        found = read_visitors(connection.sql(exposures_sql(scope)).to_arrow_table())
        verdict = judge(trial, found, made_us=1, scope=scope)
        times.append(time.perf_counter() - started_at)
    assert verdict.control.views == visitors * 5
    return {"seconds": sorted(times)[1], "visitors": visitors}


def assignment(count: int) -> dict[str, float]:
    """Visitors assigned one by one, and in bulk."""
    names = [str(uuid.UUID(int=number)) for number in range(count)]
    started_at = time.perf_counter()
    for name in names:
        assign("bench", name, (0.5, 0.5))
    single = count / (time.perf_counter() - started_at)
    many = names * (1_000_000 // count)
    started_at = time.perf_counter()
    buckets("bench", many)
    return {"per_second": single, "bulk_per_second": len(many) / (time.perf_counter() - started_at)}


def worlds(count: int) -> dict[str, float]:
    """Whole trials of 5,000 pages in one process."""
    popular = popularity("popular", CLICKS)
    started_at = time.perf_counter()
    for seed in range(count):
        rehearse(seed, [popular, taste("tastes", CLICKS, base=popular)])
    return {"seconds": (time.perf_counter() - started_at) / count}


if __name__ == "__main__":
    part = {
        "pages": pages,
        "report": report,
        "lake_report": lake_report,
        "assignment": assignment,
        "worlds": worlds,
    }[sys.argv[1]]
    print(json.dumps(part(int(sys.argv[2]))))
