"""@segment/analytics-node, unmodified, through a running collector."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from clients.arrivals import check_places
from clients.door import CUT, RETRY_AFTER_SECONDS

pytestmark = pytest.mark.service("node")

_SCRIPT = Path(__file__).with_name("send.cjs")

CALLS = [
    ["identify", {"userId": "node@shop", "anonymousId": "node-ann", "traits": {"plan": "gold", "name": "Zoë 😀"}}],
    ["track", {"anonymousId": "node-ann", "event": "Product Clicked", "properties": {"product_id": "1", "price": 9.5}}],
    ["page", {"anonymousId": "node-bob", "name": "Home", "category": "Shop", "context": {"locale": "de-CH"}}],
    ["screen", {"anonymousId": "node-bob", "name": "Checkout", "timestamp": "2026-01-02T00:00:00.000Z"}],
    ["group", {"userId": "node@shop", "groupId": "acme", "traits": {"seats": 3}}],
    ["alias", {"userId": "node@shop", "previousId": "node-ann"}],
]


def tracks(visitor, count):
    return [["track", {"anonymousId": visitor, "event": "Impression", "properties": {"n": n}}] for n in range(count)]


def send(node_modules, door, calls, *, wait=False, **settings):
    """Returns the events that the SDK reports as delivered, by messageId."""
    settings = {"writeKey": "dev", "host": door.url, **settings}
    command = ["node", str(_SCRIPT), str(node_modules), json.dumps(settings), json.dumps(calls), *["wait"] * wait]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["error"] for line in lines] == [None] * len(calls)
    return {line["event"]["messageId"]: line["event"] for line in lines}


def test_every_call_arrives_as_the_sdk_made_it(node_modules, door, clicks):
    sent = send(node_modules, door, CALLS + tracks("node-eve", 50))
    found = clicks.now()
    assert {click.value["messageId"]: click.value for click in found} == sent
    assert len(found) == len(sent) == 56
    check_places(found)
    assert {click.door.source for click in found} == {"http/batch"}
    assert {click.value["context"]["library"]["name"] for click in found} == {"@segment/analytics-node"}
    # No SDK of the three says anything for a whole batch: each event carries its own context.
    assert {frozenset(post.sent) for post in door.posts} == {frozenset({"batch", "sentAt", "writeKey"})}


def test_full_batches_go_at_once_and_the_rest_after_the_interval(node_modules, door, clicks):
    sent = send(node_modules, door, tracks("node-batches", 20), wait=True, flushAt=7, flushInterval=800)
    assert {click.value["messageId"]: click.value for click in clicks.now()} == sent
    posts = sorted(door.posts, key=lambda post: len(post.sent["batch"]))
    assert [len(post.sent["batch"]) for post in posts] == [6, 7, 7]
    assert posts[0].at == max(post.at for post in posts)


def test_what_is_refused_with_429_and_503_is_sent_again(node_modules, door, clicks):
    door.answer_next(429, 503)
    sent = send(node_modules, door, tracks("node-refused", 10), flushAt=10)
    found = clicks.now()
    assert {click.value["messageId"]: click.value for click in found} == sent
    assert len(found) == len(sent)
    assert [post.status for post in door.posts] == [429, 503, 200]
    assert [post.headers.get("x-retry-count") for post in door.posts] == [None, "1", "2"]
    # This SDK reads Retry-After with a 429 only; after a 503 it waits by its own rule.
    assert door.posts[1].at - door.posts[0].at >= RETRY_AFTER_SECONDS


def test_an_answer_that_never_arrives_makes_the_sdk_send_the_batch_twice(node_modules, door, clicks):
    door.answer_next(CUT)
    sent = send(node_modules, door, tracks("node-cut", 5), flushAt=5)
    assert Counter(click.value["messageId"] for click in clicks.now()) == dict.fromkeys(sent, 2)
    assert len({click.partition for click in clicks.now()}) == 1
    assert [post.status for post in door.posts] == [CUT, 200]
