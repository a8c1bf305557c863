"""The figures of pages that a click model ranks by features: `learned.py PART ITEMS` prints JSON.

`page` makes pages in this process, `pages` asks for them over HTTP; decisions are durable before an answer leaves.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import uvloop

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from pages import ask, make_bundles  # noqa: E402
from run import cpu_seconds, family, pin  # noqa: E402

from headrace.base.clock import machine_us  # noqa: E402
from headrace.base.errors import UnavailableError  # noqa: E402
from headrace.base.http import Request  # noqa: E402
from headrace.base.telemetry import Metrics  # noqa: E402
from headrace.collect.load import load_members  # noqa: E402
from headrace.doors import Behind, open_endpoint  # noqa: E402
from headrace.endpoints.app import METRICS as PAGES  # noqa: E402
from headrace.experiments.promotion import CHAMPION, VERSION, Champion, encode_promotion  # noqa: E402
from headrace.features.updater import METRICS, Updater  # noqa: E402
from headrace.models import Bundle  # noqa: E402
from headrace.models.model import pack_texts  # noqa: E402
from headrace.models.registry import Entry  # noqa: E402
from headrace.project import OpenProject, open_project  # noqa: E402
from headrace.stream import find_sources  # noqa: E402
from running import project_toml, running  # noqa: E402
from streamline import append, clicked  # noqa: E402

GENRES, CLICKS, PERSONS = 12, 60_000, 20_000
HOUR_US = 3_600_000_000

PROJECT = """from headrace import Attribute, Carousel, Dimension, Event, Experiment, Metric, Page, Project, item, person
from headrace.features import count, last
from headrace.models import click_model, popularity

genre = Attribute("genre")
items = Dimension("items", key="product_id", attributes=(genre,))
views = Event("Product List Viewed", item="products[].product_id", of=items)
clicks = Event("Product Clicked", item="product_id", of=items)
taste = count("taste", clicks, by=(person, genre), windows=("1d", "28d"))
appeal = count("appeal", clicks, by=item, windows=("1d", "7d"))
latest = last("latest", clicks, item, by=person, windows=("1h",))
ctr = Metric.ratio("ctr", clicks, views, within="30m")
popular = popularity("popular", clicks, half_life="3d")
ranker = click_model("ranker", ctr, features=(taste, appeal, latest))
home = Page("home", per_row=10, explore=0.1, fallback=popular, carousels=(
    Carousel("For you", candidates=(popular,), rank=ranker),))
