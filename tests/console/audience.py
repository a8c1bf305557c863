"""An audience for a shop: it asks its endpoint for pages, views them and clicks, as far as a test says."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import struct

from headrace.base.http import Request
from headrace.base.telemetry import Metrics
from headrace.collect.dimensions import Dimensions
from headrace.console.init import write_project
from headrace.endpoints.app import METRICS, Endpoint, EndpointOptions, Readers
from headrace.endpoints.follower import Follower
from headrace.endpoints.serving import Shelf
from headrace.endpoints.vectors import Lookup
from headrace.events.click import Door, encode_door
from headrace.project import open_project
from headrace.topics import Record
from running import project_toml
from streamline import PROJECT

HOUR = 3600.0
BEGAN_US = 1_795_000_000_000_000
ITEMS = [(f"item-{number:02}", ("comedy", "drama", "crime")[number % 3]) for number in range(24)]


def declare(shop, *, partitions=2):
    """Makes the shop a project with two models and an experiment, whose time a test steps."""
    for name in ("project.py", "headrace.toml"):
        (shop.folder / name).unlink(missing_ok=True)
    write_project(shop.folder)
    (shop.folder / "project.py").write_text(PROJECT.format(per_row=10, explore=0.1, below=""))
    toml = project_toml(clock="stepped://", extra=f"[topic.clicks]\npartitions = {partitions}\n")
    (shop.folder / "headrace.toml").write_text(toml)
    (shop.folder / ".headrace").mkdir(exist_ok=True)
    # With the time every id and every seed is the same in each run.
    (shop.folder / ".headrace" / "clock.stepped").write_bytes(struct.pack("<q", BEGAN_US))


def now_us(shop, *, later=0.0):
    """Returns the project's time, after so many seconds more."""
    with open_project(shop.folder) as project:
        return project.clock.step(later)


def click_before(shop, *, people=12):
    """Lets people click what no page of ours has shown, so that there is something to learn from."""
    at_us = now_us(shop)
    with open_project(shop.folder) as project:
        project.make_topics()
    records = [
        _record(visitor, _clicked(f"{visitor}-{item}", visitor, item, category), at_us)
        for number in range(people)
        for visitor in [f"past-{number}"]
        for item, category in ITEMS[number % 3 :: 3][: 4 + number // 3]
    ]
    append(shop, records)
    now_us(shop, later=1.0)


def fill(shop):
    """Makes the shop a project with past clicks and both models fitted."""
    declare(shop)
    click_before(shop)
    for name in ("popular", "tastes"):
        assert shop.call("model", "fit", name)[0] == 0


def copy(shop, folder):
    """Returns a shop in another folder that holds all that this one does."""
    shutil.copytree(shop.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sock"))
    return type(shop)(folder, is_new=False)


def ask(shop, visitors, *, agent="Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"):
    """Returns what the endpoint answers to each visitor who asks for the home page."""
    return asyncio.run(_ask(shop, visitors, agent))


async def _ask(shop, visitors, agent):
    with open_project(shop.folder) as project:
        project.make_topics()
        pages = project.declared.pages
        follower = Follower(project.topics, [event for page in pages for event in page.events])
        shelf = Shelf(lambda: project.registry, pages)
        shelf.refresh()
        sender = project.topics.open_sender(deadline_seconds=5.0, max_pending_bytes=1 << 20)
        metrics = Metrics(METRICS, folder=None, process="test")
        options = EndpointOptions(entropy=random.Random(f"{project.clock.now_us()}/{visitors[0]}").randbytes)
        readers = Readers(follower, Lookup(lambda: project.online, Dimensions(project.topics, ())))
        endpoint = Endpoint(shelf, readers, sender, project.clock, metrics, options)
        following = asyncio.create_task(follower.run())
        while follower.is_behind:
            await asyncio.sleep(0.01)
        answers = [json.loads((await endpoint.page(_request(visitor, agent))).body) for visitor in visitors]
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await sender.close()
        return answers


def _request(visitor, agent):
    body = {"page": "home", "anonymous_id": visitor, "context": {"userAgent": agent}, "deadline_ms": 5000}
    return Request({"method": "POST", "path": "/v1/page", "headers": [], "scheme": "http"}, json.dumps(body).encode())


def respond(shop, pages, *, seed=1, click=None, view=None, run=True):
    """Lets visitors view the pages, and click with the chance that `click` gives a page; moves all into the lake."""
    draw = random.Random(seed).random
    at_us = now_us(shop, later=60.0)
    records = []
    for page in pages:
        if view is not None and not view(page):
            continue
        chance = click(page) if click is not None else 0.2
        events = [_viewed(page), *(_clicked_on(page, item) for item in _items(page) if draw() < chance)]
        records += [_record(page["anonymous_id"], event, at_us) for event in events]
    append(shop, records, run=run)


def expose(shop, visitors, arm):
    """Lets an app of the shop's own tell that visitors are in an arm of the trial."""
    at_us = now_us(shop)
    told = {"experiment_id": "taste-home", "variation_id": arm}
    events = [(visitor, _track(f"told-{arm}-{visitor}", visitor, "Experiment Viewed", told)) for visitor in visitors]
    append(shop, [_record(visitor, event, at_us) for visitor, event in events])


def append(shop, records, *, run=True):
    """Appends raw clicks as the collector does."""
    with open_project(shop.folder) as project:
        project.topic("clicks").append(records)
    if run:
        shop.run()


def _record(visitor, event, at_us):
    door = Door(version=1, received_us=at_us, source="http/track", write_key="dev")
    return Record(visitor.encode(), json.dumps(event).encode(), 0, encode_door(door))


def _items(page):
    return page["rows"][0]["items"]


def _viewed(page):
    products = [
        {"product_id": item["id"], "position": item["position"], "category": item["category"]} for item in _items(page)
    ]
    traced = page["recommendation_id"]
    properties = {"list_id": "For you", "recommendation_id": traced, "products": products}
    return _track(f"{traced}-viewed", page["anonymous_id"], "Product List Viewed", properties)


def _clicked_on(page, item):
    traced = page["recommendation_id"]
    return _clicked(
        f"{traced}-{item['id']}", page["anonymous_id"], item["id"], item["category"], recommendation_id=traced
    )


def _clicked(message_id, visitor, item, category, **traced):
    return _track(
        message_id, visitor, "Product Clicked", {"product_id": item, "position": 1, "category": category, **traced}
    )


def _track(message_id, visitor, event, properties):
    return {
        "type": "track",
        "event": event,
        "messageId": message_id,
        "anonymousId": visitor,
        "properties": properties,
    }
