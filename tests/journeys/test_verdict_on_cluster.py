"""From page to verdict: a laptop's records, copied to Kafka and HDFS, give the same rows, verdict and bundle."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from dataclasses import fields
from hashlib import blake2b
from pathlib import Path

import msgspec
import numpy as np
import pytest

from headrace import learn, loop
from headrace.base.clock import begin_world
from headrace.collect.load import load_members, make_dimension
from headrace.console.crowd import Crowd
from headrace.events.decision import DECISIONS, decode_decision
from headrace.events.settled import EVENTS
from headrace.events.world import BORN_US, DAY, HOUR, Habits, World
from headrace.experiments.experiment import Trial
from headrace.experiments.verdict import Verdict
from headrace.features.parity import diff
from headrace.models import Bundle
from headrace.models.rows import Rows, read_rows
from headrace.project import OpenProject, open_project
from headrace.topics import Record
from running import Running, running, wait_until
from services.cluster import cluster_of
from streamline import PROJECT
from survive.account import copy_clicks, read_topic
from survive.stream import Parts, make_project

pytestmark = [pytest.mark.soak, pytest.mark.service("kafka"), pytest.mark.service("hdfs")]

VISITORS = 400
HABITS = Habits(visits_per_day=12.0, beats=1.0)
TRIAL = "taste-home"
SOURCE = PROJECT.format(per_row=10, explore=0.1, below="")
FEATURES = """from headrace import Attribute, Carousel, Dimension, Event, Experiment, Metric, Page, Project
from headrace.features import count, item, last, person
from headrace.models import click_model, popularity

title, genre = Attribute("title"), Attribute("genre")
items = Dimension("items", key="product_id", attributes=(title, genre))
views = Event("Product List Viewed", item="products[].product_id", of=items)
clicks = Event("Product Clicked", item="product_id", of=items)
taste = count("taste", clicks, by=(person, genre), windows=("1d", "28d"))
appeal = count("appeal", clicks, by=item, windows=("1d", "7d"))
latest = last("latest", clicks, genre, by=person, windows=("1h",))
ctr = Metric.ratio("ctr", clicks, views, within="30m")
popular = popularity("popular", clicks, half_life="3d")
ranker = click_model("ranker", ctr, features=(taste, appeal, latest))
home = Page("home", per_row=10, explore=0.1, fallback=popular, carousels=(
    Carousel("For you", candidates=(popular,), rank=ranker),))
