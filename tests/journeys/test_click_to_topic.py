"""The whole stretch from click to topic, the same on a laptop and on Kafka."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from headrace.events.world import BORN_US, HOUR, World, encode
from headrace.project import open_project
from headrace.topics import Message
from running import call, lines, project_toml, running, wait_until
from services.cluster import clear
from survive.load import Clients, Proxy, check, until

pytestmark = pytest.mark.slow

PROFILES = ["laptop", pytest.param("cluster", marks=pytest.mark.service("kafka"))]


@pytest.fixture
def profile(request, tmp_path):
    """A project whose headrace.toml has the profile under test; project.py is the same in both."""
    name = request.param
    url = "sqlite:///.headrace/topics" if name == "laptop" else request.getfixturevalue("kafka").url
    (tmp_path / "headrace.toml").write_text(project_toml(topics=url, profile=name, workers=2))
    (tmp_path / "project.py").write_text("from headrace import Project\n\nproject = Project('shop')\n")
    yield name
    if name == "cluster":
        clear(request.getfixturevalue("kafka"))


def command(folder: Path, profile: str, *words: str, text: str = "") -> list[dict]:
    """Returns the JSON lines that a command prints."""
    code, out, error = call(*words, "--json", "--project", folder, "--profile", profile, stdin=text)
    assert code == 0, error
    return lines(out)


@pytest.mark.parametrize("profile", PROFILES, indirect=True)
def test_what_was_acknowledged_is_in_the_topic_for_anyone(tmp_path, profile):
    world = World(11, visitors=300)
    deliveries = list(world.deliver(world.traffic(BORN_US, BORN_US + 3 * HOUR)))
    sent = {event.message_id for delivery in deliveries for event in delivery.events}
    with running(tmp_path, "collector", profile=profile) as up:
        for delivery in deliveries:
            assert up.post("/v1/batch", encode(delivery)).status == 200
        found = command(tmp_path, profile, "topic", "read", "clicks")
        assert {line["value"]["messageId"] for line in found} == sent
        assert all(line["key"] == line["value"]["anonymousId"] for line in found)
        assert all(line["headers"]["door"]["write_key"] == "dev" for line in found)
        listed = next(one for one in command(tmp_path, profile, "topic", "list") if one["topic"] == "clicks")
        assert listed["partitions"] == 4
        assert listed["records"] == sum(len(delivery.events) for delivery in deliveries)
        status = command(tmp_path, profile, "status")
        assert next(one for one in status if one["kind"] == "role")["state"] == "ready"
    # Nothing runs now: reading, appending and moving a group still work.
    assert len(command(tmp_path, profile, "topic", "read", "clicks")) == len(found)
    more = "".join(json.dumps({"key": "ann", "value": {"n": n}}) + "\n" for n in range(10))
    assert command(tmp_path, profile, "topic", "append", "clicks", text=more) == [{"topic": "clicks", "records": 10}]
    command(tmp_path, profile, "topic", "replay", "clicks", "--group", "settler", "--to", "earliest")
    groups = command(tmp_path, profile, "topic", "groups", "clicks")
    assert sum(group["lag"] for group in groups) == len(found) + 10


@pytest.mark.parametrize("profile", PROFILES, indirect=True)
def test_the_same_clicks_get_the_same_places_everywhere(tmp_path, profile):
    events = [{"anonymousId": f"visitor-{n % 37}", "messageId": f"m{n}"} for n in range(200)]
    with running(tmp_path, "collector", profile=profile) as up:
        for event in events:
            assert up.post("/v1/track", event).status == 200
        places = [(line["partition"], line["key"], line["value"]["messageId"]) for line in up.read()]
    assert sorted(places) == sorted((EXPECTED[e["anonymousId"]], e["anonymousId"], e["messageId"]) for e in events)


# What Kafka's Java client makes of these keys over 4 partitions, by its murmur2.
EXPECTED = {f"visitor-{n}": int(part) for n, part in enumerate("0233110202301312323312002232311223102")}


@pytest.mark.soak
@pytest.mark.service("kafka")
@pytest.mark.parametrize("profile", ["cluster"], indirect=True)
def test_a_broker_killed_under_load_loses_nothing_acknowledged(tmp_path, profile, kafka):
    async def load() -> set[str]:
        with running(tmp_path, "collector", profile=profile) as up:
            async with Proxy(up.address[1]) as proxy, Clients(proxy.port, 120) as clients:
                await until(lambda: clients.sent > 500, what="the load goes on")
                await until(lambda: proxy.in_flight >= 100, what="100 requests in flight")
                kafka.kill()
                await until(lambda: proxy.statuses[503] + proxy.statuses[429] > 50, what="pressure is told")
                kafka.start()  # in this thread: the broker dies with the one that starts it
                sent = clients.sent
                await until(lambda: clients.sent > sent + 300, seconds=40, what="service resumes by itself")
            assert set(proxy.statuses) <= {200, 429, 503}, dict(proxy.statuses)
            return proxy.acknowledged

    acknowledged = asyncio.run(load())
    check(_read_all(tmp_path, profile), acknowledged)


def _read_all(folder: Path, profile: str) -> list[Message]:
    with open_project(folder, profile=profile) as project:
        log = project.topic("clicks")
        ends = {p: bound.end for p, bound in enumerate(log.bounds())}
        offsets = {p: bound.start for p, bound in enumerate(log.bounds())}
        messages: list[Message] = []
        while any(offset < ends[p] for p, offset in offsets.items()):
            found = wait_until(lambda: log.read(offsets, wait_seconds=1.0))
            messages += found
            offsets.update({m.partition: m.offset + 1 for m in found})
        return messages
