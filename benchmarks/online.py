"""The figures of the online store: `online.py PART NUMBER` prints JSON.

`read` of so many items, `count` of so many events, `fresh` over so many clicks.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

from headrace import Event
from headrace.base.clock import machine_us
from headrace.base.telemetry import Metrics
from headrace.events.dimension import Attribute, Dimension
from headrace.events.settled import EVENTS
from headrace.features import count, item, last, list_columns, person
from headrace.features.online import State, open_online
from headrace.features.serve import Items, Reader
from headrace.features.tiles import definitions_of, read_row
from headrace.features.updater import METRICS, Growth, Sources, Updater
from headrace.topics import Record, open_topics

BEGAN_US = 1_767_571_200_000_000
STEP_US = 10_000_000
PERSONS, GENRES, PARTITIONS = 2000, 12, 4
genre = Attribute("genre")
items = Dimension("items", key="product_id", attributes=(genre,))
clicks = Event("Product Clicked", item="product_id", of=items)
COLUMNS = list_columns(
    (
        count("taste", clicks, by=(person, genre), windows=("1d", "28d")),
        count("appeal", clicks, by=item, windows=("1d", "7d")),
        last("latest", clicks, item, by=person, windows=("1h",)),
    )
)


def click(number: int, thing: int, *, event_us: int) -> bytes:
    name = f"item-{thing}"
    event = {
        "version": 1,
        "type": "track",
        "event": "Product Clicked",
        "event_us": event_us,
        "person": f"p{number * 7919 % PERSONS}",
        "src_offset": number,
        "seq": number // PARTITIONS,
        "properties": {"product_id": name},
        "attributes": {name: {"genre": f"g{thing % GENRES}"}},
    }
    return json.dumps(event).encode()


def make_growth(folder: Path) -> Growth:
    online = open_online(f"sqlite:///{folder}/online.db")
    nothing = (0,) * PARTITIONS
    state = State(
        generation=1,
        definitions=definitions_of(COLUMNS),
        incarnation="i",
        offsets=nothing,
        known=nothing,
        newest_us=nothing,
    )
    online.begin(state, COLUMNS)
    return Growth(online, state, COLUMNS)


def fill(growth: Growth, number: int, num_items: int) -> float:
    """Counts events and returns the CPU seconds of it."""
    draw = random.Random(7).randrange
    values = [click(n, draw(num_items), event_us=BEGAN_US + n * STEP_US) for n in range(number)]
    began = time.process_time()
    for start in range(0, number, 4000):
        rows = [(n % PARTITIONS, read_row(values[n])) for n in range(start, min(start + 4000, number))]
        growth.count(rows)
    return time.process_time() - began


def read(num_items: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        growth = make_growth(Path(name))
        fill(growth, 60_000, num_items)
        online = open_online(f"sqlite:///{name}/online.db")
        online.promote(growth.state)
        reader = Reader(online, COLUMNS)
        asked = Items([f"item-{n}" for n in range(num_items)], {"genre": [f"g{n % GENRES}" for n in range(num_items)]})
        now_us = BEGAN_US + 60_000 * STEP_US
        began = time.process_time()
        reader.prepare(asked)
        prepared = time.process_time() - began
        quiet = [_cpu_ms(reader, n, asked, now_us) for n in range(2000)]
        changed = []
        for n in range(60_000, 60_200):
            growth.count([(n % PARTITIONS, read_row(click(n, 7, event_us=now_us)))])
            changed.append(_cpu_ms(reader, n, asked, now_us))
        moved = [_cpu_ms(reader, n, asked, now_us + n * 3_600_000_000) for n in range(40)]
        return {
            "prepare_cpu_seconds": prepared,
            **_middle("read", quiet),
            **_middle("after_a_commit", changed),
            **_middle("after_a_hop", moved),
        }


def _cpu_ms(reader: Reader, number: int, asked: Items, now_us: int) -> float:
    began = time.process_time_ns()
    reader.read(f"p{number % PERSONS}", asked, now_us)
    return (time.process_time_ns() - began) / 1e6


def _middle(name: str, values: list[float]) -> dict[str, float]:
    values.sort()
    return {f"{name}_cpu_ms_p50": values[len(values) // 2], f"{name}_cpu_ms_p99": values[int(len(values) * 0.99)]}


def count_events(number: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        seconds = fill(make_growth(Path(name)), number, 10_000)
        return {"events_per_cpu_second": number / seconds}


def fresh(number: int) -> dict[str, float]:
    """From the append of a settled click to the value that a page would read."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        topics = open_topics(f"sqlite:///{name}/topics")
        topics.create(EVENTS, partitions=PARTITIONS, retention_seconds=None)
        online, stop = open_online(f"sqlite:///{name}/online.db"), threading.Event()
        sources = Sources(topics, lambda: None)
        updater = Updater(online, lambda: COLUMNS, sources, clock=machine_us, metrics=Metrics(METRICS))
        thread = threading.Thread(target=updater.run, args=(stop,))
        thread.start()
        while online.read_state() is None:
            time.sleep(0.01)
        other = open_online(f"sqlite:///{name}/online.db")
        reader, asked, took = Reader(other, COLUMNS), Items(["item-7"], {"genre": ["g7"]}), []
        for n in range(number):
            began = time.perf_counter()
            record = Record(b"k", click(n * PARTITIONS, 7, event_us=BEGAN_US))
            topics.append(EVENTS, [record], deadline_seconds=5)
            while reader.read("p", asked, BEGAN_US + 1).values[2][0] <= n:
                time.sleep(0.001)
            took.append(time.perf_counter() - began)
            time.sleep(random.Random(n).random() / 10)
        stop.set()
        thread.join()
        topics.close()
        took.sort()
        return {"p50_seconds": took[number // 2], "p95_seconds": took[int(number * 0.95)]}


PARTS = {"read": read, "count": count_events, "fresh": fresh}

if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]](int(sys.argv[2]))))