trial = Experiment("ranked-home", on=home, goal=ctr, mde=0.25, power=0.8)
project = Project("streamline", pages=(home,), experiments=(trial,))
"""
RANKED = "ranked-home"


@pytest.fixture
def cluster(kafka, hdfs):
    """Places on Kafka and HDFS for one project."""
    with cluster_of(kafka, hdfs) as one:
        yield one


def make_crowd(project: OpenProject, up: Running) -> Crowd:
    born_us = project.clock.now_us() - DAY
    world = World(5, visitors=VISITORS, born_us=born_us, habits=HABITS)
    return Crowd(world, up.urls["collector"], up.urls["endpoint"], project.clock)


async def play(project: OpenProject, crowd: Crowd) -> None:
    """Six hours of past, two hours of popularity, and a trial of 800 pages."""
    await crowd.send_history(0.25)
    await asyncio.to_thread(learn.wait_for_lake, project)
    for model in ("popular", "tastes"):
        await asyncio.to_thread(learn.fit, project, model)
    stop = asyncio.Event()
    live = asyncio.create_task(crowd.live(stop))
    await asyncio.sleep(2)
    await asyncio.to_thread(loop.start, project, TRIAL, gate=False)
    await wait_for_pages(project, crowd)
    stop.set()
    await live


async def wait_for_pages(project: OpenProject, crowd: Crowd) -> None:
    """Lets a trial have 800 pages and four hours at least: what is newer than an hour and a half does not count yet."""
    asked, until_us = crowd.pages, project.clock.now_us() + 4 * HOUR
    while crowd.pages < asked + 800 or project.clock.now_us() < until_us:
        await asyncio.sleep(0.1)


def copy_topic(project: OpenProject, fresh: OpenProject, name: str) -> None:
    """Copies a topic record for record into the empty one of another project."""
    found = read_topic(project, name)
    fresh.topic(name).append([Record(m.key, m.value, m.time_us, m.headers) for m in found])
    assert [(m.partition, m.value) for m in read_topic(fresh, name)] == [(m.partition, m.value) for m in found]


def numbers(verdict: Verdict) -> dict[str, object]:
    """Returns all of a verdict but the offsets, which transactions shift."""
    found = msgspec.to_builtins(verdict)
    return {name: value for name, value in found.items() if name not in ("positions", "incarnations")}


def arrays_of(bundle: Bundle) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in bundle.arrays.items()}


def judge(other: OpenProject, trial: Trial, ends: dict[str, tuple[int, ...]], verdict: Verdict) -> Verdict:
    """Returns the verdict on a trial by the rows of another lake."""
    moved = msgspec.structs.replace(
        trial,
        positions={name: (0,) * len(places) for name, places in ends.items()},
        incarnations={name: other.topics.describe(name).incarnation for name in ends},
    )
    return loop.judge_trial(other, moved, ends, verdict.made_us, cutoff_us=verdict.cutoff_us)


def test_the_records_of_a_laptop_give_the_same_verdict_on_the_cluster(tmp_path: Path, cluster) -> None:
    near, far = tmp_path / "laptop", tmp_path / "far"
    make_project(near, source=SOURCE, clock="world://?rate=3600")
    make_project(far, source=SOURCE, topics=cluster.topics, tables=cluster.tables, clock="world://?rate=3600")
    begin_world(near, BORN_US + 2 * DAY + 17 * HOUR)
    with running(near) as up, open_project(near) as project:
        asyncio.run(play(project, make_crowd(project, up)))
        verdict = loop.stop(project, TRIAL)
        again = learn.fit(project, "tastes", at_us=verdict.made_us)
        trial = loop.find_trial_of(project, verdict)
        control = project.registry.load(trial.control)
    assert verdict.control.clicks + verdict.treatment.clicks > 50, verdict
    with open_project(near) as project, open_project(far) as other:
        other.make_topics()
        copy_clicks(project, other)
        copy_topic(project, other, DECISIONS)
        with Parts(far, "settler", "sink") as parts:
            for part in parts.values():
                part.start()
            ends = learn.wait_for_lake(other, seconds=60)
            found = judge(other, trial, ends, verdict)
            assert numbers(found) == numbers(verdict)
            bundle = learn.fit(other, "tastes", at_us=verdict.made_us)
            assert arrays_of(bundle) == arrays_of(again)
            other.registry.add(control)
            check_page(far, other)


def check_page(folder: Path, project: OpenProject) -> None:
    """Asserts that a page is served from Kafka, and its decision logged there."""
    with running(folder, "endpoint") as up:
        request = urllib.request.Request(
            f"{up.urls['endpoint']}/v1/page",
            data=b'{"page":"home","anonymous_id":"eve","deadline_ms":5000}',
            headers={"user-agent": "Mozilla/5.0"},
        )

        def ask() -> bytes:
            try:
                with urllib.request.urlopen(request) as answer:
                    return answer.read()
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    raise
                return b""

        shown = json.loads(wait_until(ask))
    assert shown["recommendation_id"], shown
    logged = {decode_decision(message.value).recommendation_id for message in read_topic(project, DECISIONS)}
    assert shown["recommendation_id"] in logged


async def play_ranked(project: OpenProject, crowd: Crowd) -> None:
    """Six hours of past, three hours of popularity while genres change, and a trial of the ranker of 800 pages."""
    load_genres(project, crowd.world, {})
    await crowd.send_history(0.25)
    await asyncio.to_thread(learn.wait_for_lake, project)
    await asyncio.to_thread(learn.fit, project, "popular")
    stop = asyncio.Event()
    live = asyncio.create_task(crowd.live(stop))
    for number in range(3):
        await asyncio.sleep(1)
        moved = {one.product_id: crowd.world.items[number].genre for one in crowd.world.items[number::5]}
        await asyncio.to_thread(load_genres, project, crowd.world, moved)
    await asyncio.to_thread(plant_ranker, project)
    await asyncio.to_thread(loop.start, project, RANKED, gate=False)
    await wait_for_pages(project, crowd)
    stop.set()
    await live


def load_genres(project: OpenProject, world: World, moved: dict[str, str]) -> None:
    (items,) = project.declared.dimensions
    genres = {one.product_id: moved.get(one.product_id, one.genre) for one in world.items}
    members = {one.product_id: {"title": one.title, "genre": genres[one.product_id]} for one in world.items}
    load_members(project.topics, items, members=members, now_us=project.clock.now_us())


def plant_ranker(project: OpenProject) -> None:
    """Registers a ranker past the gate, which a few hundred pages need not pass."""
    learn.wait_for_lake(project)
    project.registry.add(learn.find_model(project, "ranker").fit(learn.open_lake(project)))


def settled_rows(project: OpenProject) -> list[tuple[int, bytes | None, bytes | None]]:
    return [(m.partition, m.key, m.value) for m in read_topic(project, EVENTS) if not m.headers]


def training_rows(project: OpenProject, at_us: int) -> Rows:
    versions = {name: project.tables.open(name).version for name in project.tables.names()}
    (trial,) = project.declared.experiments
    return read_rows(learn.LakeView(project, versions, at_us), trial.goal, project.declared.columns)


def hash_of(rows: Rows) -> str:
    """Returns a hash of all that a model learns from."""
    found = blake2b(repr(rows.names).encode(), digest_size=16)
    for field in fields(rows):
        held = getattr(rows, field.name)
        for array in held if isinstance(held, tuple) else [held] if isinstance(held, np.ndarray) else []:
            found.update(f"{field.name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()


def check_parity(project: OpenProject) -> None:
    """Asserts that the pages of a laptop served what this lake gives."""
    lake = learn.open_lake(project)
    decisions = lake.rows("SELECT * FROM decisions", {})
    bundles = {name for name in decisions.column("bundle").to_pylist() if name}
    found = diff(lake, decisions, dict.fromkeys(bundles, project.declared.columns))
    assert (found.mismatches, found.behind) == (0, 0), found
    assert found.decisions > 100


def test_the_records_of_a_laptop_give_the_same_training_rows_on_the_cluster(tmp_path: Path, cluster) -> None:
    near, far = tmp_path / "laptop", tmp_path / "far"
    make_project(near, source=FEATURES, clock="world://?rate=3600")
    make_project(far, source=FEATURES, topics=cluster.topics, tables=cluster.tables, clock="world://?rate=3600")
    begin_world(near, BORN_US + 2 * DAY + 17 * HOUR)
    with running(near) as up, open_project(near) as project:
        asyncio.run(play_ranked(project, make_crowd(project, up)))
        verdict = loop.stop(project, RANKED)
        learn.wait_for_lake(project)
        trial = loop.find_trial_of(project, verdict)
    assert verdict.control.clicks + verdict.treatment.clicks > 50, verdict
    with open_project(near) as project, open_project(far) as other:
        other.make_topics()
        (items,) = other.declared.dimensions
        make_dimension(other.topics, items)
        for name in (items.name, DECISIONS):
            copy_topic(project, other, name)
        copy_clicks(project, other)
        with Parts(far, "settler", "sink") as parts:
            for part in parts.values():
                part.start()
            ends = learn.wait_for_lake(other, seconds=60)
            wait_until(lambda: count_members(other) == count_members(project), what="the items are in the lake")
            assert settled_rows(other) == settled_rows(project)
            rows, again = (training_rows(one, verdict.made_us) for one in (project, other))
            assert len(rows) > 1000
            assert hash_of(again) == hash_of(rows)
            assert numbers(judge(other, trial, ends, verdict)) == numbers(verdict)
            bundle, refitted = (learn.fit(one, "ranker", at_us=verdict.made_us) for one in (project, other))
            assert arrays_of(refitted) == arrays_of(bundle)
            check_parity(project)
            check_parity(other)


def count_members(project: OpenProject) -> int:
    if "items" not in project.tables.names():
        return 0
    (found,) = project.query("SELECT count(*)::BIGINT AS members FROM items").table().to_pylist()
    return int(found["members"])
