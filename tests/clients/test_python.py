"""segment-analytics-python, unmodified, through a running collector."""

from __future__ import annotations

import json
import math
from collections import Counter
from datetime import UTC, datetime

import pytest
from segment.analytics import request as sdk
from segment.analytics.client import Client

from clients.arrivals import check_places
from clients.door import CUT, RETRY_AFTER_SECONDS

pytestmark = pytest.mark.slow


@pytest.fixture
def client(door, request):
    """The SDK as the how-to shows it; whatever it gives up is an error."""
    lost = []
    client = Client(
        "dev",
        host=door.url,
        upload_interval=0.1,
        # A collector that is gone must fail the test in seconds; ten retries take minutes.
        max_retries=4,
        on_error=lambda error, batch: lost.append((error, len(batch))),
        **getattr(request, "param", {}),
    )
    yield client
    client.shutdown()
    # The SDK keeps one session for the life of the process.
    sdk._session.close()
    assert lost == []


def queued(answer):
    """Returns the event that the SDK took, as it puts it on the wire."""
    taken, event = answer
    assert taken
    return json.loads(json.dumps(event, cls=sdk.DatetimeSerializer))


def by_id(events):
    return {event["messageId"]: event for event in events}


@pytest.mark.parametrize("client", [{"gzip": False}, {"gzip": True}], indirect=True, ids=["plain", "gzip"])
def test_every_call_arrives_as_the_sdk_made_it(client, door, clicks):
    context = {"ip": "198.51.100.7", "locale": "de-CH"}
    sent = [
        queued(client.identify("ann@shop", {"plan": "gold", "name": "Zoë 😀"}, anonymous_id="py-ann")),
        queued(client.track("ann@shop", "Product Clicked", {"product_id": "1", "price": 9.5}, anonymous_id="py-ann")),
        queued(client.page(category="Shop", name="Home", anonymous_id="py-bob", context=context)),
        queued(client.screen(name="Checkout", anonymous_id="py-bob", timestamp=datetime(2026, 1, 2, tzinfo=UTC))),
        queued(client.group("ann@shop", "acme", {"seats": 3})),
        queued(client.alias("py-ann", "ann@shop")),
    ]
    sent += [queued(client.track(event="Impression", properties={"n": n}, anonymous_id=f"py-{n}")) for n in range(250)]
    client.flush()
    found = clicks.now()
    assert by_id(click.value for click in found) == by_id(sent)
    assert len(found) == len(sent)
    check_places(found)
    assert {click.door.source for click in found} == {"http/batch"}
    assert {click.door.user_agent.partition("/")[0] for click in found} == {"analytics-python"}
    assert all(click.door.sent_at for click in found)
    assert {post.headers.get("content-encoding") for post in door.posts} == ({"gzip"} if client.gzip else {None})
    # No SDK of the three says anything for a whole batch: each event carries its own context.
    assert {click.value["context"]["library"]["name"] for click in found} == {"analytics-python"}
    assert {frozenset(post.sent) for post in door.posts} == {frozenset({"batch", "sentAt", "writeKey"})}


def test_a_batch_with_nan_arrives_with_null(client, clicks):
    client.track(event="Priced", properties={"price": math.nan}, anonymous_id="py-nan", message_id="py-nan-1")
    client.track(event="Priced", properties={"price": 3}, anonymous_id="py-nan", message_id="py-nan-2")
    client.flush()
    assert [click.value["properties"]["price"] for click in clicks.now()] == [None, 3]
    assert all(click.door.repaired for click in clicks.now())


def test_what_is_refused_with_429_and_503_is_sent_again_after_the_time_asked_for(client, door, clicks):
    door.answer_next(429, 503)
    sent = [queued(client.track(event="Refused", anonymous_id="py-refused")) for _ in range(20)]
    client.flush()
    assert by_id(click.value for click in clicks.now()) == by_id(sent)
    assert len(clicks.now()) == len(sent)
    first, second, *rest = door.posts
    assert [first.status, second.status] == [429, 503]
    assert {post.status for post in rest} == {200}
    assert second.at - first.at >= RETRY_AFTER_SECONDS
    assert rest[0].at - second.at >= RETRY_AFTER_SECONDS


def test_an_answer_that_never_arrives_makes_the_sdk_send_the_batch_twice(client, door, clicks):
    door.answer_next(CUT)
    sent = [queued(client.track(event="Acknowledged", anonymous_id="py-cut")) for _ in range(5)]
    client.flush()
    # At least once at the door: the same messageId stands in the topic again, as the same bytes in the same partition.
    ids = Counter(click.value["messageId"] for click in clicks.now())
    assert set(ids) == set(by_id(sent))
    resent = door.posts[0].sent["batch"]
    assert resent
    assert ids == Counter(event["messageId"] for event in sent) + Counter(event["messageId"] for event in resent)
    assert len({click.partition for click in clicks.now()}) == 1
    assert [event["messageId"] for event in door.posts[1].sent["batch"]] == [event["messageId"] for event in resent]