project = Project("streamline", pages=(home,))
"""


def make_ranker(project: OpenProject, items: int) -> Bundle:
    """Returns the bundle of a click model that likes all that is counted."""
    columns = project.declared.columns
    ones, none = np.ones(len(columns)), np.zeros(len(columns))
    popular, _ = make_bundles(items, 10)
    genres = pack_texts([f"genre-{number % GENRES:02}" for number in range(items)])
    arrays = {
        "items": popular.arrays["items"],
        "categories": popular.arrays["categories"],
        "item_genre": genres,
        "base": np.array([-2.0, -0.7]),
        "weights": ones,
        "contexts": none,
        "means": none,
        "scales": ones,
    }
    parameters = {"columns": [msgspec.to_builtins(column) for column in columns]}
    return Bundle("ranker", "click", parameters, {"at_us": 1, "rows": 1}, arrays)


def make_clicks(items: int, now_us: int) -> list[object]:
    """Returns clicks of the last twelve hours, in which few items and persons have most."""
    draw, found = random.Random(7), []
    for number in range(CLICKS):
        # Those who ask for pages are the same.
        person = str(uuid.UUID(int=int(PERSONS * draw.random() ** 2)))
        thing = int(items * draw.random() ** 3)
        name = f"item-{thing:06}"
        known = msgspec.Raw(json.dumps({name: {"genre": f"genre-{thing % GENRES:02}"}}).encode())
        at_us = now_us - (CLICKS - number) * (12 * HOUR_US // CLICKS)
        found.append(clicked(person, name, at_us=at_us, attributes=known, seq=number))
    return found


def count_clicks(project: OpenProject) -> None:
    """Counts all that `events` holds in the online store."""
    updater = Updater(
        project.online,
        lambda: project.declared.columns,
        find_sources(project),
        clock=machine_us,
        metrics=Metrics(METRICS),
    )
    updater.open()
    ends = tuple(bound.end for bound in project.topics.bounds("events"))
    while updater.turn() or _applied(project) != ends:
        pass


def _applied(project: OpenProject) -> tuple[int, ...]:
    try:
        return tuple(project.online.snapshot(()).state.offsets)
    except UnavailableError:
        return ()


@contextmanager
def project_of(folder: Path, items: int) -> Iterator[OpenProject]:
    """Yields a project whose page a click model ranks, with items, clicks and their counts."""
    (folder / "project.py").write_text(PROJECT)
    (folder / "headrace.toml").write_text(project_toml())
    with open_project(folder) as project:
        project.make_topics()
        now_us = machine_us()
        (dimension,) = project.declared.dimensions
        members = {f"item-{number:06}": {"genre": f"genre-{number % GENRES:02}"} for number in range(items)}
        load_members(project.topics, dimension, members=members, now_us=now_us)
        append(project, events=make_clicks(items, now_us))
        count_clicks(project)
        ranker = make_ranker(project, items)
        for bundle in (make_bundles(items, 10)[0], ranker):
            project.registry.add(bundle)
        champion = Champion(version=VERSION, page="home", bundle=ranker.hash, model="ranker", how="hand")
        project.registry.write(Entry(0, CHAMPION, "home", encode_promotion(champion), now_us, "bench"))
        yield project


def page(items: int) -> dict[str, float]:
    """Whole pages in one process, from the request's bytes to the answer's."""
    with tempfile.TemporaryDirectory() as name, project_of(Path(name), items) as project:
        return uvloop.run(_make_pages(project, 1000))


async def _make_pages(project: OpenProject, number: int) -> dict[str, float]:
    sender = project.topics.open_sender(deadline_seconds=2.0, max_pending_bytes=1 << 20)
    app, _ = await open_endpoint(Behind(project, sender, Metrics(PAGES)))
    endpoint = app.routes["POST", "/v1/page"].__self__
    # It finds its champion, and follows all clicks.
    while json.loads((await endpoint.page(_request(0))).body).get("degraded") != []:
        await asyncio.sleep(0.05)
    for place in range(50):
        await endpoint.page(_request(place))
    taken, began = [], time.process_time()
    for place in range(number):
        before = time.thread_time_ns()
        answer = await endpoint.page(_request(place * 7919))
        taken.append((time.thread_time_ns() - before) / 1e6)
        assert answer.status == 200
    whole = (time.process_time() - began) / number * 1000
    shown = json.loads(answer.body)
    assert shown["recommendation_id"], shown
    assert not shown["degraded"], shown
    await app.close()
    await sender.close()
    taken.sort()
    return {"cpu_ms_p50": taken[number // 2], "cpu_ms_p99": taken[int(number * 0.99)], "with_writer_ms": whole}


def _request(place: int) -> Request:
    body = json.dumps({"page": "home", "anonymous_id": str(uuid.UUID(int=place % PERSONS)), "deadline_ms": 1000})
    agent = b"Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"
    scope = {"method": "POST", "path": "/v1/page", "scheme": "http", "headers": [(b"user-agent", agent)]}
    return Request(scope, body.encode())


def pages(items: int) -> dict[str, float]:
    """Pages over HTTP, the endpoint with the log's writer on one processor, 16 callers on the other."""
    with (
        tempfile.TemporaryDirectory() as name,
        project_of(Path(name), items) as project,
        running(Path(name), "endpoint") as up,
    ):
        port = int(up.urls["endpoint"].rpartition(":")[2])
        for pid in family(up.process.pid):
            pin(pid, 0)
        os.sched_setaffinity(0, {1})
        time.sleep(3.0)  # the door prepares its items, and follows the clicks
        uvloop.run(ask(port, 16, 1.0))
        runs = []
        for _ in range(3):
            before = cpu_seconds(up.process.pid)
            found = uvloop.run(ask(port, 16, 5.0))
            found["cpu_us"] = (cpu_seconds(up.process.pid) - before) / found["pages"] * 1e6
            runs.append(found)
        logged = sum(bound.end for bound in project.topics.bounds("decisions"))
        assert logged >= sum(run["pages"] - run["unlogged"] - run["refused"] for run in runs), (logged, runs)
        newest = project.topics.bounds("decisions")[0].end - 1
        (message, *_) = project.topic("decisions").read({0: newest}, wait_seconds=1.0)
        decision = json.loads(message.value)
    assert decision["vectors"], decision
    best = sorted(runs, key=lambda run: run["pages"] / run["seconds"])
    return {
        "pages_per_second": best[1]["pages"] / best[1]["seconds"],
        "best_per_second": best[-1]["pages"] / best[-1]["seconds"],
        **{name: best[1][name] for name in ("p50_ms", "p99_ms", "cpu_us")},
        "refused": sum(run["refused"] for run in runs),
        "unlogged": sum(run["unlogged"] for run in runs),
    }


PARTS = {"page": page, "pages": pages}

if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]](int(sys.argv[2]))))
