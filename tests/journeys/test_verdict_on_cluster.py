"""From page to verdict: a laptop's records, copied to Kafka and HDFS, give the same verdict and the same bundle."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from pathlib import Path

import msgspec
import pytest

from headrace import learn, loop
from headrace.base.clock import begin_world
from headrace.console.crowd import Crowd
from headrace.events.decision import DECISIONS, decode_decision
from headrace.events.world import BORN_US, DAY, HOUR, Habits, World
from headrace.experiments.verdict import Verdict
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
SOURCE = PROJECT.format(per_row=10, explore=0.1)


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
    asked = crowd.pages
    while crowd.pages < asked + 800:
        await asyncio.sleep(0.1)
    stop.set()
    await live


def copy_decisions(project: OpenProject, fresh: OpenProject) -> None:
    found = read_topic(project, DECISIONS)
    fresh.topic(DECISIONS).append([Record(m.key, m.value, m.time_us, m.headers) for m in found])
    assert [(m.partition, m.value) for m in read_topic(fresh, DECISIONS)] == [(m.partition, m.value) for m in found]


def numbers(verdict: Verdict) -> dict[str, object]:
    """Returns all of a verdict but the offsets, which transactions shift."""
    found = msgspec.to_builtins(verdict)
    return {name: value for name, value in found.items() if name not in ("positions", "incarnations")}


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
        copy_decisions(project, other)
        with Parts(far, "settler", "sink") as parts:
            for part in parts.values():
                part.start()
            ends = learn.wait_for_lake(other, seconds=60)
            moved = msgspec.structs.replace(
                trial,
                positions={name: (0,) * len(places) for name, places in ends.items()},
                incarnations={name: other.topics.describe(name).incarnation for name in ends},
            )
            found = loop.judge_trial(other, moved, ends, verdict.made_us, cutoff_us=verdict.cutoff_us)
            assert numbers(found) == numbers(verdict)
            bundle = learn.fit(other, "tastes", at_us=verdict.made_us)
            assert {name: array.tobytes() for name, array in bundle.arrays.items()} == {
                name: array.tobytes() for name, array in again.arrays.items()
            }
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
