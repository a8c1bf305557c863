"""The endpoint's door at a real port, in a thread of the test's own process, so that a test can also look inside.

with open_door(tmp_path) as door:
    assert door.ask(anonymous_id="ann").status == 200
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
from dataclasses import dataclass

import numpy as np
import uvloop

from headrace.base.http import _start, listen
from headrace.base.telemetry import Metrics
from headrace.doors import Behind, open_endpoint
from headrace.endpoints.app import METRICS
from headrace.experiments.experiment import Trial, encode_trial
from headrace.models import Bundle
from headrace.models.model import pack_texts
from headrace.models.registry import Entry
from headrace.models.taste import person_keys
from headrace.project import open_project
from running import Answer, wait_until
from streamline import BEGAN_US

GENRES = ("comedy", "drama", "space")


def make_popular(num_items=12, *, marked=0, prefix="item", **more):
    """Returns a bundle of popularity; `marked` makes it another one."""
    arrays = {
        "items": pack_texts([f"{prefix}-{number}" for number in range(num_items)]),
        "categories": pack_texts([GENRES[number % 3] for number in range(num_items)]),
        "counts": np.arange(num_items, dtype=float)[::-1] + marked,
    }
    return Bundle("popular", "popularity", {"half_life_us": 1}, {"at_us": BEGAN_US}, {**arrays, **more})


def make_tastes(num_items=12, *, people=("ann", "bob"), **more):
    """Returns a bundle of tastes, in which each person likes one genre."""
    keys = person_keys(list(people))
    order = np.argsort(keys)
    clicks = np.array([[9 * (number % 3 == genre) for genre in range(3)] for number in range(len(people))], np.float32)
    arrays = {
        **make_popular(num_items).arrays,
        "genres": pack_texts(GENRES),
        "item_genres": (np.arange(num_items) % 3).astype(np.int32),
        "persons": keys[order],
        "genre_clicks": clicks.reshape(-1, 3)[order],
    }
    parameters = {"half_life_us": 1, "prior": 2.0}
    return Bundle("tastes", "taste", parameters, {"at_us": BEGAN_US}, {**arrays, **more})


class Scores:
    """A scorer as somebody else may write one: of four items, with whatever scores."""

    def __init__(self, scores):
        self.items = self.categories = tuple("abcd")
        self.places = {item: number for number, item in enumerate("abcd")}
        self._scores = scores

    columns = ()

    def scores(self, person, values=()):  # noqa: ARG002
        """Returns the scores; raises ZeroDivisionError where there are none, as a bug would."""
        if not self._scores:
            raise ZeroDivisionError(person)
        return np.array(self._scores)


def make_trial(control, treatment, *, number=1, status="running", **more):
    """Returns a trial of two bundles, whose seed puts both arms to use."""
    known = {
        "version": 1,
        "id": f"taste-home-{number}",
        "experiment": "taste-home",
        "page": "home",
        "seed": f"taste-home-{number}",
        "control": control,
        "treatment": treatment,
        "per_row": 4,
        "explore": 0.1,
        "started_us": BEGAN_US,
        "positions": {"decisions": (0, 0), "events": (0, 0)},
        "incarnations": {"decisions": "", "events": ""},
        "goal": "ctr",
        "above": "Product Clicked",
        "above_item": "product_id",
        "below": "Product List Viewed",
        "below_item": "products[].product_id",
        "within_us": 1_800_000_000,
        "lateness_us": 3_600_000_000,
        "alpha": 0.05,
        "mde": 0.25,
        "power": 0.8,
        "planned": 0,
        "definition": "00",
        "status": status,
    }
    return Trial(**(known | more))


def write_trial(registry, trial):
    """Makes a trial the newest row of its experiment."""
    newest = registry.newest("trial").get(trial.experiment)
    registry.write(Entry(newest.id if newest else 0, "trial", trial.experiment, encode_trial(trial), BEGAN_US, "test"))


@dataclass
class Door:
    """An endpoint that answers."""

    project: object
    port: int
    endpoint: object
    app: object
    metrics: Metrics

    @property
    def shelf(self):
        return self.endpoint._shelf

    @property
    def follower(self):
        return self.endpoint._follower

    def request(self, method, path, body=b"", *, headers=None):
        """Returns the answer to one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, {"content-type": "application/json", **(headers or {})})
            found = connection.getresponse()
            return Answer(found.status, found.read(), {name.lower(): value for name, value in found.getheaders()})
        finally:
            connection.close()

    def ask(self, *, page="home", headers=None, **body):
        """Returns the answer to a request for a page."""
        return self.request("POST", "/v1/page", json.dumps({"page": page, **body}).encode(), headers=headers)

    def add(self, *bundles):
        """Adds bundles to the registry, and waits until they can serve."""
        for bundle in bundles:
            self.project.registry.add(bundle)
        self.take_over()

    def start(self, trial):
        """Writes a trial's row, and waits until it counts."""
        write_trial(self.project.registry, trial)
        self.take_over()

    def take_over(self):
        """Waits until what the registry holds is what serves."""
        stamp = self.project.registry.stamp()
        wait_until(lambda: self.shelf._stamp == stamp or self.shelf.trouble, what="the registry's newest is taken over")

    def follow(self):
        """Waits until the endpoint knows all of `events`."""
        ends = tuple(bound.end for bound in self.project.topics.bounds("events"))
        wait_until(lambda: self.follower.applied == ends and not self.follower.is_behind, what="events are followed")

    def count(self, name, *values):
        """Returns a number of the metrics."""
        return self.metrics.count(name, *values).value()


@contextlib.contextmanager
def open_door(folder):
    """Yields the endpoint of the project in a folder, joined as the role joins it."""
    with contextlib.ExitStack() as stack:
        project = stack.enter_context(open_project(folder))
        project.make_topics()
        started: list = []
        stop = threading.Event()
        thread = threading.Thread(target=_run, args=(project, started, stop))
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        wait_until(lambda: started or not thread.is_alive(), what="the door is open")
        wait_until(lambda: not started[0].follower.is_behind, what="events are followed")
        yield started[0]


def _run(project, started, stop):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(project, started, stop))


async def _serve(project, started, stop):
    # The role's own `serve` listens to signals, which only a main thread hears.
    sender = project.topics.open_sender(deadline_seconds=2.0, max_pending_bytes=1 << 20)
    metrics = Metrics(METRICS)
    app, limits = await open_endpoint(Behind(project, sender, metrics))
    listener = listen("127.0.0.1", 0)
    state, server = await _start(app, listener, limits)
    endpoint = app.routes["POST", "/v1/page"].__self__
    started.append(Door(project, listener.getsockname()[1], endpoint, app, metrics))
    await asyncio.to_thread(stop.wait)
    server.close()
    for connection in list(state.connections):
        connection.shutdown()
    while state.tasks:
        await asyncio.wait(state.tasks)
    await app.close()
    await sender.close()
